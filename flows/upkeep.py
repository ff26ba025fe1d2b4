"""Parts of a night on their own, as deployments that people start by hand."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType

from catalog import record
from catalog.hub import Hub
from catalog.queries import running_merge_ids
from catalog.schema import open_catalogue
from catalog.snapshot import write_snapshot
from flows.artifacts import show_troubles
from flows.plan import base_of
from flows.progress import tell_pause
from flows.results import publish_all, write_pages
from flows.scan import scan, usable
from flows.settings import load_settings


@flow(name="scan", flow_run_name="scan of {config}")
def scan_ahead(config: str) -> tuple[int, int]:
    """Read what is new in the sources of a CONFIG, for the night to come: how many are usable, how many refused."""
    settings = load_settings(Path(config))
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    found = list(scan(settings, Hub(waiting=tell_pause), catalogue))
    refused = [(one.repository, one.reason) for one in found if one.reason is not None]
    get_run_logger().info("%d adapters are usable, %d are not.", len(usable(found)), len(refused))
    show_troubles("refused-adapters", "Adapters that would not be taken, and why", refused)
    return len(usable(found)), len(refused)


@flow(name="publish", flow_run_name="publish what {config} asks for")
def publish_finished(config: str) -> int:
    """Send to the Hub what scores enough, when CONFIG says so; gives back how many merges it sent."""
    settings = load_settings(Path(config))
    if not settings.publish.enabled:
        get_run_logger().warning("publish.enabled is false: nothing leaves this machine.")
        return 0
    published, unpublished = publish_all(open_catalogue(settings.catalogue), settings)
    show_troubles("unpublished", "Merges that score enough and were not sent, and why", unpublished)
    return sum(not one.was_there for one in published)


@flow(name="maintenance", flow_run_name="maintenance of {config}")
def maintenance(config: str) -> int:
    """Settle merges that nobody does any more, and write snapshot and gallery again; gives back how many there were."""
    settings = load_settings(Path(config))
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    left = [] if _someone_merges() else sorted(running_merge_ids(catalogue))
    for merge_id in left:
        record.record_interrupted(catalogue, merge_id)
    get_run_logger().info("%d merges were left running by nobody, and are planned again.", len(left))
    write_snapshot(catalogue, settings.snapshot)
    write_pages(catalogue, settings, base_of(settings))
    return len(left)


def _someone_merges() -> bool:
    """Whether the server knows of a night or a batch under way."""
    with get_client(sync_client=True) as client:
        return bool(
            client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["nightly", "merge-batch"])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(
                        type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
                    )
                ),
                limit=1,
            )
        )
