"""Which merges are still to do: adapters and finished merges in, recipes and skipped pairs out; nothing is touched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from catalog.facts import Reason, Role
from catalog.licence import combine
from catalog.names import short
from flows.settings import Settings
from ziplora.methods import recipe_for
from ziplora.recipe import Calibration, JointCalibration, MergeIds, Recipe, References, folder_revision
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


class Recipes:
    """A night's recipe for every pair and each of its methods: what all pairs share is worked out once.

    A plan may be of a million pairs. It knows them by their merge ids, and has recipes made of the few that it needs.
    """

    def __init__(self, settings: Settings, base: Base) -> None:
        self._settings, self._base = settings, base
        self._calibrations: dict[str, Calibration] = {}
        self._styles: dict[str, Mapping[str, str]] = {}
        self._subject: Input | None = None
        self._merge_ids: list[MergeIds] = []
        """Of this subject, by method."""

    def of(self, subject: Input, style: Input, number: int) -> Recipe:
        """That of the method with this number in the settings."""
        chosen = self._settings.methods[number]
        sides = self._calibration(subject), self._calibration(style)
        return recipe_for(chosen.method, chosen.parameters, *sides, self._joint(subject, style))

    def merge_ids(self, subject: Input, style: Input) -> list[str]:
        """Those of all methods; quick if it was the same subject before."""
        numbers = range(len(self._settings.methods))
        if self._subject is not subject:
            texts = (subject.slot, self._base.model, *self._settings.calibration.joint_prompts)
            self._subject, self._merge_ids = subject, []
            if not any(MergeIds.MARK in text for text in texts):
                anybody = replace(style, slot=MergeIds.PLACE)
                self._merge_ids = [MergeIds(self.of(subject, anybody, number)) for number in numbers]
        if not self._merge_ids or not style.slot or style.slot != style.slot.strip():
            return [self.of(subject, style, number).merge_id for number in numbers]
        if style.sha256 not in self._styles:
            self._styles[style.sha256] = MergeIds.of_style(self._calibration(style), style.slot)
        said = self._styles[style.sha256]
        return [ids.of(said) for ids in self._merge_ids]

    def _calibration(self, adapter: Input) -> Calibration:
        if adapter.sha256 not in self._calibrations:
            self._calibrations[adapter.sha256] = Calibration(
                adapter_sha256=adapter.sha256,
                base_model=self._base.model,
                base_revision=self._base.revision,
                prompt=adapter.prompt,
                references_sha256=adapter.references.sha256 if adapter.references else None,
                samples=self._settings.calibration.samples,
                seed=self._settings.calibration.seed,
                side=self._settings.previews.side,
                guidance=self._settings.calibration.guidance,
            )
        return self._calibrations[adapter.sha256]

    def _joint(self, subject: Input, style: Input) -> JointCalibration:
        return JointCalibration(
            prompts=filled(self._settings.calibration.joint_prompts, subject.slot, style.slot),
            seed=self._settings.calibration.seed,
            side=self._settings.previews.side,
            guidance=self._settings.calibration.guidance,
        )


_Partners = tuple[tuple[str, ...], tuple[str, ...]]
"""Patterns of the styles that go with a subject, and of those that do not."""


class Wishes:
    """Which merges a night wants of these adapters; `requested` are pairs of sha256, whatever the patterns say."""

    def __init__(
        self, settings: Settings, base: Base, adapters: Sequence[Input], requested: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.subjects = {one.sha256: one for one in adapters if one.role == "subject"}
        self.styles = {one.sha256: one for one in adapters if one.role == "style"}
        self.turn = {pair: number for number, pair in enumerate(requested)}
        self.recipes = Recipes(settings, base)
        self._settings = settings
        self._asked = {subject for subject, _ in requested}
        self._named: dict[_Partners, list[Input]] = {}
        """The styles by what the patterns say of them, which is the same for most subjects."""

    def styles_for(self, subject: Input) -> Sequence[Input]:
        """The styles that are wanted for a subject."""
        partners = self._partners_of(subject)
        if partners not in self._named:
            self._named[partners] = [style for style in self.styles.values() if _is_partner(style.name, *partners)]
        if subject.sha256 not in self._asked:
            return self._named[partners]
        return [style for style in self.styles.values() if self._is_wanted(subject, style, partners)]

    def wants(self, subject: Input, style: Input) -> bool:
        """Whether this pair is one of them."""
        return self._is_wanted(subject, style, self._partners_of(subject))

    def _is_wanted(self, subject: Input, style: Input, partners: _Partners) -> bool:
        return (subject.sha256, style.sha256) in self.turn or _is_partner(style.name, *partners)

    def _partners_of(self, subject: Input) -> _Partners:
        pairs = self._settings.pairs
        return _partners(pairs.include, subject.name), _partners(pairs.exclude, subject.name)

    def licence(self, subject: Input, style: Input) -> str | Reason | None:
        """That of a merge, or why there is none to be."""
        if subject.variant != style.variant and (subject.sha256, style.sha256) not in self.turn:
            return _across_variants(subject.variant, style.variant)
        return _combined(subject.licence, style.licence, self._settings.merge_unknown_licences)

    def job_of(self, subject_sha256: str, style_sha256: str, merge_id: str) -> Job | None:
        """A merge of two adapters, if it is wanted."""
        subject, style = self.subjects.get(subject_sha256), self.styles.get(style_sha256)
        if subject is None or style is None or not self.wants(subject, style):
            return None
        licence, merge_ids = self.licence(subject, style), self.recipes.merge_ids(subject, style)
        if isinstance(licence, Reason) or merge_id not in merge_ids:
            return None
        return Job(self.recipes.of(subject, style, merge_ids.index(merge_id)), subject, style, licence)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A merge that is not done, and why; there may be very many, so its recipe is made when somebody asks."""

    recipes: Recipes
    subject: Input
    style: Input
    number: int
    """Of its method in the settings."""
    reason: Reason

    @property
    def job(self) -> Job:
        """The merge, whose licence nobody can name."""
        return Job(self.recipes.of(self.subject, self.style, self.number), self.subject, self.style, None)

    @property
    def merge_id(self) -> str:
        """The same in short."""
        return self.recipes.merge_ids(self.subject, self.style)[self.number]


@dataclass(frozen=True)
class Plan:
    """What a night would do."""

    jobs: tuple[Job, ...]
    """Asked-for pairs first, then subject by subject, so that a batch uses again what it has at hand."""
    skipped: tuple[Skipped, ...]
    finished: int
    """Merges that are wanted and done."""
    blocked: int
    """Merges that failed three times and wait for somebody to ask for them."""
    postponed: int
    """Merges beyond the night's limit."""
    answered: tuple[tuple[str, str], ...]
    """Asked-for pairs all of whose merges are done."""
    wishes: Wishes
    """What it was made from: the jobs of merges that are done too."""


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


@lru_cache(maxsize=100_000)
def _is_named(name: str, pattern: str) -> bool:
    """Whether a pattern means a repository: by full name, or by its last part."""
    return any(fnmatchcase(said, pattern) for said in (name, short(name), name.rsplit("/", 1)[-1]))


def _is_partner(style: str, included: Sequence[str], excluded: Sequence[str]) -> bool:
    return any(_is_named(style, one) for one in included) and not any(_is_named(style, one) for one in excluded)


def _partners(pairs: Sequence[str], subject: str) -> tuple[str, ...]:
    """Of patterns of pairs, those of the styles that go with a subject."""
    return tuple(style for left, style in (pattern.split(" x ") for pattern in pairs) if _is_named(subject, left))


@lru_cache(maxsize=100_000)
def _combined(subject: str | None, style: str | None, allow_unknown: bool) -> str | Reason | None:
    return combine(subject, style, allow_unknown=allow_unknown)


@lru_cache
def _across_variants(subject: str, style: str) -> Reason:
    told = " and ".join(
        f"the {role} on {variant or 'plain'}" for role, variant in (("subject", subject), ("style", style))
    )
    fact = f"They were trained on different variants of the base model: {told}."
    return Reason("VARIANT_MISMATCH", fact, "ask for the pair if it is wanted all the same: ziplora request.")


def nothing_known(subject: str) -> Mapping[str, str]:
    """What a new catalogue says of a subject's merges."""
    return {}


def plan(
    settings: Settings,
    base: Base,
    adapters: Sequence[Input],
    known: Callable[[str], Mapping[str, str]],
    requested: Sequence[tuple[str, str]],
) -> Plan:
    """The night's merges.

    `known` tells the words for a subject's merges by their ids, and is asked subject by subject, since a catalogue may
    hold more than memory does. `requested` are pairs of sha256 that go first, whatever the patterns say.
    """
    wishes = Wishes(settings, base, adapters, requested)
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    answered: list[tuple[str, str]] = []
    done = held = to_do = 0
    limit = settings.limits.pairs * len(settings.methods)
    for subject in wishes.subjects.values():
        words = known(subject.sha256)
        for style in wishes.styles_for(subject):
            asked = (subject.sha256, style.sha256) in wishes.turn
            licence, merge_ids = wishes.licence(subject, style), wishes.recipes.merge_ids(subject, style)
            if asked and all(words.get(merge_id) == "done" for merge_id in merge_ids):
                answered.append((subject.sha256, style.sha256))
            for number, merge_id in enumerate(merge_ids):
                word = words.get(merge_id)
                if isinstance(licence, Reason):
                    skipped.append(Skipped(wishes.recipes, subject, style, number, licence))
                elif word == "done":
                    done += 1
                elif word == "blocked":
                    held += 1
                else:
                    to_do += 1
                    if asked or to_do <= limit:  # the others cannot come before the limit
                        jobs.append(Job(wishes.recipes.of(subject, style, number), subject, style, licence))
    jobs.sort(key=lambda job: wishes.turn.get((job.subject.sha256, job.style.sha256), len(wishes.turn)))
    return Plan(tuple(jobs[:limit]), tuple(skipped), done, held, max(0, to_do - limit), tuple(answered), wishes)
