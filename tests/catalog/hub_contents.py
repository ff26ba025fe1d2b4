"""What a Hub for tests holds: repositories with their commits, kept in memory, and what was asked of them."""

import hashlib
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

TOKEN = "hf_CANARY0123456789"
LARGE = (".safetensors", ".bin", ".png", ".parquet")
Files = dict[str, bytes]
Passing = Literal["429", "503", "reset", "cut", "slow", "short", "renamed"]
"""`cut`: the line breaks within the answer; `slow`: it drips; `short`: half a file; `renamed`: it is elsewhere."""
Trouble = Passing | Literal["wrong", "moved", "gated", "deleted"]
"""`wrong`: a file has other bytes; the others: it has no such commit, is not for all, or is not there any more."""
KINDS: tuple[Trouble, ...] = (*get_args(Passing), "wrong", "moved", "gated", "deleted")


def sha256(content: bytes) -> str:
    """What the Hub knows a large file by."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Commits from old to new, each with all its files."""

    commits: dict[str, Files] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    tampered: set[str] = field(default_factory=set)
    """Files that come with a bit flipped."""
    truncated: set[str] = field(default_factory=set)
    """Files that come without their second half."""
    packed: set[str] = field(default_factory=set)
    """Files that are said to be packed by gzip on their way."""
    detached: set[str] = field(default_factory=set)
    """Commits that are no part of the history any more: they stay as long as a tag names them, as in git."""

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def add(self, files: Files) -> str:
        """A commit of these files."""
        content = json.dumps([[name, sha256(data)] for name, data in sorted(files.items())])
        commit = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        return commit

    def squash(self) -> None:
        """One commit of what the newest one holds, and no history."""
        before = set(self.commits)
        self.detached = before - {self.add(self.commits[self.head])}
        self._drop()

    def untag(self, tag: str) -> bool:
        """Whether there was such a tag."""
        is_known = self.tags.pop(tag, None) is not None
        self._drop()
        return is_known

    def _drop(self) -> None:
        for commit in self.detached - set(self.tags.values()):
            self.detached.discard(commit)
            del self.commits[commit]

    def commit_of(self, revision: str) -> str | None:
        found = self.head if revision == "main" else self.tags.get(revision, revision)
        return found if found in self.commits else None


def nothing_wrong(request: str, time: int) -> Trouble | None:
    """No trouble with any request."""


def always(kind: Trouble) -> "Callable[[str, int], Trouble | None]":
    """This trouble with every request."""

    def trouble(request: str, time: int) -> Trouble | None:
        return kind

    return trouble


def seeded_trouble(
    seed: int, share: float, kinds: tuple[Trouble, ...] = KINDS
) -> "Callable[[str, int], Trouble | None]":
    """Trouble with this share of the requests: with the same ones each time, in whatever order they come."""

    def trouble(request: str, time: int) -> Trouble | None:
        chance = random.Random(f"{seed} {request} {time}")
        return chance.choice(kinds) if chance.random() < share else None

    return trouble


class RateLimit:
    """So many requests in each window of time, told with every answer as the real Hub does."""

    def __init__(self, requests: int, seconds: int) -> None:
        self._requests, self._seconds = requests, seconds
        self._lock = threading.Lock()
        self._left, self._until, self._used_up_at = 0, 0.0, 0.0
        self.too_many: list[float] = []
        """How long after a window was used up each request came that was too many."""

    def take(self) -> tuple[bool, dict[str, str]]:
        """Whether a request is free, and the headers of its answer."""
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                self._until, self._left = now + self._seconds, self._requests
            is_free = self._left > 0
            if is_free:
                self._left -= 1
                self._used_up_at = now
            else:
                self.too_many.append(now - self._used_up_at)
            headers = {
                "ratelimit": f'"resolvers";r={self._left};t={math.ceil(self._until - now)}',
                "ratelimit-policy": f'"fixed window";"resolvers";q={self._requests};w={self._seconds}',
            }
            return is_free, headers


@dataclass
class HubServer:
    """The repositories, and what was asked of them."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    lines: set[object] = field(default_factory=set)
    """Connections that requests came by."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each of them was made."""
    trouble: Callable[[str, int], Trouble | None] = nothing_wrong
    """What goes wrong with a request that is made for the nth time."""
    limit: RateLimit | None = None
    role: str = "write"
    """Of the token."""
    sent_bytes: int = 0
    """Of file contents."""
    sent_bytes_of: Counter[str] = field(default_factory=Counter)
    """The same by the file's path."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Old names of repositories to the new ones."""
    between_pages: Callable[[], None] = lambda: None
    """What happens after each page of a listing."""
    uploads: Files = field(default_factory=dict)
    page: int = 100
    failing: dict[str, int] = field(default_factory=dict)
    """Part of a path to the status that answers it."""
    swallow_commit_answers: int = 0
    """So many commits are made and answered with 500."""
    endpoint: str = ""
    _infos: dict[tuple[str, str, bool, bool], dict[str, Any]] = field(default_factory=dict)

    def add_folder(self, name: str, folder: Path) -> Repository:
        """A repository with one commit of a folder's files."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(name, files)

    def add(self, name: str, files: Files) -> Repository:
        """A repository with one commit of these files."""
        self.repositories[name] = Repository()
        self.repositories[name].add(files)
        return self.repositories[name]

    def info(self, name: str, commit: str | None = None) -> dict[str, Any]:
        """What listings tell of a repository; made once, as each page of a listing looks at all of them."""
        repository = self.repositories[name]
        key = (name, commit or repository.head, repository.private, repository.gated)
        if key not in self._infos:
            self._infos[key] = self._info(name, repository, key[1])
        return self._infos[key]

    def _info(self, name: str, repository: Repository, commit: str) -> dict[str, Any]:
        files = repository.commits[commit]
        card = front_matter(files.get("README.md", b""))
        tags = card.get("tags") if isinstance(card, dict) and isinstance(card.get("tags"), list) else []
        tags = [tag for tag in tags or [] if isinstance(tag, str)]
        base = card.get("base_model") if isinstance(card, dict) else None
        return {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "lastModified": "2026-11-20T10:00:00.000Z",
            "tags": [*tags, *([f"base_model:adapter:{base}"] if isinstance(base, str) else [])],
            "cardData": card,
            "siblings": [{"rfilename": path} for path in files],
        }


@lru_cache(maxsize=256)
def front_matter(card: bytes) -> Any:
    parts = card.decode("utf-8", "replace").split("---\n")
    try:
        return yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError:
        return None
