"""What a dead process leaves behind is done in the same night, and a merge that kills its process is blocked."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx import ConnectError
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from sqlalchemy import select

from catalog import record
from catalog.errors import CatalogueError
from catalog.facts import Reason
from catalog.queries import blocked_merge_ids, failures_of, finished_merge_ids, running_merge_ids
from catalog.schema import Catalogue, Merge, open_catalogue
from catalog.snapshot import ask
from flows import batch as batch_flow
from flows import fleet
from flows.nightly import nightly
from flows.plan import Job
from flows.settings import Problem
from flows.tasks import complete_pair
from flows.worker import Progress, Worker
from ziplora.adapter import Adapter, read
from ziplora.failure import Failure
from ziplora.recipe import MergeResult, ScoreRow

from .conftest import Settle, Ziplora
from .world import DIRECT, Place

_MERGE = Worker.merge
_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _merge(catalogue: Catalogue, merge_id: str) -> Merge:
    with catalogue.connect() as connection:
        return connection.execute(select(Merge.__table__).where(Merge.merge_id == merge_id)).one()  # type: ignore[return-value]


def _fails(monkeypatch: pytest.MonkeyPatch, times: int, error: BaseException) -> list[str]:
    """The first merge that is begun fails so often; gives back the merges in the order that they are begun."""
    begun: list[str] = []

    def merge(worker: Worker, job: Job, progress: Progress) -> MergeResult:
        begun.append(job.recipe.merge_id)
        if job.recipe.merge_id == begun[0] and begun.count(begun[0]) <= times:
            raise error
        return _MERGE(worker, job, progress)

    monkeypatch.setattr(Worker, "merge", merge)
    return begun


def _interrupted(there: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    """A night that is stopped in its first merge."""
    with monkeypatch.context() as patch:
        begun = _fails(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            nightly(str(there.config))
    return begun[0]


def test_a_merge_that_lacked_memory_is_done_in_the_same_night(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT)
    begun = _fails(monkeypatch, 2, Failure("OUT_OF_MEMORY", "The device cpu ran out of memory.", "take another."))
    report = nightly(str(there.config))
    assert (report.merged, report.failed, report.lost_batches) == (4, {"OUT_OF_MEMORY": 2}, {})
    assert begun[:3] == [begun[0]] * 3, "the batch ends at once, and another one begins with what it left"
    assert len(begun) == 6, "what is done is not begun again"


def test_a_merge_that_always_lacks_memory_is_blocked_and_the_others_are_done(
    place: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(methods=DIRECT)
    begun = _fails(monkeypatch, 99, Failure("OUT_OF_MEMORY", "The device cpu ran out of memory.", "take another."))
    report = nightly(str(there.config))
    catalogue = open_catalogue(there.catalogue)
    assert (report.merged, report.failed) == (3, {"OUT_OF_MEMORY": 3})
    assert blocked_merge_ids(catalogue) == {begun[0]}
    assert begun.count(begun[0]) == 3


def test_a_merge_whose_process_died_counts_as_a_try(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT)
    merge_id = _interrupted(there, monkeypatch)
    catalogue = open_catalogue(there.catalogue)
    with catalogue.begin() as connection:  # as a process leaves it that has no time for anything
        connection.execute(Merge.__table__.update().where(Merge.merge_id == merge_id).values(status="running"))  # type: ignore[attr-defined]
    report = nightly(str(there.config))
    assert (report.merged, report.failed) == (4, {"WORKER_DIED": 1})
    (died,) = [one for one in failures_of(catalogue, report.night_id) if one.word == "failed"]
    assert died.item == merge_id


def test_a_process_that_hangs_is_ended_and_its_merge_counts_as_tried(place: Settle) -> None:
    there = place(methods=DIRECT, limits={"silent_seconds": 2.0})
    hangs = "import time; from flows.worker import Worker; Worker.load = lambda _: None"
    hangs += "; Worker.merge = lambda *_: time.sleep(600)"
    command = [sys.executable, "-c", f"{hangs}; from flows.cli import main; main()", "run", str(there.config)]
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    hung = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert hung.returncode == 1
    assert "Timeout (0:00:02)!" in hung.stderr, "where it hung is in the worker's log"
    there.set(methods=DIRECT)
    assert nightly(str(there.config)).failed == {"WORKER_DIED": 1}
    assert len(finished_merge_ids(open_catalogue(there.catalogue))) == 4


def test_models_that_cannot_be_loaded_end_the_night_in_a_sentence_and_blame_no_merge(
    place: Settle, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place(methods=DIRECT)

    def too_large(*_: object) -> None:
        raise Failure("OUT_OF_MEMORY", "The device cpu ran out of memory.", "take another.")

    with monkeypatch.context() as patch:
        patch.setattr("flows.worker.load_scorer", too_large)
        said = ziplora("run", there.config)
    assert (said.code, said.err) == (3, "OUT_OF_MEMORY  The device cpu ran out of memory. Next: take another.\n")
    with open_catalogue(there.catalogue).connect() as connection:
        rows = connection.execute(select(Merge.status, Merge.attempts).distinct()).tuples().all()
    assert rows == [("planned", 0)]
    assert ziplora("run", there.config, "--json").document["merged"] == 4


def test_a_merge_that_was_stopped_is_planned_and_no_try_counts(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT)
    merge_id = _interrupted(there, monkeypatch)
    row = _merge(open_catalogue(there.catalogue), merge_id)
    assert (row.status, row.attempts) == ("planned", 0)


def test_a_catalogue_that_is_away_for_a_moment_fails_no_pair(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, pairs={"include": ["robot-lora x neon-lora"]})
    away = [CatalogueError("CATALOGUE_UNREACHABLE", "Cannot open it. Is the server up?")] * 2
    written: list[int] = []
    write = Worker.record

    def recorded(
        worker: Worker, job: Job, night_id: str, result: MergeResult, rows: Sequence[ScoreRow], seconds: float
    ) -> Any:
        written.append((worker.store.merge(job.recipe.merge_id) / "result.json").stat().st_mtime_ns)
        if away:
            raise away.pop()
        return write(worker, job, night_id, result, rows, seconds)

    monkeypatch.setattr(Worker, "record", recorded)
    monkeypatch.setattr(complete_pair, "retry_delay_seconds", 0)
    report = nightly(str(there.config))
    assert (report.merged, report.failed) == (1, {})
    assert len(written) == 3
    assert len(set(written)) == 1, "what was merged is not merged again"


def test_a_pair_is_read_while_the_one_before_is_merged(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT)
    ready, in_time, files = Semaphore(0), list[bool](), list[Path]()
    read_ahead = Worker.read_ahead

    def ahead(worker: Worker, job: Job, night_id: str) -> None:
        read_ahead(worker, job, night_id)
        ready.release()

    def merge(worker: Worker, job: Job, progress: Progress) -> MergeResult:
        in_time.append(len(in_time) == 3 or ready.acquire(timeout=30))
        return _MERGE(worker, job, progress)

    def counted(path: Path) -> Adapter:
        files.append(path)
        return read(path)

    monkeypatch.setattr(Worker, "read_ahead", ahead)
    monkeypatch.setattr(Worker, "merge", merge)
    monkeypatch.setattr("ziplora.merge.read", counted)
    assert nightly(str(there.config)).merged == 4
    assert in_time == [True] * 4
    assert len(files) == len(set(files)) == 4


def test_what_cannot_be_read_ahead_is_told_by_its_own_pair(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(Worker, "read_ahead", fails)
    report = nightly(str(place(methods=DIRECT).config))
    assert (report.merged, report.failed) == (4, {})


def test_the_snapshot_shows_what_earlier_batches_made(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, limits={"batch": 2})
    seen: list[int | None] = []

    def merge(worker: Worker, job: Job, progress: Progress) -> MergeResult:
        path = there.folder / "catalog.duckdb"
        seen.append(ask(path, "SELECT count(*) FROM finished_merges")[1][0][0] if path.is_file() else None)
        return _MERGE(worker, job, progress)

    monkeypatch.setattr(Worker, "merge", merge)
    nightly(str(there.config))
    assert seen == [None, None, 2, 2]


def test_a_night_tells_of_its_batches(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, limits={"batch": 3})
    _fails(monkeypatch, 1, Failure("OUT_OF_MEMORY", "The device cpu ran out of memory.", "take another."))
    report = nightly(str(there.config))
    question = "SELECT night_id, number, merges, ended, started_at <= ended_at FROM batches ORDER BY number"
    _, rows = ask(there.folder / "catalog.duckdb", question)
    assert rows == [(report.night_id, number, merges, "Completed", True) for number, merges in ((1, 3), (2, 1), (3, 3))]


def test_the_catalogue_has_a_merge_as_running_while_it_is_done(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT)
    seen = []

    def merge(worker: Worker, job: Job, progress: Progress) -> MergeResult:
        seen.append(running_merge_ids(worker.catalogue) == {job.recipe.merge_id})
        return _MERGE(worker, job, progress)

    monkeypatch.setattr(Worker, "merge", merge)
    nightly(str(there.config))
    assert seen == [True] * 4


def test_a_merge_is_not_done_before_its_scores_are_there(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, pairs={"include": ["robot-lora x neon-lora"]})

    def no_scores(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "_put_scores", no_scores)
        with pytest.raises(KeyboardInterrupt):
            nightly(str(there.config))
    assert not finished_merge_ids(open_catalogue(there.catalogue))
    assert nightly(str(there.config)).merged == 1


def test_nights_that_always_crash_are_not_begun_for_ever(place: Settle) -> None:
    there = place(methods=DIRECT)
    catalogue, now = open_catalogue(there.catalogue, migrate=True), datetime.now(UTC)
    for number in range(20):
        record.record_night_started(catalogue, f"night {number}", {}, now - timedelta(minutes=number))
    for _ in range(2):  # what was refused is no further night
        with pytest.raises(Problem, match="NIGHTS_CRASH  20 nights in a row began within an hour and did not end"):
            nightly(str(there.config), workers="pool")
    record.record_night_finished(catalogue, "night 10", {}, now)
    fleet.refuse_crash_loop(catalogue)


def test_nights_cut_off_long_ago_are_forgotten(place: Settle) -> None:
    there = place(methods=DIRECT)
    catalogue = open_catalogue(there.catalogue, migrate=True)
    for number in range(20):
        record.record_night_started(catalogue, f"night {number}", {}, datetime.now(UTC) - timedelta(hours=2))
    fleet.refuse_crash_loop(catalogue)


def test_the_server_holds_few_batches_more_than_there_are_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    most = 0
    looks = iter(range(1000))

    def start(night: fleet.Night, batch: fleet.Batch) -> int:
        started.append(batch.number)
        return batch.number

    def ended(running: list[int]) -> list[SimpleNamespace]:
        nonlocal most
        most = max(most, len(running))
        return [SimpleNamespace(id=number) for number in running[:2]]

    def settle(night: fleet.Night, batch: fleet.Batch, run: SimpleNamespace) -> fleet.Batch | None:
        return fleet.Batch(100, ()) if batch.number == 1 else None

    def workers(night: fleet.Night) -> int:
        if next(looks) == 1:
            raise ConnectError("the server is away")
        return 2

    for name, fake in (("start_batch", start), ("_ended", ended), ("_settle", settle), ("_workers", workers)):
        monkeypatch.setattr(fleet, name, fake)
    monkeypatch.setattr(fleet, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(fleet, "get_run_logger", lambda: logging.getLogger("a night"))
    snapshot = SimpleNamespace(renew=lambda: None)
    night: Any = SimpleNamespace(until=datetime.now(UTC) + timedelta(hours=1), snapshot=snapshot)
    assert fleet._by_pool(night, [fleet.Batch(number, ()) for number in range(50)], lambda *_: None) == []  # noqa: SLF001
    assert sorted(started) == [*range(50), 100]
    assert started.index(100) < started.index(20), "what came back goes first"
    assert most == 2 + 8


def test_batches_that_wait_when_the_night_is_over_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "start_batch", pytest.fail)
    night: Any = SimpleNamespace(until=datetime.now(UTC) - timedelta(seconds=1))
    assert fleet._by_pool(night, [fleet.Batch(0, ())], lambda *_: None) == []  # noqa: SLF001


def test_a_batch_is_lost_when_it_fails_again_and_again_and_nobody_settles_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishes = [_NOON, _NOON, _NOON, _NOON + timedelta(seconds=1), *[_NOON + timedelta(seconds=2)] * 4]
    jobs: Any = (SimpleNamespace(recipe=SimpleNamespace(merge_id="one")),)
    monkeypatch.setattr(fleet, "last_finish", lambda _: finishes.pop(0))
    monkeypatch.setattr(fleet, "undone", lambda *_: jobs)
    monkeypatch.setattr(fleet, "get_run_logger", lambda: logging.getLogger("a night"))
    night: Any = SimpleNamespace(
        night_id="a night",
        settings=None,
        catalogue=open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True),
        until=datetime.now(UTC) + timedelta(hours=1),
        numbers=count(1),
    )
    batch: Any = fleet.Batch(0, jobs)
    tries = 0
    while isinstance(batch, fleet.Batch):
        batch = fleet._rest(night, batch, "Failed")  # noqa: SLF001
        tries += 1
    assert batch == Reason("BATCH_LOST", "Batch 7 ended: Failed.", "its rest is done the next night.")
    assert (tries, finishes) == (8, []), "twice others had settled something meanwhile"


@pytest.mark.parametrize(
    ("deployment", "error", "seconds"),
    [
        (uuid4(), OSError("libcudart.so.12: cannot open shared object file"), [120.0]),
        (uuid4(), Problem("STORE_FULL", "It holds more.", "raise it.", 3), [120.0]),
        (uuid4(), CatalogueError("CATALOGUE_UNREACHABLE", "Cannot open it. Is the server up?"), []),
        (uuid4(), ConnectError("the server is away"), []),
        (None, OSError("libcudart.so.12: cannot open shared object file"), []),
    ],
)
def test_a_machine_rests_when_its_batch_has_failed_of_what_is_its_own(
    deployment: UUID | None, error: Exception, seconds: list[float], prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(batch_flow, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(batch_flow, "get_run_logger", lambda: logging.getLogger("a batch"))
    run = FlowRun(flow_id=uuid4(), deployment_id=deployment)

    @flow(on_failure=[lambda _flow, _run, state: batch_flow.rest(None, run, state)])
    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        fails()
    assert slept == seconds


@pytest.mark.parametrize(("kind", "workers"), [("process", 2), ("kubernetes", 7)])
def test_a_pool_of_containers_has_as_many_workers_as_it_may_run(kind: str, workers: int) -> None:
    night: Any = SimpleNamespace(workers="pool")
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type=kind, concurrency_limit=7))
        try:
            for name in ("one", "two"):
                client.send_worker_heartbeat("gpu", name)
            assert fleet._workers(night) == workers  # noqa: SLF001
        finally:
            client.delete_work_pool("gpu")
