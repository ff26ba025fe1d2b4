"""What a Hub for tests holds: repositories with their commits, kept in memory, and what was asked of them."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TOKEN = "hf_CANARY0123456789"
LARGE = (".safetensors", ".bin", ".png")
Files = dict[str, bytes]


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

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def add(self, files: Files) -> str:
        """A commit of these files."""
        content = json.dumps([[name, sha256(data)] for name, data in sorted(files.items())])
        commit = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        return commit

    def commit_of(self, revision: str) -> str | None:
        found = self.head if revision == "main" else self.tags.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class HubServer:
    """The repositories, and what was asked of them."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    sent_bytes: int = 0
    """Of file contents."""
    uploads: Files = field(default_factory=dict)
    page: int = 100
    failing: dict[str, int] = field(default_factory=dict)
    """Part of a path to the status that answers it."""
    swallow_commit_answers: int = 0
    """So many commits are made and answered with 500."""
    endpoint: str = ""

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
        """What listings tell of a repository."""
        repository = self.repositories[name]
        files = repository.commits[commit or repository.head]
        card = front_matter(files.get("README.md", b""))
        tags = card.get("tags") if isinstance(card, dict) and isinstance(card.get("tags"), list) else []
        tags = [tag for tag in tags or [] if isinstance(tag, str)]
        base = card.get("base_model") if isinstance(card, dict) else None
        return {
            "id": name,
            "modelId": name,
            "sha": commit or repository.head,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "lastModified": "2026-11-20T10:00:00.000Z",
            "tags": [*tags, *([f"base_model:adapter:{base}"] if isinstance(base, str) else [])],
            "cardData": card,
            "siblings": [{"rfilename": path} for path in files],
        }


def front_matter(card: bytes) -> Any:
    parts = card.decode("utf-8", "replace").split("---\n")
    try:
        return yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError:
        return None
