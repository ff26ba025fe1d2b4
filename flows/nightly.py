"""One night: scan, plan, batches, gallery and snapshot, publish; and what became of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from time import perf_counter
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from pydantic import BaseModel, TypeAdapter

from catalog import record
from catalog.hub import Hub
from catalog.names import find_adapter
from catalog.queries import blocked_merge_ids, finished_merge_ids, open_requests
from catalog.schema import Catalogue, open_catalogue
from catalog.snapshot import write_snapshot
from catalog.story import night_summary
from flows.batch import merge_batch
from flows.plan import Base, Job, Plan, base_of, input_of, plan
from flows.progress import tell
from flows.results import write_pages
from flows.scan import Found, record_found, scan, usable
from flows.settings import Problem, Settings, load_settings
from flows.worker import merge_of


class Request(BaseModel):
    """A pair that somebody wants first: names of repositories, their last parts, or beginnings of sha256."""

    subject: str
    style: str


@dataclass(frozen=True)
class Report:
    """What a night did, in numbers."""

    night_id: str
    merged: int
    failed: Mapping[str, int]
    """Failed tries of merges, by code."""
    refused: Mapping[str, int]
    """Adapters that were not taken, by code."""
    skipped: Mapping[str, int]
    """Pairs that were left out, by code."""
    finished_before: int
    blocked: int
    postponed: int
    seconds: float
    gallery: str
    catalog: str
    snapshot: str


@task(name="scan", cache_policy=NO_CACHE, persist_result=False)
def scan_sources(settings: Settings, catalogue: Catalogue, night_id: str) -> list[Found]:
    """Judge every adapter of every source, and write it down."""
    seen = []
    for found in scan(settings, Hub()):
        record_found(found, catalogue, night_id)
        seen.append(found)
        tell("adapters", len(seen), 0)
    return seen


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_night(settings: Settings, catalogue: Catalogue, found: Sequence[Found]) -> Plan:
    """Which merges are to do; all of them are written down, and so is what is left out."""
    planned = plan_now(settings, catalogue, found)
    record.record_plan(catalogue, [merge_of(job) for job in planned.jobs])
    for skipped in planned.skipped:
        record.record_skipped(catalogue, merge_of(skipped.job), skipped.reason)
    return planned


def plan_now(settings: Settings, catalogue: Catalogue | None, found: Sequence[Found]) -> Plan:
    """The plan of a night that would start now; without a catalogue nothing is done yet."""
    adapters = [
        input_of(
            settings, one.role, str(one.sha256), one.licence, one.facts, (one.repository, one.revision, one.file_name)
        )
        for one in usable(found)
    ]
    if catalogue is None:
        return plan(settings, base_of(settings), adapters, (), (), ())
    requested = [(request.subject, request.style) for request in open_requests(catalogue)]
    finished, blocked = finished_merge_ids(catalogue), blocked_merge_ids(catalogue)
    return plan(settings, base_of(settings), adapters, finished, blocked, requested)


def batches(jobs: Sequence[Job], size: int) -> Iterator[tuple[Job, ...]]:
    """The jobs in pieces, in order."""
    for start in range(0, len(jobs), size):
        yield tuple(jobs[start : start + size])


@task(task_run_name="batch {number}", cache_policy=NO_CACHE, persist_result=False)
def start_batch(settings: Settings, base: Base, night_id: str, number: int, jobs: tuple[Job, ...]) -> None:
    """Have a worker of the gpu pool do a batch, and wait for it."""
    parameters = {
        "settings": settings.model_dump(mode="json"),
        "base": asdict(base),
        "night_id": night_id,
        "number": number,
        "jobs": TypeAdapter(tuple[Job, ...]).dump_python(jobs, mode="json"),
    }
    run: Any = run_deployment(
        "merge-batch/merge-batch", parameters=parameters, flow_run_name=f"batch {number} of {night_id}"
    )
    if run.state is None or not run.state.is_completed():
        ended = run.state.name if run.state else "nobody knows how"
        raise Problem("BATCH_LOST", f"Batch {number} ended: {ended}.", "its rest is done the next night.", 1)


@task(name="gallery and snapshot", cache_policy=NO_CACHE, persist_result=False)
def show_results(settings: Settings, catalogue: Catalogue) -> None:
    """Write what people look at and ask."""
    write_snapshot(catalogue, settings.snapshot)
    write_pages(catalogue, settings)


@flow(name="nightly", flow_run_name="night of {config}", log_prints=False)
def nightly(config: str, requests: tuple[Request, ...] = (), workers: Literal["here", "pool"] = "here") -> Report:
    """Do one night of a CONFIG: `here` in this process, or by the workers of the gpu pool."""
    started = perf_counter()
    settings = load_settings(Path(config))
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    night_id = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{token_hex(2)}"
    record.record_night_started(catalogue, night_id, settings.model_dump(mode="json"), datetime.now(UTC))
    found = scan_sources(settings, catalogue, night_id)
    for request in requests:
        pair = find_adapter(catalogue, request.subject, "subject"), find_adapter(catalogue, request.style, "style")
        record.record_request(catalogue, *pair, datetime.now(UTC))
    planned = plan_night(settings, catalogue, found)
    _merge_all(settings, night_id, planned.jobs, workers)
    _close_requests(catalogue, planned)
    show_results(settings, catalogue)
    report = _report(settings, catalogue, night_id, planned, perf_counter() - started)
    record.record_night_finished(catalogue, night_id, asdict(report), datetime.now(UTC))
    _show(settings, found, report)
    return report


def _merge_all(settings: Settings, night_id: str, jobs: Sequence[Job], workers: Literal["here", "pool"]) -> None:
    base = base_of(settings)
    numbered = list(enumerate(batches(jobs, settings.limits.batch), start=1))
    if workers == "here":
        for number, batch in numbered:
            merge_batch(settings, base, night_id, number, batch)
    else:
        runs = [start_batch.submit(settings, base, night_id, number, batch) for number, batch in numbered]
        for run in runs:
            run.result()


def _close_requests(catalogue: Catalogue, planned: Plan) -> None:
    """A request is answered once every merge of its pair is done; the others wait for the next night."""
    finished = finished_merge_ids(catalogue)
    waiting = {(job.subject.sha256, job.style.sha256) for job in planned.jobs if job.recipe.merge_id not in finished}
    for request in open_requests(catalogue):
        if (request.subject, request.style) not in waiting:
            record.record_request_closed(catalogue, request.subject, request.style, datetime.now(UTC))


def _report(settings: Settings, catalogue: Catalogue, night_id: str, planned: Plan, seconds: float) -> Report:
    summary = night_summary(catalogue, night_id)
    return Report(
        night_id=night_id,
        merged=summary.done,
        failed=summary.failed,
        refused=summary.refused,
        skipped=Counter(skipped.reason.code for skipped in planned.skipped),
        finished_before=planned.finished,
        blocked=planned.blocked,
        postponed=planned.postponed,
        seconds=round(seconds, 1),
        gallery=str(settings.gallery / "index.html"),
        catalog=settings.catalogue,
        snapshot=str(settings.snapshot),
    )


def _show(settings: Settings, found: Sequence[Found], report: Report) -> None:
    """The night as artifacts of its run in the Prefect UI."""
    refused = [
        {"adapter": one.repository, "code": one.reason.code, "fact": one.reason.fact, "next": one.reason.next_step}
        for one in found
        if one.reason
    ]
    numbers = [{"what": name, "value": str(value)} for name, value in asdict(report).items()]
    create_table_artifact(table=numbers, key="night", description="The night in numbers")
    create_table_artifact(table=refused, key="refused-adapters", description="Adapters that were not taken, and why")
    create_link_artifact(link=Path(report.gallery).as_uri(), link_text="Open the gallery", key="gallery")
