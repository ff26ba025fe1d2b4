"""A night that its schedule starts, on a fleet that nobody disturbs: what it took beside its work, and the next one.

    .venv/bin/python infra/faults/night.py --side 8

Real merges of the tiny world by two methods. What the work took is what Prefect shows of its tasks: scan, plan and
gallery come one after the other, pairs are shared out among the workers. A small night in one process comes before it,
so that the catalogue knows what pairs take; `--before 0` does without, as the first night of all.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from checks import ask, broken, progress, start_night
from parts import fleet_of
from rig import ready, write_config, ziplora

_ALONE = ("scan", "plan", "publish", "gallery and snapshot")
_PAGE = 200
_SOON_MINUTES = 2


def main() -> int:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--side", type=int, default=8)
    said.add_argument("--before", type=int, default=3, help="subjects, and styles, of the small night")
    said.add_argument("--workers", type=int, default=2)
    told = said.parse_args()
    with fleet_of(told.workers) as (folder, fleet):
        if told.before:
            small = _config(folder, fleet.catalogue, told.before, steps=99, style_weight=0.9)
            ziplora(fleet, "run", str(small))
        before = progress(fleet.catalogue).done
        config = _config(folder, fleet.catalogue, told.side, steps=100, style_weight=1.0)
        wanted = ready(fleet, config)
        moment = datetime.now(UTC) + timedelta(minutes=_SOON_MINUTES)
        schedule = {"cron": f"{moment.minute} {moment.hour} * * *", "timezone": "UTC"}
        deployment = ask(fleet.api, "deployments/name/nightly/nightly")["id"]
        ask(fleet.api, f"deployments/{deployment}/schedules", [{"schedule": schedule, "active": True}])
        first = _night(fleet.api, deployment, 1)
        wrong = broken(fleet.catalogue, folder / "store", before + wanted, scores=6)
        start_night(fleet.api)
        second = _night(fleet.api, deployment, 2)
        done = progress(fleet.catalogue).done - before
    work = first.pop("shared") / told.workers + first.pop("alone")
    second.pop("shared"), second.pop("alone")
    first |= {"seconds_of_the_work": round(work, 1), "overhead": round(first["seconds"] / work - 1, 3)}
    print(json.dumps({"merges": wanted, "done": done, "wrong": wrong, "first": first, "second": second}, indent=1))
    return 1 if wrong or second["batches"] else 0


def _config(folder: Path, catalogue: str, side: int, *, steps: int, style_weight: float) -> Path:
    """A night of so many subjects and styles by two methods."""
    config = write_config(folder, catalogue, side, 0)
    settings: dict[str, Any] = yaml.safe_load(config.read_text())
    settings["methods"] = [
        {"method": "ziplora", "parameters": {"steps": steps}},
        {"method": "direct", "parameters": {"style_weight": style_weight}},
    ]
    settings["previews"] |= {"seeds": [0, 1], "steps": 20}
    settings["limits"] = {}
    config.write_text(yaml.safe_dump(settings))
    return config


def _night(api: str, deployment: str, number: int) -> dict[str, Any]:
    """Waits for the end of a deployment's so many-th night; what it took."""
    query = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    while len(nights := ask(api, "flow_runs/filter", {**query, "sort": "START_TIME_DESC"})) < number:
        time.sleep(2)
    night = nights[0]
    time.sleep(15)  # the server writes what tasks took a little later
    since = {"flow_runs": {"start_time": {"after_": night["start_time"]}}}
    tasks = _all(api, "task_runs/filter", since)
    batches = [one for one in _all(api, "flow_runs/filter", since) if one["deployment_id"] != deployment]
    ids = {one["id"] for one in batches}
    return {
        "state": night["state_name"],
        "started_by_its_schedule": night["auto_scheduled"],
        "seconds_after_its_hour": round(night["estimated_start_time_delta"], 1),
        "seconds": round(night["total_run_time"], 1),
        "batches": len(batches),
        "shared": sum(one["total_run_time"] for one in tasks if one["flow_run_id"] in ids),
        "alone": sum(one["total_run_time"] for one in tasks if one["name"] in _ALONE),
    }


def _all(api: str, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := ask(api, path, {**query, "limit": _PAGE, "offset": len(found)}):
        found += page
    return found


if __name__ == "__main__":
    sys.exit(main())
