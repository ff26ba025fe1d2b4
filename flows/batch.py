"""One warm worker and a batch of pairs: every stage of every pair is a task, and no failure ends the batch."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact

from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from flows.plan import Base, Job
from flows.progress import tell
from flows.settings import Problem, Settings
from flows.tasks import fetch_pair, merge_pair, preview_pair, record_pair, score_pair
from flows.worker import Worker
from ziplora.failure import Failure
from ziplora.header import Refusal


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    merge_id: str
    name: str
    method: str
    positions: dict[str, float]
    """Mean position between floor and ceiling by metric; empty when it failed."""
    seconds: float
    reason: Reason | None
    """Why it failed; None when it did not."""


@flow(name="merge-batch", flow_run_name="batch {number} of {night_id}", log_prints=False)
def merge_batch(settings: Settings, base: Base, night_id: str, number: int, jobs: tuple[Job, ...]) -> list[Outcome]:
    """Merge, preview, score and record pair after pair on one device."""
    worker = Worker(settings, base)
    shown = create_progress_artifact(progress=0.0, key=f"batch-{number}", description=f"{len(jobs)} merges")
    outcomes: list[Outcome] = []
    for done, job in enumerate(jobs):
        tell("merges", done, len(jobs))
        outcomes.append(_outcome(worker, job, night_id))
        if isinstance(shown, UUID):
            update_progress_artifact(artifact_id=shown, progress=100.0 * (done + 1) / len(jobs))
    tell("merges", len(jobs), len(jobs))
    create_table_artifact(table=outcome_table(outcomes), key=f"batch-{number}-merges", description="All merges")
    return outcomes


def _outcome(worker: Worker, job: Job, night_id: str) -> Outcome:
    merge_id, method = job.recipe.merge_id, job.recipe.method
    try:
        if not (job.subject.file.is_file() and job.style.file.is_file()):
            fetch_pair(worker, job)
        result = merge_pair(worker, job)
        rows = score_pair(worker, job, preview_pair(worker, job))
        positions = record_pair(worker, job, night_id, result, rows)
    except Exception as error:  # noqa: BLE001 - whatever one pair does, the night goes on
        reason = _reason(error)
        get_run_logger().warning("%s: %s %s", job.name, reason.code, reason.fact)
        worker.record_failure(job, night_id, reason)
        return Outcome(merge_id, job.name, method, {}, 0.0, reason)
    return Outcome(merge_id, job.name, method, positions, result.seconds, None)


def _reason(error: Exception) -> Reason:
    """Why a pair failed, in words; a full disk or a lost catalogue is everybody's trouble and ends the night."""
    if isinstance(error, Refused):
        return error.reason
    if isinstance(error, Failure | Refusal):
        return Reason(error.code, error.fact, error.next_step)
    if isinstance(error, CatalogueError | Problem):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise Problem("DISK_FULL", f"There is no room left to write {error.filename}.", "free some and run again.", 3)
    fact = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."
    return Reason("UNEXPECTED", fact, "look at the log of this task run; it is tried again the next night.")


def outcome_table(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One row for each merge, as people read it."""
    return [
        {
            "merge": outcome.name,
            "subject": _percent(outcome.positions.get("dino")),
            "style": _percent(outcome.positions.get("clip-i")),
            "text": _percent(outcome.positions.get("clip-t")),
            "seconds": round(outcome.seconds, 1),
            "failed": f"{outcome.reason.code}: {outcome.reason.fact}" if outcome.reason else "",
        }
        for outcome in outcomes
    ]


def _percent(position: float | None) -> str:
    return "" if position is None else f"{100 * position:.0f} %"
