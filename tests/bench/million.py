"""What questions cost in a catalogue of a million merges: `python -m tests.bench.million`.

The catalogue is made up: 1,000 subjects, 500 styles and two methods, each merge with two pictures seen by three
scorers. It is filled with the schema from before there were summaries, so that the upgrade is measured too.
"""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import Engine

from catalog import facts, migrations, record
from catalog.schema import open_catalogue

METHODS = ("ziplora-joint", "direct")
SCORERS = (
    "dino:facebook/dinov2-base@0123456789ab:01234567:drawn",
    "clip-i:openai/clip-vit-large-patch14@0123456789ab:01234567:drawn",
)
TEXT_SCORER = "clip-t:openai/clip-vit-large-patch14@0123456789ab:01234567"
PROMPTS = ("on a beach", "reading a book")
LICENCES = ("apache-2.0", "mit", "openrail++", "creativeml-openrail-m", "cc-by-nc-4.0", "cc-by-sa-4.0", "other", None)
BEGAN = datetime(2026, 1, 1, 2, tzinfo=UTC)
_NIGHTS = 100


@dataclass(frozen=True)
class Size:
    """How many adapters of each role."""

    subjects: int = 1000
    styles: int = 500

    @property
    def merges(self) -> int:
        return self.subjects * self.styles * len(METHODS)


def adapter_of(role: facts.Role, number: int) -> facts.Adapter:
    """An adapter as a scan describes it."""
    chance = random.Random(f"{role} {number}")
    rank = chance.choice((4, 8, 16, 32, 64, 128))
    described = {"rank": rank, "ranks": [rank], "size_bytes": rank * 1_450_000, "dialect": "diffusers", "base": "sdxl"}
    words = {"prompt": f"a sks {role} {number}", "slot": None, "file": None, "samples": []}
    sha256 = facts.key(role, number)
    return facts.Adapter(sha256, role, "usable", chance.choice(LICENCES), described | words, BEGAN)


def adapters_of(size: Size) -> list[tuple[facts.Adapter, facts.Alias]]:
    """All adapters, each with the repository it was seen in."""
    roles: tuple[tuple[facts.Role, int], ...] = (("subject", size.subjects), ("style", size.styles))
    found = [
        (adapter_of(role, number), f"owner/{role}-{number}-lora") for role, count in roles for number in range(count)
    ]
    return [
        (one, facts.Alias(name, "c0ffee" * 6 + "c0ff", "lora.safetensors", one.sha256, BEGAN)) for one, name in found
    ]


def _recipe(subject: str, style: str, method: str) -> dict[str, Any]:
    """About as long as a real one."""
    side = {"base_model": "stabilityai/stable-diffusion-xl-base-1.0", "base_revision": "4" * 40, "samples": 16}
    side |= {"guidance": 7.5, "prompt": "a sks dog", "references_sha256": "0" * 64, "seed": 0, "side": 1024}
    parameters = {"steps": 400, "learning_rate": 0.01, "samples_per_step": 4, "subject_weight": 1.3, "penalty": 0.01}
    adapters = {"subject_sha256": subject, "style_sha256": style, "method": method, "parameters": parameters}
    return adapters | {"subject_calibration": side, "style_calibration": side, "seed": 0, "version": 1}


def _merges(size: Size) -> Iterator[tuple[Any, ...]]:
    chance = random.Random(0)
    losses = json.dumps({"curve": [[step, 1 / (step + 1), 1 / (step + 2)] for step in range(0, 100, 10)]})
    count = 0
    for subject in (facts.key("subject", number) for number in range(size.subjects)):
        for style in (facts.key("style", number) for number in range(size.styles)):
            for method in METHODS:
                night = count * _NIGHTS // size.merges
                at = BEGAN + timedelta(days=night, seconds=count % 10_000)
                merge_id = facts.key(subject, style, method)
                recipe = json.dumps(_recipe(subject, style, method))
                finished = (chance.random(), 20 + chance.random(), f"{at:%Y-%m-%d %H:%M:%S.%f}")
                yield (merge_id, subject, style, method, recipe, "done", 0, f"night-{night}", losses, *finished)
                count += 1


_FILL_MERGES = """
INSERT INTO merges (merge_id, subject, style, method, recipe, status, attempts, night_id, losses, movement, seconds,
    finished_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_FILL_SCORES = """
INSERT INTO scores (score_id, merge_id, scorer_id, prompt, seed, value, floor, ceiling, position, scored_at)
SELECT lower(hex(randomblob(32))), merge_id, scorer.value, 'a sks thing ' || prompt.value, 0,
    0.2 + chance * 0.5, 0.2, 0.7, chance, finished_at
FROM (
    SELECT *, (random() & 1048575) / 1048575.0 AS chance FROM merges, json_each(?) AS scorer, json_each(?) AS prompt
)
"""


def fill(path: Path, size: Size) -> None:
    """A SQLite catalogue with the schema of before summaries, filled in bulk."""
    url = f"sqlite:///{path}"
    config = migrations._config()
    _ = (url, config, command, closing, sqlite3, record, Engine, open_catalogue)
