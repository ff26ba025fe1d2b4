"""A night as it is deployed: a Prefect server of its own, one worker that plans, one that merges."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from catalog.queries import finished_merge_ids, pictures_seen
from catalog.schema import open_catalogue

from .world import CLI, DIRECT, MORE_PICTURES, Place, settle

_PREFECT = [sys.executable, "-m", "prefect"]


@dataclass(frozen=True)
class Server:
    """A running Prefect server, and the environment of whoever talks to it."""

    url: str
    environment: dict[str, str]

    def ziplora(self, *arguments: str) -> Any:
        """What a command says with --json."""
        command = [*CLI, *arguments, "--json"]
        folder = self.environment["PWD"]
        done = subprocess.run(command, env=self.environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return json.loads(done.stdout)

    def ask(self, path: str, body: object = None) -> Any:
        """The API's answer."""
        content = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}/{path}", content, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def _running(arguments: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{arguments[3]}.log").open("ab") as log:
        process = subprocess.Popen(arguments, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until(done: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds:.0f} s"
        time.sleep(1)


@contextmanager
def prefect_server(folder: Path) -> Iterator[Server]:
    """A server on a free port, everything of it in `folder`."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = own | {
        "PWD": str(folder),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }
    server = Server(url, environment)

    def healthy() -> bool:
        try:
            return bool(server.ask("health"))
        except OSError:
            return False

    with _running([*_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, folder):
        _until(healthy, 180)
        yield server


@contextmanager
def deployed(folder: Path) -> Iterator[Server]:
    """A server with all that nights of a folder's CONFIG need, and this machine's workers."""
    with ExitStack() as stack:
        server = stack.enter_context(prefect_server(folder))
        assert {one["was_there"] for one in server.ziplora("deploy", "night.yaml")} == {False}
        stack.enter_context(_running([*CLI, "worker", "--orchestrate"], server.environment, folder))
        yield server


def run_night(server: Server, seconds: float) -> dict[str, Any]:
    """Trigger a night and wait for its end; gives back the flow run."""
    deployment = server.ask("deployments/name/nightly/nightly")
    run = server.ask(f"deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    ended: dict[str, Any] = {}

    def done() -> bool:
        ended.update(server.ask(f"flow_runs/{run['id']}"))
        return ended["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    _until(done, seconds)
    return ended


@pytest.mark.slow
def test_a_deployed_night_is_done_by_workers(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    there: Place = settle(folder, world, methods=DIRECT, limits={"batch": 2}, previews=MORE_PICTURES)
    with deployed(folder) as server:
        nightly = server.ask("deployments/name/nightly/nightly")
        (schedule,) = nightly["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "UTC")
        assert nightly["global_concurrency_limit"]["limit"] == 1
        assert {one["was_there"] for one in server.ziplora("deploy", "night.yaml")} == {True}
        _until(lambda: [one for one in server.ask("flow_runs/filter", {}) if one["auto_scheduled"]], 90)
        started = time.monotonic()
        night = run_night(server, 400)
        print(f"\na deployed night of 4 merges in 2 batches, and a short list: {time.monotonic() - started:.0f} s")  # noqa: T201
        assert night["state_type"] == "COMPLETED", night["state"]
        catalogue = open_catalogue(there.catalogue)
        assert len(finished_merge_ids(catalogue)) == 4
        assert sorted(map(len, pictures_seen(catalogue).values()))[::3] == [1, 3]
        tasks = {one["name"] for one in server.ask("task_runs/filter", {})}
        assert {"batch 1", "batch 2", "batch 3"} <= tasks
        assert {"robot × neon · direct", "fish × bricks · direct"} <= tasks
        artifacts = {one["key"] for one in server.ask("artifacts/filter", {})}
        assert {"night", "gallery", "batch-1-merges", "batch-1-pictures", "batch-2"} <= artifacts


@pytest.mark.slow
def test_a_machine_that_loads_no_models_leaves_the_work_to_others(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    there: Place = settle(folder, world, methods=DIRECT, limits={"batch": 1})
    broken = folder / "broken" / "diffusers"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    with ExitStack() as stack:
        server = stack.enter_context(prefect_server(folder))
        server.ziplora("deploy", "night.yaml")

        def start(*arguments: str, **own: str) -> None:
            stack.enter_context(_running(arguments, server.environment | own, folder))

        def failed_batches() -> Any:
            of_kind = {"flows": {"name": {"any_": ["merge-batch"]}}}
            return server.ask("flow_runs/filter", of_kind | {"flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}})

        sick = [*_PREFECT, "worker", "start", "--pool", "gpu", "--type", "process", "--limit", "1", "--name", "sick"]
        start(*sick, PYTHONPATH=os.pathsep.join([str(broken.parent), *sys.path[1:]]))
        start(*CLI, "worker", "--no-merge", "--orchestrate")
        with ThreadPoolExecutor(1) as other:
            night = other.submit(run_night, server, 400)
            _until(failed_batches, 200)
            start(*CLI, "worker")
        assert night.result()["state_type"] == "COMPLETED", night.result()["state"]
        (failed,) = failed_batches()
        assert "libcudart" in failed["state"]["message"]
    assert len(finished_merge_ids(open_catalogue(there.catalogue))) == 4
