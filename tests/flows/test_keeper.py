"""Which workers a machine gets, that there is one of each, and what is said when no server answers."""

import os
import select
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows import batch, gone, keeper
from flows.keeper import Post, posts
from flows.nightly import nightly
from flows.settings import Problem, worker_environment

from .conftest import Settle, Ziplora
from .world import DIRECT

_NOWHERE = "http://127.0.0.1:9/api"


def test_a_machine_has_a_worker_for_each_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "cards", lambda: [0, 1])
    assert posts([], merge=True, orchestrate=True) == [Post("gpu", 0), Post("gpu", 1), Post("orchestrate")]
    assert posts([1], merge=True, orchestrate=False) == [Post("gpu", 1)]
    assert posts([], merge=False, orchestrate=True) == [Post("orchestrate")]
    with pytest.raises(Problem, match=r"NO_CARD  There is no card 7"):
        posts([7], merge=True, orchestrate=False)
    assert worker_environment(1)["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_machine_without_cards_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "cards", list)
    (post,) = posts([], merge=True, orchestrate=False)
    assert post == Post("gpu", None)
    assert post.name.endswith("-cpu")


def test_two_of_a_kind_do_not_share_a_card(tmp_path: Path, ziplora: Ziplora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "cards", list)
    hold = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, 2); print(1, flush=True); input()"
    (tmp_path / "workers").mkdir()
    lock = tmp_path / "workers" / f"{Post('gpu').name}.lock"
    command = [sys.executable, "-c", hold, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with temporary_settings({PREFECT_HOME: tmp_path}):
            said = ziplora("worker")
        other.communicate(b"\n")
    assert said.code == 3
    assert said.err.startswith("WORKER_THERE")


def test_a_card_that_is_ill_gets_no_work_until_it_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi, card = tmp_path / "nvidia-smi", tmp_path / "card"
    smi.write_text(f"#!/bin/sh\n. {card}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(keeper, "living", lambda *_, **__: [])
    monkeypatch.setattr(keeper, "_start", lambda _: subprocess.Popen(["sleep", "60"]))
    for name in ("_AGAIN_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(keeper, name, 0.0)
    said: list[str] = []
    with open(os.devnull, "w") as lock:  # noqa: PTH123 - what a worker holds
        one = keeper.Kept(Post("gpu", 0), lock)

        def is_at_work(driver: str, within: float = 60.0) -> bool:
            card.write_text(driver)
            monkeypatch.setattr(keeper, "_DRIVER_SECONDS", within)
            keeper._look_after(one, said.append)  # noqa: SLF001
            return one.process is not None and one.process.poll() is None

        assert is_at_work("echo 0")
        worker = one.process
        assert is_at_work("echo 0")
        assert one.process is worker, "it is left alone"
        assert not is_at_work("echo 'Unable to determine the device handle: GPU is lost.'; exit 15")
        assert worker is not None
        assert worker.poll() is not None
        assert is_at_work("echo '[N/A]'"), "a card for gamers counts no errors"
        assert not is_at_work("exec sleep 600", within=1.0)
        assert one.asked is not None
        one.asked.wait()  # it is killed; a driver that still hangs is not asked again
        assert not is_at_work("echo 2")
        assert is_at_work("echo 0")
        keeper._stop(one)  # noqa: SLF001
    heard = [sentence.removeprefix(f"{one.post.name} is not at work: ") for sentence in said if " not " in sentence]
    assert heard == [
        "Unable to determine the device handle: GPU is lost.",
        "the driver does not answer within 1 s",
        "its card has 2 uncorrected memory errors",
    ]


def test_a_worker_does_not_outlive_its_keeper(tmp_path: Path) -> None:
    keep = "flows.keeper.keep([flows.keeper.Post('gpu')], lambda sentence: print(sentence, flush=True))"
    environment = {**os.environ, "PREFECT_API_URL": _NOWHERE, "PREFECT_HOME": str(tmp_path)}
    # A server that is away does not say what still runs; this keeper takes it that nothing does.
    keep = f"import flows.keeper; flows.keeper.living = lambda *_, **__: []; {keep}"
    command = [sys.executable, "-c", keep]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as keeping:
        assert keeping.stdout is not None
        assert b"is at work" in keeping.stdout.readline()
        (number,) = Path(f"/proc/{keeping.pid}/task/{keeping.pid}/children").read_text().split()
        while b"setpriv" in Path(f"/proc/{number}/cmdline").read_bytes():  # it becomes the worker
            time.sleep(0.1)
        worker = os.pidfd_open(int(number))
        keeping.kill()
        assert select.select([worker], [], [], 10.0)[0], "it has not ended"
        os.close(worker)
    with temporary_settings({PREFECT_HOME: tmp_path}):
        keeper._lock(Post("gpu")).close()  # noqa: SLF001 - the post is free again


def test_a_server_that_is_away_is_said_in_a_sentence(ziplora: Ziplora, place: Settle) -> None:
    there = place()
    with temporary_settings({PREFECT_API_URL: _NOWHERE}):
        said = ziplora("deploy", there.config)
    assert said.code == 3
    assert said.err.startswith(f"SERVER_AWAY  The Prefect server at {_NOWHERE} does not answer")
    assert len(said.err.splitlines()) == 1
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert ziplora("deploy", there.config).err.startswith("SERVER_UNKNOWN")


def test_the_processes_of_a_run_are_those_that_prefect_gave_its_id() -> None:
    run = uuid4()
    command, environment = ["/bin/sh", "-c", "echo; read _"], {"PREFECT__FLOW_RUN_ID": str(run)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # before it runs, its environment cannot be read
        assert gone._processes_of(run) == [process.pid]  # noqa: SLF001
        process.kill()
    assert gone._processes_of(run) == []  # noqa: SLF001


def test_a_batch_waits_until_the_memory_it_needs_is_free(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(
        methods=DIRECT, limits={"free_gpu_bytes": 24_000_000_000}, pairs={"include": ["robot-lora x neon-lora"]}
    )
    free = [9_000_000_000, 9_000_000_000, 30_000_000_000]
    waited: list[float] = []
    monkeypatch.setattr(batch, "free_bytes", lambda _: free.pop(0))
    monkeypatch.setattr("flows.batch.time.sleep", waited.append)
    report = nightly(str(there.config))
    assert report.merged == 1
    assert free == []
    assert waited[:2] == [30.0, 30.0]


def test_a_batch_waits_no_longer_than_the_night(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(methods=DIRECT, limits={"free_gpu_bytes": 1, "seconds": 0.001})
    monkeypatch.setattr(batch, "free_bytes", lambda _: 0)
    began = datetime.now(UTC)
    assert nightly(str(there.config)).merged == 0
    assert datetime.now(UTC) - began < timedelta(seconds=60)
