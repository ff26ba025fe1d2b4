"""Taking a source down: what was made of it, what of that is on the Hub, and how it goes from there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, func, or_, select

from catalog import facts, record
from catalog.hub import Hub
from catalog.names import find_adapter
from catalog.place import Place, files_of, is_alone_at, members_at
from catalog.release import tag_of
from catalog.schema import Alias, Merge, Publication, Tombstone, reading


@dataclass(frozen=True)
class Reach:
    """All that goes when a source is taken down."""

    tombstones: tuple[facts.Tombstone, ...]
    """The repository that was named, if one was, and every file that was seen there."""
    adapters: tuple[str, ...]
    """The sha256 of those files."""
    recipes: Mapping[str, Mapping[str, Any]]
    """Of every merge that was made of them, or may have been, by merge id."""
    publications: tuple[facts.Publication, ...]
    """Of these merges, those that are not taken back yet."""


def tombstones(engine: Engine) -> frozenset[str]:
    """Repositories (in small letters) and sha256 that are never taken up again."""
    with reading(engine).connect() as connection:
        return frozenset(connection.scalars(select(func.lower(Tombstone.name))))


def reach_of(engine: Engine, source: str, why: str) -> Reach:
    """What belongs to a repository, or to an adapter by its name or the beginning of its sha256.

    A repository that nobody has seen yet, by its full name, is taken down ahead of time.
    """
    seen_there = select(Alias.sha256).where(func.lower(Alias.repository) == source.casefold()).distinct()
    with reading(engine).connect() as connection:
        adapters = sorted(connection.scalars(seen_there))
    repositories = [source] if adapters or "/" in source else []
    if not repositories:
        adapters = [find_adapter(engine, source)]
    now = datetime.now(UTC)
    graves = [facts.Tombstone("repository", name, why, now) for name in repositories]
    graves += [facts.Tombstone("adapter", sha256, why, now) for sha256 in adapters]
    mine = or_(Merge.subject.in_(adapters), Merge.style.in_(adapters))
    published = select(Publication).join(Merge, Merge.merge_id == Publication.merge_id)
    with reading(engine).connect() as connection:
        recipes = {row.merge_id: row.recipe for row in connection.execute(select(Merge).where(mine))}
        rows = connection.execute(published.where(mine, Publication.status != "withdrawn")).all()
    publications = [
        facts.Publication(row.merge_id, row.repository, row.status, row.commit, row.changed_at, row.folder)
        for row in rows
    ]
    return Reach(tuple(graves), tuple(adapters), recipes, tuple(publications))


def withdraw(hub: Hub, engine: Engine, publication: facts.Publication) -> None:
    """Remove a published merge from the Hub; Refused where its repository holds something else by now."""
    place = Place(publication.repository, publication.folder)
    head = hub.head(place.repository)
    if place.folder and head is not None:
        _leave(hub, engine, place, head, publication.merge_id)
    elif is_alone_at(place, hub, head, publication.merge_id):
        hub.delete_repository(place.repository)
    record.record_publication(engine, replace(publication, status="withdrawn", changed_at=datetime.now(UTC)))


def _leave(hub: Hub, engine: Engine, place: Place, head: str, merge_id: str) -> None:
    """Remove a merge from a collection and from its history, in which every later commit holds it too.

    So the other merges get their lasting names anew. Whoever is stopped on the way does it all again.
    """
    members = members_at(place, hub, head)
    left = [one for one in members if one.merge_id != merge_id]
    if not left:
        hub.delete_repository(place.repository)
        return
    folders = [one.folder for one in members if one.merge_id == merge_id]
    if folders:
        message = f"Merge {merge_id[:12]} is taken back"
        hub.commit(place.repository, files_of(place, left), message, head, without=folders)
    commit = hub.forget_history(place.repository)
    hub.remove_tag(place.repository, tag_of(merge_id))
    for one in left:
        hub.remove_tag(place.repository, tag_of(one.merge_id))
        hub.tag(place.repository, commit, tag_of(one.merge_id))
    record.record_history_rewritten(engine, place.repository, commit)
