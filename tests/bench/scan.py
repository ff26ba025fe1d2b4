"""What a scan of a Hub with many adapters costs: `python -m tests.bench.scan`.

The Hub is the tests' own, on this machine, and takes its part of the processor; the scan is a process of its own, whose
memory alone counts. Headers are as long as those of real LoRAs of SDXL. Three nights are measured: the first, the next
with one adapter in a hundred changed, and a first night that was stopped in the middle and started again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from catalog.schema import open_catalogue
from flows.progress import watched
from tests.catalog.hub_contents import HubServer
from tests.catalog.hub_server import serving
from tests.flows.crowd import change, fill, lengthen, scan_night

from .memory import peak_megabytes

CHANGED_EVERY = 100


@dataclass(frozen=True)
class Cost:
    """What one scan took."""

    night: str
    adapters: int
    usable: int
    seconds: float
    processor_seconds: float
    """Of the scanning process: what is left of it on a busy machine."""
    listing_requests: int
    file_requests: int
    most_bytes_read: int
    """Of one adapter's file."""
    bytes_read_per_adapter: float
    peak_megabytes: float
    """Of the scanning process."""


class _Stopped(Exception):  # noqa: N818 - somebody pressed Ctrl-C
    """In the middle."""


@dataclass(frozen=True)
class _Scanned:
    """What the scanning process says."""

    adapters: int
    usable: int
    seconds: float
    processor_seconds: float
    peak_megabytes: float


def _scan(endpoint: str, catalogue: str, night: str, stop_at: int | None) -> _Scanned | None:
    """Scan in a process of its own; None when it was stopped, so many adapters after the start."""

    def watcher(what: str, done: int, total: int) -> None:
        if done == stop_at:
            raise _Stopped

    opened = open_catalogue(catalogue, migrate=True)
    started, used = time.monotonic(), time.process_time()
    try:
        with watched(watcher):
            found = scan_night(HubServer(endpoint=endpoint), opened, night)
    except _Stopped:
        return None
    finally:
        opened.dispose()
    seconds = time.monotonic() - started
    usable, used = sum(one.reason is None for one in found), time.process_time() - used
    return _Scanned(len(found), usable, seconds, used, peak_megabytes())


def _measured(server: HubServer, catalogue: str, night: str, stop_at: int | None = None) -> Cost | None:
    server.requests.clear()
    server.sent_bytes_of.clear()
    with get_context("spawn").Pool(1) as process:
        seen = process.apply(_scan, (server.endpoint, catalogue, night, stop_at))
    if seen is None:
        return None
    files = sum("/resolve/" in request for request in server.requests)
    return Cost(
        night,
        seen.adapters,
        seen.usable,
        seen.seconds,
        seen.processor_seconds,
        len(server.requests) - files,
        files,
        max(server.sent_bytes_of.values(), default=0),
        server.sent_bytes_of.total() / seen.adapters,
        seen.peak_megabytes,
    )


def measure(adapters: int, folder: Path) -> list[Cost]:
    """The three nights."""
    whole, stopped = (f"sqlite:///{folder / name}.sqlite" for name in ("whole", "stopped"))
    with serving() as server:
        server.page = 1000
        fill(server, adapters)
        lengthen(server)
        first = _measured(server, whole, "first")
        change(server, CHANGED_EVERY)
        lengthen(server)
        second = _measured(server, whole, "second, 1 % changed")
        assert _measured(server, stopped, "stopped", adapters // 2) is None
        resumed = _measured(server, stopped, "first, resumed in the middle")
    return [one for one in (first, second, resumed) if one is not None]


def _table(costs: Sequence[Cost]) -> Table:
    shown = Table("night", title=f"A scan of {costs[0].adapters:,} adapters", title_justify="left")
    for column in (
        "usable",
        "s",
        "of processor",
        "requests: listing",
        "files",
        "most bytes of a file",
        "bytes per adapter",
        "peak MB",
    ):
        shown.add_column(column, justify="right")
    for one in costs:
        shown.add_row(
            one.night,
            f"{one.usable:,}",
            f"{one.seconds:.1f}",
            f"{one.processor_seconds:.1f}",
            f"{one.listing_requests:,}",
            f"{one.file_requests:,}",
            f"{one.most_bytes_read:,}",
            f"{one.bytes_read_per_adapter:,.0f}",
            f"{one.peak_megabytes:.0f}",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and, where asked, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scan", description=__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="where the figures are written too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as work:
        costs = measure(options.adapters, Path(work))
    Console(width=140).print(_table(costs))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in costs], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
