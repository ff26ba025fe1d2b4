"""A catalogue is an index of the store: whatever becomes of it, the same rows come back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url

from catalog import facts, record, schema
from catalog.errors import CatalogueError
from catalog.queries import finished_merge_ids
from catalog.rebuild import rebuild
from catalog.schema import Base, open_catalogue
from catalog.sidecars import KeptNight, keep_adapters, keep_merge, keep_night, keep_publication, keep_tombstone
from catalog.takedown import tombstones

from .samples import DIVERGED, DOG, INK, NEON, NIGHT, NOON, SCORERS, adapter, merge, minutes, result, rows, score

FROM_FILES = (schema.Night, schema.Adapter, schema.Alias, schema.Merge, schema.Score, schema.Publication)


def export(engine: Engine, tables: tuple[type[Base], ...]) -> bytes:
    """All rows of tables as lines of JSON, by key: equal for equal catalogues."""
    lines = [
        json.dumps([table.__tablename__, *row], sort_keys=True, default=lambda value: value.isoformat())
        for table in tables
        for row in rows(engine, table)
    ]
    return "\n".join(lines).encode()


def export_at(url: str, tables: tuple[type[Base], ...]) -> bytes:
    """The same of the catalogue at a URL."""
    engine = open_catalogue(url)
    try:
        return export(engine, tables)
    finally:
        engine.dispose()


ALL = tuple(mapper.class_ for mapper in Base.registry.mappers)


HOSTILE = "evil\u202egnp\ud800\x00"


def fill(engine: Engine, store: Path, name: str = HOSTILE, number: float = math.nan) -> None:
    """A finished night of two merges, as the stages write it: each sidecar, then its rows."""
    keep_night(store, KeptNight(NIGHT, {"steps": 20}, NOON))
    record.record_night_started(engine, NIGHT, {"steps": 20}, NOON)
    named = facts.Alias(name, "main", name, DOG, minutes(1))
    moved = facts.Alias("me/ink", "main", "ink.safetensors", NEON, NOON)
    for seen_at, aliases in ((NOON, [named, moved]), (minutes(5), [replace(moved, sha256=INK, seen_at=minutes(5))])):
        seen = [adapter(one, "subject" if one == DOG else "style", seen_at=seen_at) for one in (DOG, NEON, INK)]
        keep_adapters(store, seen, aliases)
        record.record_adapters(engine, seen, aliases)
    for style, seen_value in ((NEON, 1 / 3), (INK, number)):
        merged, measured = merge(DOG, style), replace(result(at=minutes(7)), movement=seen_value)
        for scorers in (SCORERS, SCORERS[:1]):
            seen_by = [score(merged, scorer, 0.1, seed) for scorer in scorers for seed in (0, 2**40)]
            broken = [replace(one, value=seen_value) for one in seen_by]
            keep_merge(store, merged, measured, broken)
            record.record_done(engine, merged, measured)
            record.record_scores(engine, broken)
    sent = facts.Publication(merge().merge_id, "me/dog", "withdrawn", "abc", minutes(8))
    for publication in (sent, replace(sent, status="committed", changed_at=minutes(9))):  # the latter is late
        keep_publication(store / "merges" / sent.merge_id, publication)
        record.record_publication(engine, publication)
    keep_night(store, KeptNight(NIGHT, {"steps": 20}, NOON, minutes(9), {"merged": 2}))
    record.record_night_finished(engine, NIGHT, {"merged": 2}, minutes(9))


def known_to_the_catalogue_alone(engine: Engine) -> None:
    """What no sidecar holds."""
    reason = facts.Reason("BAD", "It is bad.", "leave it out.")
    record.record_refusals(engine, [facts.Refusal(NIGHT, "me/bad", "main", "bad.safetensors", reason, NOON)])
    record.record_failed(engine, merge(method="direct"), DIVERGED, NIGHT, minutes(2))
    record.record_plan(engine, [merge(method="ties")])
    record.record_request(engine, DOG, INK, minutes(3))
    record.record_publication(engine, facts.Publication(merge().merge_id, "me/old", "staged", None, minutes(8)))


def _lose(engine: Engine, url: str) -> None:
    """The catalogue is gone, with all that it alone knew."""
    if url.startswith("sqlite"):
        engine.dispose()
        Path(make_url(url).database or "").unlink()
    else:
        with engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())


def test_a_lost_catalogue_comes_back_byte_for_byte(catalogue: Engine, url: str, tmp_path: Path) -> None:
    fill(catalogue, tmp_path)
    before = export(catalogue, FROM_FILES)
    _lose(catalogue, url)
    made = rebuild(url, tmp_path)
    assert (made.nights, made.adapters, made.merges, made.publications) == (1, 3, 2, 1)
    assert (made.copied, made.left_out) == ({}, ())
    assert export_at(url, FROM_FILES) == before


def test_what_was_taken_down_stays_so_in_a_catalogue_made_anew(catalogue: Engine, url: str, tmp_path: Path) -> None:
    fill(catalogue, tmp_path)
    keep_tombstone(tmp_path, facts.Tombstone("adapter", DOG, "its author asked", minutes(10)))
    _lose(catalogue, url)
    rebuild(url, tmp_path)
    engine = open_catalogue(url)
    assert tombstones(engine) == {DOG}
    assert finished_merge_ids(engine) == frozenset()
    engine.dispose()


def test_what_only_the_catalogue_knew_is_copied_from_it(catalogue: Engine, url: str, tmp_path: Path) -> None:
    fill(catalogue, tmp_path)
    known_to_the_catalogue_alone(catalogue)
    before = export(catalogue, ALL)
    catalogue.dispose()
    made = rebuild(url, tmp_path)
    assert made.copied == {"refusals": 1, "merges": 2, "failures": 1, "requests": 1, "publications": 1}
    assert export_at(url, ALL) == before
    again = rebuild(url, tmp_path)
    assert (again.merges, again.copied) == (2, made.copied)
    assert export_at(url, ALL) == before


def test_the_earlier_catalogue_is_put_aside_as_it_was(catalogue: Engine, url: str, tmp_path: Path) -> None:
    fill(catalogue, tmp_path)
    known_to_the_catalogue_alone(catalogue)
    before = export(catalogue, ALL)
    catalogue.dispose()
    aside = str(rebuild(url, tmp_path).aside)
    if url.startswith("sqlite"):
        there = f"sqlite:///{aside}"
    else:
        options = {"options": f"-csearch_path={aside}"}
        there = make_url(url).update_query_dict(options).render_as_string(hide_password=False)
    assert export_at(there, ALL) == before


def test_a_rebuild_that_fails_leaves_the_catalogue_as_it_was(
    catalogue: Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(catalogue, tmp_path)
    before = export(catalogue, ALL)
    catalogue.dispose()

    def full(*_: object) -> None:
        raise CatalogueError("DISK_FULL", "No room.")

    with monkeypatch.context() as patched:
        patched.setattr(record, "record_all_done", full)
        with pytest.raises(CatalogueError, match="DISK_FULL"):
            rebuild(url, tmp_path)
    assert export_at(url, ALL) == before
    assert rebuild(url, tmp_path).merges == 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garble(path: Path) -> None:
    path.write_bytes(b"\x00" * 4096)


@pytest.mark.parametrize("damage", [_cut, _garble])
def test_a_damaged_file_is_put_aside_and_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "catalog.sqlite"
    engine = open_catalogue(f"sqlite:///{path}", migrate=True)
    fill(engine, tmp_path)
    before = export(engine, FROM_FILES)
    engine.dispose()
    damage(path)
    damaged = path.read_bytes()
    made = rebuild(f"sqlite:///{path}", tmp_path)
    assert made.merges == 2
    assert Path(str(made.aside)).read_bytes() == damaged
    assert export_at(f"sqlite:///{path}", FROM_FILES) == before


def test_a_catalogue_that_somebody_has_open_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    engine = open_catalogue(url, migrate=True)
    fill(engine, tmp_path)
    with engine.connect(), pytest.raises(CatalogueError, match="CATALOGUE_BUSY: Another process"):
        rebuild(url, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"merge": {}, "result": {}, "scores": []}'])
def test_a_damaged_sidecar_costs_its_own_rows_alone(catalogue: Engine, url: str, tmp_path: Path, text: str) -> None:
    fill(catalogue, tmp_path)
    _lose(catalogue, url)
    (tmp_path / "merges" / merge(DOG, INK).merge_id / "facts.json").write_text(text)
    made = rebuild(url, tmp_path)
    assert (made.merges, [reason.code for _, reason in made.left_out]) == (1, ["SIDECAR_DAMAGED"])


def test_a_merge_of_lost_adapters_is_left_out(catalogue: Engine, url: str, tmp_path: Path) -> None:
    fill(catalogue, tmp_path)
    _lose(catalogue, url)
    (tmp_path / "adapters" / INK / "facts.json").unlink()
    made = rebuild(url, tmp_path)
    assert made.merges == 1
    assert [(item, reason.code) for item, reason in made.left_out] == [(merge(DOG, INK).merge_id, "PARENT_UNKNOWN")]


def test_an_empty_store_is_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="STORE_EMPTY"):
        rebuild(f"sqlite:///{tmp_path / 'catalog.sqlite'}", tmp_path / "elsewhere")
    assert not (tmp_path / "catalog.sqlite").exists()
