"""What is published names all its files and what it was made from, in the form that in-toto and SLSA ask for."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import Refused
from catalog.provenance import files_in, merge_id_in, provenance
from catalog.release import Release

from .releases import COMMIT, release_of
from .samples import DOG, NEON, merge

FILES = {"README.md": "a" * 64, "pytorch_lora_weights.safetensors": "b" * 64}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return release_of(tmp_path)


def _written(statement: dict[str, Any]) -> bytes:
    return json.dumps(statement).encode()


def test_a_statement_names_every_file_and_its_merge(release: Release) -> None:
    statement = _written(provenance(release, FILES))
    assert files_in(statement) == FILES
    assert merge_id_in(statement) == merge().merge_id


def test_a_statement_says_what_the_merge_was_made_from(release: Release) -> None:
    dependencies = provenance(release, FILES)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one["digest"] for one in dependencies] == [{"sha256": DOG}, {"sha256": NEON}, {"gitCommit": COMMIT}]
    assert [one["annotations"]["licence"] for one in dependencies[:2]] == ["mit", "openrail++"]


@pytest.mark.parametrize(("revision", "digest"), [("c" * 64, {"sha256": "c" * 64}), ("main", None)])
def test_a_base_that_has_no_commit_is_known_by_what_it_has(
    release: Release, revision: str, digest: dict[str, str] | None
) -> None:
    statement = provenance(replace(release, base_revision=revision), FILES)
    assert statement["predicate"]["buildDefinition"]["resolvedDependencies"][2].get("digest") == digest
    assert files_in(_written(statement)) == FILES


def _set(*steps: Any) -> Callable[[dict[str, Any]], None]:
    """Put the last of these at the place that the others lead to."""

    def change(statement: dict[str, Any]) -> None:
        *path, last, value = steps
        place: Any = statement
        for step in path:
            place = place[step]
        place[last] = value

    return change


_BUILD, _DEPENDENCIES = ("predicate", "buildDefinition"), ("predicate", "buildDefinition", "resolvedDependencies")


@pytest.mark.parametrize(
    "change",
    [
        _set("_type", "https://in-toto.io/Statement/v0.1"),
        _set("predicateType", "https://slsa.dev/provenance/v0.2"),
        _set("subject", []),
        _set("subject", 1, "name", "README.md"),
        _set("subject", 0, "name", None),
        _set("subject", 0, "digest", {}),
        _set("subject", 0, "digest", {"sha256": "A" * 64}),
        _set("subject", 0, "digest", {"sha256": "a" * 64, "md6": "a"}),
        _set("predicate", {}),
        _set(*_BUILD, "buildType", "merge"),
        _set(*_BUILD, "externalParameters", {"recipe": {}}),
        _set(*_BUILD, "externalParameters", "recipe", "zip"),
        _set(*_DEPENDENCIES, []),
        _set(*_DEPENDENCIES, 0, "name", "style"),
        _set(*_DEPENDENCIES, 1, "uri", "neon"),
        _set(*_DEPENDENCIES, 1, "digest", {"sha256": "short"}),
        _set("predicate", "runDetails", "builder", "id", "ziplora"),
        _set("predicate", "runDetails", "builder", "version", {"ziplora": 1}),
    ],
)
def test_whatever_is_not_as_it_should_be_is_no_statement(
    release: Release, change: Callable[[dict[str, Any]], None]
) -> None:
    statement = copy.deepcopy(provenance(release, FILES))
    change(statement)
    with pytest.raises(Refused, match="PROVENANCE_INVALID"):
        files_in(_written(statement))
    assert merge_id_in(_written(statement)) is None


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"{}", b'{"subject": 1}'])
def test_what_is_no_json_of_ours_is_no_statement(content: bytes | None) -> None:
    with pytest.raises(Refused, match="PROVENANCE_INVALID"):
        files_in(content)
    assert merge_id_in(content) is None
