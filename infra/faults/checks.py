"""What must be so after nights under fire, by catalogue, store and server alone."""

import json
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from catalog.schema import Failure, Merge, Score

_LATE_SECONDS = 60
_OPEN = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"]


@cache
def _engine(url: str) -> Engine:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)


@dataclass(frozen=True)
class Progress:
    """When merges were finished or failed."""

    done: int
    moments: tuple[float, ...]

    def stood_still(self, came_back: list[tuple[float, str]]) -> dict[str, Any]:
        """How long it took after each blow until the next merge was finished, if one was."""
        waits = []
        for moment, victim in came_back:
            after = [one for one in self.moments if one > moment]
            if after:
                waits.append((min(after) - moment, victim, moment))
        waits.sort()
        if not waits:
            return {}
        by_victim: dict[str, list[int]] = defaultdict(list)
        for seconds, victim, _ in waits:
            by_victim[victim].append(round(seconds))
        late = [
            {
                "victim": victim,
                "seconds": round(seconds),
                "then": [(other, round(at - moment)) for at, other in came_back if moment < at < moment + seconds],
            }
            for seconds, victim, moment in waits
            if seconds > _LATE_SECONDS
        ]
        return {
            "resumed_seconds_median": round(waits[len(waits) // 2][0], 1),
            "resumed_seconds_p95": round(waits[int(0.95 * (len(waits) - 1))][0], 1),
            "resumed_late": late,
            "resumed_seconds": by_victim,
        }


def progress(catalogue: str) -> Progress:
    """What is done; nothing is known while the database is away or empty."""
    try:
        with _engine(catalogue).connect() as connection:
            moments = connection.scalars(select(Merge.finished_at).where(Merge.status == "done")).all()
    except DBAPIError:
        return Progress(0, ())
    return Progress(len(moments), tuple(sorted(one.timestamp() for one in moments if isinstance(one, datetime))))


def broken(catalogue: str, store: Path, wanted: int, scores: int) -> list[str]:
    """Everything that is not as it must be."""
    found = []
    with _engine(catalogue).connect() as connection:
        words = Counter(connection.scalars(select(Merge.status).where(Merge.status != "skipped")).all())
        seen = dict(connection.execute(select(Score.merge_id, func.count()).group_by(Score.merge_id)).tuples().all())
        done = set(connection.scalars(select(Merge.merge_id).where(Merge.status == "done")).all())
        deaths = Counter(connection.scalars(select(Failure.code)).all())
    if words != {"done": wanted}:
        found.append(f"merges are {dict(words)}, not {wanted} done; failures {dict(deaths)}")
    for merge_id in sorted(done):
        folders = [path.parent for path in store.rglob(f"*{merge_id}*/result.json")]
        if len(folders) != 1:
            found.append(f"{merge_id[:12]} has {len(folders)} results in the store")
        if seen.get(merge_id) != scores:
            found.append(f"{merge_id[:12]} has {seen.get(merge_id, 0)} scores, not {scores}")
    return found


def ask(api: str, path: str, body: object = None) -> Any:
    """The API's answer."""
    content = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{api}/{path}", content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def open_runs(api: str, flow: str | None = None) -> list[str]:
    """Runs that have not ended, without those that wait for their hour."""
    wanted: dict[str, Any] = {"flow_runs": {"state": {"type": {"any_": _OPEN}}}}
    if flow:
        wanted["flows"] = {"name": {"any_": [flow]}}
    return [
        f"{one['name']} {one['state_type']}"
        for one in ask(api, "flow_runs/filter", wanted)
        if not one["auto_scheduled"]
    ]


def start_night(api: str) -> None:
    """What the schedule does at its hour."""
    deployment = ask(api, "deployments/name/nightly/nightly")["id"]
    ask(api, f"deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})


def wait_until_settled(api: str, seconds: float = 300.0) -> list[str]:
    """What still runs, or holds a slot, when nothing has anything to do any more."""
    end = time.monotonic() + seconds
    left = ["nobody asked"]
    while left and time.monotonic() < end:
        time.sleep(3)
        try:
            left = open_runs(api)
            slots = ask(api, "v2/concurrency_limits/filter", {})
            left += [f"{one['name']} holds {one['active_slots']} slots" for one in slots if one["active_slots"]]
        except OSError:
            continue
    return left
