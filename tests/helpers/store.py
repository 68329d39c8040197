"""A store on this machine that answers over HTTP, with ranges and listings, and fails when it is told to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class Store:
    """Serves the files below `root`."""

    root: Path
    url: str = ""
    faults: list[Any] = field(default_factory=list)  # of the next requests: a status, "reset", "short"
    always: Any = None  # the fault of all of them
    good: int = 10**9  # so many requests are answered, and none behind
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self) -> Any:
        with self.lock:
            self.good -= 1
            if self.good < 0:
                return 503
            return self.always or (self.faults.pop(0) if self.faults else None)


@contextmanager
def running(root: Path, *, hub: bool = False) -> Iterator[Store]:
    """A web server, or with `hub` one that speaks as the Hugging Face Hub does of data sets."""
    store = Store(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Hub if hub else _Handler,), {"store": store}))
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        with self.store.lock:
            self.store.requests.append((self.command, self.path, wanted))
        fault = self.store.next_fault()
        if fault == "reset":
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)
            return
        path = self.store.root / unquote(self.path).lstrip("/")
        if isinstance(fault, int) or not path.exists():
            self._send(fault if isinstance(fault, int) else 404, b"")
        elif path.is_dir():
            links = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>\n' for one in sorted(path.iterdir()))
            self._send(200, links.encode(), kind="text/html")
        else:
            data, status, more = path.read_bytes(), 200, {"Last-Modified": self.date_time_string(path.stat().st_mtime)}
            if wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                whole, start, stop = len(data), int(first), int(last or len(data) - 1) + 1
                data, status = data[start:stop], 206
                more["Content-Range"] = f"bytes {start}-{min(stop, whole) - 1}/{whole}"
            self._send(status, data, more, body=body, short=fault == "short")

    def _send(
        self, status: int, data: bytes, more: dict[str, str] | None = None, *, kind: str = "image/png",
        body: bool = True, short: bool = False,
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            if body:
                self.wfile.write(data[: len(data) // 2] if short else data)
            if short:
                self.close_connection = True
                self.connection.shutdown(2)


class _Hub(_Handler):
    """The Hub's part that lists data sets; their files are below `root`, as org/name."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/datasets/"):
            org, name, *rest = path.removeprefix("/api/datasets/").split("/")
            self._send(200, json.dumps(self._listed(f"{org}/{name}", rest)).encode(), kind="application/json")
            return
        self.path = path.removeprefix("/datasets").replace("/resolve/main", "")
        super().do_GET()

    def do_POST(self) -> None:
        org, name = self.path.removeprefix("/api/datasets/").split("/")[:2]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        found = [one for one in self._listed(f"{org}/{name}", ["tree", "main"]) if one["path"] in asked]
        self._send(200, json.dumps(found).encode(), kind="application/json")

    def _listed(self, repo: str, rest: list[str]) -> Any:
        if rest[:1] != ["tree"]:
            return {
                "id": repo,
                "sha": "0" * 40,
                "private": False,
                "tags": [],
                "siblings": [],
                "likes": 0,
                "downloads": 0,
            }
        start = self.store.root / repo
        inside = sorted(start.joinpath(*rest[2:]).rglob("*"))
        return [
            {"type": "directory" if one.is_dir() else "file", "oid": f"{number:040}", "size": one.stat().st_size,
             "path": one.relative_to(start).as_posix()}
            for number, one in enumerate(inside)
        ]  # fmt: skip
