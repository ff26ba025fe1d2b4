"""The one door to the Hugging Face Hub: lists it, reads as little of a file as can be, and commits what is given back.

Everything is pinned to a commit, and what is downloaded is compared with the hash that the Hub keeps of it. The token
is that of the environment (`HF_TOKEN`), read by the client at each request and seen by nothing else.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
    httpx,
)

from catalog.candidate import Candidate, CardFacts, Unfit
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.folder import sha256_of
from catalog.hub_errors import AGAIN, CameShort, in_plain_words
from catalog.listing import EXPAND, offered
from catalog.patience import Patience, passes

FIRST_READ_BYTES = 180 * 1024
"""Holds the header of most LoRA files; a longer header costs a second request."""
MAX_HEADER_BYTES = 10_000_000
_MAX_SMALL_FILE_BYTES = 1_000_000
_MAX_PAGE_BYTES = 100_000_000
"""Of a listing; what is longer is cut, and so no JSON."""
_MAX_OWN_FILE_BYTES = 20_000_000
"""Holds the list of the largest collection."""
_PAGE = 1000
_TIMEOUT_SECONDS = 30
_MAX_READ_SECONDS = 120
"""For one answer, however slowly it drips."""
_FAILURES_IN_A_ROW = 24
"""So many files that could not be asked about, one after the other, mean that the Hub is away."""
Kind = Literal["model", "dataset"]
"""Of a repository."""

_PATIENCE = Patience()
"""Of this process: the Hub counts the requests of all its threads together."""


@dataclass(frozen=True)
class Start:
    """The beginning of a candidate's file, its whole header included, and the candidate with size and hash."""

    candidate: Candidate
    content: bytes


def _nobody(seconds: int) -> None:
    """Who is told of a pause when nobody wants to know."""


class Hub:
    """The Hub at an address, or the usual one; many threads may read from it at once.

    `waiting` is told of every pause that the Hub asks for, in seconds.
    """

    def __init__(self, endpoint: str | None = None, waiting: Callable[[int], None] = _nobody) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self.endpoint)
        self._waiting = waiting
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._failures: list[Exception] = []
        """Of the last files that were asked about, since the last success."""
        disable_progress_bars()

    def stop(self) -> None:
        """Let the threads that wait for the Hub end; nothing is asked after this."""
        self._stopped.set()

    def check_token(self, *, writes: bool = False) -> str | None:
        """The name that the token belongs to, None without one; CatalogueError AUTH when it may not do so much."""
        if "authorization" not in build_hf_headers():
            return None
        with in_plain_words("the Hub"):
            said = self._api.whoami()
        if writes and said.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise CatalogueError("AUTH", "The token in HF_TOKEN may only read. Set one that may write, or publish not.")
        return str(said["name"])

    def search(
        self,
        *,
        base_model: str | None = None,
        tags: Sequence[str] = ("lora",),
        author: str | None = None,
        text: str | None = None,
        limit: int = 1000,
    ) -> Iterator[Candidate | Unfit]:
        """What a search finds, the last changed first: one request for a thousand repositories."""
        adapters_of = [f"base_model:adapter:{base_model}"] if base_model else []
        asked: dict[str, Any] = {"filter": [*tags, *adapters_of], "expand": EXPAND, "sort": "lastModified"}
        asked |= {"limit": min(limit, _PAGE)} | ({"author": author} if author else {})
        asked |= {"search": text} if text else {}
        url = f"{self.endpoint}/api/models?{httpx.QueryParams(asked)}"
        seen: set[str] = set()
        while url and len(seen) < limit:
            with in_plain_words("the Hub"):
                infos, url = self._get(url)
            for info in infos:
                # What changes while pages are turned can be on two of them.
                if info["id"] not in seen and len(seen) < limit:
                    seen.add(info["id"])
                    yield offered(info)

    def repository(self, name: str, revision: str = "main", file_name: str | None = None) -> Candidate | Unfit:
        """What one repository offers at a revision; Refused when it cannot be seen."""
        url = f"{self.endpoint}/api/models/{name}/revision/{revision.replace('/', '%2F')}"
        with in_plain_words(name, revision):
            return offered(self._get(f"{url}?{httpx.QueryParams({'expand': EXPAND})}")[0], file_name)

    def _get(self, url: str) -> tuple[Any, str]:
        """What an address says, and where it goes on."""

        def ask() -> tuple[Any, str]:
            with self._answer(url, build_hf_headers()) as answer:
                hf_raise_for_status(answer)
                return json.loads(_drained(answer, _MAX_PAGE_BYTES)), answer.links.get("next", {}).get("url", "")

        return _PATIENCE.asked(ask, self._stopped)

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """An answer of which nothing is read yet."""
        with get_session().stream(
            "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True
        ) as answer:
            self._heed(answer)
            yield answer

    def _heed(self, answer: httpx.Response) -> None:
        """Let all threads wait when the Hub asks for it."""
        for one in (*answer.history, answer):
            seconds = _PATIENCE.heed(one)
            if seconds:
                self._waiting(seconds)

    def start_of(self, candidate: Candidate) -> Start:
        """The header of a candidate's file, its size and its hash, for one request or two of a few kilobytes."""
        found, content = self._read(candidate, candidate.file_name, 0, FIRST_READ_BYTES)
        end = 8 + int.from_bytes(content[:8], "little")
        if FIRST_READ_BYTES < end <= min(found.size_bytes or 0, 8 + MAX_HEADER_BYTES):
            content += self._read(candidate, candidate.file_name, FIRST_READ_BYTES, end)[1]
        return Start(found, content)

    def small_file(self, candidate: Candidate, file_name: str) -> bytes | None:
        """A small file beside the weights; None when there is none, or it is not small."""
        if file_name not in candidate.siblings:
            return None
        content = self._read(candidate, file_name, 0, _MAX_SMALL_FILE_BYTES + 1)[1]
        return content if len(content) <= _MAX_SMALL_FILE_BYTES else None

    def download(self, candidate: Candidate, adapters: Path) -> Path:
        """The file as `adapters`/<sha256>.safetensors, its hash compared with the Hub's; tried twice."""
        if candidate.sha256 and (adapters / f"{candidate.sha256}.safetensors").is_file():
            return adapters / f"{candidate.sha256}.safetensors"
        adapters.mkdir(parents=True, exist_ok=True)
        found = None
        for _ in range(2):
            _PATIENCE.wait(self._stopped)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=adapters) as folder:
                fetched = self._fetch(candidate, folder)
                found = sha256_of(fetched) if fetched else None
                if fetched and candidate.sha256 in (None, found):
                    return fetched.rename(adapters / f"{found}.safetensors")
        if found is None:
            fact = f"{_place(candidate)} came shorter than the Hub promises, twice."
            raise Refused(Reason("FILE_TRUNCATED", fact, AGAIN))
        fact = f"{_place(candidate)}: the Hub promises sha256 {candidate.sha256}, the bytes have {found}, twice."
        raise Refused(Reason("HASH_MISMATCH", fact, "scan again; if it stays, tell the author."))

    def _fetch(self, candidate: Candidate, folder: str) -> Path | None:
        """The file in this folder; None when it is shorter than promised."""
        try:
            with in_plain_words(candidate.repository, candidate.revision, candidate.file_name):
                fetched = hf_hub_download(
                    candidate.repository,
                    candidate.file_name,
                    revision=candidate.revision,
                    local_dir=folder,
                    endpoint=self.endpoint,
                )
        except OSError as error:
            if "Consistency check failed" in str(error):
                return None
            raise
        return Path(fetched)

    def _read(self, candidate: Candidate, file_name: str, begin: int, end: int) -> tuple[Candidate, bytes]:
        """These bytes of a file, and the candidate with the size and hash that the answer tells of that file."""
        with in_plain_words(candidate.repository, candidate.revision, file_name):
            with self._lock:
                if len(self._failures) >= _FAILURES_IN_A_ROW:
                    raise self._failures[-1].with_traceback(None)
            try:
                found = _PATIENCE.asked(lambda: self._read_once(candidate, file_name, begin, end), self._stopped)
            except (HfHubHTTPError, httpx.TransportError) as error:
                if passes(error) and not isinstance(error, CameShort):
                    with self._lock:
                        self._failures.append(error)
                raise
            with self._lock:
                self._failures.clear()
            return found

    def _read_once(self, candidate: Candidate, file_name: str, begin: int, end: int) -> tuple[Candidate, bytes]:
        url = hf_hub_url(candidate.repository, file_name, revision=candidate.revision, endpoint=self.endpoint)
        headers = build_hf_headers() | {"range": f"bytes={begin}-{end - 1}", "accept-encoding": "identity"}
        with self._answer(url, headers) as answer:
            if answer.status_code == 416:  # a file with no bytes has no range either
                return replace(candidate, size_bytes=0), b""
            hf_raise_for_status(answer)
            skip = begin if answer.status_code == 200 else 0  # a server may send the whole file
            wanted = _drained(answer, skip + end - begin)[skip:]
        size_bytes, sha256, promised_bytes = _told(answer)
        if size_bytes is not None and (
            len(wanted) < min(end, size_bytes) - begin or promised_bytes not in (None, size_bytes)
        ):
            raise CameShort("fewer bytes than promised")
        return replace(candidate, size_bytes=size_bytes, sha256=sha256), wanted

    def head(self, name: str, kind: Kind = "model") -> str | None:
        """The newest commit of a repository; None when there is no such repository."""
        try:
            with in_plain_words(name):
                return self._api.repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS).sha
        except Refused as refused:
            if refused.reason.code in ("GONE", "HIDDEN"):
                return None
            raise

    def commit_at_hand(self, name: str, file_name: str) -> str:
        """The newest commit of a repository, or the last one that this file was fetched of while the Hub is away."""
        with in_plain_words(name, "main", file_name):
            return Path(hf_hub_download(name, file_name, endpoint=self.endpoint)).parent.name

    def is_private(self, name: str, kind: Kind = "model") -> bool:
        """Whether a repository is hidden from strangers."""
        with in_plain_words(name):
            return bool(self._api.repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS).private)

    def published_file(self, name: str, commit: str, file_name: str) -> bytes | None:
        """A file of a repository, maybe one of ours; None when it is not there, or far too long."""
        candidate = Candidate(name, commit, file_name, None, None, CardFacts(), (file_name,))
        try:
            content = self._read(candidate, file_name, 0, _MAX_OWN_FILE_BYTES + 1)[1]
            return content if len(content) <= _MAX_OWN_FILE_BYTES else None
        except Refused as refused:
            if refused.reason.code == "FILE_MISSING":
                return None
            raise

    def published_files(
        self, name: str, commit: str, folder: str | None = None, kind: Kind = "model"
    ) -> Mapping[str, str]:
        """The files of a repository, or of a folder in it, with what tells their contents apart.

        That is the sha256 of large files, and git's id of others.
        """
        try:
            with in_plain_words(name, commit, folder or ""):
                entries = self._api.list_repo_tree(name, folder, recursive=True, revision=commit, repo_type=kind)
                files = [entry for entry in entries if isinstance(entry, RepoFile)]
                return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
        except Refused as refused:
            if refused.reason.code == "FILE_MISSING":
                return {}
            raise

    def check_card(self, card: str, kind: Kind = "model") -> None:
        """Refused when the Hub would not take this README.md."""
        with in_plain_words("the Hub"):
            body = {"content": card, "repoType": kind}
            url = f"{self.endpoint}/api/validate-yaml"
            answer = get_session().post(url, json=body, headers=build_hf_headers(), timeout=_TIMEOUT_SECONDS)
            if answer.status_code == 400:
                said = "; ".join(str(error.get("message")) for error in answer.json().get("errors", []))
                raise Refused(Reason("CARD_REFUSED", f"The Hub would not take the card: {said}.", "report it to us."))
            hf_raise_for_status(answer)

    def create_repository(self, name: str, *, private: bool, kind: Kind = "model") -> None:
        """A repository of this name; nothing happens if there is one."""
        with in_plain_words(name):
            self._api.create_repo(name, private=private, exist_ok=True, repo_type=kind)

    def delete_repository(self, name: str) -> None:
        """Remove a repository with all that it ever held; nothing happens if there is none."""
        with in_plain_words(name):
            self._api.delete_repo(name, missing_ok=True)

    def commit(
        self,
        name: str,
        files: Mapping[str, Path | bytes],
        message: str,
        parent: str | None,
        kind: Kind = "model",
        without: Sequence[str] = (),
    ) -> str:
        """All these files, and no more the folders `without`, in one commit on top of `parent`: its id."""
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        changes += [CommitOperationDelete(f"{folder}/") for folder in without]
        with in_plain_words(name):
            made = self._api.create_commit(name, changes, commit_message=message, parent_commit=parent, repo_type=kind)
            return made.oid

    def forget_history(self, name: str, kind: Kind = "model") -> str:
        """Leave a repository one commit of all that it holds now, and none of what it held before: its id."""
        with in_plain_words(name):
            self._api.super_squash_history(name, repo_type=kind)
            return str(self._api.repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS).sha)

    def tag(self, name: str, commit: str, tag: str) -> None:
        """Give a commit a name of its own; nothing happens if it has it."""
        with in_plain_words(name, commit):
            self._api.create_tag(name, tag=tag, revision=commit, exist_ok=True)

    def remove_tag(self, name: str, tag: str) -> None:
        """Take a name from a commit; nothing happens if no commit has it."""
        with in_plain_words(name), suppress(RevisionNotFoundError):
            self._api.delete_tag(name, tag=tag)


def _place(candidate: Candidate) -> str:
    return f"{candidate.repository}@{candidate.revision[:7]}/{candidate.file_name}"


def _drained(answer: httpx.Response, most_bytes: int) -> bytes:
    """The content of an answer, up to so many bytes; one that drips for too long counts as a broken line."""
    until = time.monotonic() + _MAX_READ_SECONDS
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > most_bytes:  # an answer that is read to its end leaves the line open for the next
            break
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the answer takes too long")
    return bytes(content[:most_bytes])


def _told(answer: httpx.Response) -> tuple[int | None, str | None, int | None]:
    """Size and sha256 of a file, and the size that it should have.

    Hash and promise come with the answer, or with the one that sent us to where the bytes lie.
    """

    def linked(name: str) -> str:
        return next((one.headers[name] for one in (*answer.history, answer) if name in one.headers), "")

    sha256 = linked("x-linked-etag").removeprefix("W/").strip('"')
    total = answer.headers.get("content-range", "").rpartition("/")[2] or answer.headers.get("content-length", "")
    promised = linked("x-linked-size")
    return (
        int(total) if total.isdigit() else None,
        sha256 if len(sha256) == 64 else None,
        int(promised) if promised.isdigit() else None,
    )
