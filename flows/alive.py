"""Which runs live on this machine: each holds a lock, which the kernel frees when its process dies, however it dies.

Prefect's worker reports a process that dies before it; when both go, this tells which runs nobody does any more.
"""

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.settings import runs_folder

GONE = "Its process and its worker are gone."
SILENT = "No heartbeat: its process or machine is lost."
"""Ends that tell nothing of what a process was at: whole machines come and go."""

_held: list[TextIO] = []
"""Open until the process ends."""


@dataclass(frozen=True)
class Mark:
    """A run of this machine and its process."""

    run_id: UUID
    process: int


def show_alive() -> None:
    """Hold the lock of this run, in the folder of the worker that started it; elsewhere nothing is done."""
    folder, run_id = runs_folder(), flow_run.id
    if folder is not None and run_id is not None:
        path = folder / f"{run_id}.run"
        mark = path.with_suffix(".new").open("w", encoding="ascii")
        fcntl.flock(mark, fcntl.LOCK_EX)
        mark.write(f"{os.getpid()}")
        mark.flush()
        path.with_suffix(".new").rename(path)  # seen only when it is locked
        _held.append(mark)


def living(folder: Path) -> list[Mark]:
    """The runs of a worker whose processes live; the others are Crashed from now on, if they had not ended."""
    alive = []
    for path in sorted(folder.glob("*.run")):
        with path.open(encoding="ascii") as mark:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alive.append(Mark(UUID(path.stem), int(mark.read() or 0)))
                continue
            _bury(UUID(path.stem))
            path.unlink()
    return alive


def _bury(run_id: UUID) -> None:
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        state = client.read_flow_run(run_id).state
        if state is not None and not state.is_final():
            client.set_flow_run_state(run_id, Crashed(message=GONE), force=True)
