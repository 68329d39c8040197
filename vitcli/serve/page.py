"""The page: one HTML file with its style and script inside, and the policy under which nothing else runs or loads."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("page.html")


@cache
def html() -> str:
    return FILE.read_text("utf-8")


def policy(page: str, *, scripts: str = "", framed: bool = True) -> str:
    """The Content-Security-Policy of `page`: its own scripts and styles, told by their hashes; asked is its own host.

    `scripts` are more sources of scripts; `framed` forbids other pages to show it, which only a header can.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join([*_hashes(page, "script"), *([scripts] if scripts else [])]),
        "style-src": " ".join(_hashes(page, "style")),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        **({"frame-ancestors": "'none'"} if framed else {}),
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hashes(page: str, element: str) -> list[str]:
    """CSP's names for what is inside each inline `element`."""
    inside = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inside]
