"""One merge, one repository, one commit: from the gates to the check of what arrived; a second run adds nothing."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select

from catalog import facts, schema
from catalog.errors import Refused
from catalog.folder import sha256_of
from catalog.hub import Hub
from catalog.licence import publication_gate
from catalog.merge_card import merge_card
from catalog.record import record_publication
from catalog.release import CARD, PROVENANCE, Parent, Release
from catalog.sidecars import keep_publication
from catalog.story import lost

_MADE_BY_THE_HUB = {".gitattributes"}
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Policy:
    """Where merges go, and which."""

    namespace: str
    private: bool = True
    least_score: float = 0.5


@dataclass(frozen=True)
class Published:
    """What was published, or would be."""

    repository: str
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
    """Send a merge to its repository, unless it is there or (as long as nobody says otherwise) this is a rehearsal.

    Refused when a gate says no, or the name belongs to something else.
    """
    refusal = gate(release, policy)
    if refusal is not None:
        raise Refused(refusal)
    repository = f"{policy.namespace}/{release.name}"
    files = _files(release, repository)
    plan = Published(repository, policy.private, {path: _size(content) for path, content in files.items()}, None)
    if dry_run:
        return plan
    known = _known(engine, release, repository)
    if known is not None and known.status == "verified":
        return replace(plan, commit=known.commit, was_there=True)
    commit = commit_of(hub, repository, release.merge_id)
    was_there = commit is not None
    if commit is None:
        _record(engine, release, repository, "staged", None)
        commit = _send(release, policy, hub, repository, files)
    _record(engine, release, repository, "committed", commit)
    _verify(release, hub, repository, commit, files)
    _record(engine, release, repository, "verified", commit)
    return replace(plan, commit=commit, was_there=was_there)


def _known(engine: Engine, release: Release, repository: str) -> facts.Publication | None:
    """How far an earlier run came; Refused when the merge was taken back."""
    table = schema.Publication
    chosen = select(table).where(table.merge_id == release.merge_id, table.repository == repository)
    with schema.reading(engine).connect() as connection:
        row = connection.execute(chosen).first()
    if row is None:
        return None
    if row.status == "withdrawn":
        reason = facts.Reason("WITHDRAWN", f"It was taken back from {repository}.", "nothing: it is not sent again.")
        raise Refused(reason)
    return facts.Publication(row.merge_id, row.repository, row.status, row.commit, row.changed_at)


def _record(
    engine: Engine, release: Release, repository: str, status: facts.PublicationStatus, commit: str | None
) -> None:
    publication = facts.Publication(release.merge_id, repository, status, commit, datetime.now(UTC))
    keep_publication(release.coefficients.parent, publication)
    record_publication(engine, publication)


def commit_of(hub: Hub, repository: str, merge_id: str) -> str | None:
    """The commit that holds this merge already: the Hub may have taken it without our hearing of it.

    Refused when the repository holds something else.
    """
    head = hub.head(repository)
    if head is None:
        return None
    provenance = hub.published_file(repository, head, PROVENANCE)
    if provenance is None and set(hub.published_files(repository, head)) <= _MADE_BY_THE_HUB:
        return None
    try:
        found = json.loads(provenance or b"")["predicate"]["buildDefinition"]["externalParameters"]["merge_id"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != merge_id:
        fact = f"{repository} is there already and holds something else."
        raise Refused(facts.Reason("NAME_TAKEN", fact, "rename or remove it on the Hub."))
    return head


def _send(release: Release, policy: Policy, hub: Hub, repository: str, files: Mapping[str, Path | bytes]) -> str:
    card = files[CARD]
    assert isinstance(card, bytes)
    hub.check_card(card.decode())
    hub.create_repository(repository, private=policy.private)
    message = f"{release.subject.name} × {release.style.name}, merge {release.merge_id[:12]}"
    return hub.commit(repository, files, message, hub.head(repository))


def _verify(release: Release, hub: Hub, repository: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Compare what the Hub holds with what was sent, and give the commit its lasting name."""
    held = hub.published_files(repository, commit)
    for path, content in files.items():
        if path not in held or held[path] != _known_by(content, held[path]):
            fact = f"{repository}@{commit[:7]}/{path} is not what was sent."
            raise Refused(facts.Reason("PUBLICATION_DIFFERS", fact, "remove the repository and publish again."))
    hub.tag(repository, commit, release.tag)


def _files(release: Release, repository: str) -> dict[str, Path | bytes]:
    """Everything of the commit by path; the provenance names the hashes of the others."""
    files: dict[str, Path | bytes] = {**release.weight_files, **release.picture_files}
    files[CARD] = merge_card(release, repository).encode()
    statement = provenance(release, {path: _sha256(content) for path, content in files.items()})
    files[PROVENANCE] = json.dumps(statement, indent=1, sort_keys=True).encode()
    return files


def provenance(release: Release, sha256: Mapping[str, str]) -> dict[str, object]:
    """An in-toto statement: these files were made from these parents and this base, by this recipe and builder."""
    base = {"uri": _uri(release.base_model, release.base_revision), "digest": {"gitCommit": release.base_revision}}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path, "digest": {"sha256": digest}} for path, digest in sorted(sha256.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:ziplora:merge:v1",
                "externalParameters": {"merge_id": release.merge_id, "recipe": release.recipe},
                "resolvedDependencies": [*map(_dependency, (release.subject, release.style)), base],
            },
            "runDetails": {"builder": {"id": "ziplora", "version": dict(release.builder)}},
        },
    }


def _dependency(parent: Parent) -> dict[str, object]:
    return {
        "name": parent.role,
        "uri": _uri(parent.repository, parent.revision, parent.file_name),
        "digest": {"sha256": parent.sha256},
        "annotations": {"licence": parent.licence},
    }


def _uri(repository: str, revision: str, file_name: str = "") -> str:
    return f"hf://{repository}@{revision}" + (f"/{file_name}" if file_name else "")


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _known_by(content: Path | bytes, like: str) -> str:
    """What a file is known by: its sha256, or as small ones are, git's id."""
    if len(like) == _SHA256_DIGITS:
        return _sha256(content)
    whole = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(whole) + whole).hexdigest()


def _sha256(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
