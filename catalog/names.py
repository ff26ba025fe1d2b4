"""What people call adapters and merges, and what they mean by a name."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import Engine, select

from catalog.errors import CatalogueError
from catalog.facts import Role
from catalog.schema import Adapter, Alias, Merge, reading

_LEAST_PREFIX = 4
"""Of an id; fewer letters are more likely a word."""


def one_line(text: str) -> str:
    """A stranger's text in one line, without control and direction marks, which could make it look like another."""
    kept = (" " if character.isspace() else character for character in text)
    return " ".join("".join(one for one in kept if unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Co")).split())


def short(repository: str) -> str:
    """The part of a repository's name that tells it from others."""
    return repository.rstrip("/").rsplit("/", 1)[-1].removesuffix("-lora")


def page_of(repository: str, revision: str) -> str | None:
    """The Hub's page of a repository at a commit; None for a folder on somebody's disk."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII) or not re.fullmatch(r"[0-9a-f]{40}", revision):
        return None
    return f"https://huggingface.co/{repository}/tree/{revision}"


def adapter_names(engine: Engine) -> dict[str, str]:
    """A short name for each adapter, from where it was seen last; the first letters of its hash if nowhere."""
    seen = select(Alias.sha256, Alias.repository).order_by(Alias.seen_at, Alias.alias_id)
    with reading(engine).connect() as connection:
        names = {sha256: sha256[:12] for sha256 in connection.scalars(select(Adapter.sha256))}
        return names | {row.sha256: short(row.repository) for row in connection.execute(seen)}


def find_adapter(engine: Engine, said: str, role: Role | None = None) -> str:
    """The sha256 of the one adapter that is meant: by repository, its last part, or the first letters of its hash."""
    known = select(Alias.repository, Alias.sha256).join(Adapter, Adapter.sha256 == Alias.sha256)
    hashes = select(Adapter.sha256)
    if role is not None:
        known, hashes = known.where(Adapter.role == role), hashes.where(Adapter.role == role)
    if len(said) >= _LEAST_PREFIX:
        hashes = hashes.where(Adapter.sha256.startswith(said.lower(), autoescape=True))
    labels: dict[str, set[str]] = defaultdict(set)
    with reading(engine).connect() as connection:
        for row in connection.execute(known):
            for label in (row.repository, row.repository.rsplit("/", 1)[-1], short(row.repository)):
                labels[label.casefold()].add(row.sha256)
        by_hash = set(connection.scalars(hashes)) if len(said) >= _LEAST_PREFIX else set()
    return _the_one(said, labels.get(said.casefold(), set()) or by_hash, f"no {role or 'adapter'} is called")


def find_merge(engine: Engine, said: str) -> str:
    """The one merge id that begins with these letters."""
    if len(said) < _LEAST_PREFIX:
        raise CatalogueError("NAME_UNKNOWN", f"{said!a} is too short for a merge id: give at least four letters.")
    meant = select(Merge.merge_id).where(Merge.merge_id.startswith(said.lower(), autoescape=True)).limit(3)
    with reading(engine).connect() as connection:
        return _the_one(said, set(connection.scalars(meant)), "no merge id begins with")


def _the_one(said: str, meant: Collection[str], trouble: str) -> str:
    if len(meant) > 1:
        listed = ", ".join(sorted(one[:12] for one in meant))
        raise CatalogueError("NAME_AMBIGUOUS", f"{said!a} may be {listed}: give more letters of the one you mean.")
    if not meant:
        raise CatalogueError("NAME_UNKNOWN", f"{trouble[0].upper()}{trouble[1:]} {said!a}. See: ziplora pick")
    return next(iter(meant))
