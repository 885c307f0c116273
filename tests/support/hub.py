"""A small hub: the HTTP API that huggingface_hub calls, over folders on this machine.

    with Hub() as hub:
        hub.add("owner/model", folder, licence="mit")
        ... HF_ENDPOINT=hub.url ...

A repository has revisions, each a commit with its files. It may be gated (shown to everybody, given
to the holder of TOKEN) or private (shown to nobody else), and downloads of it may break off.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
FAILS = -1
LARGE = (".safetensors", ".bin", ".parquet")


@dataclass
class Repo:
    """commits: revision → files by path; the newest is `main`. access: "public", "gated" or
    "private". breaks: file → how many bytes each of its next downloads gets through; FAILS: none,
    and an error instead."""

    id: str
    type: str = "model"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    access: str = "public"
    breaks: dict[str, list[int]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        text = json.dumps({name: sha(data) for name, data in files.items()}) + self.id
        revision = hashlib.sha1(text.encode()).hexdigest()
        self.commits[revision] = dict(files)
        return revision


class Hub:
    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked: list[str] = []  # "GET /path"
        self.ranges: list[str] = []
        self.down = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that goes away is a test's
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
        self,
        name: str,
        folder: Path,
        type: str = "model",
        licence: str | None = None,
        access: str = "public",
        leave_out: str = "",
    ) -> Repo:
        """A repository with the files of a folder; leave_out: of files with this suffix."""
        card = {"license": licence} if licence else {}
        repo = self.repos.setdefault((type, name), Repo(name, type, {}, card, access))
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        kept = [path for path in paths if not (leave_out and path.name.endswith(leave_out))]
        repo.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in kept})
        return repo

    def downloads(self) -> list[str]:
        """The files that were asked for, in order."""
        return [
            line.partition("/resolve/")[2].partition("/")[2]
            for line in self.asked
            if line.startswith("GET") and "/resolve/" in line
        ]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listed(name: str, data: bytes, key: str) -> dict[str, Any]:
    """A file as the API lists it."""
    entry: dict[str, Any] = {key: name, "size": len(data)}
    entry |= {"oid": git_sha(data), "type": "file"} if key == "path" else {"blobId": git_sha(data)}
    if name.endswith(LARGE):
        lfs = {"size": len(data), "pointerSize": 130}
        lfs |= {"oid": sha(data)} if key == "path" else {"sha256": sha(data)}
        entry["lfs"] = lfs
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.hub.asked.append(f"{self.command} {url.path}")
        if self.hub.down:
            return self._error(503, "", "down for maintenance")
        if parts == [""]:
            return self._send(b"the hub")
        if parts[0] == "api" and parts[1] not in ("models", "datasets"):
            return self._error(404, "", "no such question")  # the client has others, too
        if parts[0] == "api":
            return self._api(parts[1].removesuffix("s"), parts[2:], parse_qs(url.query))
        type = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[type == "dataset" :]
        return self._file(type, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _api(self, type: str, parts: list[str], query: dict[str, list[str]]) -> None:
        if not parts:
            return self._search(type, query)
        repo = self._repo(type, "/".join(parts[:2]))
        if repo is None:
            return None
        match parts[2:]:
            case ["auth-check"]:
                return self._send(b"{}") if self._may_read(repo) else None
            case ["tree", revision]:
                files = self._commit(repo, revision)
                if files is None:
                    return None
                return self._json([listed(n, d, "path") for n, d in sorted(files.items())])
            case [] | ["revision", _]:
                return self._info(repo, parts[3] if parts[2:] else "main")
        return self._error(404, "", "no such question")

    def _info(self, repo: Repo, revision: str) -> None:
        files = self._commit(repo, revision)
        if files is None:
            return
        self._json(
            {
                "id": repo.id,
                "sha": repo.main if revision == "main" else revision,
                "private": repo.access == "private",
                "gated": "manual" if repo.access == "gated" else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "cardData": repo.card,
                "siblings": [listed(n, d, "rfilename") for n, d in sorted(files.items())],
            }
        )

    def _search(self, type: str, query: dict[str, list[str]]) -> None:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        names = [name for kind, name in self.hub.repos if kind == type]
        names = [n for n in names if n.startswith(author) and search.lower() in n.lower()]
        self._json([{"id": n, "modelId": n, "tags": [], "private": False} for n in names])

    def _repo(self, type: str, name: str) -> Repo | None:
        """None, after an answer, where there is none that may be seen."""
        repo = self.hub.repos.get((type, name))
        if repo is None or (repo.access == "private" and not self._has_token()):
            # What is not there and what is private look alike, and without a token both are 401.
            self._error(404 if self._has_token() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> dict[str, bytes] | None:
        files = repo.commits.get(repo.main if revision == "main" else revision)
        if files is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_read(self, repo: Repo) -> bool:
        if repo.access == "gated" and not self._has_token():
            code = 403 if self.headers.get("Authorization") else 401
            self._error(code, "GatedRepo", f"Access to model {repo.id} is restricted")
            return False
        return True

    def _file(self, type: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(type, name)
        if repo is None or not self._may_read(repo):
            return
        files = self._commit(repo, revision)
        if files is None:
            return
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"X-Repo-Commit": repo.main if revision == "main" else revision}
        headers["ETag"] = f'"{sha(data) if path.endswith(LARGE) else git_sha(data)}"'
        headers["Accept-Ranges"] = "bytes"
        start, code = 0, 200
        if "Range" in self.headers and self.command == "GET":
            self.hub.ranges.append(self.headers["Range"])
            start, code = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        breaks = repo.breaks.get(path, [])
        through = breaks.pop(0) if breaks and self.command == "GET" else None
        if through == FAILS:
            return self._error(500, "", "the storage is out of order")
        self._send(data[start:], code, headers, through)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _error(self, code: int, name: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": name} if name else {})
        self._send(json.dumps({"error": message}).encode(), code, headers)

    def _send(
        self,
        data: bytes,
        code: int = 200,
        headers: dict[str, str] | None = None,
        through: int | None = None,
    ) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data if through is None else data[:through])
        if through is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
