"""Which merges are still to do: adapters and finished merges in, recipes and skipped pairs out; nothing is touched."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from catalog.facts import Reason, Role
from catalog.licence import combine
from catalog.names import short
from flows.settings import Settings
from ziplora.methods import recipe_for
from ziplora.recipe import Calibration, JointCalibration, Recipe, References, folder_revision
from ziplora.store import Store


@dataclass(frozen=True)
class Input:
    """A usable adapter, as far as a plan has to know it."""

    sha256: str
    role: Role
    name: str
    """The repository: a label for people and for the patterns of the settings."""
    revision: str
    file_name: str
    licence: str | None
    prompt: str
    """Its trigger prompt."""
    slot: str
    """What stands for it in the prompts of a pair."""
    file: Path
    """Where its weights are, or will be once they are fetched."""
    samples: tuple[Path, ...]
    variant: str = ""
    """Of the base model it was trained on."""

    @property
    def references(self) -> References | None:
        """The pictures that its repository has on this disk."""
        return References(self.samples, "samples") if self.samples else None


@dataclass(frozen=True)
class Base:
    """The base model's name in recipes: a Hub id with its commit, or a folder's name with the hash of its files."""

    model: str
    revision: str


@dataclass(frozen=True)
class Job:
    """One merge to do."""

    recipe: Recipe
    subject: Input
    style: Input
    licence: str | None

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{short(self.subject.name)} × {short(self.style.name)} · {self.recipe.method}"

    def prompts(self, templates: Sequence[str]) -> tuple[str, ...]:
        """The settings' prompts with this pair in them."""
        return filled(templates, self.subject.slot, self.style.slot)

    def subject_prompts(self, templates: Sequence[str]) -> tuple[str, ...]:
        """The same without the style: what the subject alone is drawn of, in the merge's own surroundings."""
        own = [template for template in templates if "{subject}" in template]
        prompts = filled(own, self.subject.slot, "")
        return tuple(" ".join(prompt.split()) for prompt in prompts) or (self.subject.prompt,)


@dataclass(frozen=True)
class Skipped:
    """A merge that is not done, and why."""

    job: Job
    reason: Reason


@dataclass(frozen=True)
class Plan:
    """What a night would do."""

    jobs: tuple[Job, ...]
    """Asked-for pairs first, then subject by subject, so that a batch uses again what it has at hand."""
    skipped: tuple[Skipped, ...]
    finished: tuple[Job, ...]
    """Merges that are wanted and done."""
    blocked: int
    """Merges that failed three times and wait for somebody to ask for them."""
    postponed: int
    """Merges beyond the night's limit."""
    answered: tuple[tuple[str, str], ...]
    """Asked-for pairs all of whose merges are done."""


def base_of(settings: Settings) -> Base:
    """The base model as recipes name it: where a folder lies is no part of it."""
    return base_named(settings.base_model.id, settings.base_model.revision)


def base_named(model: str, revision: str | None = None) -> Base:
    """The same of a folder, or of an id of the Hub at a commit."""
    folder = Path(model)
    if folder.is_dir():
        return Base(folder.name, folder_revision(folder))
    return Base(model, revision or "main")


def input_of(
    settings: Settings,
    role: Role,
    sha256: str,
    licence: str | None,
    known: Mapping[str, Any],
    place: tuple[str, str, str],
) -> Input:
    """A usable adapter from what a scan wrote down: its facts, and where it is (repository, revision, file)."""
    return Input(
        sha256=sha256,
        role=role,
        name=place[0],
        revision=place[1],
        file_name=place[2],
        licence=licence,
        prompt=known["prompt"],
        slot=known["slot"] or slot_of(role, known["prompt"]),
        file=Path(known["file"]) if known["file"] else Store(settings.store_folder).adapter(sha256),
        samples=tuple(Path(path) for path in known["samples"]),
        variant=known.get("variant", ""),
    )


def slot_of(role: Role, prompt: str) -> str:
    """What stands for an adapter in the prompts of a pair, made from its trigger prompt.

    A subject is called by the whole of it; a style by its end, from the last " in " on ("flowers in szn style"), since
    what comes before is what its pictures showed.
    """
    before, separator, after = prompt.rpartition(" in ")
    return f"in {after}" if role == "style" and separator and before else prompt


def filled(templates: Sequence[str], subject: str, style: str) -> tuple[str, ...]:
    """Templates with what stands for subject and style in them."""
    return tuple(template.format(subject=subject, style=style).strip() for template in templates)


def is_wanted(settings: Settings, subject: str, style: str) -> bool:
    """Whether the settings' patterns ask for a pair of repositories, by full name or by its last part."""

    def matches(pattern: str) -> bool:
        left, right = pattern.split(" x ")
        return any(fnmatchcase(name, left) for name in (subject, short(subject), subject.rsplit("/", 1)[-1])) and any(
            fnmatchcase(name, right) for name in (style, short(style), style.rsplit("/", 1)[-1])
        )

    return any(map(matches, settings.pairs.include)) and not any(map(matches, settings.pairs.exclude))


def _calibration(settings: Settings, base: Base, adapter: Input) -> Calibration:
    return Calibration(
        adapter_sha256=adapter.sha256,
        base_model=base.model,
        base_revision=base.revision,
        prompt=adapter.prompt,
        references_sha256=adapter.references.sha256 if adapter.references else None,
        samples=settings.calibration.samples,
        seed=settings.calibration.seed,
        side=settings.previews.side,
        guidance=settings.calibration.guidance,
    )


def _joint(settings: Settings, subject: Input, style: Input) -> JointCalibration:
    return JointCalibration(
        prompts=filled(settings.calibration.joint_prompts, subject.slot, style.slot),
        seed=settings.calibration.seed,
        side=settings.previews.side,
        guidance=settings.calibration.guidance,
    )


def plan(
    settings: Settings,
    base: Base,
    adapters: Sequence[Input],
    finished: Collection[str],
    blocked: Collection[str],
    requested: Sequence[tuple[str, str]],
) -> Plan:
    """The night's merges; `requested` are pairs of sha256 that go first, whatever the patterns say."""
    subjects = [adapter for adapter in adapters if adapter.role == "subject"]
    styles = [adapter for adapter in adapters if adapter.role == "style"]
    turn = {pair: number for number, pair in enumerate(requested)}
    calibrations: dict[str, Calibration] = {}
    jobs: list[Job] = []
    done: list[Job] = []
    skipped: list[Skipped] = []
    held = to_do = 0
    limit = settings.limits.pairs * len(settings.methods)
    answered: list[tuple[str, str]] = []
    for subject, style in ((subject, style) for subject in subjects for style in styles):
        pair = (subject.sha256, style.sha256)
        if pair not in turn and not is_wanted(settings, subject.name, style.name):
            continue
        licence = combine(subject.licence, style.licence, allow_unknown=settings.merge_unknown_licences)
        if pair not in turn and subject.variant != style.variant:
            licence = _across_variants(subject, style)
        recipes = _recipes(settings, base, subject, style, calibrations)
        if pair in turn and all(recipe.merge_id in finished for recipe in recipes):
            answered.append(pair)
        for recipe in recipes:
            if isinstance(licence, Reason):
                skipped.append(Skipped(Job(recipe, subject, style, None), licence))
            elif recipe.merge_id in finished:
                done.append(Job(recipe, subject, style, licence))
            elif recipe.merge_id in blocked:
                held += 1
            else:
                to_do += 1
                if pair in turn or to_do <= limit:  # the others cannot come before the limit
                    jobs.append(Job(recipe, subject, style, licence))
    jobs.sort(key=lambda job: turn.get((job.subject.sha256, job.style.sha256), len(turn)))
    postponed = max(0, to_do - limit)
    return Plan(tuple(jobs[:limit]), tuple(skipped), tuple(done), held, postponed, tuple(answered))


def _across_variants(subject: Input, style: Input) -> Reason:
    told = " and ".join(f"the {one.role} on {one.variant or 'plain'}" for one in (subject, style))
    fact = f"They were trained on different variants of the base model: {told}."
    return Reason("VARIANT_MISMATCH", fact, "ask for the pair if it is wanted all the same: ziplora request.")


def _recipes(
    settings: Settings, base: Base, subject: Input, style: Input, calibrations: dict[str, Calibration]
) -> list[Recipe]:
    """One recipe for each method; `calibrations` are those of adapters met before."""
    for adapter in (subject, style):
        if adapter.sha256 not in calibrations:
            calibrations[adapter.sha256] = _calibration(settings, base, adapter)
    sides = (calibrations[subject.sha256], calibrations[style.sha256])
    joint = _joint(settings, subject, style)
    return [recipe_for(chosen.method, chosen.parameters, *sides, joint) for chosen in settings.methods]
