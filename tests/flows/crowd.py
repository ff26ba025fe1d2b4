"""A Hub with as many adapters as are wanted, good and bad, scanned night after night into one catalogue."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select

from catalog import record, schema
from catalog.hub import Hub
from flows.scan import Found, scan_and_record
from flows.settings import Settings, parse_settings
from tests.catalog.hub_contents import Files, HubServer
from tests.catalog.lora_files import card, full_sdxl_weights, sdxl_weights

_WEIGHTS = "pytorch_lora_weights.safetensors"
_SETTINGS = """
base_model: {id: stabilityai/stable-diffusion-xl-base-1.0, revision: main}
sources: [{role: subject, search: {limit: 100000}}]
scorers: {text: a/text, subject: a/subject, style: a/style}
"""
_TIMES = {"first_seen_at", "last_seen_at", "seen_at", "read_at", "refused_at"}
_OF_A_NIGHT = {"night_id", "refusal_id"}


def _files(number: int, version: int) -> Files:
    """One in twenty of each kind that a scan refuses, one in a hundred with a long header; the others are sound."""
    front: dict[str, Any] = {"base_model": "stabilityai/stable-diffusion-xl-base-1.0", "tags": ["lora"]}
    front |= {"license": "apache-2.0", "instance_prompt": "a sks dog"}
    weights = {_WEIGHTS: sdxl_weights(number * 1000 + version, 100_000 if number % 100 == 99 else 0)}
    match number % 20:
        case 1:
            weights[_WEIGHTS] = b"\x10" + bytes(7) + f"{{no JSON {number:07}".encode()
        case 2:
            front["license"] = "cc-by-nd-4.0"
        case 3:
            weights = {"pytorch_lora_weights.bin": b"\x80\x04"}
        case 4:
            del front["instance_prompt"]
    return {"README.md": card(**front), **weights}


class _Made(dict[str, bytes]):
    """Files with weights as long as real ones, made when they are asked for: all together would be gigabytes."""

    def __init__(self, files: Files, number: int) -> None:
        super().__init__(files)
        self._number = number

    def __getitem__(self, name: str) -> bytes:
        return full_sdxl_weights(self._number) if name == _WEIGHTS else super().__getitem__(name)


def fill(server: HubServer, count: int) -> None:
    """So many repositories of one adapter each."""
    for number in range(count):
        server.add(f"me/lora-{number:05}", _files(number, 0)).gated = number % 20 == 5


def lengthen(server: HubServer) -> None:
    """Give all sound adapters headers as long as real ones."""
    for number, repository in enumerate(server.repositories.values()):
        files = repository.commits[repository.head]
        if _WEIGHTS in files and number % 20 != 1:
            repository.commits[repository.head] = _Made(files, number * 1000 + len(repository.commits))


def change(server: HubServer, every: int) -> None:
    """A new commit, with other weights, in each repository of which the number can be divided so."""
    for number, repository in enumerate(server.repositories.values()):
        if number % every == 0:
            repository.add(_files(number, 1))


def settings_of(source: dict[str, Any], folder: Path) -> Settings:
    """A night of one source, whose store is in a folder."""
    return parse_settings(yaml.safe_dump({**yaml.safe_load(_SETTINGS), "sources": [source]}), folder)


def folder_of(catalogue: schema.Catalogue) -> Path:
    """Where a catalogue of SQLite is."""
    return Path(str(catalogue.url.database)).parent


def scan_night(server: HubServer, catalogue: schema.Catalogue, night_id: str, hub: Hub | None = None) -> list[Found]:
    """What a night's scan finds, written down."""
    record.record_night_started(catalogue, night_id, {}, datetime.now(UTC))
    settings = parse_settings(_SETTINGS, folder_of(catalogue))
    return scan_and_record(settings, hub or Hub(server.endpoint), catalogue, night_id)


def known(catalogue: schema.Catalogue, night_id: str) -> Sequence[Sequence[Any]]:
    """All rows that a scan leaves, the refusals of one night among them; without times, and in order."""
    found = []
    for model in (schema.Adapter, schema.Alias, schema.Header, schema.Refusal):
        chosen = select(*(column for column in model.__table__.columns if column.name not in _TIMES | _OF_A_NIGHT))
        if model is schema.Refusal:
            chosen = chosen.where(schema.Refusal.night_id == night_id)
        with catalogue.connect() as connection:
            found += sorted(((model.__tablename__, *row) for row in connection.execute(chosen)), key=repr)
    return found
