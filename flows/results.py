"""What is made of finished merges: adapter files, pages, publications."""

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catalog.dataset import publish_dataset
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason, Role
from catalog.gallery import write_gallery
from catalog.hub import Hub
from catalog.licence import combine
from catalog.names import short
from catalog.publish import Policy, Published, publish
from catalog.queries import (
    latest_settings,
    pictures_seen,
    recipe_of,
    usable_adapters,
)
from catalog.rankings import pick, ranking_scorers
from catalog.release import Parent, Release, ReleasePicture
from catalog.schema import Catalogue
from catalog.story import score_01, scores_by_merge
from catalog.verify import Verdict, Verifier, licences_changed, publications
from flows.plan import Base, Input, input_of
from flows.settings import Problem, Settings
from flows.shared_store import adapter_files, merge_files, mirror_of
from flows.worker import fetch
from ziplora.export import materialise
from ziplora.failure import Failure
from ziplora.merge import finished
from ziplora.recipe import Drawing, Export, Exported, Recipe, Single
from ziplora.store import Store


def settings_of(catalogue: Catalogue) -> Settings:
    """The settings of the last night: where its store and its gallery are, and what it may publish."""
    return Settings.model_validate(latest_settings(catalogue))


def inputs_of(catalogue: Catalogue, settings: Settings, role: Role) -> dict[str, Input]:
    """The usable adapters of a role by sha256, at the place where each was seen last."""
    return {
        adapter.sha256: input_of(
            settings,
            role,
            adapter.sha256,
            adapter.licence,
            adapter.facts,
            (adapter.aliases[0].repository, adapter.aliases[0].revision, adapter.aliases[0].file_name),
        )
        for adapter in usable_adapters(catalogue, role)
    }


@dataclass(frozen=True)
class Merged:
    """A finished merge with its parents."""

    recipe: Recipe
    subject: Input
    style: Input


def merged(catalogue: Catalogue, settings: Settings, merge_id: str) -> Merged:
    """A finished merge, or a Problem when one of its parents is not usable any more; its files come to this disk."""
    recipe = Recipe.from_json(json.dumps(recipe_of(catalogue, merge_id)))
    store, mirror = Store(settings.store_folder), mirror_of(settings)
    parents = []
    for role, sha256 in (("subject", recipe.subject_sha256), ("style", recipe.style_sha256)):
        known = inputs_of(catalogue, settings, role)  # type: ignore[arg-type]  # the two words are the two roles
        if mirror is not None and sha256 in known:
            mirror.fetch(*adapter_files(known[sha256], store))
        if sha256 in known and known[sha256].file == store.adapter(sha256) and not known[sha256].file.is_file():
            fetch(known[sha256], Hub())
        if sha256 not in known or not known[sha256].file.is_file():
            fact = f"The {role} {sha256[:12]} of merge {merge_id[:12]} is not on this disk, or not usable any more."
            raise Problem("PARENT_MISSING", fact, f"ziplora why {sha256[:12]} tells what became of it.")
        parents.append(known[sha256])
    if mirror is not None:
        mirror.fetch(*merge_files(merge_id, store))
    return Merged(recipe, *parents)


def export_merge(catalogue: Catalogue, merge_id: str, out: Path, export: Export) -> Exported:
    """Write the adapter file of a finished merge."""
    settings = settings_of(catalogue)
    found = merged(catalogue, settings, merge_id)
    return materialise(found.recipe, found.subject.file, found.style.file, Store(settings.store_folder), out, export)


def write_pages(catalogue: Catalogue, settings: Settings, base: Base) -> Path:
    """Write the gallery; gives back its first page."""
    store, previews = Store(settings.store_folder), settings.previews
    drawing = Drawing(previews.steps, previews.guidance, previews.side)

    def alone(sha256: str | None) -> Path:
        return store.single(Single(sha256, base.model, base.revision, drawing).single_id)

    roles: tuple[Role, Role] = ("subject", "style")
    singles = {adapter.sha256: alone(adapter.sha256) for role in roles for adapter in usable_adapters(catalogue, role)}
    _fetch_pictures(catalogue, settings, singles.values(), alone(None))
    return write_gallery(catalogue, store.root, settings.gallery, singles=singles, base=alone(None))


def _fetch_pictures(catalogue: Catalogue, settings: Settings, singles: Iterable[Path], base: Path) -> None:
    """Bring what a gallery shows to this disk, where machines share a store."""
    store, mirror = Store(settings.store_folder), mirror_of(settings)
    if mirror is None:
        return
    seen = pictures_seen(catalogue)
    for merge_id, pictures in seen.items():
        mirror.fetch_pictures(store.previews(merge_id), pictures)
    mirror.fetch_pictures(base, set().union(*seen.values()))
    for single in singles:
        mirror.fetch_pictures(single)


@contextmanager
def released(catalogue: Catalogue, settings: Settings, merge_id: str) -> Iterator[Release]:
    """A merge with its files ready for the Hub; they are gone afterwards."""
    found, store = merged(catalogue, settings, merge_id), Store(settings.store_folder)
    licence = combine(found.subject.licence, found.style.licence, allow_unknown=True)
    result = finished(store, merge_id)
    if result is None:
        fact = f"The files of merge {merge_id[:12]} are not in {store.root}, or damaged."
        raise Problem("MERGE_DAMAGED", fact, "run the night again.")
    folder, mirror = store.previews(merge_id), mirror_of(settings)
    if mirror is not None:
        mirror.fetch_pictures(folder)
    if not (folder / "previews.json").is_file():
        fact = f"The pictures of merge {merge_id[:12]} were let go, and are part of what is published."
        raise Problem("PICTURES_GONE", fact, f"ziplora show {merge_id[:12]} tells its scores.")
    record = json.loads((folder / "previews.json").read_text(encoding="utf-8"))
    scores = scores_by_merge(catalogue, merge_id).get(merge_id, ())
    with tempfile.TemporaryDirectory(prefix="ziplora-release-") as name:
        files = {dialect: Path(name) / f"{dialect}.safetensors" for dialect in ("diffusers", "kohya")}
        for dialect, path in files.items():
            export = Export(dialect=dialect)  # type: ignore[arg-type]  # both words are dialects of exports
            materialise(found.recipe, found.subject.file, found.style.file, store, path, export)
        yield Release(
            merge_id=merge_id,
            subject=_parent(found.subject),
            style=_parent(found.style),
            base_model=found.recipe.base_model,
            base_revision=found.recipe.base_revision,
            method=found.recipe.method,
            recipe=json.loads(found.recipe.to_json()),
            licence=licence if isinstance(licence, str) else None,
            prompt=f"{found.subject.slot} {found.style.slot}",
            score_01=score_01(scores),
            scores=scores,
            pictures=tuple(
                ReleasePicture(folder / one["file"], one["prompt"], one["seed"])
                for one in record["pictures"]
                if (folder / one["file"]).is_file()
            ),
            weights=files["diffusers"],
            kohya=files["kohya"],
            coefficients=store.merge(merge_id) / "coefficients.safetensors",
            builder=result.versions,
        )


def _parent(adapter: Input) -> Parent:
    return Parent(
        adapter.role,
        short(adapter.name),
        adapter.name,
        adapter.revision,
        adapter.file_name,
        adapter.sha256,
        adapter.licence,
        adapter.prompt,
    )


def publish_merge(catalogue: Catalogue, merge_id: str, *, namespace: str | None, dry_run: bool) -> Published:
    """Send a merge to the Hub, or say what would be sent."""
    settings = settings_of(catalogue)
    said = settings.publish
    policy = Policy(_owner(settings, namespace), said.private, said.least_score, said.collection)
    with released(catalogue, settings, merge_id) as release:
        return publish(release, policy, Hub(), catalogue, dry_run=dry_run)


def publish_public_part(catalogue: Catalogue, name: str, *, namespace: str | None, dry_run: bool) -> Published:
    """Send the public part of the catalogue to the Hub as a data set, or say what would be sent."""
    settings = settings_of(catalogue)
    said, repository = settings.publish, f"{_owner(settings, namespace)}/{name}"
    return publish_dataset(
        catalogue, Hub(), repository, private=said.private, least_score=said.least_score, dry_run=dry_run
    )


def _owner(settings: Settings, namespace: str | None) -> str:
    owner = namespace or settings.publish.namespace
    if owner is None:
        raise Problem("NO_NAMESPACE", "Neither the settings nor --namespace say whose it would be.", "name a user.")
    return owner


def publishable(catalogue: Catalogue, settings: Settings) -> list[str]:
    """Merges that score enough to leave this machine and have not left it yet, the best first."""
    scorers, least = ranking_scorers(catalogue), settings.publish.least_score
    picked = pick(catalogue, scorers, limit=1000, least_score=least, publishable=True)
    return [one.merge.merge_id for one in picked]


def publish_all(catalogue: Catalogue, settings: Settings) -> tuple[list[Published], list[tuple[str, Reason]]]:
    """Send what may leave this machine, one commit each; one that is refused does not stop the others.

    The data set, if there is to be one, goes last and is not counted among the merges.
    """
    sent: list[Published] = []
    refused: list[tuple[str, Reason]] = []
    refused += licences_changed(catalogue)
    try:
        for merge_id in publishable(catalogue, settings):
            with _noted(merge_id, refused):
                sent.append(publish_merge(catalogue, merge_id, namespace=None, dry_run=False))
            full = bool(refused) and refused[-1][1].code == "REPOSITORY_FULL"
            if full and "{style}" not in (settings.publish.collection or ""):
                break  # all others go to the same one
        if settings.publish.dataset is not None:
            with _noted(settings.publish.dataset, refused):
                publish_public_part(catalogue, settings.publish.dataset, namespace=None, dry_run=False)
    except CatalogueError as error:
        # The Hub does not answer, or does not know the token: the next merge would fare no better.
        fact = str(error).partition(": ")[2]
        refused.append(("the Hub", Reason(error.code, fact, "mend it; the next night sends what is left.")))
    return sent, refused


@contextmanager
def _noted(item: str, refused: list[tuple[str, Reason]]) -> Iterator[None]:
    """Why this item alone is not sent."""
    try:
        yield
    except Refused as error:
        refused.append((item, error.reason))
    except (Failure, Problem) as error:
        refused.append((item, Reason(error.code, error.fact, error.next_step)))


def verify_published(catalogue: Catalogue, merge_ids: Collection[str]) -> list[Verdict]:
    """Look at what is on the Hub: at these merges, or at all that were published."""
    verifier = Verifier(Hub(), settings_of(catalogue).publish.private)
    return list(map(verifier.verdict, publications(catalogue, merge_ids)))
