"""What a batch does as a Prefect task: a name that a person recognises, retries where they can help, and no logic.

Results lie in the store under names made from their content: Prefect keeps none of them, and caches none.
"""

import time

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from catalog.errors import CatalogueError, Refused
from flows.plan import Job
from flows.progress import tell
from flows.worker import Completed, Worker


def _may_pass(_task: object, _run: object, state: State[Completed]) -> bool:
    """Whether a pair failed for want of the Hub, the catalogue or the shared store, and not by itself."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, CatalogueError) and not isinstance(error, Refused)


@task(
    task_run_name="{job.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 15],
    retry_condition_fn=_may_pass,
)
def complete_pair(worker: Worker, job: Job, night_id: str) -> Completed:
    """Fetch, merge, preview, score and record one pair; what is in the store is not made again.

    One task, not one a stage: what a task tells a server is most of what a pair costs there.
    """
    began = time.monotonic()
    worker.fetch_pair(job, night_id)
    result = worker.merge(job, lambda done, total: tell(job.name, done, total))
    tell(f"{job.name}: preview", 0, 0)
    pictures = worker.preview(job)
    tell(f"{job.name}: score", 0, 0)
    rows = worker.score(job, pictures)
    return Completed(result, pictures, worker.record(job, night_id, result, rows, time.monotonic() - began))
