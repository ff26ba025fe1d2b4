"""One night: scan, plan, batches, gallery and snapshot, publish; and what became of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from secrets import token_hex

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from catalog import record
from catalog.errors import CatalogueError
from catalog.facts import Reason
from catalog.hub import Hub
from catalog.names import find_adapter
from catalog.publish import Published
from catalog.queries import failures_of, finished_merge_ids, merges_of_subject, open_requests, skips_of_subject
from catalog.schema import Catalogue, open_catalogue
from catalog.sidecars import KeptNight, keep_night
from catalog.snapshot import write_snapshot
from catalog.story import night_summary
from flows.alerts import night_ended, send_report
from flows.artifacts import show_extremes, show_night, show_troubles
from flows.fleet import Night, Workers, clear_up, merge_all, refuse_crash_loop
from flows.fresh_snapshot import FreshSnapshot
from flows.missing import look_over
from flows.plan import Base, Job, Plan, Wishes, base_of, input_of, nothing_known, plan
from flows.progress import tell_pause
from flows.results import publish_all, write_pages
from flows.retention import let_go
from flows.scan import Found, is_unanswered, usable
from flows.settings import Settings, load_settings
from flows.short_list import lacking_pictures, ranked_pictures, rounds, with_further_seeds
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
    short_listed: int
    """Merges whose further pictures were drawn."""
    failed: Mapping[str, int]
    """Failed tries of merges and of further pictures, by code."""
    refused: Mapping[str, int]
    """Adapters that were not taken, by code."""
    skipped: Mapping[str, int]
    """Merges and requests that were left out, by code."""
    finished_before: int
    blocked: int
    postponed: int
    """Merges that a limit or a lost batch left for the next night."""
    published: int
    unpublished: Mapping[str, int]
    """Merges that score enough and did not leave this machine, by code."""
    offered: int | None
    """Adapters in all sources; None when the Hub did not say what there is."""
    withheld: str | None
    """Why nothing was published that might have been, as a code."""
    lost_batches: Mapping[str, int]
    """Batches that were given up, by code."""
    seconds: float
    gallery: str
    catalog: str
    snapshot: str


@task(task_run_name="scan", cache_policy=NO_CACHE, persist_result=False)
def scan_sources(settings: Settings, catalogue: Catalogue, night_id: str) -> tuple[list[Found], Reason | None]:
    """Judge every adapter of every source, and write it down; with what speaks against relying on it."""
    log = get_run_logger()

    def waiting(seconds: int) -> None:
        log.warning("waiting %d s for the Hub", seconds)
        tell_pause(seconds)

    return look_over(settings, Hub(waiting=waiting), catalogue, night_id)


@task(task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_night(settings: Settings, base: Base, catalogue: Catalogue, found: Sequence[Found]) -> Plan:
    """Which merges are to do; all of them are written down, and so is what is left out."""
    planned = plan_now(settings, base, catalogue, found)
    record.record_plan(catalogue, [merge_of(job) for job in planned.jobs])
    for subject, skipped in groupby(planned.skipped, lambda one: one.subject.sha256):
        known = skips_of_subject(catalogue, subject)
        new = [(merge_of(one.job), one.reason) for one in skipped if known.get(one.merge_id) != one.reason]
        record.record_skipped(catalogue, new)
    return planned


def plan_now(settings: Settings, base: Base, catalogue: Catalogue | None, found: Sequence[Found]) -> Plan:
    """The plan of a night that would start now; without a catalogue nothing is done yet."""
    adapters = [
        input_of(
            settings, one.role, str(one.sha256), one.licence, one.facts, (one.repository, one.revision, one.file_name)
        )
        for one in usable(found)
    ]
    if catalogue is None:
        return plan(settings, base, adapters, nothing_known, ())
    requested = [(request.subject, request.style) for request in open_requests(catalogue)]
    return plan(settings, base, adapters, partial(merges_of_subject, catalogue), requested)


@task(task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_night(settings: Settings, catalogue: Catalogue) -> tuple[list[Published], list[tuple[str, Reason]]]:
    """Send to the Hub what scores enough, when the settings say so."""
    return publish_all(catalogue, settings)


@task(task_run_name="gallery and snapshot", cache_policy=NO_CACHE, persist_result=False)
def show_results(settings: Settings, base: Base, catalogue: Catalogue) -> None:
    """Write what people look at and ask."""
    write_snapshot(catalogue, settings.snapshot)
    write_pages(catalogue, settings, base)


def _night_name() -> str:
    return f"night of {datetime.now(UTC):%Y-%m-%d}"


@flow(name="nightly", flow_run_name=_night_name, log_prints=False)
def nightly(config: str, requests: tuple[Request, ...] = (), workers: Workers = "here") -> Report:
    """Do one night of a CONFIG.

    Args:
        config: the night's YAML file, by its path on the machines of the workers.
        requests: pairs that go first, whatever the file says; adapters by name, or by the beginning of their sha256.
        workers: `here` merges in the process of this run, `pool` has it done by the workers of the gpu pool.
    """
    began = datetime.now(UTC)
    settings = load_settings(Path(config))
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    if workers == "pool":
        refuse_crash_loop(catalogue)
    night_id = f"{began:%Y-%m-%dT%H-%M-%S}-{token_hex(2)}"
    kept = KeptNight(night_id, settings.model_dump(mode="json"), began)
    keep_night(settings.store_folder, kept)
    record.record_night_started(catalogue, night_id, kept.settings, began)
    log = get_run_logger()
    found, doubtful = scan_sources(settings, catalogue, night_id)
    fit = len(usable(found))
    log.info("%d adapters are usable, %d are not.", fit, len(found) - fit)
    misunderstood = ask_for(catalogue, requests)
    base = base_of(settings)
    until = began + timedelta(seconds=settings.limits.seconds)
    night = Night(night_id, settings, base, catalogue, workers, until, FreshSnapshot(catalogue, settings.snapshot))
    clear_up(night)
    planned = plan_night(settings, base, catalogue, found)
    log.info(
        "%d merges are to do, %d are done, %d are skipped.",
        len(planned.jobs),
        planned.finished,
        len(planned.skipped),
    )
    lost = merge_all(night, settings, planned.jobs)
    short_list, more_lost = _draw_short_list(night, planned.wishes)
    lost += more_lost
    _close_requests(settings, base, catalogue, found)
    publishes = settings.publish.enabled and doubtful is None
    published, unpublished = publish_night(settings, catalogue) if publishes else ([], [])
    withheld = [("publishing", doubtful)] if settings.publish.enabled and doubtful else []
    pictures, copies = let_go(settings, catalogue)
    log.info("Pictures of %d merges and copies of %d adapters were let go.", pictures, copies)
    show_results(settings, base, catalogue)
    summary = night_summary(catalogue, night_id)
    report = Report(
        night_id=night_id,
        merged=summary.done,
        short_listed=len(short_list) - len(lacking_pictures(with_further_seeds(settings), catalogue, short_list)),
        failed=summary.failed,
        refused=summary.refused,
        skipped=_counted([*(one.reason for one in planned.skipped), *(reason for _, reason in misunderstood)]),
        finished_before=planned.finished,
        blocked=planned.blocked,
        postponed=planned.postponed + len(_left(catalogue, night_id, planned.jobs)),
        published=sum(not one.was_there for one in published),
        unpublished=_counted([reason for _, reason in unpublished]),
        offered=None if any(map(is_unanswered, found)) else len(found),
        withheld=withheld[0][1].code if withheld else None,
        lost_batches=_counted([reason for _, reason in lost]),
        seconds=round((datetime.now(UTC) - began).total_seconds(), 1),
        gallery=str(settings.gallery / "index.html"),
        catalog=settings.catalogue,
        snapshot=str(settings.snapshot),
    )
    ended = datetime.now(UTC)
    keep_night(settings.store_folder, replace(kept, finished_at=ended, summary=asdict(report)))
    record.record_night_finished(catalogue, night_id, asdict(report), ended)
    log.info("%d merges were made, %d failed.", report.merged, sum(report.failed.values()))
    show_extremes(ranked_pictures(settings, catalogue, planned.jobs))
    _show(settings, catalogue, report, (*planned.jobs, *short_list), [*misunderstood, *unpublished, *withheld, *lost])
    night_ended(night_id, doubtful, asdict(report), failed=bool(report.failed or report.lost_batches))
    return report


def ask_for(catalogue: Catalogue, requests: Sequence[Request]) -> list[tuple[str, Reason]]:
    """Write down what this night is asked for; gives back what names no pair of known adapters, and why."""
    misunderstood = []
    for request in requests:
        try:
            pair = find_adapter(catalogue, request.subject, "subject"), find_adapter(catalogue, request.style, "style")
        except CatalogueError as error:
            if not error.code.startswith("NAME_"):
                raise
            reason = Reason(error.code, str(error).partition(": ")[2], "ask again, with another name.")
            misunderstood.append((f"{request.subject} × {request.style}", reason))
        else:
            record.record_request(catalogue, *pair, datetime.now(UTC))
    return misunderstood


def _draw_short_list(night: Night, wishes: Wishes) -> tuple[list[Job], list[tuple[str, Reason]]]:
    """Have further pictures of the best merges drawn; gives back which these were, and what batches were lost."""
    more = with_further_seeds(night.settings)
    tried: list[Job] = []
    lost: list[tuple[str, Reason]] = []
    for lacking in rounds(night.settings, night.catalogue, wishes):
        tried += lacking
        lost += merge_all(night, more, lacking)
    return tried, lost


def _left(catalogue: Catalogue, night_id: str, jobs: Sequence[Job]) -> list[Job]:
    """Those of a night's merges that it neither finished nor failed at."""
    failed = {trouble.item for trouble in failures_of(catalogue, night_id) if trouble.word == "failed"}
    settled = finished_merge_ids(catalogue, [job.recipe.merge_id for job in jobs]) | failed
    return [job for job in jobs if job.recipe.merge_id not in settled]


def _close_requests(settings: Settings, base: Base, catalogue: Catalogue, found: Sequence[Found]) -> None:
    """A request is answered once every merge of its pair is done; the others wait for the next night."""
    if open_requests(catalogue):
        for subject, style in plan_now(settings, base, catalogue, found).answered:
            record.record_request_closed(catalogue, subject, style, datetime.now(UTC))


def _counted(reasons: Sequence[Reason]) -> Mapping[str, int]:
    return dict(Counter(reason.code for reason in reasons))  # asdict makes pairs of a Counter's keys


def _show(
    settings: Settings, catalogue: Catalogue, report: Report, jobs: Sequence[Job], others: Sequence[tuple[str, Reason]]
) -> None:
    """The night as artifacts of its run in the Prefect UI, and as a message to whoever wants one."""
    troubles = failures_of(catalogue, report.night_id)
    names = {job.recipe.merge_id: job.name for job in jobs}
    refused, failed = (
        [(names.get(one.item, one.item.partition("@")[0]), one.reason) for one in troubles if one.word == word]
        for word in ("refused", "failed")
    )
    show_troubles("refused-adapters", "Adapters that were not taken, and why", refused)
    show_troubles("failed-merges", "Merges that failed, and why", failed)
    show_troubles("left-out", "Requests, batches and publications that came to nothing, and why", others)
    counts = [("merged", "", report.merged), ("finished before", "", report.finished_before)]
    for what in ("failed", "refused", "skipped", "unpublished", "lost_batches"):
        counts += [(what.replace("_", " "), code, count) for code, count in getattr(report, what).items()]
    for what in ("short_listed", "blocked", "postponed", "published"):
        counts.append((what.replace("_", " "), "", getattr(report, what)))
    headline = f"{report.merged} merged, {len(failed)} failed, {len(refused)} refused in {report.seconds:.0f} s"
    counts = [one for one in counts if one[2]]
    show_night(headline, counts, Path(report.gallery))
    if settings.notify is not None:
        send_report(settings.notify, headline, counts, report.gallery)
