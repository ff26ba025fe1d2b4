"""What the files of candidates say about themselves: asked of the Hub once for each commit, since it never changes."""

import gc
import io
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from catalog import facts, record
from catalog.candidate import Candidate, Unfit
from catalog.errors import CatalogueError, Refused
from catalog.facts import Header, Reason
from catalog.hub import Hub, Start
from catalog.queries import known_headers
from catalog.schema import Catalogue
from flows.trouble import reason_of
from ziplora.adapter import CONFIG_NAME, AdapterHeader, describe, needs_config, read
from ziplora.alpha import parse_config
from ziplora.header import Refusal, read_header

READER = 2
"""Of headers; a higher one reads those again that are in a catalogue."""
_READINGS = 4
"""Of a file that seems bad each time in another way."""
_ONE_AT_A_TIME = threading.Lock()
"""Threads that took turns at the headers of a dozen files would hold the thousands of parts of all of them at once."""


def place_of(offer: Candidate | Unfit) -> str:
    return facts.key(offer.repository, offer.revision, offer.file_name)


def headers_of(
    piece: Sequence[Candidate | Unfit], hub: Hub, catalogue: Catalogue | None, pool: ThreadPoolExecutor
) -> Mapping[str, Header | Reason]:
    """What the files of the Hub say, by their places; those that are not in the catalogue are read."""
    there = {place_of(one): one for one in piece if isinstance(one, Candidate) and one.folder is None}
    said: dict[str, Header | Reason] = {}
    if catalogue is not None:
        said |= known_headers(catalogue, there, READER)
    unread = {place: offer for place, offer in there.items() if place not in said and not offer.gated}
    new: list[Header] = []

    def look_and_keep(context: Context, offer: Candidate) -> Header | Reason:
        one = context.run(look, offer, hub)
        if isinstance(one, Header):
            new.append(one)
        return one

    gc.freeze()  # or the collector looks through all libraries again every few headers
    try:
        contexts = [copy_context() for _ in unread]  # each tells the same watcher
        said.update(zip(unread, pool.map(look_and_keep, contexts, unread.values()), strict=True))
    except CatalogueError:
        raise
    except BaseException:
        hub.stop()
        raise
    finally:  # whoever stops a scan does not lose what was read
        gc.unfreeze()
        if catalogue is not None and new:
            record.record_headers(catalogue, new)
    return said


def look(offer: Candidate, hub: Hub) -> Header | Reason:
    """What a file says about itself, or why nobody could ask it; only the former is so for ever."""
    try:
        if offer.folder is not None:
            return _said(offer, read(offer.folder / offer.file_name).facts)
        return _look_at_hub(offer, hub)
    except CatalogueError as error:
        if error.code == "AUTH":  # what is wrong with all of them is said once
            raise
        return reason_of(error)
    except Exception as error:  # noqa: BLE001 - one bad adapter never stops a scan
        return reason_of(error)


def _look_at_hub(offer: Candidate, hub: Hub) -> Header | Reason:
    """A file is refused for ever when two readings agree: bytes may be spoiled on their way here."""
    seen: list[tuple[bytes, Reason]] = []
    for _ in range(_READINGS):
        start = _start(offer, hub)
        found = _described(start, hub)
        if not isinstance(found, Reason) or (start.content, found) in seen:
            return _said(start.candidate, found)
        seen.append((start.content, found))
    return seen[-1][1]


def _start(offer: Candidate, hub: Hub) -> Start:
    """The beginning of its file, of the newest commit if the listing names one that is gone."""
    try:
        return hub.start_of(offer)
    except Refused as refused:
        if refused.code != "COMMIT_GONE":
            raise
        newest = hub.repository(offer.repository, file_name=offer.file_name)
        if isinstance(newest, Unfit) or newest.revision == offer.revision:
            raise
        return hub.start_of(newest)


def _described(start: Start, hub: Hub) -> AdapterHeader | Reason:
    size_bytes = start.candidate.size_bytes or len(start.content)
    try:
        with _ONE_AT_A_TIME:
            header = read_header(io.BytesIO(start.content), size_bytes)
        config = hub.small_file(start.candidate, CONFIG_NAME) if needs_config(header) else None
        with _ONE_AT_A_TIME:
            return describe(header, size_bytes, parse_config(config) if config else None)
    except Refusal as refusal:
        return reason_of(refusal)


def _said(offer: Candidate, found: AdapterHeader | Reason) -> Header | Reason:
    if offer.sha256 is None:
        fact = "The Hub keeps no sha256 of its file, by which it could be known."
        unknown = Reason("HASH_UNKNOWN", fact, "ask the author to store it with Git LFS or Xet.")
        return found if isinstance(found, Reason) else unknown
    known, reason = (None, found) if isinstance(found, Reason) else (_plain(found), None)
    now = datetime.now(UTC)
    return Header(offer.repository, offer.revision, offer.file_name, offer.sha256, known, reason, READER, now)


def _plain(found: AdapterHeader) -> dict[str, Any]:
    """The same as a catalogue gives it back: a scan finds the same whether it reads a file or remembers it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(found)))
    return plain
