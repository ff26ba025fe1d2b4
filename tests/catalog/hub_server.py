"""A Hub on this machine that the real client talks to, over the protocol of the real one."""

import hashlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .hub_contents import LARGE, TOKEN, HubServer, Repository, Trouble, front_matter, sha256

_DRIP_SECONDS = 0.03
_REFUSALS = {"moved": (404, "RevisionNotFound"), "gated": (403, "GatedRepo"), "deleted": (404, "RepoNotFound")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer go out one after the other
    hub: HubServer
    trouble: Trouble | None
    """What goes wrong with the request at hand."""
    limit_headers: Mapping[str, str]

    def log_message(self, *arguments: object) -> None:
        """Tests have no use for it."""

    def _answer(self, status: int, body: object = None, headers: Mapping[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **self.limit_headers,
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.trouble == "cut":
            content, self.close_connection = content[: len(content) // 2], True
        if self.command != "HEAD":
            pieces = 10 if self.trouble == "slow" else 1
            for number in range(pieces):
                self.wfile.write(content[len(content) * number // pieces : len(content) * (number + 1) // pieces])
                time.sleep(_DRIP_SECONDS if pieces > 1 else 0)

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, {"x-error-code": code, "x-error-message": code})

    def _handle(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path) if "/resolve/" in path else path
        path = path.replace("/api/datasets/", "/api/models/datasets/")
        asked = f"{self.command} {path}"
        self.hub.requests.append(asked)
        self.hub.asked[asked] += 1
        self.hub.lines.add(self.client_address)
        self.trouble = self.hub.trouble(asked, self.hub.asked[asked])
        is_free, self.limit_headers = self.hub.limit.take() if self.hub.limit else (True, {})
        if self.trouble == "429" or not is_free:
            nothing_left = {
                "ratelimit": '"resolvers";r=0;t=0',
                "ratelimit-policy": '"fixed window";"resolvers";q=1;w=1',
            }
            self._answer(429, {"error": "Too many requests"}, self.limit_headers or nothing_left)
            return
        if self.trouble == "503":
            self._answer(503, {"error": "out of order"})
            return
        if self.trouble == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if self.headers.get("authorization") not in (None, f"Bearer {TOKEN}") and not path.startswith("/lfs/"):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        there = self._elsewhere(path)
        if there is not None:
            self._answer(307, b"", {"location": f"{self.hub.endpoint}{there}"})
            return
        if "/resolve/" in path and self.trouble in _REFUSALS:
            self._fail(*_REFUSALS[self.trouble])
            return
        for part, status in self.hub.failing.items():
            if part in path:
                self._answer(status, {"error": "out of order"})
                return
        for pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                handle(self, body, urllib.parse.parse_qs(query), *found.groups())
                return
        self._fail(404, "EntryNotFound")

    def _elsewhere(self, path: str) -> str | None:
        """Where the Hub sends whoever asks for a repository by an old name."""
        for old, new in self.hub.renamed.items():
            if f"/{old}/" in f"{path}/":
                return self.path.replace(old, new)
        return self.path if self.trouble == "renamed" and "/resolve/" in path else None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 # http.server's names

    def _repository(self, name: str) -> Repository | None:
        """A repository that this caller may see; else it is answered as the Hub does."""
        repository, known = self.hub.repositories.get(name), "authorization" in self.headers
        if repository is None or (repository.private and not known):
            self._fail(404 if known else 401, "RepoNotFound")
            return None
        return repository

    def _list(self, _body: bytes, query: dict[str, list[str]]) -> None:
        wanted = set(query.get("filter", []))
        author, text = query.get("author", [""])[0], query.get("search", [""])[0]
        infos = [self.hub.info(name) for name in self.hub.repositories if name.startswith(author) and text in name]
        infos = [info for info in infos if wanted <= set(info["tags"])]
        start = int(query.get("cursor", ["0"])[0])
        end = start + min(self.hub.page, int(query.get("limit", ["1000"])[0]))
        headers = {}
        if end < len(infos):
            following = urllib.parse.urlencode({**query, "cursor": [str(end)]}, doseq=True)
            headers["link"] = f'<{self.hub.endpoint}/api/models?{following}>; rel="next"'
        self._answer(200, infos[start:end], headers)
        self.hub.between_pages()

    def _info(self, _body: bytes, _query: object, name: str, revision: str | None = None) -> None:
        repository = self._repository(name)
        if repository is not None:
            commit = repository.commit_of(urllib.parse.unquote(revision or "main"))
            self._answer(200, self.hub.info(name, commit)) if commit else self._fail(404, "RevisionNotFound")

    def _tree(self, _body: bytes, _query: object, name: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit_of(revision)
        if commit is None:
            self._fail(404, "RevisionNotFound")
            return
        held = {
            path: content
            for path, content in repository.commits[commit].items()
            if path.startswith(f"{folder}/" if folder else "")
        }
        if held or not folder:
            self._answer(200, [_entry(path, content) for path, content in held.items()])
        else:
            self._fail(404, "EntryNotFound")

    def _paths_info(self, body: bytes, _query: object, name: str, revision: str) -> None:
        """Of those paths that are files."""
        repository = self._repository(name)
        if repository is not None:
            asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
            files = repository.commits[repository.commit_of(revision) or repository.head]
            self._answer(200, [_entry(path, files[path]) for path in asked if path in files])

    def _resolve(self, _body: bytes, _query: object, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit_of(revision)
        if repository.gated:
            self._fail(403, "GatedRepo")
        elif commit is None:
            self._fail(404, "RevisionNotFound")
        elif path not in repository.commits[commit]:
            self._fail(404, "EntryNotFound")
        else:
            content = repository.commits[commit][path]
            self._send_file(path, content, repository, {"x-repo-commit": commit})

    def _send_file(self, path: str, content: bytes, repository: Repository, headers: dict[str, str]) -> None:
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        headers |= {"etag": f'"{git}"', "accept-ranges": "bytes", "content-type": "application/octet-stream"}
        if path.endswith(LARGE):
            headers |= {"etag": f'"{sha256(content)}"', "x-linked-size": str(len(content))}
            headers |= {"x-linked-etag": f'"{sha256(content)}"'}
        if path in repository.packed:
            headers["content-encoding"] = "gzip"
        if self.trouble == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        if path in repository.tampered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if (path in repository.truncated or self.trouble == "short") and self.command == "GET":
            content = content[: len(content) // 2]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        status, sent = 200, content
        if wanted:
            begin, end = int(wanted[1]), int(wanted[2] or len(content))
            if begin >= len(content):
                self._answer(416, b"", {"content-range": f"bytes */{len(content)}"})
                return
            status, sent = 206, content[begin : end + 1]
            headers["content-range"] = f"bytes {begin}-{begin + len(sent) - 1}/{len(content)}"
        if self.command == "GET":
            self.hub.sent_bytes += len(sent)
            self.hub.sent_bytes_of[self.path] += len(sent)
        self._answer(status, sent, headers)

    def _whoami(self, _body: bytes, _query: object) -> None:
        if "authorization" in self.headers:
            token = {"displayName": "nightly", "role": self.hub.role}
            self._answer(200, {"type": "user", "name": "me", "auth": {"type": "access_token", "accessToken": token}})
        else:
            self._answer(401, {"error": "Invalid username or password."})

    def _create(self, body: bytes, _query: object) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        name = f"datasets/{name}" if asked.get("type") == "dataset" else name
        if name in self.hub.repositories:
            self._answer(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
            return
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name].private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _delete(self, body: bytes, _query: object) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if self._repository(name) is not None:
            del self.hub.repositories[name]
            self._answer(200, {})

    def _preupload(self, body: bytes, _query: object, _name: str, _revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def _lfs_batch(self, body: bytes, _query: object, _name: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload, verify = (f"{self.hub.endpoint}/lfs/{verb}/{asked['oid']}" for verb in ("put", "verify"))
            actions = {"upload": {"href": upload}, "verify": {"href": verify}}
            known = asked["oid"] in self.hub.uploads
            objects.append({**asked, "authenticated": True, **({} if known else {"actions": actions})})
        self._answer(200, {"transfer": "basic", "objects": objects}, {"content-type": "application/vnd.git-lfs+json"})

    def _lfs_put(self, body: bytes, _query: object, oid: str) -> None:
        if sha256(body) == oid:  # a client that died sent less
            self.hub.uploads[oid] = body
        self._answer(200 if oid in self.hub.uploads else 400, b"")

    def _lfs_verify(self, _body: bytes, _query: object, oid: str) -> None:
        self._answer(200 if sha256(self.hub.uploads.get(oid, b"")) == oid else 404, {})

    def _commit(self, body: bytes, _query: object, name: str, _revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.head) != repository.head:
            self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(repository.commits[repository.head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFolder":
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        commit = repository.add(files)
        if self.hub.swallow_commit_answers:
            self.hub.swallow_commit_answers -= 1
            self._answer(500, {"error": "lost"})
            return
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _tag(self, body: bytes, _query: object, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        tag = json.loads(body)["tag"]
        if tag in repository.tags:
            self._answer(409, {"error": "Tag reference exists already"})
            return
        repository.tags[tag] = revision
        self._answer(200, {})

    def _untag(self, _body: bytes, _query: object, name: str, tag: str) -> None:
        is_known = self.hub.repositories[name].untag(tag)
        self._answer(200, {}) if is_known else self._fail(404, "RevisionNotFound")

    def _squash(self, _body: bytes, _query: object, name: str) -> None:
        self.hub.repositories[name].squash()
        self._answer(200, {})

    def _validate(self, body: bytes, _query: object) -> None:
        card = front_matter(json.loads(body)["content"].encode())
        widget = card.get("widget", []) if isinstance(card, dict) else None
        if isinstance(widget, list):
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(400, {"errors": [{"message": '"widget" must be an array'}], "warnings": []})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


_NAME = r"((?:datasets/)?[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/models", _Handler._list),  # noqa: SLF001 # the handler's own table
    (r"GET /api/whoami-v2", _Handler._whoami),  # noqa: SLF001
    (rf"GET /api/models/{_NAME}", _Handler._info),  # noqa: SLF001
    (rf"GET /api/models/{_NAME}/revision/([^/]+)", _Handler._info),  # noqa: SLF001
    (rf"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.+))?", _Handler._tree),  # noqa: SLF001
    (rf"POST /api/models/{_NAME}/paths-info/([^/]+)", _Handler._paths_info),  # noqa: SLF001
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),  # noqa: SLF001
    (r"POST /api/repos/create", _Handler._create),  # noqa: SLF001
    (r"DELETE /api/repos/delete", _Handler._delete),  # noqa: SLF001
    (rf"POST /api/models/{_NAME}/preupload/([^/]+)", _Handler._preupload),  # noqa: SLF001
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._lfs_batch),  # noqa: SLF001
    (r"PUT /lfs/put/(\w+)", _Handler._lfs_put),  # noqa: SLF001
    (r"POST /lfs/verify/(\w+)", _Handler._lfs_verify),  # noqa: SLF001
    (rf"POST /api/models/{_NAME}/commit/([^/]+)", _Handler._commit),  # noqa: SLF001
    (rf"POST /api/models/{_NAME}/tag/([^/]+)", _Handler._tag),  # noqa: SLF001
    (rf"DELETE /api/models/{_NAME}/tag/([^/]+)", _Handler._untag),  # noqa: SLF001
    (rf"POST /api/models/{_NAME}/super-squash/main", _Handler._squash),  # noqa: SLF001
    (r"POST /api/validate-yaml", _Handler._validate),  # noqa: SLF001
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def serving() -> Iterator[HubServer]:
    """A Hub of its own, on a free port of this machine."""
    hub = HubServer()
    handler = type("_HandlerOfOneHub", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
