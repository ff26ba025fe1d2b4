"""A source is taken down: on the Hub, in every store, in the catalogue, and in what people look at."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catalog import record
from catalog.errors import Refused
from catalog.facts import Reason
from catalog.hub import Hub
from catalog.queries import all_settings
from catalog.schema import Catalogue
from catalog.sidecars import keep_tombstone
from catalog.snapshot import write_snapshot
from catalog.takedown import Reach, reach_of, withdraw
from flows.plan import base_of
from flows.results import publish_public_part, settings_of, write_pages
from flows.settings import Settings
from flows.shared_store import mirror_of
from ziplora.recipe import Drawing, Recipe, Single
from ziplora.store import Store


@dataclass(frozen=True)
class TakenDown:
    """What a takedown removed, or would remove."""

    sources: tuple[str, ...]
    """Repositories, and files by their sha256."""
    merges: tuple[str, ...]
    publications: tuple[str, ...]
    """The repositories of the Hub that held these merges."""
    files: tuple[Path, ...]
    """Files and folders of the store that are there."""
    refused: tuple[tuple[str, Reason], ...] = ()
    """Repositories that have to be looked at, and why."""


def take_down(catalogue: Catalogue, source: str, why: str, *, dry_run: bool) -> TakenDown:
    """Remove all that was made of a source, and see to it that no later night takes it up; or say what would go.

    Whoever is stopped on the way does it again: each step looks for what is left.
    """
    settings = settings_of(catalogue)
    reach = reach_of(catalogue, source, why)
    places = sorted(set(_places(reach, settings, catalogue)))
    found = TakenDown(
        tuple(one.name for one in reach.tombstones),
        tuple(reach.recipes),
        tuple(one.repository for one in reach.publications),
        tuple(place for place in places if place.exists()),
    )
    if dry_run:
        return found
    for tombstone in reach.tombstones:
        keep_tombstone(Path(settings.store_folder), tombstone)
    record.record_tombstones(catalogue, reach.tombstones, reach.adapters)  # first: a night may run at this moment
    refused = _withdraw(catalogue, reach)
    _renew_dataset(catalogue, settings)
    mirror = mirror_of(settings)
    if mirror is not None:
        mirror.remove(*places)
    for place in found.files:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    write_snapshot(catalogue, settings.snapshot)
    write_pages(catalogue, settings, base_of(settings))
    return TakenDown(found.sources, found.merges, found.publications, found.files, refused)


def _withdraw(catalogue: Catalogue, reach: Reach) -> tuple[tuple[str, Reason], ...]:
    """Remove what is on the Hub; gives back what could not be, and why."""
    refused = []
    for publication in reach.publications:
        try:
            withdraw(Hub(), catalogue, publication)
        except Refused as error:
            refused.append((publication.repository, error.reason))
    return tuple(refused)


def _renew_dataset(catalogue: Catalogue, settings: Settings) -> None:
    """Send the data set without what was taken down, and let the Hub forget what it held before; if there is one."""
    said, hub = settings.publish, Hub()
    if not (said.dataset and said.namespace) or hub.head(f"{said.namespace}/{said.dataset}", "dataset") is None:
        return
    sent = publish_public_part(catalogue, said.dataset, namespace=None, dry_run=False)
    hub.forget_history(sent.repository, "dataset")


def _places(reach: Reach, settings: Settings, catalogue: Catalogue) -> Iterator[Path]:
    """Everything in a store that was made of these adapters."""
    store = Store(settings.store_folder)
    recipes = [Recipe.from_json(json.dumps(recipe)) for recipe in reach.recipes.values()]
    drawings = {_drawing(Settings.model_validate(said)) for said in all_settings(catalogue)}
    bases = {(recipe.base_model, recipe.base_revision) for recipe in recipes}
    for sha256 in reach.adapters:
        yield store.adapter(sha256).parent
        for base in bases:
            yield from (store.single(Single(sha256, *base, drawing).single_id) for drawing in drawings)
    for merge_id, recipe in zip(reach.recipes, recipes, strict=True):
        yield store.merge(merge_id)
        for calibration in (recipe.subject_calibration, recipe.style_calibration):
            if calibration is not None and calibration.adapter_sha256 in reach.adapters:
                tensors = store.calibration(calibration.calibration_id)
                yield from (tensors, tensors.with_suffix(".json"))


def _drawing(settings: Settings) -> Drawing:
    previews = settings.previews
    return Drawing(previews.steps, previews.guidance, previews.side)
