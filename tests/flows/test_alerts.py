"""An operator hears of every night and of what goes wrong, and no notifier keeps a night from its end."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect.blocks.abstract import NotificationBlock

from flows import alerts
from flows.nightly import nightly

from .conftest import Settle, Ziplora
from .test_deployed import Server, prefect_server
from .world import DIRECT, settle

_ONE_PAIR = {"methods": DIRECT, "pairs": {"include": ["robot-lora x neon-lora"]}}
_SECRET = "hooks.example/T0KEN"


class Pigeon(NotificationBlock):
    """Brings messages to a list; a tired one brings none."""

    _block_type_name = "Pigeon"
    is_tired: bool = False

    def notify(self, body: str, subject: str | None = None) -> None:  # type: ignore[override]
        if self.is_tired:
            raise ConnectionError(f"https://{_SECRET} does not answer")
        _BROUGHT.append((subject, body))


_BROUGHT: list[tuple[str | None, str]] = []


def test_the_report_of_a_night_is_sent(place: Settle) -> None:
    _BROUGHT.clear()
    Pigeon().save("team", overwrite=True)
    there = place(notify="pigeon/team", **_ONE_PAIR)
    report = nightly(str(there.config))
    ((subject, body),) = _BROUGHT
    assert subject is not None
    assert subject.startswith("ziplora: 1 merged, 0 failed, 0 refused in ")
    assert "1 merged" in body.splitlines()
    assert body.endswith(report.gallery)


@pytest.mark.parametrize("notifier", ["pigeon/tired", "pigeon/nobody"])
def test_a_notifier_that_fails_does_not_fail_the_night(
    place: Settle, notifier: str, caplog: pytest.LogCaptureFixture
) -> None:
    Pigeon(is_tired=True).save("tired", overwrite=True)
    there = place(notify=notifier, **_ONE_PAIR)
    assert nightly(str(there.config)).merged == 1
    assert f"{notifier} did not take the report of the night" in caplog.text
    assert _SECRET not in caplog.text


def test_a_night_says_whether_its_sources_shrank(place: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr(alerts, "emit_event", lambda _, resource, **__: told.append(resource))
    there = place(methods=DIRECT)
    nightly(str(there.config))
    for name in ("robot", "fish", "neon"):
        (there.folder / "adapters" / f"{name}-lora").rename(there.folder / name)
    nightly(str(there.config))
    assert [one[alerts.SOURCES] for one in told] == ["as before", "LISTING_SHRANK"]
    assert {one[alerts.MERGES] for one in told} == {"done"}


def test_a_notifier_that_the_server_does_not_know_is_said(place: Settle, ziplora: Ziplora) -> None:
    said = ziplora("deploy", place(notify="slack-webhook/team").config)
    assert said.code == 2
    assert said.err.startswith("NOTIFIER_UNKNOWN  The server has no block slack-webhook/team.")


@contextmanager
def _webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """An address, and what is sent there."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()


def _python(server: Server, code: str) -> None:
    subprocess.run(
        [sys.executable, "-c", code], env=server.environment, cwd=server.environment["PWD"], check=True, timeout=120
    )


_SPED = """
from datetime import timedelta
from pathlib import Path
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows import deploy
content = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="team", url="URL", json_data=content).save("team")
deploy._LONG = timedelta(seconds=10)
deploy.deploy(Path("night.yaml"))
"""
_GOES_WRONG = """
from prefect.client.orchestration import get_client
from prefect.states import Failed, Running
from catalog.facts import Reason
from flows.alerts import night_ended
with get_client(sync_client=True) as client:
    for name, states in (("nightly", [Running(), Failed()]), ("merge-batch", [Running()])):
        deployment = client.read_deployment_by_name(f"{name}/{name}")
        place, content = {"id": deployment.id}, {"enforce_parameter_schema": False}
        made = client.request("POST", "/deployments/{id}/create_flow_run", path_params=place, json=content)
        for state in states:
            client.set_flow_run_state(made.json()["id"], state, force=True)
night_ended("a-night", Reason("LISTING_SHRANK", "", ""), {}, failed=False)
"""


@pytest.mark.slow
def test_the_server_tells_of_what_goes_wrong(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "night"
    there = settle(folder, world, notify="custom-webhook/team")
    with _webhook() as (url, received), prefect_server(folder) as server:
        _python(server, _SPED.replace("URL", url))
        _python(server, _GOES_WRONG)
        end = time.monotonic() + 120
        while len(received) < 3 and time.monotonic() < end:
            time.sleep(1)
        there.set()
        server.ziplora("deploy", "night.yaml")
        left = [one["name"] for one in server.ask("automations/filter", {})]
    assert not [name for name in left if name.startswith("ziplora: tell of")], "nobody is to be told any more"
    assert {one["subject"] for one in received} == {
        "ziplora: a night that failed",
        "ziplora: a batch that does not end",
        "ziplora: sources that shrank",
    }
    assert any("a-night" in one["body"] for one in received)
