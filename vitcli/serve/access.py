"""Who is answered: the Host that a request names, the page that sends it, its token; and what every answer carries.

A page of another site must not reach a server that trusts its own machine. By rebinding a name of its own to 127.0.0.1
it could, if Host were not looked at: an address, or a name that this server was given, cannot be one of those. No CORS
header is ever sent, so other pages read nothing; what they send without reading is told by Origin.
"""

import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = {"/", "/health", "/openapi.json"}  # without a token: they tell nothing of models and compute nothing


@dataclass(frozen=True)
class Access:
    """Whom to answer."""

    local: bool  # bound to this machine's own address: other addresses in Host are wrong
    names: frozenset[str] = frozenset({"localhost"})  # in lower case, that Host may be beside addresses
    token: str | None = None

    def welcome(self, host: str | None) -> bool:
        """Whether a request may name this `host`, with or without a port."""
        name = host_name(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return address.is_loopback or not self.local

    def refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is not answered, and the status to say it with; None: it is."""
        host = headers.get("host")
        if not self.welcome(host):
            return 403, "this server does not go by that name; vit serve --name adds one"
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            other = origin is not None and origin.lower().partition("://")[2] != (host or "").lower()
            if other or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return 403, "another site's page may not ask this server"
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return 401, "a token is needed: send it as `Authorization: Bearer TOKEN`"
        return None


def host_name(host: str | None) -> str:
    """The name or address in `host`, in lower case, without a port; nothing where there is none."""
    try:
        return (urlsplit(f"//{host or ''}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Guard:
    """An app that answers only whom `access` welcomes, with `policy` as the Content-Security-Policy of all it sends."""

    def __init__(self, app: App, access: Access, policy: str) -> None:
        self._app, self._access = app, access
        self._headers = [
            (name.encode(), value.encode())
            for name, value in {
                "content-security-policy": policy,
                "x-content-type-options": "nosniff",
                "x-frame-options": "DENY",
                "referrer-policy": "no-referrer",
                "cross-origin-opener-policy": "same-origin",
                "cross-origin-resource-policy": "same-origin",
                "cache-control": "no-store",
            }.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_more(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._access.refusal(scope, headers)
        if refusal is None:
            await self._app(scope, receive, send_more)
            return
        status, why = refusal
        challenge = [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send_more(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json"), *challenge],
            }
        )
        await send_more({"type": "http.response.body", "body": json.dumps({"error": why}).encode()})
