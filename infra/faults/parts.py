"""The parts of a fleet on one machine: Postgres, a Prefect server on it, and "machines" with a worker each."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[2]
_POSTGRES_PATH = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged() -> str | None:
    """Who runs Postgres, which refuses to be root."""
    if os.getuid() != 0:
        return None
    return "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"


@dataclass
class Part:
    """A process with its children, which can be killed and started again."""

    name: str
    command: list[str]
    folder: Path
    environment: dict[str, str]
    user: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, user=self.user
            )

    def tree(self) -> list[psutil.Process]:
        """It and all that it started, the eldest first."""
        if self.process is None or self.process.poll() is not None:
            return []
        try:
            eldest = psutil.Process(self.process.pid)
            return [eldest, *eldest.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """End it and all that it started, at once."""
        for one in self.tree():
            one.kill()
        if self.process is not None:
            self.process.wait()

    def stop(self, seconds: float = 60.0) -> None:
        """End it as an operator does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Fleet:
    """All parts, and where to reach them."""

    postgres: Part
    server: Part
    machines: list[Part]
    api: str
    catalogue: str

    @property
    def parts(self) -> list[Part]:
        return [self.postgres, self.server, *self.machines]

    def wait_for_server(self, seconds: float = 180.0) -> None:
        """Until it answers; one that did not find its database is started again, as systemd does it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.server.tree():
                self.server.start()
            try:
                with urllib.request.urlopen(f"{self.api}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError("The Prefect server did not come up.")

    def stop(self) -> None:
        for part in (*self.machines, self.server):
            part.stop()
        self.postgres.kill()


def _postgres(folder: Path, environment: dict[str, str], port: int) -> Part:
    user = _unprivileged()
    data = folder / "postgres"
    data.mkdir()
    if user:
        shutil.chown(data, user)
    initdb, binary = (shutil.which(name, path=_POSTGRES_PATH) for name in ("initdb", "postgres"))
    if initdb is None or binary is None:
        raise SystemExit("There is no initdb and no postgres: install PostgreSQL.")
    options = ["-D", str(data), "-A", "trust", "-U", "ziplora", "-E", "UTF8"]
    subprocess.run([initdb, *options], user=user, cwd=data, check=True, stdout=subprocess.DEVNULL)
    command = [binary, "-D", str(data), "-p", str(port), "-k", str(data), "-c", "max_connections=200"]
    part = Part("postgres", command, folder, environment, user)
    part.start()
    createdb = shutil.which("createdb", path=_POSTGRES_PATH) or "createdb"
    for database in ("prefect", "catalogue"):
        make = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", "ziplora", database]
        for _ in range(60):
            if subprocess.run(make, check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.5)
    return part


@contextmanager
def fleet_of(workers: int) -> Iterator[tuple[Path, Fleet]]:
    """A fleet in a folder of its own, stopped and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ziplora-fleet-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres is somebody else
        fleet = _raised(folder, workers)
        try:
            yield folder, fleet
        finally:
            fleet.stop()


def _raised(folder: Path, workers: int) -> Fleet:
    """A fleet with everything in one folder; each machine has a PREFECT_HOME and, to root, a host name of its own."""
    database, port = free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = own | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://ziplora@127.0.0.1:{database}/prefect",
        # Slots of deployments are kept over a restart of the server, or a lost one would never come back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # What tasks tell is written many at a time, or a large fleet tells it faster than it is written.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    }
    postgres = _postgres(folder, environment, database)
    serve = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = Part("server", serve, folder, environment)
    machines = []
    for number in range(workers):
        name = f"machine{number}"
        command = [sys.executable, "-c", "from flows.cli import main; main()", "worker"]
        command += ["--orchestrate"] if number == 0 else []
        if os.getuid() == 0 and shutil.which("unshare"):
            command = ["unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$0" "$@"', *command]
        machines.append(Part(name, command, folder, environment | {"PREFECT_HOME": str(folder / name)}))
    fleet = Fleet(postgres, server, machines, api, f"postgresql://ziplora@127.0.0.1:{database}/catalogue")
    server.start()
    fleet.wait_for_server()
    return fleet
