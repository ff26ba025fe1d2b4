"""Where a merge goes on the Hub: a repository of its own, or a folder in a collection; and what is to add there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from catalog.collection import INDEX, Member, check_room, collection_name, member, read_index, write_index
from catalog.collection_card import collection_card
from catalog.errors import Refused
from catalog.facts import Publication, Reason
from catalog.hub import Hub, Kind
from catalog.provenance import merge_id_in
from catalog.release import CARD, PROVENANCE, Release

Files = Mapping[str, Path | bytes]
"""Contents by path."""
MADE_BY_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Place:
    """Where a merge is on the Hub."""

    repository: str
    folder: str
    """Empty in a repository of its own."""

    def path(self, path: str) -> str:
        """Of a file of the merge, in the repository."""
        return f"{self.folder}/{path}".lstrip("/")


def place_of(release: Release, namespace: str, collection: str | None, known: Publication | None) -> Place:
    """Where a merge goes: where an earlier run began to send it, whatever names are by now."""
    if known is not None:
        return Place(known.repository, known.folder)
    if collection is None:
        return Place(f"{namespace}/{release.name}", "")
    name = collection_name(collection, release, datetime.now(UTC).date())
    return Place(f"{namespace}/{name}", release.name)


def look(release: Release, place: Place, hub: Hub, head: str | None, files: Files) -> Place | Files:
    """Where a merge is already, or what a commit on top of `head` has to add for it.

    Refused when the repository holds something else, or is full.
    """
    if place.folder:
        return _in_collection(release, place, _marker(place, hub, head) or b"", files)
    return place if is_alone_at(place, hub, head, release.merge_id) else files


def is_alone_at(place: Place, hub: Hub, head: str | None, merge_id: str) -> bool:
    """Whether a repository holds this merge and no other; Refused when it holds something else."""
    marker = _marker(place, hub, head)
    if marker is not None and merge_id_in(marker) != merge_id:
        raise _taken(place)
    return marker is not None


def _marker(place: Place, hub: Hub, head: str | None) -> bytes | None:
    """The file that tells what a repository holds; None as long as it holds nothing."""
    if head is None:
        return None
    marker = hub.published_file(place.repository, head, INDEX if place.folder else PROVENANCE)
    if marker is None and not set(hub.published_files(place.repository, head)) <= MADE_BY_THE_HUB:
        raise _taken(place)
    return marker


def _in_collection(release: Release, place: Place, index: bytes, files: Files) -> Place | Files:
    """The merge's own files, and those of the collection that change with it."""
    members = _members_in(place, index)
    for one in members:
        if one.merge_id == release.merge_id:
            return Place(place.repository, one.folder)
    members = (*members, member(release, len(files)))
    check_room(place.repository, members)
    own = {place.path(path): content for path, content in files.items()}
    return {**own, **files_of(place, members)}


def members_at(place: Place, hub: Hub, head: str | None) -> tuple[Member, ...]:
    """The merges of a collection; Refused when the repository holds something else."""
    return _members_in(place, _marker(place, hub, head) or b"")


def _members_in(place: Place, index: bytes) -> tuple[Member, ...]:
    try:
        return read_index(index)
    except ValueError as error:
        raise _taken(place) from error


def files_of(place: Place, members: Sequence[Member]) -> dict[str, bytes]:
    """The files of a collection that change with its merges."""
    return {CARD: collection_card(members, place.repository).encode(), INDEX: write_index(members)}


def _taken(place: Place) -> Refused:
    fact = f"{place.repository} is there already and holds something else."
    return Refused(Reason("NAME_TAKEN", fact, "rename or remove it on the Hub."))


def made_ready(hub: Hub, repository: str, head: str | None, *, private: bool, kind: Kind = "model") -> str | None:
    """The newest commit of a repository, which is made if it is not there.

    Refused when everybody sees it, and what goes there is to be private.
    """
    if head is None:
        hub.create_repository(repository, private=private, kind=kind)
        return hub.head(repository, kind)
    if private and not hub.is_private(repository, kind):
        fact = f"{repository} is public, and what goes there is to be private."
        raise Refused(Reason("REPOSITORY_PUBLIC", fact, "hide it on the Hub, or set publish.private to false."))
    return head
