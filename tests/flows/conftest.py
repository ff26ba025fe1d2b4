"""One untrained world, one Prefect of its own, and one finished night that most tests only look at."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows import cli
from flows.settings import quiet_libraries

from .world import Place, build_world, settle

if TYPE_CHECKING:
    from flows.nightly import Report

quiet_libraries()  # before the first import of it, as the command line does


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A server of this session. Without heartbeats: each flow waits a second for the thread that sends them."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    without_heartbeats = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with prefect_test_harness(server_startup_timeout=180), without_heartbeats:
        yield


Settle = Callable[..., Place]


@pytest.fixture
def place(world: Path, tmp_path: Path, prefect: None) -> Settle:
    """A place of its own for a test's nights; takes changes of the settings."""
    return lambda **changes: settle(tmp_path / "night", world, **changes)


@pytest.fixture(scope="session")
def night(world: Path, prefect: None, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Place, Report]":
    """A place where a night of four pairs and both methods was done, with the drawer of bad ones among its sources."""
    from flows.nightly import nightly

    faults = {"folder": "faults", "role": "subject"}
    there = settle(tmp_path_factory.mktemp("night") / "night", world)
    there.set(sources=[*there.settings["sources"], faults], publish={"least_score": 0.0})
    return there, nightly(str(there.config))


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document of a command for scripts."""
        return json.loads(self.out)


Ziplora = Callable[..., Said]


@pytest.fixture
def ziplora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ziplora:
    """The command line, as it is installed, but in this process."""
    monkeypatch.setattr("flows.cli._hush", lambda: None)  # it would close pytest's own standard error

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ziplora", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return run
