"""A Hugging Face Hub on 127.0.0.1 that speaks what huggingface_hub asks when it downloads and uploads, and misbehaves.

GET of `/api/models/{org}/{name}/revision/{revision}`: the commit and the names of its files.

HEAD and GET of `/{org}/{name}/resolve/{revision}/{file}` with ETag, X-Repo-Commit and X-Error-Code. Large files answer
as the Hub's do: a redirect to another host (here the same server under the name localhost) that carries X-Linked-Etag,
the SHA-256, and X-Linked-Size.

Uploads: a repository is made, asked how each file should come (weights as LFS objects, the rest inline), gets the LFS
objects, then one commit of all. Only a token named in `tokens` may write.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

Fault = Literal[
    "401", "401 token", "403", "403 gated", "404 repo", "429", "500", "html", "portal", "no answer",
    "wrong size", "truncated", "flipped", "404 file",
]  # fmt: skip

PORTAL = b"<!DOCTYPE html><html><body>Please log in to the hotel network</body></html>"


@dataclass
class Repo:
    files: Mapping[str, bytes]
    commit: str
    branches: set[str] = field(default_factory=lambda: {"main"})

    def has(self, revision: str) -> bool:
        return revision == self.commit or revision in self.branches


@dataclass
class FakeHub:
    """`faults` maps (method, file name) to what goes wrong there; "*" stands for every one. `requests` is the log."""

    url: str = ""
    cdn: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"hf_right"})
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    private: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, files: Mapping[str, bytes], branches: tuple[str, ...] = ("main",)) -> Repo:
        commit = hashlib.sha1(name.encode() + b"".join(files.values())).hexdigest()
        self.repos[name] = Repo(dict(files), commit, set(branches))
        return self.repos[name]

    def fault(self, method: str, file: str) -> Fault | None:
        for key in ((method, file), ("*", file), (method, "*"), ("*", "*")):
            if key in self.faults:
                return self.faults[key]
        return None


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].lstrip("/").split("/")
        if self._misbehave("*"):
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if parts[0] != "lfs" and token not in self.hub.tokens:
            self._error(401, "")
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            if name in self.hub.repos:
                self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            else:
                self.hub.add(name, {})
                self._json({"url": f"{self.hub.url}/{name}"})
        elif parts[0] == "lfs":
            self.hub.objects[parts[1]] = body
            self._json({})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif parts[4] == "preupload":
            files = [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if f["path"].endswith("tensors") else "regular",
                }
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        else:
            self._commit(f"{parts[2]}/{parts[3]}", body)

    def _commit(self, name: str, body: bytes) -> None:
        files = dict(self.hub.repos[name].files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        repo = self.hub.add(name, files)
        self._json(
            {"success": True, "commitOid": repo.commit, "commitUrl": f"{self.hub.url}/{name}/commit/{repo.commit}"}
        )

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in self.path.lstrip("/").split("/")]
        if parts[0] == "cdn":
            file, content = parts[2], self._blob(parts[1])
            self._send_file(file, content, {"ETag": f'"{parts[1]}"'})
            return
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            self._list(f"{parts[2]}/{parts[3]}", "/".join(parts[5:]).partition("?")[0])
            return
        if len(parts) != 5:
            self._error(404, "")
            return
        organisation, name, _, revision, file = parts
        repo = self.hub.repos.get(f"{organisation}/{name}")
        if self._misbehave(file):
            return
        if repo is None:
            self._error(404, "RepoNotFound")
        elif not repo.has(revision):
            self._error(404, "RevisionNotFound")
        elif file not in repo.files:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        elif file.endswith(".json"):
            content = repo.files[file]
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send_file(file, content, {"ETag": f'"{git}"', "X-Repo-Commit": repo.commit})
        else:
            content = repo.files[file]
            sha = hashlib.sha256(content).hexdigest()
            size = len(content) + 10 if self.hub.fault("GET", file) == "wrong size" else len(content)
            headers = {
                "X-Repo-Commit": repo.commit,
                "X-Linked-Etag": f'"{sha}"',
                "X-Linked-Size": str(size),
                "Location": f"{self.hub.cdn}/cdn/{sha}/{file}",
            }
            self._send(302, b"", headers)

    def _list(self, name: str, revision: str) -> None:
        """Commit and names of files; faults are those of the file "*"."""
        repo = self.hub.repos.get(name)
        if self._misbehave("*"):
            return
        if repo is None:
            self._error(404, "RepoNotFound")
        elif not repo.has(revision):
            self._error(404, "RevisionNotFound")
        else:
            self._json({"id": name, "sha": repo.commit, "siblings": [{"rfilename": file} for file in repo.files]})

    def _blob(self, sha: str) -> bytes:
        files = (content for repo in self.hub.repos.values() for content in repo.files.values())
        return next(content for content in files if hashlib.sha256(content).hexdigest() == sha)

    def _send_file(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        fault = self.hub.fault("GET", file) if self.command == "GET" else None
        if fault == "flipped":
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-")
        if fault == "truncated":  # says how much there is, and hangs up in the middle, every time
            half = content[: len(content) // 2] if start == "0" else b""
            self._send(200 if start == "0" else 206, half, headers, length=len(content) - int(start))
            self.close_connection = True
        else:
            self._send(200, content, headers)

    def _misbehave(self, file: str) -> bool:
        match self.hub.fault(self.command, file):
            case "401":
                self._error(401, "RepoNotFound")
            case "401 token":
                self._error(401, "", {"X-Error-Message": "Invalid credentials in Authorization header"})
            case "403":
                self._error(403, "")
            case "403 gated":
                self._error(403, "GatedRepo")
            case "404 repo":
                self._error(404, "RepoNotFound")
            case "404 file":
                self._error(404, "EntryNotFound")
            case "429":
                self._error(429, "", {"Retry-After": "37"})
            case "500":
                self._error(500, "")
            case "html":
                self._send(200, PORTAL, {"Content-Type": "text/html"})
            case "portal":
                self._send(302, b"", {"Location": "http://login.invalid/hotel"})
            case "no answer":
                self.hub.released.wait(60)
                self.close_connection = True
            case _:
                return False
        return True

    def _error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, b"", ({"X-Error-Code": code} if code else {}) | dict(headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
