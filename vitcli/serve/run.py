"""Models are opened, a port is bound, requests are answered until a signal comes, and those under way after it."""

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitcli.errors import UsageError, VitError
from vitcli.inference.predict import Model
from vitcli.serve.access import Access, host_name
from vitcli.serve.app import build_app
from vitcli.serve.line import Line
from vitcli.serve.uploads import Limits
from vitcli.text import safe

SILENCE = 15.0  # seconds that a connection may stay open without a whole request's head
LEAST_TOKEN = 16  # characters: fewer can be guessed


def serve(
    models: Sequence[Model],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    names: Iterable[str] = (),
    limits: Limits | None = None,
    ready: Callable[[str], None],
) -> None:
    """Answer requests for `models` at `host` and `port` (0: any that is free) until SIGTERM or Ctrl-C.

    `ready` is told the address once it is answered. `names` are more that Host may have. Ends when the requests under
    way are answered; after Ctrl-C with KeyboardInterrupt. Raises UsageError for an address that others reach without a
    `token`, VitError for one that cannot be had, and CheckpointError for weights that cannot be read.
    """
    limits = limits or Limits()
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(f"a token has at least {LEAST_TOKEN} characters, all of them ASCII")
    if len({model.checkpoint.name for model in models}) < len(models):
        raise UsageError("a model is named twice")
    with _bound(host, port) as listener:
        address, number = listener.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local and token is None:
            raise UsageError(f"--host {safe(host)} is reached by others: give --token, or set VIT_TOKEN")
        own = ["localhost", host, *names] + ([] if local else [socket.gethostname(), socket.getfqdn()])
        access = Access(local, frozenset(map(host_name, own)) - {""}, token)
        lines = {model.checkpoint.name: Line(model) for model in models}
        for name in ("uvicorn", "python_multipart"):  # which tell of each request that is malformed
            logging.getLogger(name).setLevel(logging.ERROR)
        shown = f"[{host}]" if ":" in host else host
        server = _Server(build_app(lines, access, limits), limits, lambda: ready(f"http://{shown}:{number}/"))
        server.run([listener])
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises VitError."""
    where = f"{safe(host)}, port {port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise VitError(f"--host {safe(host)}: no such address: {safe(error)}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise VitError(
                f"{where} is in use by another program: choose another --port; 0 takes one that is free"
            ) from None
        raise VitError(f"{where} cannot be listened at: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    """Uvicorn, which says when it is ready and which signal ended it instead of raising that again."""

    def __init__(self, app: Any, limits: Limits, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=round(2 * limits.seconds) + 1,
            )
        )
        self._ready = ready
        self.ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.ended_by = sig


class _Protocol(H11Protocol):
    """HTTP over a connection that may not stay open in silence: uvicorn itself waits for a head without end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(SILENCE, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
