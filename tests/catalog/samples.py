"""Small facts to fill a catalogue with."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, select

from catalog import facts, record
from catalog.schema import Base

NIGHT = "2026-11-24"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
DOG, TEAPOT, NEON, INK = (facts.key(name) for name in ("dog", "teapot", "neon", "ink"))
DIVERGED = facts.Reason("MERGE_DIVERGED", "The loss was NaN at step 12.", "Lower the learning rate.")
SCORERS = ("clip-i", "dino")


def minutes(number: int) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=number)


def adapter(sha256: str, role: facts.Role, **changed: Any) -> facts.Adapter:
    """A usable adapter of rank 8."""
    known: dict[str, Any] = {"status": "usable", "licence": "apache-2.0", "facts": {"rank": 8}, "seen_at": NOON}
    return facts.Adapter(sha256=sha256, role=role, **{**known, **changed})


def merge(subject: str = DOG, style: str = NEON, method: str = "ziplora") -> facts.Merge:
    """A merge whose id follows from its pair and method."""
    return facts.Merge(facts.key(subject, style, method), subject, style, method, {"seed": 1, "method": method})


def result(night: str = NIGHT, seconds: float = 3.5, at: datetime = NOON) -> facts.Result:
    """What a quick merge measured."""
    return facts.Result(night, {"total": [1.0, 0.5]}, movement=0.25, seconds=seconds, finished_at=at)


def score(merged: facts.Merge, scorer: str, position: float | None, seed: int = 0) -> facts.Score:
    """A score at this position between a floor of 10 and a ceiling of 20."""
    value = None if position is None else 10 + 10 * position
    return facts.Score(merged.merge_id, scorer, "a dog in neon style", seed, value, 10.0, 20.0, NOON)


def start(engine: Engine) -> None:
    """Two nights, two subjects and two styles."""
    for night in (NIGHT, "2026-11-25", "2026-11-26", "2026-11-27"):
        record.record_night_started(engine, night, {"steps": 20}, NOON)
    for sha256, role in ((DOG, "subject"), (TEAPOT, "subject"), (NEON, "style"), (INK, "style")):
        record.record_adapters(engine, [adapter(sha256, role)])  # type: ignore[arg-type]


def done(engine: Engine, merged: facts.Merge, **positions: float | None) -> facts.Merge:
    """A finished merge with one picture at these positions by scorer."""
    record.record_done(engine, merged, result())
    scorers = {name.replace("_", "-"): position for name, position in positions.items()}
    record.record_scores(engine, [score(merged, name, position) for name, position in scorers.items()])
    return merged


def rows(engine: Engine, table: type[Base]) -> Sequence[Row[Any]]:
    """All rows of a table, by key."""
    with engine.connect() as connection:
        return connection.execute(select(table.__table__).order_by(*table.__table__.primary_key)).all()
