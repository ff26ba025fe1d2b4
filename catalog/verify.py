"""Whether what was published is still what was sent, its parents are still there, and their licences still allow it."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from sqlalchemy import Engine, select
from sqlalchemy.orm import aliased

from catalog.candidate import Candidate
from catalog.errors import Refused
from catalog.facts import Publication, Reason
from catalog.hub import Hub
from catalog.licence import combine
from catalog.place import Place
from catalog.release import PROVENANCE
from catalog.schema import Adapter, Merge, reading
from catalog.schema import Publication as PublicationRow

_TAKE_BACK = "take it down, or ask the author."


@dataclass(frozen=True)
class Verdict:
    """A publication with all that is wrong with it: nothing when it is as it should be."""

    publication: Publication
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class _Parent:
    """What provenance says of one of the two adapters."""

    role: str
    repository: str
    revision: str
    """A commit of the Hub, or `local`."""
    licence: str | None
    """When it was published."""


def publications(engine: Engine, merge_ids: Collection[str] = ()) -> list[Publication]:
    """What is on the Hub as far as the catalogue knows: of these merges, or of all."""
    there = select(PublicationRow).where(PublicationRow.status.in_(("committed", "verified")))
    if merge_ids:
        there = there.where(PublicationRow.merge_id.in_(merge_ids))
    with reading(engine).connect() as connection:
        rows = connection.execute(there.order_by(PublicationRow.repository, PublicationRow.merge_id)).all()
    return [
        Publication(row.merge_id, row.repository, row.status, row.commit, row.changed_at, row.folder) for row in rows
    ]


@dataclass
class Verifier:
    """Looks at publications on the Hub; the parent of many merges is looked at once."""

    hub: Hub
    private: bool
    """Whether nobody but their owner should see them."""
    _licences: dict[tuple[str, str], str | Reason | None] = field(default_factory=dict)

    def verdict(self, publication: Publication) -> Verdict:
        """All that is wrong with one publication."""
        return Verdict(publication, tuple(self._troubles(publication)))

    def _troubles(self, publication: Publication) -> Iterator[Reason]:
        name, commit, folder = publication.repository, publication.commit, publication.folder or None
        head = self.hub.head(name)
        if head is None or commit is None:
            yield Reason("PUBLICATION_GONE", f"The Hub has no {name} that this token may see.", "publish it elsewhere.")
            return
        if self.private and not self.hub.is_private(name):
            yield Reason(
                "PUBLICATION_PUBLIC", f"Everybody sees {name}, and it was published for few.", "hide it there."
            )
        try:
            sent = self.hub.published_files(name, commit, folder)
        except Refused as refused:
            yield Reason("PUBLICATION_DIFFERS", f"{name} was rewritten: {refused.reason.fact}", _TAKE_BACK)
            return
        held = self.hub.published_files(name, head, folder)
        changed = sorted(path for path in sent if held.get(path) != sent[path])
        if changed:
            fact = f"{len(changed)} of {len(sent)} files in {name} are not those that were sent, first {changed[0]}."
            yield Reason("PUBLICATION_DIFFERS", fact, "restore them on the Hub, or take it down.")
        yield from self._parents_troubles(
            self.hub.published_file(name, commit, Place(name, publication.folder).path(PROVENANCE))
        )

    def _parents_troubles(self, provenance: bytes | None) -> Iterator[Reason]:
        parents = _parents_in(provenance or b"")
        if len(parents) != 2:
            yield Reason("PUBLICATION_DIFFERS", "Its provenance names no two parents.", _TAKE_BACK)
            return
        licences = []
        for parent in parents:
            now = parent.licence if parent.revision == "local" else self._licence_now(parent)
            if isinstance(now, Reason):
                yield now
                return
            licences.append(now)
        then = combine(parents[0].licence, parents[1].licence)
        trouble = _licence_trouble(combine(licences[0], licences[1]), None if isinstance(then, Reason) else then)
        if trouble is not None:
            yield trouble

    def _licence_now(self, parent: _Parent) -> str | Reason | None:
        """What a parent's card says today, or that it is gone."""
        asked = (parent.repository, parent.revision)
        if asked not in self._licences:
            try:
                self.hub.repository(*asked)
                today = self.hub.repository(parent.repository)
                self._licences[asked] = today.card.licence if isinstance(today, Candidate) else None
            except Refused as refused:
                fact = f"The {parent.role} {parent.repository} is not there any more: {refused.reason.fact}"
                self._licences[asked] = Reason(
                    "SOURCE_GONE", fact, "ask its author; ziplora takedown removes all of it."
                )
        return self._licences[asked]


def _parents_in(provenance: bytes) -> list[_Parent]:
    """Subject and style as a provenance file names them; fewer if it is none of ours."""
    found = []
    try:
        for one in json.loads(provenance)["predicate"]["buildDefinition"]["resolvedDependencies"]:
            place = re.match(r"hf://(.+?)@([^/@]+)", one["uri"])
            if one.get("name") in ("subject", "style") and place:
                found.append(_Parent(one["name"], place[1], place[2], one["annotations"]["licence"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return found


def _licence_trouble(now: str | Reason | None, then: str | None) -> Reason | None:
    """What is wrong with a merge that was published under the licence `then`."""
    if isinstance(now, Reason):
        return Reason("LICENCE_CHANGED", f"It was published under {then}. Now: {now.fact}", _TAKE_BACK)
    if now != then:
        fact = f"It was published under {then}, and its parents ask for {now} now."
        return Reason("LICENCE_CHANGED", fact, _TAKE_BACK)
    return None


def licences_changed(engine: Engine) -> list[tuple[str, Reason]]:
    """Published merges that the licences of their parents, as the last scan saw them, do not allow any more."""
    subject, style = aliased(Adapter), aliased(Adapter)
    published = (
        select(Merge.merge_id, subject.licence.label("subject"), style.licence.label("style"))
        .join(PublicationRow, PublicationRow.merge_id == Merge.merge_id)
        .join(subject, subject.sha256 == Merge.subject)
        .join(style, style.sha256 == Merge.style)
        .where(PublicationRow.status.in_(("committed", "verified")))
        .distinct()
    )
    with reading(engine).connect() as connection:
        rows = connection.execute(published.order_by(Merge.merge_id)).all()
    combined = ((row.merge_id, combine(row.subject, row.style)) for row in rows)
    return [
        (merge_id, Reason("LICENCE_CHANGED", f"It is published. Now: {now.fact}", _TAKE_BACK))
        for merge_id, now in combined
        if isinstance(now, Reason)
    ]
