"""What a scan of a Hub with many adapters costs: `python -m tests.bench.scan`.

The Hub is the tests' own, on this machine and in this process: seconds and memory count both sides. Three nights of one
catalogue are measured, the first, the next with one adapter in a hundred changed, and a first night that is stopped in
the middle and started again.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from catalog.schema import Catalogue, open_catalogue
from flows.progress import watched
from tests.catalog.hub_contents import HubServer
from tests.catalog.hub_server import serving
from tests.flows.crowd import change, fill, scan_night

CHANGED_EVERY = 100


@dataclass(frozen=True)
class Cost:
    """What one scan took."""

    night: str
    adapters: int
    usable: int
    seconds: float
    listing_requests: int
    file_requests: int
    most_bytes_read: int
    """Of one adapter's file."""
    bytes_read_per_adapter: float
    peak_megabytes: float
    """Of the process so far, the Hub in it too."""


class _Stopped(Exception):  # noqa: N818 - somebody pressed Ctrl-C
    """In the middle."""


def _measured(server: HubServer, catalogue: Catalogue, night: str) -> Cost:
    server.requests.clear()
    server.sent_bytes_of.clear()
    started = time.monotonic()
    found = scan_night(server, catalogue, night)
    seconds = time.monotonic() - started
    files = sum("/resolve/" in request for request in server.requests)
    return Cost(
        night,
        len(found),
        sum(one.reason is None for one in found),
        seconds,
        len(server.requests) - files,
        files,
        max(server.sent_bytes_of.values(), default=0),
        server.sent_bytes_of.total() / len(found),
        _peak_megabytes(),
    )


def _peak_megabytes() -> float:
    """As Linux counts it; `ru_maxrss` would begin with the peak of whoever started this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1000


def _stop_in_the_middle(server: HubServer, catalogue: Catalogue, adapters: int) -> None:
    def watcher(what: str, done: int, total: int) -> None:
        if done == adapters // 2:
            raise _Stopped

    try:
        with watched(watcher):
            scan_night(server, catalogue, "stopped")
    except _Stopped:
        return
    raise AssertionError("nobody stopped it")


@contextmanager
def _catalogue(folder: Path, name: str) -> Iterator[Catalogue]:
    opened = open_catalogue(f"sqlite:///{folder / name}.sqlite", migrate=True)
    try:
        yield opened
    finally:
        opened.dispose()


def measure(adapters: int, folder: Path) -> list[Cost]:
    """The three nights."""
    with serving() as server:
        server.page = 1000
        fill(server, adapters)
        with _catalogue(folder, "catalog") as catalogue:
            first = _measured(server, catalogue, "first")
            change(server, CHANGED_EVERY)
            second = _measured(server, catalogue, "second, 1 % changed")
        with _catalogue(folder, "stopped") as catalogue:
            _stop_in_the_middle(server, catalogue, adapters)
            resumed = _measured(server, catalogue, "first, resumed in the middle")
    return [first, second, resumed]


def _table(costs: Sequence[Cost]) -> Table:
    shown = Table("night", title=f"A scan of {costs[0].adapters:,} adapters", title_justify="left")
    for column in ("usable", "s", "requests: listing", "files", "most bytes of a file", "bytes per adapter", "peak MB"):
        shown.add_column(column, justify="right")
    for one in costs:
        shown.add_row(
            one.night,
            f"{one.usable:,}",
            f"{one.seconds:.1f}",
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
