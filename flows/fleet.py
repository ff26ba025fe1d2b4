"""The batches of a night, done here or by the workers of the gpu pool; what a dead process leaves is begun again."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal
from uuid import UUID

from httpx import HTTPError
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from catalog import facts, record
from catalog.errors import CatalogueError
from catalog.facts import Reason
from catalog.queries import (
    blocked_merge_ids,
    failures_of,
    last_finish,
    nights_cut_off,
    running_merge_ids,
    seconds_by_method,
)
from catalog.schema import Catalogue
from flows.artifacts import progress_of
from flows.batch import StoreFull, compressed, merge_batch, undone
from flows.fresh_snapshot import FreshSnapshot
from flows.gone import GONE, SILENT
from flows.packing import packed
from flows.plan import Base, Job
from flows.settings import Problem, Settings
from flows.worker import CRASHES

Workers = Literal["here", "pool"]

_LOOK_SECONDS = 2.0
"""Between two looks at the batches of a night: one question for all of them."""
_AHEAD = 8
"""So many batches more than there are workers are on the server: enough for all that end between two looks."""
_TRIES = 3
"""A batch that ends so often, while nobody settles anything, is lost."""
_LAST_LINES = 5
_MOST_CUT_OFF = 20


@dataclass(frozen=True)
class Night:
    """What all batches of a night have in common."""

    night_id: str
    settings: Settings
    base: Base
    catalogue: Catalogue
    workers: Workers
    until: datetime
    snapshot: FreshSnapshot
    numbers: Iterator[int] = field(default_factory=lambda: count(1))


@dataclass(frozen=True)
class Batch:
    """Merges for one worker, and how often they came back while nobody had settled anything."""

    number: int
    jobs: tuple[Job, ...]
    idle: int = 0
    last_finish: datetime | None = None
    """Of any merge, when this batch was made."""


def merge_all(night: Night, settings: Settings, jobs: Sequence[Job]) -> list[tuple[str, Reason]]:
    """Have merges done in batches, with these settings of the night; gives back the batches that were lost, and how."""
    if not jobs:
        return []
    night = replace(night, settings=settings)
    parts = packed(jobs, settings.limits.batch, seconds_by_method(night.catalogue), _workers(night))
    finish = last_finish(night.catalogue)
    batches = [Batch(next(night.numbers), part, last_finish=finish) for part in parts]
    show = progress_of("night-merges", f"merges: {len(jobs)}, in batches: {len(batches)}")
    lost = _here(night, batches) if night.workers == "here" else _by_pool(night, batches, show)
    show(1, 1)
    return lost


def _workers(night: Night) -> int:
    """How many workers there are now; one that starts containers counts as many as its pool may run."""
    if night.workers == "here":
        return 1
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("gpu")
        if pool.type != "process":
            return pool.concurrency_limit or 1
        workers = client.read_workers_for_work_pool("gpu")
    return max(1, sum(worker.status == "ONLINE" for worker in workers))


def _here(night: Night, batches: list[Batch]) -> list[tuple[str, Reason]]:
    lost: list[tuple[str, Reason]] = []
    while batches:
        batch = batches.pop(0)
        began = datetime.now(UTC)
        try:
            merge_batch(night.settings, night.base, night.night_id, batch.number, batch.jobs, night.until)
        except StoreFull as full:
            reason = Reason(full.code, full.fact, full.next_step)
            return [*lost, *((f"batch {one.number}", reason) for one in (batch, *batches))]
        _record(night, batch, began, datetime.now(UTC), "Completed")
        again = _rest(night, batch, "It ended with merges left.")
        if isinstance(again, Batch):
            batches.insert(0, again)
        elif again is not None:
            lost.append((f"batch {batch.number}", again))
        if batches:  # or the end of the night writes it
            night.snapshot.renew()
    return lost


def _by_pool(night: Night, batches: list[Batch], show: Callable[[int, int], None]) -> list[tuple[str, Reason]]:
    lost: list[tuple[str, Reason]] = []
    waiting = deque(batches)
    running: dict[UUID, Batch] = {}
    total = sum(len(batch.jobs) for batch in batches)
    while running or (waiting and datetime.now(UTC) < night.until):
        for batch in _next(night, waiting, len(running)):
            running[start_batch(night, batch)] = batch
        time.sleep(_LOOK_SECONDS)
        for run in _ended(list(running)):
            try:
                again = _settle(night, running[run.id], run)
            except CatalogueError as error:  # the database is away, and comes back
                get_run_logger().warning("%s", error)
                continue
            batch = running.pop(run.id)
            if isinstance(again, Batch):
                waiting.appendleft(again)
            elif again is not None:
                lost.append((f"batch {batch.number}", again))
            show(total - sum(len(one.jobs) for one in (*running.values(), *waiting)), total)
            if running or waiting:  # or the end of the night writes it
                night.snapshot.renew()
    return lost


def _next(night: Night, waiting: deque[Batch], running: int) -> list[Batch]:
    """Takes from the waiting batches what the workers will do soon: whoever asks for work is told of all there is."""
    if not waiting or datetime.now(UTC) > night.until:
        return []
    try:
        room = _workers(night) + _AHEAD - running
    except HTTPError as error:
        get_run_logger().warning("The server does not say which workers there are: %s", type(error).__name__)
        return []
    return [waiting.popleft() for _ in range(min(room, len(waiting)))]


def _is_away(_task: object, _run: object, state: State[Any]) -> bool:
    """Whether a task failed for want of the server."""
    return isinstance(state.result(raise_on_failure=False), HTTPError)


@task(
    task_run_name="batch {batch.number}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=120,
    retry_delay_seconds=5,
    retry_condition_fn=_is_away,
)
def start_batch(night: Night, batch: Batch) -> UUID:
    """Have a worker of the gpu pool do a batch, some time."""
    parameters = {
        "settings": night.settings.model_dump(mode="json"),
        "base": asdict(night.base),
        "night_id": night.night_id,
        "number": batch.number,
        "jobs": compressed(batch.jobs),
        "until": night.until.isoformat(),
    }
    try:
        run: Any = run_deployment(
            "merge-batch/merge-batch",
            parameters=parameters,
            flow_run_name=f"batch {batch.number} of {night.night_id}",
            idempotency_key=f"{night.night_id} batch {batch.number}",
            timeout=0,
        )
    except ObjectNotFound as error:
        raise Problem("NOT_DEPLOYED", "The server knows no merge-batch.", "ziplora deploy CONFIG", 3) from error
    run_id: UUID = run.id
    return run_id


def _ended(run_ids: list[UUID]) -> list[FlowRun]:
    """Those of these runs that have ended; none while the server is away."""
    final = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*TERMINAL_STATES]))
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=run_ids), state=final))
    except HTTPError as error:
        get_run_logger().warning("The server does not say how batches are: %s", type(error).__name__)
        return []


def _settle(night: Night, batch: Batch, run: FlowRun) -> Batch | Reason | None:
    """What to do after a batch that has ended: its rest in a new one, no more, or nothing."""
    state = run.state
    ended = f"{state.name} {state.message or ''}".strip() if state else "nobody knows how"
    _record(night, batch, run.start_time, run.end_time or datetime.now(UTC), ended)
    if state is not None and state.type == StateType.CANCELLED:
        return Reason("BATCH_LOST", f"Batch {batch.number} ended: {ended}.", "its rest is done the next night.")
    merge_ids = [job.recipe.merge_id for job in batch.jobs]
    for merge_id in running_merge_ids(night.catalogue, merge_ids):
        if state is not None and state.type == StateType.CRASHED and state.message not in (GONE, SILENT):
            _crashed(night, merge_id, f"The process that merged it ended: {ended}", _last_lines(run.id))
        else:
            record.record_interrupted(night.catalogue, merge_id)
    return _rest(night, batch, ended)


def _record(night: Night, batch: Batch, started_at: datetime | None, ended_at: datetime, ended: str) -> None:
    number, merges = batch.number, len(batch.jobs)
    record.record_batch(night.catalogue, facts.Batch(night.night_id, number, merges, started_at, ended_at, ended))


def _rest(night: Night, batch: Batch, ended: str) -> Batch | Reason | None:
    """What a batch has left as a batch of its own, while the night lasts and there is hope."""
    troubles = [one for one in failures_of(night.catalogue, night.night_id) if one.word == "failed"]
    settled = {one.item for one in troubles if one.reason.code not in CRASHES}
    settled |= blocked_merge_ids(night.catalogue)
    rest = undone(night.settings, night.catalogue, batch.jobs)
    rest = tuple(job for job in rest if job.recipe.merge_id not in settled)
    if not rest or datetime.now(UTC) > night.until:
        return None
    finish = last_finish(night.catalogue)
    idle = batch.idle + 1 if len(rest) == len(batch.jobs) and finish == batch.last_finish else 0
    if idle == _TRIES:
        return Reason("BATCH_LOST", f"Batch {batch.number} ended: {ended}.", "its rest is done the next night.")
    number = next(night.numbers)
    get_run_logger().warning("Batch %d ended: %s. Its rest is batch %d.", batch.number, ended, number)
    return Batch(number, rest, idle, finish)


def _crashed(night: Night, merge_id: str, how: str, last_lines: str) -> None:
    fact = f"{how} {last_lines}".strip()[:600]
    reason = Reason("WORKER_DIED", fact, "see whether memory or the driver failed; it is tried twice more.")
    record.record_crashed(night.catalogue, merge_id, reason, night.night_id, datetime.now(UTC))


def _last_lines(run_id: UUID) -> str:
    """What a run said last."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    try:
        with get_client(sync_client=True) as client:
            logs = client.read_logs(wanted, limit=_LAST_LINES, sort=LogSort.TIMESTAMP_DESC)
    except HTTPError:
        return ""
    return "It said last: " + " / ".join(log.message for log in reversed(logs)) if logs else ""


def refuse_crash_loop(catalogue: Catalogue) -> None:
    """Begin no night where one after the other was cut off: whoever starts them again would do so for ever."""
    cut_off = nights_cut_off(catalogue, datetime.now(UTC) - timedelta(hours=1))
    if cut_off >= _MOST_CUT_OFF:
        fact = f"{cut_off} nights in a row began within an hour and did not end."
        raise Problem("NIGHTS_CRASH", fact, "see what the runs of nightly said last, and try again in an hour.", 3)


def clear_up(night: Night) -> None:
    """Settle what an earlier night left behind when it was cut off."""
    if night.workers == "pool":
        _cancel_batches()
    else:
        for merge_id in running_merge_ids(night.catalogue):
            _crashed(night, merge_id, "The process of an earlier night ended while it did this merge.", "")


def _cancel_batches() -> None:
    """Stop the batches of a night that is over: this one plans their rest anew."""
    open_states = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
    left = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=open_states)))
    batches = FlowFilter(name=FlowFilterName(any_=["merge-batch"]))
    told: set[UUID] = set()
    with get_client(sync_client=True) as client:
        while new := [
            one for one in client.read_flow_runs(flow_filter=batches, flow_run_filter=left) if one.id not in told
        ]:
            for run in new:
                client.set_flow_run_state(run.id, Cancelling(message="Its night is over."))
                told.add(run.id)
