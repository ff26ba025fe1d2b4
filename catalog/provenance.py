"""What a merge was made from, and by what, as an in-toto statement that carries SLSA provenance."""

import json
import re
from collections.abc import Mapping
from typing import Any

from catalog.errors import Refused
from catalog.facts import Reason
from catalog.release import Parent, Release

_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S.*", re.DOTALL)
_DIGITS = {"sha256": 64, "gitCommit": 40}


def provenance(release: Release, sha256: Mapping[str, str]) -> dict[str, Any]:
    """The statement: these files were made from these parents and this base, by this recipe and builder."""
    return {
        "_type": _STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": digest}} for path, digest in sorted(sha256.items())],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:ziplora:merge:v1",
                "externalParameters": {"merge_id": release.merge_id, "recipe": release.recipe},
                "resolvedDependencies": [*map(_parent, (release.subject, release.style)), _base(release)],
            },
            "runDetails": {"builder": {"id": "urn:ziplora:builder", "version": dict(release.builder)}},
        },
    }


def _parent(parent: Parent) -> dict[str, Any]:
    return {
        "name": parent.role,
        "uri": _uri(parent.repository, parent.revision, parent.file_name),
        "digest": {"sha256": parent.sha256},
        "annotations": {"licence": parent.licence},
    }


def _base(release: Release) -> dict[str, Any]:
    """A model of the Hub is known by its commit, one in a folder by the hash of all its files."""
    revision = release.base_revision
    digest = next((name for name, digits in _DIGITS.items() if re.fullmatch(f"[0-9a-f]{{{digits}}}", revision)), None)
    return {"uri": _uri(release.base_model, revision)} | ({"digest": {digest: revision}} if digest else {})


def _uri(repository: str, revision: str, file_name: str = "") -> str:
    return f"hf://{repository}@{revision}" + (f"/{file_name}" if file_name else "")


def files_in(statement: bytes | None) -> dict[str, str]:
    """The sha256 of every file that a statement speaks of; Refused when it is no statement about a merge."""
    try:
        found = json.loads(statement or b"")
        wrong = _wrong_with(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong is not None:
        raise Refused(Reason("PROVENANCE_INVALID", f"It is no statement about a merge: {wrong}.", "report it to us."))
    return {one["name"]: one["digest"]["sha256"] for one in found["subject"]}


def merge_id_in(statement: bytes | None) -> str | None:
    """The merge that a statement speaks of; None when it is no such statement."""
    try:
        files_in(statement)
    except Refused:
        return None
    found: str = json.loads(statement or b"")["predicate"]["buildDefinition"]["externalParameters"]["merge_id"]
    return found


def _wrong_with(statement: Any) -> str | None:
    """The first thing in which a statement differs from what in-toto v1, SLSA v1 and we ask for."""
    subject, predicate = statement["subject"], statement["predicate"]
    definition, builder = predicate["buildDefinition"], predicate["runDetails"]["builder"]
    parameters, dependencies = definition["externalParameters"], definition["resolvedDependencies"]
    names = [one["name"] for one in subject]
    checks = {
        "_type": statement["_type"] == _STATEMENT,
        "predicateType": statement["predicateType"] == _PREDICATE,
        "subject": bool(names) and len(set(names)) == len(names) and all(isinstance(name, str) for name in names),
        "subject.digest": all("sha256" in one["digest"] and _are_digests(one["digest"]) for one in subject),
        "buildType": _URI.fullmatch(definition["buildType"]) is not None,
        "externalParameters": isinstance(parameters["merge_id"], str) and isinstance(parameters["recipe"], dict),
        "resolvedDependencies": [one.get("name") for one in dependencies[:2]] == ["subject", "style"],
        "resolvedDependencies.uri": all(_URI.fullmatch(one["uri"]) for one in dependencies),
        "resolvedDependencies.digest": all(_are_digests(one.get("digest", {})) for one in dependencies),
        "builder.id": _URI.fullmatch(builder["id"]) is not None,
        "builder.version": all(isinstance(version, str) for version in builder["version"].values()),
    }
    return next((f"{place} is not as it should be" for place, is_right in checks.items() if not is_right), None)


def _are_digests(digest: Mapping[str, str]) -> bool:
    return all(re.fullmatch(f"[0-9a-f]{{{_DIGITS[name]}}}", value) for name, value in digest.items())
