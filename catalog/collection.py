"""Many merges in one repository of the Hub, a folder each: the list of them, and how full it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date

from catalog.errors import Refused
from catalog.facts import Reason
from catalog.release import Release, slug

INDEX = "merges.jsonl"
"""Lists the merges of a collection, one a line; a merge and its line come in one commit."""
_MOST = {"files": 100_000, "entries in a folder": 10_000, "commits": 5_000}
"""What the Hub's documentation asks to stay below; of commits it says "a few thousand"."""
_FULL_AT = 0.8
_FILES_OF_ITS_OWN = 3  # card, list, .gitattributes


@dataclass(frozen=True)
class Member:
    """A merge in a collection, as the collection's list and card tell of it."""

    merge_id: str
    folder: str
    subject: str
    style: str
    method: str
    base_model: str
    licence: str
    score_01: float
    prompt: str
    picture: str | None
    """The path of its first preview."""
    files: int


def member(release: Release, files: int) -> Member:
    """What a collection tells of a merge that has passed the gates."""
    assert release.licence is not None
    assert release.score_01 is not None
    return Member(
        merge_id=release.merge_id,
        folder=release.name,
        subject=release.subject.name,
        style=release.style.name,
        method=release.method,
        base_model=release.base_model,
        licence=release.licence,
        score_01=release.score_01,
        prompt=release.prompt,
        picture=next((f"{release.name}/{path}" for path in release.picture_files), None),
        files=files,
    )


def collection_name(pattern: str, release: Release, today: date) -> str:
    """The name of the repository that takes this merge today."""
    return pattern.format(style=slug(release.style.name), month=f"{today:%Y-%m}")


def read_index(content: bytes) -> tuple[Member, ...]:
    """The merges that a list names; ValueError when it is no list of ours."""
    try:
        return tuple(Member(**json.loads(line)) for line in content.splitlines())
    except (TypeError, RecursionError) as error:
        raise ValueError("a line is no merge") from error


def write_index(members: Sequence[Member]) -> bytes:
    """The list, in the order in which the merges came."""
    return "".join(f"{json.dumps(asdict(one), sort_keys=True)}\n" for one in members).encode()


def check_room(repository: str, members: Sequence[Member]) -> None:
    """Refused when a repository of these merges comes too near to what the Hub can bear."""
    counted = {
        "files": sum(one.files for one in members) + _FILES_OF_ITS_OWN,
        "entries in a folder": len(members) + _FILES_OF_ITS_OWN,
        "commits": len(members) + 1,
    }
    for what, count in counted.items():
        if count > _FULL_AT * _MOST[what]:
            fact = f"With one merge more {repository} has {count:,} {what}, and the Hub asks for less than "
            step = "name another collection in publish.collection, or put {month} or {style} into its name."
            raise Refused(Reason("REPOSITORY_FULL", f"{fact}{_MOST[what]:,}.", step))
