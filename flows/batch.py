"""One warm worker and a batch of pairs: every pair is a task, and no failure ends the batch."""

import json
import time
import zlib
from base64 import b85decode, b85encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Annotated, Any

from httpx import HTTPError
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from pydantic import BeforeValidator, TypeAdapter, WithJsonSchema

from catalog.errors import CatalogueError
from catalog.hub_errors import UNANSWERED
from catalog.queries import finished_merge_ids
from catalog.schema import Catalogue
from flows.artifacts import Outcome, progress_of, show_batch
from flows.plan import Base, Job
from flows.progress import ends_when_silent, tell
from flows.settings import Problem, Settings
from flows.sharing_worker import worker_for
from flows.short_list import lacking_pictures
from flows.tasks import complete_pair
from flows.trouble import reason_of
from flows.worker import CRASHES, Worker, holds_more
from ziplora.memory import free_bytes

_MEMORY_SECONDS = 30.0
_REST_SECONDS = 120.0


class StoreFull(Problem):
    """A batch is left for want of room in the store: a limit of the night, which goes on without it."""


def compressed(jobs: Sequence[Job]) -> str:
    """Jobs as a parameter of `merge_batch`: whoever asks for work is told the parameters of all that waits."""
    return b85encode(zlib.compress(TypeAdapter(Sequence[Job]).dump_json(jobs))).decode()


def _decompressed(jobs: object) -> object:
    return json.loads(zlib.decompress(b85decode(jobs))) if isinstance(jobs, str) else jobs


Jobs = Annotated[tuple[Job, ...], BeforeValidator(_decompressed), WithJsonSchema({"type": "string"})]
"""Jobs, or what `compressed` makes of them."""


def rest(flow: object, flow_run: FlowRun, state: State[Any]) -> None:
    """Let a machine whose batch has failed rest: what no pair is to blame for would fail the next batch here as well.

    The worker takes no other batch before this process ends, while the night gives this one's merges to others. Where
    catalogue or server are away, no machine is better off than this one.
    """
    is_shared = isinstance(state.result(raise_on_failure=False), CatalogueError | HTTPError)
    if flow_run.deployment_id is not None and not is_shared:  # without a deployment, it is the night's own process
        get_run_logger().warning("This machine takes no batch for %.0f s.", _REST_SECONDS)
        time.sleep(_REST_SECONDS)


@flow(name="merge-batch", flow_run_name="batch {number} of {night_id}", log_prints=False, on_failure=[rest])
def merge_batch(
    settings: Settings, base: Base, night_id: str, number: int, jobs: Jobs, until: datetime
) -> list[Outcome]:
    """Merge, preview, score and record pair after pair on one device, as far as the night's limits reach."""
    store = settings.store_folder
    if holds_more(store, settings.limits.store_bytes):
        raise StoreFull(
            "STORE_FULL", f"{store} holds more than limits.store_bytes.", "raise it, or empty the store.", 3
        )
    wait_for_memory(settings, until)
    worker = worker_for(settings, base)
    left = undone(settings, worker.catalogue, jobs)
    show = progress_of(f"batch-{number}", f"{len(left)} merges")
    outcomes: list[Outcome] = []
    with ends_when_silent(settings.limits.silent_seconds), ThreadPoolExecutor(1) as ahead:
        if left:
            tell("loading the models", 0, 0)
            get_run_logger().info("%d merges are to do; the models are being loaded.", len(left))
            began = time.monotonic()
            worker.load()
            get_run_logger().info("The models are loaded, in %.0f s.", time.monotonic() - began)
        for done, job in enumerate(left):
            if datetime.now(UTC) > until:
                get_run_logger().warning("limits.seconds are over: %d merges are left.", len(left) - done)
                break
            tell("merges", done, len(left))
            reading = [ahead.submit(worker.read_ahead, one, night_id) for one in left[done + 1 : done + 2]]
            outcomes.append(_outcome(worker, job, night_id))
            wait(reading)  # whatever went wrong with it, its own turn will tell
            show(done + 1, len(left))
            reason = outcomes[-1].reason
            if reason is not None and reason.code in CRASHES:
                get_run_logger().warning("This process is given up: %d merges are left.", len(left) - done - 1)
                break
    tell("merges", len(outcomes), len(left))
    show_batch(number, outcomes)
    return outcomes


def wait_for_memory(settings: Settings, until: datetime) -> None:
    """Wait as long as somebody else has the memory of the card that a batch needs."""
    needed = settings.limits.free_gpu_bytes
    while (free := free_bytes(settings.device)) is not None and free < needed and datetime.now(UTC) < until:
        get_run_logger().warning("waiting: %.0f GB needed, %.0f GB free", needed / 1e9, free / 1e9)
        time.sleep(_MEMORY_SECONDS)


def undone(settings: Settings, catalogue: Catalogue, jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Those of these merges that are not finished, or that no scorer has seen in all pictures of the settings."""
    finished = finished_merge_ids(catalogue, [job.recipe.merge_id for job in jobs])
    lacking = {job.recipe.merge_id for job in lacking_pictures(settings, catalogue, jobs)}
    return tuple(job for job in jobs if job.recipe.merge_id not in finished or job.recipe.merge_id in lacking)


def _outcome(worker: Worker, job: Job, night_id: str) -> Outcome:
    merge_id, began = job.recipe.merge_id, time.monotonic()
    with worker.begun(job, night_id):
        try:
            done = complete_pair(worker, job, night_id)
        except Exception as error:  # noqa: BLE001 - whatever one pair does, the night goes on
            reason = reason_of(error)
            get_run_logger().warning("%s: %s %s", job.name, reason.code, reason.fact)
            if reason.code in UNANSWERED:
                worker.leave(job)
            else:
                worker.record_failure(job, night_id, reason)
            return Outcome(merge_id, job.name, {}, 0.0, None, reason)
    scores = ", ".join(f"{metric} {position:.2f}" for metric, position in done.positions.items())
    took = (done.result.seconds, time.monotonic() - began)
    get_run_logger().info("%s: merged in %.1f s, done in %.1f s; positions: %s.", job.name, *took, scores)
    return Outcome(merge_id, job.name, done.positions, done.result.seconds, done.pictures.merge.paths[0], None)
