"""A night in whose middle the Prefect server is away for minutes: what goes on without it, and what comes of the rest.

    .venv/bin/python infra/faults/away.py --seconds 600

Exits with 1 when something was lost, done twice, or left behind.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

from checks import broken, open_runs, progress, start_night, wait_until_settled
from parts import Fleet, fleet_of
from rig import ready, write_config

_LONGEST_SECONDS = 1800.0


def main() -> int:
    said = argparse.ArgumentParser(description=__doc__)
    for name, value in (("seconds", 600), ("side", 6), ("workers", 2)):
        said.add_argument(f"--{name}", type=int, default=value)
    told = said.parse_args()
    with fleet_of(told.workers) as (folder, fleet):
        wanted = ready(fleet, write_config(folder, fleet.catalogue, told.side, 0))
        start_night(fleet.api)
        _until(lambda: _done(fleet) >= wanted // 4)
        fleet.server.kill()
        found = {"wanted": wanted, "done_when_it_went": _done(fleet)}
        time.sleep(told.seconds)
        found["done_when_it_came_back"] = _done(fleet)
        fleet.server.start()
        fleet.wait_for_server()
        back = time.monotonic()
        _until(lambda: _done(fleet) >= min(found["done_when_it_came_back"] + 1, wanted))
        found["resumed_seconds"] = round(time.monotonic() - back)
        _until(lambda: not open_runs(fleet.api, "nightly"))
        unsettled = wait_until_settled(fleet.api)
        wrong = broken(fleet.catalogue, folder / "store", wanted, scores=3)
    print(json.dumps({**found, "unsettled": unsettled, "wrong": wrong}))
    return 1 if wrong or unsettled else 0


def _done(fleet: Fleet) -> int:
    return progress(fleet.catalogue).done


def _until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONGEST_SECONDS
    while not so():
        if time.monotonic() > end:
            raise TimeoutError("The night does not get on.")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
