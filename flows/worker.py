"""One warm worker: base model and encoders loaded once, then the stages of one pair after the other.

No Prefect here, so that a pair can be merged from anywhere; `tasks.py` shows these stages to people.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from shutil import disk_usage
from statistics import fmean
from threading import Lock

from catalog import facts, record
from catalog.candidate import Candidate, CardFacts
from catalog.errors import CatalogueError
from catalog.folder import sha256_of
from catalog.hub import Hub
from catalog.queries import result_of
from catalog.schema import Catalogue, open_catalogue
from catalog.sidecars import keep_merge
from flows.plan import Base, Input, Job
from flows.settings import Problem, Settings
from ziplora.adapter import CONFIG_NAME
from ziplora.backbone import Sdxl, device_named, load_backbone
from ziplora.failure import Failure
from ziplora.merge import merge, read_both
from ziplora.preview import preview_merge, preview_single
from ziplora.recipe import Drawing, MergeResult, PreviewRequest, PreviewResult, References, ScoreRow, Single
from ziplora.score import Evidence, Scorer, ScorerSpec, load_scorer, score_merge
from ziplora.store import Store

Progress = Callable[[int, int], None]

CRASHES = ("OUT_OF_MEMORY", "WORKER_DIED")
"""Failures that may be the process's and not the pair's: it is tried again in a fresh process of the same night."""


@dataclass(frozen=True)
class Pictures:
    """What one job's pictures are compared with, and the pictures themselves."""

    merge: PreviewResult
    base: PreviewResult
    subject: PreviewResult
    style: PreviewResult


@dataclass(frozen=True)
class Completed:
    """What came of a pair."""

    result: MergeResult
    pictures: Pictures
    positions: dict[str, float]
    """Mean position between floor and ceiling by metric."""


class Worker:
    """The stages of a pair on one device, for one night."""

    def __init__(self, settings: Settings, base: Base) -> None:
        self.settings, self.base = settings, base
        self.store = Store(settings.store_folder)
        self.at_hand: set[str] = set()
        """Adapters that are on this disk, whole, by sha256."""
        self._fetching = Lock()
        self.drawing = Drawing(settings.previews.steps, settings.previews.guidance, settings.previews.side)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue, opened when the first result is written."""
        return open_catalogue(self.settings.catalogue)

    @cached_property
    def backbone(self) -> Sdxl:
        """The base model, loaded when the first stage wants it."""
        chosen = self.settings.base_model
        return load_backbone(chosen.id, *device_named(self.settings.device), chosen.revision)

    @cached_property
    def hub(self) -> Hub:
        """The Hub, for adapters that are not on this disk yet."""
        return Hub()

    @cached_property
    def scorers(self) -> tuple[Scorer, ...]:
        """Text, style and subject scorers."""
        chosen = self.settings.scorers
        specs = (
            ScorerSpec("clip-t", *_named(chosen.text)),
            ScorerSpec("clip-i", *_named(chosen.style)),
            ScorerSpec("dino", *_named(chosen.subject)),
        )
        device, _ = device_named(self.settings.device)
        return tuple(load_scorer(spec, device) for spec in specs)

    def load(self) -> None:
        """Have base model and scorers in memory before a pair is begun: no pair is to blame when that goes wrong."""
        try:
            attrgetter("backbone", "scorers")(self)
        except Failure as error:
            raise Problem(error.code, error.fact, error.next_step, 3) from error

    def fetch_pair(self, job: Job, night_id: str) -> None:
        """Have both adapters on this disk; what this worker has seen to be whole is not read again."""
        with self._fetching:  # the next pair may want the same subject
            for adapter in (job.subject, job.style):
                if adapter.sha256 not in self.at_hand:
                    self.fetch(adapter, night_id)

    def read_ahead(self, job: Job, night_id: str) -> None:
        """Have both adapters here, so that their merge waits for neither Hub nor disk.

        On a CPU they are not read: a second thread of tensors makes each step of the merge beside it half as fast.
        """
        self.fetch_pair(job, night_id)
        if self.backbone.device.type != "cpu":
            read_both(job.recipe, job.subject.file, job.style.file)

    def fetch(self, adapter: Input, night_id: str) -> None:
        """Have an adapter on this disk, whole: a copy whose bytes have changed here is set aside, and brought again."""
        if adapter.file.is_file() and not self.is_sound(adapter):
            self._set_aside(adapter, night_id)
        if not adapter.file.is_file():
            self.bring(adapter)
        self.at_hand.add(adapter.sha256)

    def is_sound(self, adapter: Input) -> bool:
        """Whether a copy of ours holds what it is named by; a source's own file is for its merge to judge."""
        is_copy = adapter.file.is_relative_to(self.store.root)
        return not is_copy or sha256_of(adapter.file) == adapter.sha256

    def _set_aside(self, adapter: Input, night_id: str) -> None:
        quarantine = self.store.root / "quarantine"
        quarantine.mkdir(exist_ok=True)
        adapter.file.replace(quarantine / adapter.file.name)
        fact = f"The bytes of {adapter.file.name} have changed on this disk; it lies in {quarantine} now."
        reason = facts.Reason("OBJECT_CORRUPT", fact, "check the disk; the file itself is fetched again.")
        place = (adapter.name, adapter.revision, adapter.file_name)
        refusal = facts.Refusal(night_id, *place, reason, datetime.now(UTC), adapter.sha256)
        record.record_refusals(self.catalogue, [refusal])

    def bring(self, adapter: Input) -> None:
        """Get an adapter that is not on this disk."""
        fetch(adapter, self.hub)

    def merge(self, job: Job, progress: Progress) -> MergeResult:
        """Coefficients in the store, or those that are there."""
        return merge(
            job.recipe,
            job.subject.file,
            job.style.file,
            self.backbone,
            self.store,
            job.subject.references,
            job.style.references,
            progress,
            self.settings.merge_outliers,
        )

    def preview(self, job: Job) -> Pictures:
        """The merge's pictures, and those of the base and of each adapter alone, which all pairs share."""
        previews = self.settings.previews
        request = PreviewRequest(job.prompts(previews.prompts), previews.seeds, self.drawing)
        merged = self.draw_merge(job, request)
        alone = Single(None, self.base.model, self.base.revision, self.drawing)
        return Pictures(
            merged,
            self.draw_single(alone, request, None),
            self._alone(job.subject, job.subject_prompts(previews.prompts), previews.seeds),
            self._alone(job.style, (job.style.prompt,), previews.seeds),
        )

    def draw_merge(self, job: Job, request: PreviewRequest) -> PreviewResult:
        """Pictures of a merge."""
        return preview_merge(job.recipe, request, job.subject.file, job.style.file, self.backbone, self.store)

    def draw_single(self, single: Single, request: PreviewRequest, adapter: Path | None) -> PreviewResult:
        """Pictures of one adapter alone, or of the base alone."""
        return preview_single(single, request, adapter, self.backbone, self.store)

    def _alone(self, adapter: Input, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> PreviewResult:
        single = Single(adapter.sha256, self.base.model, self.base.revision, self.drawing)
        request = PreviewRequest(prompts, seeds, self.drawing)
        return self.draw_single(single, request, adapter.file)

    def _references(self, adapter: Input) -> References:
        """An adapter's own pictures; failing these, some that it draws of its prompt, with seeds of their own."""
        return adapter.references or References(
            self._alone(adapter, (adapter.prompt,), _REFERENCE_SEEDS).paths, "drawn"
        )

    def score(self, job: Job, pictures: Pictures) -> tuple[ScoreRow, ...]:
        """What every scorer sees in every picture."""
        evidence = Evidence(
            pictures.merge,
            pictures.base,
            pictures.subject,
            pictures.style,
            self._references(job.subject),
            self._references(job.style),
        )
        return score_merge(job.recipe.merge_id, evidence, self.scorers, self.store)

    def record(
        self, job: Job, night_id: str, result: MergeResult, rows: Sequence[ScoreRow], seconds: float
    ) -> dict[str, float]:
        """Write a pair that took so long into the catalogue; gives back its mean position by metric."""
        losses = {**asdict(result.losses), "movement_by_block": result.movement_by_block} if result.losses else {}
        measured = facts.Result(night_id, losses, result.movement, result.seconds, datetime.now(UTC), seconds)
        return self.record_scores(job, result_of(self.catalogue, job.recipe.merge_id) or measured, rows)

    def record_scores(self, job: Job, measured: facts.Result, rows: Sequence[ScoreRow]) -> dict[str, float]:
        """Write what scorers saw of a finished pair into the store and the catalogue."""
        now, merge_id = datetime.now(UTC), job.recipe.merge_id
        scores = [
            facts.Score(merge_id, row.scorer_id, row.prompt, row.seed, row.value, row.floor, row.ceiling, now)
            for row in rows
        ]
        keep_merge(self.store.root, merge_of(job), measured, scores)
        record.record_done(self.catalogue, merge_of(job), measured, scores)
        return mean_positions(scores)

    @contextmanager
    def begun(self, job: Job, night_id: str) -> Iterator[None]:
        """While it lasts, the catalogue has the merge as running; only a process that dies leaves it so."""
        record.record_running(self.catalogue, merge_of(job), night_id)
        try:
            yield
        except BaseException:
            with suppress(CatalogueError):
                self.leave(job)
            raise

    def leave(self, job: Job) -> None:
        """Write down that nobody is at a pair any more, for no fault of its own."""
        record.record_interrupted(self.catalogue, job.recipe.merge_id)

    def record_failure(self, job: Job, night_id: str, reason: facts.Reason) -> None:
        """Write down why a pair has no result."""
        now = datetime.now(UTC)
        crashed = reason.code in CRASHES and record.record_crashed(
            self.catalogue, job.recipe.merge_id, reason, night_id, now
        )
        if not crashed:
            record.record_failed(self.catalogue, merge_of(job), reason, night_id, now)


def fetch(adapter: Input, hub: Hub) -> None:
    """Get an adapter from the Hub, with PEFT's configuration beside it if it has one."""
    folder = adapter.file.parent
    config = hub.published_file(adapter.name, adapter.revision, CONFIG_NAME)
    if config is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_bytes(config)
    source = Candidate(adapter.name, adapter.revision, adapter.file_name, None, adapter.sha256, CardFacts(), ())
    hub.download(source, folder)


def merge_of(job: Job) -> facts.Merge:
    """The job as a row of the catalogue."""
    recipe = job.recipe
    return facts.Merge(
        recipe.merge_id, recipe.subject_sha256, recipe.style_sha256, recipe.method, json.loads(recipe.to_json())
    )


def mean_positions(scores: Sequence[facts.Score]) -> dict[str, float]:
    """Where a merge is between floor and ceiling, by metric; without those that could not be placed."""
    positions: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        if score.position is not None:
            positions[facts.metric_of(score.scorer_id)].append(score.position)
    return {metric: fmean(values) for metric, values in positions.items()}


def holds_more(folder: Path, size_bytes: int) -> bool:
    """Whether a folder holds more than so much; what goes away meanwhile counts for nothing."""
    if disk_usage(folder).used <= size_bytes:  # a walk takes a second for twenty thousand merges
        return False
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total > size_bytes


_REFERENCE_SEEDS = (1000, 1001, 1002, 1003)


def _named(encoder: str) -> tuple[str, Path | None]:
    """An encoder's name in score ids, and its folder if it is one."""
    folder = Path(encoder)
    return (folder.name, folder) if folder.is_dir() else (encoder, None)
