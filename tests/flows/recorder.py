"""A night in which nothing is merged and all is recorded: made-up results, as a worker gets them."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from secrets import token_hex

from catalog import facts, record
from catalog.queries import merges_of_subject
from catalog.schema import open_catalogue
from catalog.sidecars import KeptNight, keep_adapters, keep_night
from catalog.snapshot import write_snapshot
from flows.plan import Base, Input, plan
from flows.settings import Role, Settings, parse_settings
from flows.worker import Worker, merge_of
from ziplora.recipe import MergeResult, ScoreRow

ACKNOWLEDGED = "acknowledged"
_CONFIG = """
base_model: {id: tiny}
sources: [{folder: adapters, role: subject}]
methods: [{method: direct}]
scorers: {text: clip, subject: dino, style: clip}
limits: {pairs: 10}
"""
_SIDE = 50
_SCORERS = ("clip-t:clip", "dino:dino:samples", "clip-i:clip:drawn")


def settings_in(folder: Path) -> Settings:
    """The settings of all these nights."""
    return parse_settings(_CONFIG, folder)


def _input(role: Role, number: int) -> Input:
    name = f"{role}-{number}"
    return Input(facts.key(name), role, name, "local", "it.safetensors", "mit", name, name, Path(name), ())


def _result(merge_id: str, chance: Random) -> MergeResult:
    numbers = (chance.random(), chance.random(), chance.random(), 3, 0, (), 4, chance.random(), 5)
    return MergeResult(merge_id, None, *numbers, "cpu", "float32", {}, merge_id)


def record_a_night(folder: Path) -> None:
    """Scan, plan, record: each merge that is in the catalogue is acknowledged in a file."""
    settings, now, chance = settings_in(folder), datetime.now(UTC), Random()
    catalogue = open_catalogue(settings.catalogue, migrate=True)
    night = KeptNight(f"{now:%Y-%m-%dT%H-%M-%S}-{token_hex(2)}", settings.model_dump(mode="json"), now)
    keep_night(settings.store_folder, night)
    record.record_night_started(catalogue, night.night_id, night.settings, now)
    inputs = [_input("subject", number) for number in range(_SIDE)]
    inputs += [_input("style", number) for number in range(_SIDE)]
    adapters = [facts.Adapter(one.sha256, one.role, "usable", "mit", {}, now) for one in inputs]
    aliases = [facts.Alias(one.name, "local", "it.safetensors", one.sha256, now) for one in inputs]
    keep_adapters(settings.store_folder, adapters, aliases)
    record.record_adapters(catalogue, adapters, aliases)
    planned = plan(settings, Base("tiny", "1"), inputs, partial(merges_of_subject, catalogue), ())
    record.record_plan(catalogue, [merge_of(job) for job in planned.jobs])
    worker = Worker(settings, Base("tiny", "1"))
    with (folder / ACKNOWLEDGED).open("ab", buffering=0) as acknowledged:
        for number, job in enumerate(planned.jobs):
            merge_id = job.recipe.merge_id
            if number % 7 == 3:
                worker.record_failure(job, night.night_id, facts.Reason("NAN", "It was NaN.", "try again."))
                continue
            rows = [
                ScoreRow(one, "a", seed, chance.random(), 0.1, 0.9, None, "") for one in _SCORERS for seed in (0, 1)
            ]
            worker.record(job, night.night_id, _result(merge_id, chance), rows, chance.random())
            acknowledged.write(f"{merge_id}\n".encode())
            if number % 5 == 4:
                write_snapshot(catalogue, settings.snapshot)
    write_snapshot(catalogue, settings.snapshot)
    keep_night(settings.store_folder, replace(night, finished_at=now, summary={}))
    record.record_night_finished(catalogue, night.night_id, {}, now)
    os._exit(0)
