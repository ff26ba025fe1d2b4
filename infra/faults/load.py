"""A night of very many merges that take no time, on very many workers, to see what orchestration and record cost.

    .venv/bin/python infra/faults/load.py --pairs 2000 --workers 16

Server, Postgres, flows, tasks, artifacts and rows are real; workers are threads of this process, and a merge is a nap.
What it prints was counted: calls of the API by what they ask, rows of both databases, and what each part took of the
processor.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

_PICTURE = "picture.png"
_BEAT_SECONDS = 30.0
_QUIET_SECONDS = 15.0
"""So long nothing new is written when all is."""


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--pairs", type=int, default=100_000)
    said.add_argument("--workers", type=int, default=64)
    said.add_argument("--seconds", type=float, default=0.15, help="what a pair takes, in three naps")
    told = said.parse_args()
    from parts import fleet_of

    from flows.settings import worker_environment

    with fleet_of(0) as (folder, fleet):
        environment = worker_environment(None) | fleet.server.environment
        os.environ.update({name: value for name, value in environment.items() if "PREFECT" in name})
        print(json.dumps(_night(folder, fleet, told), indent=1))


def _night(folder: Path, fleet: Any, told: argparse.Namespace) -> dict[str, Any]:
    from PIL import Image
    from prefect import flow
    from rig import write_config

    from catalog import record
    from catalog.queries import finished_merge_ids
    from catalog.schema import open_catalogue
    from flows.deploy import deploy
    from flows.fleet import Night, merge_all
    from flows.fresh_snapshot import FreshSnapshot
    from flows.plan import Base, nothing_known, plan
    from flows.settings import load_settings
    from flows.worker import merge_of

    calls, catalogue, pairs = _counted_calls(), fleet.catalogue, told.pairs
    config = write_config(folder, catalogue, 1, 0)
    deploy(config)
    settings = load_settings(config)
    limits = {"batch": min(50, -(-pairs // told.workers)), "pairs": pairs}
    settings = settings.model_copy(update={"limits": settings.limits.model_copy(update=limits)})
    opened = open_catalogue(catalogue, migrate=True)
    adapters = _adapters(opened, pairs)
    base = Base("base", "1")
    settings.store_folder.mkdir()
    Image.new("RGB", (64, 64)).save(settings.store_folder / _PICTURE)
    began = time.monotonic()
    jobs = plan(settings, base, adapters, nothing_known, ()).jobs
    until = datetime.now(UTC) + timedelta(hours=12)
    night = Night("night", settings, base, opened, "pool", until, FreshSnapshot(opened, settings.snapshot))
    record.record_night_started(opened, "night", {}, datetime.now(UTC))
    record.record_plan(opened, [merge_of(job) for job in jobs])
    planned = time.monotonic() - began
    before, stop = Counter(calls), Event()
    threads = [Thread(target=_work, args=(stop, told.seconds), daemon=True) for _ in range(told.workers)]
    threads.append(Thread(target=_beat, args=(stop, told.workers), daemon=True))
    _say_alive(told.workers)
    cpu = _cpu_seconds(fleet)
    for thread in threads:
        thread.start()
    began = time.monotonic()
    lost = flow(name="nightly")(lambda: merge_all(night, settings, jobs))()  # so many jobs are no parameters
    seconds = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join(30)
    used = calls - before
    lag = _caught_up(catalogue)
    cpu = {part: after - cpu[part] for part, after in _cpu_seconds(fleet).items()}
    done = len(finished_merge_ids(opened))
    return {
        "pairs": len(jobs),
        "done": done,
        "lost_batches": len(lost),
        "workers": told.workers,
        "pairs_a_batch": limits["batch"],
        "seconds_to_plan_and_record_it": round(planned, 1),
        "seconds": round(seconds, 1),
        "seconds_until_the_server_had_written_it_all": round(lag, 1),
        "pairs_a_second": round(done / seconds, 1),
        "pairs_a_second_of_the_naps_alone": round(told.workers / told.seconds, 1),
        "cpu_seconds_a_pair": {part: round(seconds / done, 3) for part, seconds in cpu.items()},
        "api_calls_a_pair": round(sum(used.values()) / done, 3),
        "api_calls_a_batch_by_kind": {
            kind: round(count * limits["batch"] / done, 1) for kind, count in used.most_common(14)
        },
        "rows_a_pair": {database: _rows(catalogue, database, done) for database in ("catalogue", "prefect")},
    }


def _cpu_seconds(fleet: Any) -> dict[str, float]:
    """What each part has taken of the processor, with processes of it that have ended."""
    import psutil

    parts = {"server": fleet.server.tree(), "postgres": fleet.postgres.tree(), "workers": [psutil.Process()]}
    return {part: sum(sum(one.cpu_times()[:4]) for one in tree) for part, tree in parts.items()}


def _counted_calls() -> Counter[str]:
    """Counts what this process asks of the API from now on."""
    import httpx

    calls: Counter[str] = Counter()

    def kind(request: httpx.Request) -> str:
        return f"{request.method} {re.sub(r'[0-9a-f-]{36}', 'ID', request.url.path)}"

    def count(client: type[Any], *, is_async: bool) -> None:
        send = client.send

        def sync_send(self: Any, request: httpx.Request, *args: Any, **kwargs: Any) -> Any:
            calls[kind(request)] += 1
            return send(self, request, *args, **kwargs)

        async def async_send(self: Any, request: httpx.Request, *args: Any, **kwargs: Any) -> Any:
            calls[kind(request)] += 1
            return await send(self, request, *args, **kwargs)

        client.send = async_send if is_async else sync_send

    count(httpx.Client, is_async=False)
    count(httpx.AsyncClient, is_async=True)
    return calls


def _adapters(catalogue: Any, pairs: int) -> list[Any]:
    """As many subjects as styles, and enough of them for so many pairs."""
    from catalog import facts, record
    from flows.plan import Input

    side = int(pairs**0.5 + 0.999)
    roles: tuple[facts.Role, facts.Role] = ("subject", "style")
    inputs = [
        Input(facts.key(role, number), role, f"a/{role}{number}", "1", "w", "mit", "a sks", "a sks", Path("/"), ())
        for role in roles
        for number in range(side)
    ]
    now = datetime.now(UTC)
    record.record_adapters(catalogue, [facts.Adapter(one.sha256, one.role, "usable", "mit", {}, now) for one in inputs])
    return inputs


def _say_alive(workers: int) -> None:
    """What each worker tells the server of itself; the night counts them."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for number in range(workers):
            client.send_worker_heartbeat("gpu", f"worker {number}", _BEAT_SECONDS)


def _beat(stop: Event, workers: int) -> None:
    while not stop.wait(_BEAT_SECONDS):
        _say_alive(workers)


def _work(stop: Event, seconds: float) -> None:
    """A worker of the gpu pool: takes a run that is due, and does it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import Abort
    from prefect.flow_engine import run_flow
    from prefect.states import Pending
    from prefect.utilities.engine import propose_state_sync

    import flows.batch

    flows.batch.worker_for = partial(_napper, seconds / 3)  # type: ignore[attr-defined]
    with get_client(sync_client=True) as client:
        while not stop.is_set():
            for one in client.get_scheduled_flow_runs_for_work_pool("gpu"):
                try:
                    taken = propose_state_sync(client, Pending(), one.flow_run.id)
                except Abort:  # another one took it
                    continue
                if taken.is_pending():
                    run = client.read_flow_run(one.flow_run.id)
                    run_flow(flows.batch.merge_batch, flow_run=run, parameters=run.parameters)
                    break
            else:
                stop.wait(2.0)


def _napper(pause: float, settings: Any, base: Any) -> Any:
    from flows.plan import Job
    from flows.worker import Pictures, Worker
    from ziplora.recipe import MergeResult, Picture, PreviewResult, ScoreRow

    class Napper(Worker):
        def load(self) -> None:
            pass

        def fetch(self, adapter: Any, night_id: str) -> None:
            self.at_hand.add(adapter.sha256)

        def merge(self, job: Job, progress: Any) -> MergeResult:
            time.sleep(pause)
            return MergeResult(
                job.recipe.merge_id, None, 0.0, 1.0, 1.0, 1, 0, (), 8, 0.05, 0, "cpu", "float32", {}, "0"
            )

        def preview(self, job: Job) -> Pictures:
            time.sleep(pause)
            drawn = PreviewResult(settings.store_folder, Path("/"), (Picture(_PICTURE, "p", 0),))
            return Pictures(drawn, drawn, drawn, drawn)

        def score(self, job: Job, pictures: Pictures) -> tuple[ScoreRow, ...]:
            time.sleep(pause)
            (prompt,) = job.prompts(settings.previews.prompts)
            return tuple(
                ScoreRow(scorer, prompt, 0, 0.5, 0.0, 1.0, "0", "0") for scorer in ("clip-t:a", "clip-i:a", "dino:a")
            )

    return Napper(settings, base)


def _caught_up(catalogue: str) -> float:
    """Waits until the server has written all that it was told; how long that took."""
    began = latest = time.monotonic()
    before: dict[str, int] = {}
    while time.monotonic() - latest < _QUIET_SECONDS:
        now = {table: count for table, count in _counts(catalogue, "prefect").items() if table.startswith("task_run")}
        if now != before:
            before, latest = now, time.monotonic()
        time.sleep(1)
    return latest - began


def _rows(catalogue: str, database: str, pairs: int) -> dict[str, float]:
    """Rows for each pair, by table, of those that grow with the pairs."""
    counts = _counts(catalogue, database)
    return {table: round(count / pairs, 3) for table, count in sorted(counts.items()) if count * 20 > pairs}


def _counts(catalogue: str, database: str) -> dict[str, int]:
    """How many rows each table has."""
    from sqlalchemy import create_engine, text

    engine = create_engine(
        catalogue.replace("postgresql:", "postgresql+psycopg:").replace("/catalogue", f"/{database}")
    )
    with engine.connect() as connection:
        tables = connection.scalars(text("select relname from pg_stat_user_tables")).all()
        counts = {table: connection.scalar(text(f'select count(*) from "{table}"')) or 0 for table in tables}
    engine.dispose()
    return counts


if __name__ == "__main__":
    main()
