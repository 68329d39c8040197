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


def policy(page: str, *, scripts: str = "", connects: str = "'self'") -> str:
    """The Content-Security-Policy of `page`: its own scripts and styles, told by their hashes, and whom it may ask.

    `scripts` are more sources of scripts.
    """
    run = " ".join([*_hashes(page, "script"), *([scripts] if scripts else [])])
    return (
        f"default-src 'none'; script-src {run}; style-src {' '.join(_hashes(page, 'style'))}; "
        f"img-src blob: data:; connect-src {connects}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(page: str, element: str) -> list[str]:
    """CSP's names for what is inside each inline `element`."""
    inside = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inside]
