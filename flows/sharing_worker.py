"""A worker whose results other machines use: each stage first takes what is in the shared store, then gives its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from catalog.facts import Result
from catalog.mirror import Mirror
from catalog.sidecars import MERGE_FACTS
from flows.plan import Base, Input, Job
from flows.settings import Settings
from flows.shared_store import Files, adapter_files, calibration_files, merge_files, mirror_of
from flows.worker import Pictures, Progress, Worker
from ziplora.recipe import MergeResult, PreviewRequest, PreviewResult, ScoreRow, Single


def worker_for(settings: Settings, base: Base) -> Worker:
    """A worker for these settings, which shares its results if they say so."""
    mirror = mirror_of(settings)
    return Worker(settings, base) if mirror is None else SharingWorker(settings, base, mirror)


class SharingWorker(Worker):
    """The same stages, around which files come and go."""

    def __init__(self, settings: Settings, base: Base, mirror: Mirror) -> None:
        super().__init__(settings, base)
        self.mirror = mirror

    def bring(self, adapter: Input) -> None:
        """Get an adapter from the store, or from the Hub; a copy that is damaged in the store is replaced there."""
        self.mirror.fetch(*adapter_files(adapter, self.store))
        is_damaged = adapter.file.is_file() and not self.is_sound(adapter)
        if is_damaged:
            adapter.file.unlink()
        if not adapter.file.is_file():
            super().bring(adapter)
        if is_damaged:
            self.mirror.replace(adapter.file)

    def merge(self, job: Job, progress: Progress) -> MergeResult:
        """Coefficients from the store, or learned and put there with what they were made from."""
        merged = merge_files(job.recipe.merge_id, self.store)
        made_from = self._made_from(job)
        self.mirror.fetch(*merged)
        if not merged[-1].is_file():
            for files in made_from:
                self.mirror.fetch(*files)
        result = super().merge(job, progress)
        for files in (*made_from, merged):
            self.mirror.send(*files)
        return result

    def _made_from(self, job: Job) -> Sequence[Files]:
        """Both adapters and both calibrations, as far as they are in the store."""
        adapters = [adapter_files(adapter, self.store) for adapter in (job.subject, job.style)]
        calibrations = [job.recipe.subject_calibration, job.recipe.style_calibration]
        return adapters + [calibration_files(one.calibration_id, self.store) for one in calibrations if one]

    def draw_merge(self, job: Job, request: PreviewRequest) -> PreviewResult:
        """Pictures of a merge that nobody has drawn, and those that somebody has."""
        with self._shared(self.store.previews(job.recipe.merge_id), request):
            return super().draw_merge(job, request)

    def draw_single(self, single: Single, request: PreviewRequest, adapter: Path | None) -> PreviewResult:
        """Pictures of one adapter or of the base alone, likewise."""
        with self._shared(self.store.single(single.single_id), request):
            return super().draw_single(single, request, adapter)

    @contextmanager
    def _shared(self, folder: Path, request: PreviewRequest) -> Iterator[None]:
        self.mirror.fetch_pictures(folder, request.wanted)
        yield
        self.mirror.send_pictures(folder)

    def score(self, job: Job, pictures: Pictures) -> tuple[ScoreRow, ...]:
        """What every scorer sees in every picture, and maybe has seen before on another machine."""
        scores = self.store.merge(job.recipe.merge_id) / "scores.json"
        self.mirror.fetch(scores)
        rows = super().score(job, pictures)
        self.mirror.replace(scores)
        return rows

    def record_scores(self, job: Job, measured: Result, rows: Sequence[ScoreRow]) -> dict[str, float]:
        """Write what scorers saw into the catalogue, and what its rows hold into the store."""
        positions = super().record_scores(job, measured, rows)
        self.mirror.replace(self.store.merge(job.recipe.merge_id) / MERGE_FACTS)
        return positions
