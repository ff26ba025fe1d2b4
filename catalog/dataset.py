"""The public part of a catalogue as a data set of the Hub: what is published or may be, as Parquet, with a card."""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
from sqlalchemy import Engine, select

from catalog import story
from catalog.dataset_card import dataset_card
from catalog.errors import Refused
from catalog.facts import Reason, Role
from catalog.folder import sha256_of
from catalog.hub import Hub
from catalog.names import page_of, short
from catalog.place import MADE_BY_THE_HUB, Files, made_ready
from catalog.publish import Published
from catalog.queries import UsableAdapter, usable_adapters
from catalog.rankings import Picked, pick, ranking_scorers
from catalog.release import CARD
from catalog.schema import Merge, Publication, Score, reading

_WORDS, _NUMBERS = "VARCHAR", "DOUBLE"
_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "merges": {
        **dict.fromkeys(("merge_id", "subject", "style", "subject_name", "style_name", "method", "licence"), _WORDS),
        "score_01": _NUMBERS,
        **dict.fromkeys(("repository", "commit"), _WORDS),
        "recipe": "JSON",
    },
    "adapters": dict.fromkeys(("sha256", "role", "name", "licence", "repository", "revision", "file_name"), _WORDS),
    "scores": {
        **dict.fromkeys(("merge_id", "scorer_id", "prompt"), _WORDS),
        "seed": "BIGINT",
        **dict.fromkeys(("value", "floor", "ceiling", "position"), _NUMBERS),
    },
}
"""The tables of a data set."""
_SHA256_DIGITS = 64


def publish_dataset(
    engine: Engine, hub: Hub, repository: str, *, private: bool, least_score: float, dry_run: bool = True
) -> Published:
    """Send the tables in one commit, unless the Hub has them or (as long as nobody says otherwise) only say so."""
    with tempfile.TemporaryDirectory(prefix="ziplora-dataset-") as folder:
        files: Files = {**_tables(engine, least_score, Path(folder)), CARD: dataset_card(repository).encode()}
        sizes = {path: len(one) if isinstance(one, bytes) else one.stat().st_size for path, one in files.items()}
        if dry_run:
            return Published(repository, "", private, sizes, None)
        head = hub.head(repository, "dataset")
        held = {} if head is None else hub.published_files(repository, head, kind="dataset")
        if not held.keys() <= files.keys() | MADE_BY_THE_HUB:
            fact = f"The data set {repository} is there already and holds something else."
            raise Refused(Reason("NAME_TAKEN", fact, "name another in publish.dataset."))
        if all(held.get(path) == _known_by(content, held.get(path, "")) for path, content in files.items()):
            return Published(repository, "", private, sizes, head, was_there=True)
        hub.check_card(dataset_card(repository), "dataset")
        head = made_ready(hub, repository, head, private=private, kind="dataset")
        commit = hub.commit(repository, files, "The public part of the catalogue", head, "dataset")
        return Published(repository, "", private, sizes, commit)


def _known_by(content: Path | bytes, like: str) -> str:
    """What the Hub knows a file by: its sha256, or git's id where it knows this one by that."""
    if len(like) == _SHA256_DIGITS and isinstance(content, Path):
        return sha256_of(content)
    whole = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(whole) + whole).hexdigest()


def _tables(engine: Engine, least_score: float, folder: Path) -> dict[str, Path]:
    """A Parquet file of each table by its path in the data set."""
    roles: tuple[Role, Role] = ("subject", "style")
    usable = {adapter.sha256: adapter for role in roles for adapter in usable_adapters(engine, role)}
    public = _public(engine, usable, least_score)
    parents = sorted({sha256 for one in public for sha256 in (one.merge.subject, one.merge.style)})
    rows: Mapping[str, Iterable[Mapping[str, Any]]] = {
        "merges": _merges(engine, public),
        "adapters": [_adapter(usable[sha256]) for sha256 in parents],
        "scores": _scores(engine, {one.merge.merge_id for one in public}),
    }
    return {f"{name}.parquet": _parquet(folder, name, rows[name]) for name in _COLUMNS}


def _public(engine: Engine, usable: Mapping[str, UsableAdapter], least_score: float) -> list[Picked]:
    """What is on the Hub or may go there: under a known licence, of adapters that may still be used, not taken back."""
    words: dict[str, set[str]] = defaultdict(set)
    with reading(engine).connect() as connection:
        for merge_id, status in connection.execute(select(Publication.merge_id, Publication.status)):
            words[merge_id].add(status)
    return [
        one
        for one in pick(engine, ranking_scorers(engine), limit=None)
        if one.licence is not None
        and {one.merge.subject, one.merge.style} <= usable.keys()
        and "withdrawn" not in words[one.merge.merge_id]
        and ("verified" in words[one.merge.merge_id] or _may_go(one, least_score))
    ]


def _may_go(one: Picked, least_score: float) -> bool:
    """Whether its scores would let it be published."""
    return one.merge.score_01 >= least_score and min(one.subject_position, one.style_position) >= story.LOST_BELOW


def _merges(engine: Engine, public: Sequence[Picked]) -> Iterable[Mapping[str, Any]]:
    """The best first."""
    there = select(Publication).where(Publication.status == "verified").order_by(Publication.changed_at)
    with reading(engine).connect() as connection:
        published = {row.merge_id: row for row in connection.execute(there)}
        recipes = {row.merge_id: row.recipe for row in connection.execute(select(Merge.merge_id, Merge.recipe))}
    for one in public:
        row = published.get(one.merge.merge_id)
        yield {
            **vars(one.merge),
            "subject_name": one.subject_name,
            "style_name": one.style_name,
            "licence": one.licence,
            "repository": row and row.repository,
            "commit": row and row.commit,
            "recipe": recipes[one.merge.merge_id],
        }


def _adapter(adapter: UsableAdapter) -> Mapping[str, Any]:
    """An adapter, with the place on the Hub where it was seen last; what lies on a disk has a name and no place."""
    pages = (one for one in adapter.aliases if page_of(one.repository, one.revision))
    place = next(pages, None)
    known = {"sha256": adapter.sha256, "role": adapter.role, "licence": adapter.licence}
    known["name"] = short(adapter.aliases[0].repository) if adapter.aliases else adapter.sha256[:12]
    return known | ({name: getattr(place, name) for name in ("repository", "revision", "file_name")} if place else {})


def _scores(engine: Engine, merge_ids: set[str]) -> Iterable[Mapping[str, Any]]:
    names = list(_COLUMNS["scores"])
    chosen = select(*(getattr(Score, name) for name in names)).order_by(Score.merge_id, Score.score_id)
    with reading(engine).connect() as connection:
        for row in connection.execute(chosen):
            if row.merge_id in merge_ids:
                yield dict(zip(names, row, strict=True))


def _parquet(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    lines, parquet = folder / f"{name}.ndjson", folder / f"{name}.parquet"
    with lines.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True) + "\n")
    columns = ", ".join(f"{column}: '{kind}'" for column, kind in _COLUMNS[name].items())
    with duckdb.connect() as connection:
        read = f"SELECT * FROM read_json(?, format = 'newline_delimited', columns = {{{columns}}})"
        connection.execute(f"COPY ({read}) TO ? (FORMAT parquet)", [str(lines), str(parquet)])
    return parquet
