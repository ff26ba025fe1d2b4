"""One merge, one commit: from the gates to the check of what arrived; a second run adds nothing.

A merge has a repository of its own, or a folder of its own in a collection of many.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select

from catalog import facts, schema
from catalog.errors import CatalogueError, Refused
from catalog.folder import sha256_of
from catalog.hub import Hub
from catalog.hub_errors import PASSING
from catalog.licence import publication_gate
from catalog.merge_card import merge_card
from catalog.place import Files, Place, look, made_ready, place_of
from catalog.provenance import files_in, merge_id_in, provenance
from catalog.record import record_publication
from catalog.release import CARD, PROVENANCE, WEIGHTS, Release
from catalog.sidecars import keep_publication
from catalog.story import lost

_LOOKS = 5
"""So often it is looked whether a merge is there, and sent if it is not."""
_LOOK_AGAIN = PASSING | {"PARENT_MOVED"}
"""What leaves open whether a commit was made."""
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Policy:
    """Where merges go, and which."""

    namespace: str
    private: bool = True
    least_score: float = 0.5
    collection: str | None = None
    """Names a repository for many; `{style}` and `{month}` stand for those of a merge. None: each has its own."""


@dataclass(frozen=True)
class Published:
    """What was published, or would be."""

    repository: str
    folder: str
    private: bool
    size_bytes: Mapping[str, int]
    """Of each file."""
    commit: str | None
    """None when nothing was sent."""
    was_there: bool = False
    """An earlier run had published it."""


def gate(release: Release, policy: Policy) -> facts.Reason | None:
    """Why a merge is not published; None when it may be."""
    licence = publication_gate(release.licence)
    if licence is not None:
        return licence
    if release.score_01 is None:
        step = "see its scores: ziplora show."
        return facts.Reason("SCORE_MISSING", "Subject or style has no place between floor and ceiling.", step)
    if release.score_01 < policy.least_score:
        fact = f"Its score is {release.score_01:.2f}, below {policy.least_score:.2f}."
        return facts.Reason("SCORE_LOW", fact, "look at its previews; lower least_score to publish it.")
    return lost(release.scores)


def publish(release: Release, policy: Policy, hub: Hub, engine: Engine, *, dry_run: bool = True) -> Published:
    """Send a merge to its place, unless it is there or (as long as nobody says otherwise) this is a rehearsal.

    Refused when a gate says no, the name belongs to something else, or the collection is full.
    """
    refusal = gate(release, policy)
    if refusal is not None:
        raise Refused(refusal)
    known = _known(engine, release, policy)
    place = place_of(release, policy.namespace, policy.collection, known)
    files = _files(release, place)
    sizes = {place.path(path): _size(content) for path, content in files.items()}
    plan = Published(place.repository, place.folder, policy.private, sizes, None)
    if dry_run:
        return plan
    if known is not None and known.status == "verified":
        return replace(plan, commit=known.commit, was_there=True)
    commit, found = _sent(release, place, policy, hub, engine, files)
    place = found or place
    _record(engine, release, place, "committed", commit)
    _verify(release, hub, place, commit)
    _record(engine, release, place, "verified", commit)
    return replace(plan, folder=place.folder, commit=commit, was_there=found is not None)


def _known(engine: Engine, release: Release, policy: Policy) -> facts.Publication | None:
    """How far an earlier run came in this namespace; Refused when the merge was taken back."""
    table = schema.Publication
    mine = table.repository.startswith(f"{policy.namespace}/", autoescape=True)
    chosen = select(table).where(table.merge_id == release.merge_id, mine).order_by(table.changed_at.desc())
    with schema.reading(engine).connect() as connection:
        row = connection.execute(chosen).first()
    if row is None:
        return None
    if row.status == "withdrawn":
        reason = facts.Reason(
            "WITHDRAWN", f"It was taken back from {row.repository}.", "nothing: it is not sent again."
        )
        raise Refused(reason)
    return facts.Publication(row.merge_id, row.repository, row.status, row.commit, row.changed_at, row.folder)


def _record(
    engine: Engine, release: Release, place: Place, status: facts.PublicationStatus, commit: str | None
) -> None:
    now = datetime.now(UTC)
    publication = facts.Publication(release.merge_id, place.repository, status, commit, now, place.folder)
    keep_publication(release.coefficients.parent, publication)
    record_publication(engine, publication)


def _sent(
    release: Release, place: Place, policy: Policy, hub: Hub, engine: Engine, files: Files
) -> tuple[str, Place | None]:
    """A commit that holds the merge, and where, if an earlier run has sent it.

    The Hub may take a commit without our hearing of it, and others may commit meanwhile: then it is looked again.
    """
    for looks in range(_LOOKS):
        head = hub.head(place.repository)
        found = look(release, place, hub, head, files)
        if isinstance(found, Place):
            assert head is not None
            return head, None if looks else found
        _record(engine, release, place, "staged", None)
        try:
            return _send(release, place, policy, hub, found, head), None
        except CatalogueError as error:
            if error.code not in _LOOK_AGAIN or looks == _LOOKS - 1:
                raise
    raise AssertionError


def _send(release: Release, place: Place, policy: Policy, hub: Hub, files: Files, head: str | None) -> str:
    for path in {CARD, place.path(CARD)}:
        card = files[path]
        assert isinstance(card, bytes)
        hub.check_card(card.decode())
    parent = made_ready(hub, place.repository, head, private=policy.private)
    message = f"{release.subject.name} × {release.style.name}, merge {release.merge_id[:12]}"
    return hub.commit(place.repository, files, message, parent)


def _verify(release: Release, hub: Hub, place: Place, commit: str) -> None:
    """Hold every file on the Hub against the provenance beside it, and give the commit its lasting name."""
    statement = hub.published_file(place.repository, commit, place.path(PROVENANCE))
    told = files_in(statement)
    held = hub.published_files(place.repository, commit, place.folder or None)
    wrong = [path for path, sha256 in told.items() if _held(hub, place, commit, path, held) != sha256]
    if merge_id_in(statement) != release.merge_id or told.get(WEIGHTS) != sha256_of(release.weights):
        wrong.append(PROVENANCE)
    if wrong:
        fact = f"{place.repository}@{commit[:7]}/{place.path(wrong[0])} is not what was sent."
        raise Refused(facts.Reason("PUBLICATION_DIFFERS", fact, "remove it on the Hub and publish again."))
    hub.tag(place.repository, commit, release.tag)


def _held(hub: Hub, place: Place, commit: str, path: str, held: Mapping[str, str]) -> str | None:
    """The sha256 of a file on the Hub, which keeps it of large files only."""
    known = held.get(place.path(path), "")
    if len(known) == _SHA256_DIGITS:
        return known
    content = hub.published_file(place.repository, commit, place.path(path))
    return None if content is None else _sha256(content)


def _files(release: Release, place: Place) -> Files:
    """All files of a merge by path in its place; the provenance names the hashes of the others."""
    files: dict[str, Path | bytes] = {**release.weight_files, **release.picture_files}
    files[CARD] = merge_card(release, place.repository, place.folder).encode()
    sha256 = {path: _sha256(content) for path, content in files.items()}
    statement = json.dumps(provenance(release, sha256), indent=1, sort_keys=True).encode()
    assert files_in(statement) == sha256
    return {**files, PROVENANCE: statement}


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _sha256(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
