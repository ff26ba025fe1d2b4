"""Runs of this machine that nobody does any more: their process died, and nobody told the server.

Prefect's worker tells of a process that dies, but not when it dies too, or when the server was away at that moment.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

GONE = "Its process is gone, and nobody saw it go."
SILENT = "No heartbeat: its process or machine is lost."
"""Ends that tell nothing of what a process was at: whole machines come and go."""

_OPEN = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_START = timedelta(seconds=300)
"""So long may a living worker take from a run's promise to its process."""


def living(pool: str, worker: str, *, at_work: bool) -> list[int]:
    """The processes of a worker's runs; its runs that have none are Crashed from now on."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN))
    processes = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=state),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        ):
            if run.labels.get("prefect.worker.name") == worker:
                found = _processes_of(run.id)
                processes += found
                if not found:
                    _bury(client, run, at_work)
    return processes


def _bury(client: SyncPrefectClient, run: FlowRun, at_work: bool) -> None:
    state = run.state
    if state is None or (at_work and not run.infrastructure_pid and datetime.now(UTC) - state.timestamp < _START):
        return
    client.set_flow_run_state(run.id, Crashed(message=GONE), force=True)


def _processes_of(run_id: UUID) -> list[int]:
    """Prefect gives every process of a run its id."""
    sign = f"PREFECT__FLOW_RUN_ID={run_id}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if sign in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:  # it ended, or is somebody else's
            continue
    return found
