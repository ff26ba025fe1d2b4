"""The one door to the Hugging Face Hub: lists it, reads as little of a file as can be, and commits what is given back.

Everything is pinned to a commit, and what is downloaded is compared with the hash that the Hub keeps of it. The token
is that of the environment (`HF_TOKEN`), read by the client at each request and seen by nothing else.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
    httpx,
    paginate,
)

from catalog.candidate import Candidate, CardFacts, Unfit
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.folder import sha256_of
from catalog.listing import EXPAND, offered

FIRST_READ_BYTES = 64 * 1024
"""Holds the header of most LoRA files; a longer header costs a second request."""
MAX_HEADER_BYTES = 10_000_000
_MAX_SMALL_FILE_BYTES = 1_000_000
_PAGE = 1000
_TIMEOUT_SECONDS = 30
_RETRIES = 3
_AGAIN = "nothing; the next night tries again."


@dataclass(frozen=True)
class Start:
    """The beginning of a candidate's file, its whole header included, and the candidate with size and hash."""

    candidate: Candidate
    content: bytes


class Hub:
    """The Hub at an address, or the usual one."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self.endpoint)
        disable_progress_bars()

    def check_token(self) -> str | None:
        """The name that the token belongs to; None without one."""
        if "authorization" not in build_hf_headers():
            return None
        with _in_plain_words("the Hub"):
            return str(self._api.whoami()["name"])

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
        params: dict[str, Any] = {"filter": [*tags, *adapters_of], "expand": EXPAND, "sort": "lastModified"}
        params |= {"limit": min(limit, _PAGE)} | ({"author": author} if author else {})
        params |= {"search": text} if text else {}
        with _in_plain_words("the Hub"):
            for info in islice(paginate(f"{self.endpoint}/api/models", params, build_hf_headers()), limit):
                yield offered(info)

    def repository(self, name: str, revision: str = "main", file_name: str | None = None) -> Candidate | Unfit:
        """What one repository offers at a revision; Refused when it cannot be seen."""
        url = f"{self.endpoint}/api/models/{name}/revision/{revision.replace('/', '%2F')}"
        with _in_plain_words(name, revision):
            asked = {"params": {"expand": EXPAND}, "headers": build_hf_headers(), "timeout": _TIMEOUT_SECONDS}
            answer = http_backoff("GET", url, max_retries=_RETRIES, **asked)  # type: ignore[arg-type] # passed on
            hf_raise_for_status(answer)
            return offered(answer.json(), file_name)

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
            with tempfile.TemporaryDirectory(prefix=".download-", dir=adapters) as folder:
                fetched = self._fetch(candidate, folder)
                found = sha256_of(fetched) if fetched else None
                if fetched and candidate.sha256 in (None, found):
                    return fetched.rename(adapters / f"{found}.safetensors")
        if found is None:
            fact = f"{_place(candidate)} came shorter than the Hub promises, twice."
            raise Refused(Reason("FILE_TRUNCATED", fact, _AGAIN))
        fact = f"{_place(candidate)}: the Hub promises sha256 {candidate.sha256}, the bytes have {found}, twice."
        raise Refused(Reason("HASH_MISMATCH", fact, "scan again; if it stays, tell the author."))

    def _fetch(self, candidate: Candidate, folder: str) -> Path | None:
        """The file in this folder; None when it is shorter than promised."""
        try:
            with _in_plain_words(candidate.repository, candidate.revision, candidate.file_name):
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
        url = hf_hub_url(candidate.repository, file_name, revision=candidate.revision, endpoint=self.endpoint)
        headers = build_hf_headers() | {"range": f"bytes={begin}-{end - 1}", "accept-encoding": "identity"}
        with (
            _in_plain_words(candidate.repository, candidate.revision, file_name),
            http_stream_backoff(
                "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, max_retries=_RETRIES, follow_redirects=True
            ) as answer,
        ):
            if answer.status_code == 416:  # a file with no bytes has no range either
                return replace(candidate, size_bytes=0), b""
            hf_raise_for_status(answer)
            skip = begin if answer.status_code == 200 else 0  # a server may send the whole file
            content = bytearray()
            for chunk in answer.iter_bytes(FIRST_READ_BYTES):
                content += chunk
                if len(content) >= skip + end - begin:
                    break
        size_bytes, sha256 = _told(answer)
        return replace(candidate, size_bytes=size_bytes, sha256=sha256), bytes(content[skip : skip + end - begin])

    def head(self, name: str) -> str | None:
        """The newest commit of a repository; None when there is no such repository."""
        try:
            with _in_plain_words(name):
                return self._api.model_info(name, timeout=_TIMEOUT_SECONDS).sha
        except Refused as refused:
            if refused.reason.code in ("GONE", "HIDDEN"):
                return None
            raise

    def published_file(self, name: str, commit: str, file_name: str) -> bytes | None:
        """A small file of ours in a repository; None when it is not there."""
        candidate = Candidate(name, commit, file_name, None, None, CardFacts(), (file_name,))
        try:
            return self.small_file(candidate, file_name)
        except Refused as refused:
            if refused.reason.code == "FILE_MISSING":
                return None
            raise

    def published_files(self, name: str, commit: str) -> Mapping[str, str | None]:
        """The files of a repository with their sha256, where the Hub keeps it."""
        with _in_plain_words(name, commit):
            entries = self._api.list_repo_tree(name, recursive=True, revision=commit)
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
            return {file.path: file.lfs.sha256 if file.lfs else None for file in files}

    def check_card(self, card: str) -> None:
        """Refused when the Hub would not take this README.md."""
        with _in_plain_words("the Hub"):
            body = {"content": card, "repoType": "model"}
            url = f"{self.endpoint}/api/validate-yaml"
            answer = get_session().post(url, json=body, headers=build_hf_headers(), timeout=_TIMEOUT_SECONDS)
            if answer.status_code == 400:
                said = "; ".join(str(error.get("message")) for error in answer.json().get("errors", []))
                raise Refused(Reason("CARD_REFUSED", f"The Hub would not take the card: {said}.", "report it to us."))
            hf_raise_for_status(answer)

    def create_repository(self, name: str, *, private: bool) -> None:
        """A repository of this name; nothing happens if there is one."""
        with _in_plain_words(name):
            self._api.create_repo(name, private=private, exist_ok=True)

    def commit(self, name: str, files: Mapping[str, Path | bytes], message: str, parent: str | None) -> str:
        """All these files in one commit on top of `parent`: its id."""
        adds = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        with _in_plain_words(name):
            return self._api.create_commit(name, adds, commit_message=message, parent_commit=parent).oid

    def tag(self, name: str, commit: str, tag: str) -> None:
        """Give a commit a name of its own; nothing happens if it has it."""
        with _in_plain_words(name, commit):
            self._api.create_tag(name, tag=tag, revision=commit, exist_ok=True)


def _place(candidate: Candidate) -> str:
    return f"{candidate.repository}@{candidate.revision[:7]}/{candidate.file_name}"


def _told(answer: httpx.Response) -> tuple[int | None, str | None]:
    """Size and sha256 of a file, from the answer or from the one that sent us to where the bytes lie."""
    answers = [*answer.history, answer]
    linked = next((one.headers["x-linked-etag"] for one in answers if "x-linked-etag" in one.headers), "")
    sha256 = linked.removeprefix("W/").strip('"')
    total = answer.headers.get("content-range", "").rpartition("/")[2] or answer.headers.get("content-length", "")
    return int(total) if total.isdigit() else None, sha256 if len(sha256) == 64 else None


@contextmanager
def _in_plain_words(where: str, revision: str = "", file_name: str = "") -> Iterator[None]:
    """The client's many errors as ours."""
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError, httpx.TransportError) as error:
        said: BaseException = error
        while isinstance(said, (LocalEntryNotFoundError, RuntimeError)) and said.__cause__ is not None:
            said = said.__cause__  # the client wraps what happened to a file
        if isinstance(said, HfHubHTTPError):
            raise _answered(said, where, revision, file_name) from error
        if isinstance(said, (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError)):
            raise _unreachable(said) from error
        raise


def _unreachable(error: BaseException) -> CatalogueError:
    fact = f"The Hub cannot be reached ({type(error).__name__})."
    return CatalogueError("HUB_UNREACHABLE", f"{fact} Check the network; what is here already can be merged without.")


def _answered(error: HfHubHTTPError, where: str, revision: str, file_name: str) -> CatalogueError:
    """What an answer of the Hub means; gated comes before missing, whose kind it is to the client."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        step = f"ask for access at https://huggingface.co/{where}, then run again."
        return Refused(Reason("GATED", f"The author of {where} lets people in one by one.", step))
    if isinstance(error, DisabledRepoError):
        return Refused(Reason("GONE", f"The Hub has disabled {where}.", "leave it out."))
    if isinstance(error, RepositoryNotFoundError):
        if status == 404:
            return Refused(Reason("GONE", f"The Hub has no repository {where} any more.", "leave it out."))
        step = "check the name; if it is private, set HF_TOKEN to a token that may read it."
        return Refused(Reason("HIDDEN", f"There is no {where} that this token may see.", step))
    if isinstance(error, RevisionNotFoundError):
        return Refused(Reason("COMMIT_GONE", f"{where} has no revision {revision} any more.", "scan again."))
    if isinstance(error, RemoteEntryNotFoundError):
        fact = f"{where}@{revision[:7]} has no file {file_name!a}."
        return Refused(Reason("FILE_MISSING", fact, "name one of the repository's files."))
    if status == 401:
        return CatalogueError("AUTH", "The Hub does not know the token in HF_TOKEN. Set another, or none.")
    if status == 403:
        return Refused(Reason("FORBIDDEN", f"The token has no right to do this with {where}.", "use another."))
    if status in (409, 412):
        return Refused(Reason("PARENT_MOVED", f"Somebody else changed {where} at the same moment.", _AGAIN))
    if status == 429 or status >= 500:
        return CatalogueError("HUB_BUSY", f"The Hub answers {status} again and again. Run again later.")
    return Refused(Reason("HUB_REFUSED", f"The Hub answers {status} for {where}.", "see its page in a browser."))
