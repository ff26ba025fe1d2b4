"""The stages of a pair as Prefect tasks: names that a person recognises, retries where one can help, and no logic.

Results lie in the store under names made from their content: Prefect keeps none of them, and caches none.
"""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.plan import Job
from flows.progress import tell
from flows.worker import Pictures, Worker
from ziplora.recipe import MergeResult, ScoreRow


@task(task_run_name="{job.name}: fetch", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=30)
def fetch_pair(worker: Worker, job: Job, night_id: str) -> None:
    """Have both adapters on this disk, whole."""
    worker.fetch(job.subject, night_id)
    worker.fetch(job.style, night_id)


@task(task_run_name="{job.name}: merge", cache_policy=NO_CACHE, persist_result=False)
def merge_pair(worker: Worker, job: Job) -> MergeResult:
    """Learn the coefficients of one pair."""
    return worker.merge(job, lambda done, total: tell(job.name, done, total))


@task(task_run_name="{job.name}: preview", cache_policy=NO_CACHE, persist_result=False)
def preview_pair(worker: Worker, job: Job) -> Pictures:
    """Draw the pair's pictures, and those to compare them with."""
    tell(f"{job.name}: preview", 0, 0)
    return worker.preview(job)


@task(task_run_name="{job.name}: score", cache_policy=NO_CACHE, persist_result=False)
def score_pair(worker: Worker, job: Job, pictures: Pictures) -> tuple[ScoreRow, ...]:
    """Score the pair's pictures."""
    tell(f"{job.name}: score", 0, 0)
    return worker.score(job, pictures)


@task(task_run_name="{job.name}: record", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def record_pair(
    worker: Worker, job: Job, night_id: str, result: MergeResult, rows: Sequence[ScoreRow]
) -> dict[str, float]:
    """Write the pair into the catalogue; gives back its mean position by metric."""
    return worker.record(job, night_id, result, rows)
