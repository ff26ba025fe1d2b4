"""What a Prefect server needs to run nights on a fleet: pools, deployments, and automations for what dies."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from flows.alerts import NIGHT_ENDED, SOURCES
from flows.gone import SILENT
from flows.settings import Problem, load_settings

DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
POOLS = ("orchestrate", "gpu")
"""The night has a pool of its own: inside a gpu pool with one slot it would wait for itself."""

_LONG = timedelta(hours=3)
"""Batches are cut to half an hour, and to fifty merges where nobody knows yet what a merge takes."""
_SILENT = timedelta(seconds=100)
"""Three heartbeats, as `ziplora worker` sets them, and some."""
_TELL = "ziplora: tell of "
_NIGHT_FAILED, _BATCH_STUCK, _SOURCES_SHRANK = "a night that failed", "a batch that does not end", "sources that shrank"


@dataclass(frozen=True)
class Part:
    """Something the server has now, and whether it had it before."""

    kind: str
    name: str
    was_there: bool


def deploy(config: Path) -> list[Part]:
    """See that the server has all that nights of this CONFIG need; what is there is kept, or brought up to date."""
    settings = load_settings(config)
    with get_client(sync_client=True) as client:
        _check(client)
        notifier = _notifier(client, settings.notify) if settings.notify is not None else None
        parts = [*_pools(client), *_deployments(client, config)]
        nightly, batches = _deployment(client, "nightly"), _deployment(client, "merge-batch")
        wanted = [_lost_runs(), _lost_nights(nightly)]
        if notifier is not None:
            wanted += alerts(notifier, nightly, batches)
        else:
            _silence(client)
        return [*parts, *_automations(client, wanted)]


def _check(client: SyncPrefectClient) -> None:
    """Raise unless there is a server that answers."""
    url = PREFECT_API_URL.value()
    if not url:
        raise Problem("SERVER_UNKNOWN", "No Prefect server is named.", "set PREFECT_API_URL, http://HOST:4200/api", 3)
    error = client.api_healthcheck()
    if error is not None:
        fact = f"The Prefect server at {url} does not answer ({type(error).__name__})."
        raise Problem("SERVER_AWAY", fact, "start it with: prefect server start", 3)


def _pools(client: SyncPrefectClient) -> Iterator[Part]:
    template = ProcessWorker.get_default_base_job_template()
    for name in POOLS:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
            yield Part("work pool", name, was_there=False)
        except ObjectAlreadyExists:
            yield Part("work pool", name, was_there=True)


def _deployments(client: SyncPrefectClient, config: Path) -> Iterator[Part]:
    """Those of prefect.yaml, by Prefect's own command."""
    wanted = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
    before = {one["name"]: _deployment(client, one["name"]) for one in wanted}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)],
        env={**os.environ, "ZIPLORA_CONFIG": str(config.absolute())},
        capture_output=True,
        text=True,
        check=False,
    )
    lost = [name for name in before if _deployment(client, name) is None]
    if done.returncode or lost:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise Problem("NOT_DEPLOYED", f"Prefect did not deploy {', '.join(lost) or 'them'}: {said}.", "mend it.", 3)
    yield from (Part("deployment", name, was_there=known is not None) for name, known in before.items())


def _deployment(client: SyncPrefectClient, name: str) -> UUID | None:
    try:
        found: UUID = client.read_deployment_by_name(f"{name}/{name}").id
    except ObjectNotFound:
        return None
    return found


def _notifier(client: SyncPrefectClient, block: str) -> UUID:
    """The notification block of the settings, which people make: it holds their secret."""
    kind, _, name = block.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        step = "make it under Blocks in the Prefect UI, or take notify out of the settings."
        raise Problem("NOTIFIER_UNKNOWN", f"The server has no block {block}.", step) from error


def _automations(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> Iterator[Part]:
    for automation in wanted:
        known = client.read_automations_by_name(automation.name)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
        yield Part("automation", automation.name, was_there=bool(known))


def _silence(client: SyncPrefectClient) -> None:
    """Tell nobody any more, if somebody was told until now."""
    for what in (_NIGHT_FAILED, _BATCH_STUCK, _SOURCES_SHRANK):
        for known in client.read_automations_by_name(_TELL + what):
            client.delete_automation(known.id)


_ENDS = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
_HEARTBEAT = "prefect.flow-run.heartbeat"


def _lost_runs() -> AutomationCore:
    """A machine that is lost says nothing: a run without heartbeats has crashed."""
    return AutomationCore(
        name="ziplora: runs without heartbeat have crashed",
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *_ENDS},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=_SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message=SILENT,
                force=False,
            )
        ],
    )


def _of(deployment: UUID | None) -> ResourceSpecification:
    """Matches what has to do with a deployment."""
    related: dict[str, Any] = {
        "prefect.resource.id": [f"prefect.deployment.{deployment}"],
        "prefect.resource.role": ["deployment"],
    }
    return ResourceSpecification(related)


def _lost_nights(nightly: UUID | None) -> AutomationCore:
    """A night that crashed goes on at once: what it did is in the catalogue."""
    return AutomationCore(
        name="ziplora: a night that crashed goes on",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_of(nightly),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=nightly, parameters=None, job_variables=None)],
    )


def alerts(notifier: UUID, nightly: UUID | None, batches: UUID | None) -> list[AutomationCore]:
    """What people hear of beside the reports: a night that failed, a batch that is stuck, sources that shrank."""
    runs = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    failed = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        match=runs,
        match_related=_of(nightly),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    stuck = EventTrigger(
        after={"prefect.flow-run.Running"},
        expect={*_ENDS},
        match=runs,
        match_related=_of(batches),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=_LONG,
    )
    shrank = EventTrigger(
        expect={NIGHT_ENDED},
        match=ResourceSpecification({"prefect.resource.id": ["ziplora.night.*"], SOURCES: ["LISTING_SHRANK"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    run = "{{ flow_run.name }}: {{ flow_run.state.name }} {{ flow_run.state.message }} {{ flow_run|ui_url }}"
    fewer = "The sources of {{ event.resource.name }} offer over 30 % fewer adapters; nothing was published."
    return [
        AutomationCore(
            name=_TELL + what,
            trigger=trigger,
            actions=[SendNotification(block_document_id=notifier, subject=f"ziplora: {what}", body=body)],
        )
        for what, trigger, body in (
            (_NIGHT_FAILED, failed, run),
            (_BATCH_STUCK, stuck, run),
            (_SOURCES_SHRANK, shrank, fewer),
        )
    ]
