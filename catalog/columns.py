"""Column types that give back the same values from SQLite and Postgres, whatever a stranger wrote into a name."""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Double, Text
from sqlalchemy.types import TypeDecorator


def storable_text(text: str) -> str:
    """The text without what UTF-8 or Postgres cannot hold: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


def storable_json(value: Any) -> Any:
    """The value as JSON that every database reads: storable text, NaN and infinities as null."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable_text(str(key)): storable_json(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [storable_json(item) for item in value]
    return value


class StorableText(TypeDecorator[str]):
    """Text of any length and origin."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else storable_text(value)


class StorableJson(TypeDecorator[Any]):
    """A JSON value; SQL NULL for None."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> Any:
        return storable_json(value)


class FiniteDouble(TypeDecorator[float]):
    """A 64-bit number; NULL for NaN and infinities, which compare differently on every database."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, _dialect: Dialect) -> float | None:
        return None if value is None or not math.isfinite(value) else float(value)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware on both ways: SQLite alone would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone: pass datetime.now(UTC) or the like.")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
