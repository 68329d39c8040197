"""What a user may name beside a path: `shards/{000..099}.tar`, a glob, an address. Opens nothing."""

import glob
import os
import re
from itertools import product
from pathlib import Path, PurePosixPath

from vitcli.errors import UsageError
from vitcli.text import safe

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}/]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_INSIDE = re.compile(r"(.+?\.(?:tar|parquet))#(.+)", re.IGNORECASE | re.DOTALL)
MOST = 1_000_000  # names that braces may stand for


def is_address(text: object) -> bool:
    """Whether `text` begins as `s3://` does."""
    return _ADDRESS.match(str(text)) is not None


def absolute(text: str) -> str:
    """What names the same from every folder."""
    return text if is_address(text) else str(Path(text).resolve())


def name_of(text: str) -> str:
    """The last part of a path or an address, that of the folder where a pattern begins."""
    text = folder_of(text)
    return PurePosixPath(text).name if is_address(text) else Path(text).resolve().name


def folder_of(text: str) -> str:
    """The folder in which what a pattern means is looked for; what is none stays as it is."""
    if not is_pattern(text) or (not is_address(text) and os.path.lexists(text)):
        return text
    parts = text.split("/")
    first = next((i for i, part in enumerate(parts) if is_pattern(part)), 1)
    return "/".join(parts[:first]) or ("/" if text.startswith("/") else ".")


def expanded(text: str) -> list[str]:
    """What braces stand for, as in a shell: `{000..002}` for 000, 001, 002, and `{a,b}` for both. Raises UsageError."""
    parts: list[list[str]] = []
    end, count = 0, 1
    for braces in _BRACES.finditer(text):
        choices = _choices(braces[1])
        if choices is None:
            continue
        count *= len(choices)
        if count > MOST:
            raise UsageError(f"{safe(text)} stands for more than {MOST} names")
        parts += [[text[end : braces.start()]], [*choices]]
        end = braces.end()
    return ["".join(one) for one in product(*parts, [text[end:]])]


def _choices(inside: str) -> range | list[str] | None:
    if found := _RANGE.fullmatch(inside):
        first, last = int(found[1]), int(found[2])
        if abs(last - first) >= MOST:
            raise UsageError(f"{{{safe(inside, 60)}}} stands for more than {MOST} names")
        padded = any(len(text) > 1 and text.startswith("0") for text in found.groups())
        width = max(map(len, found.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else None


def is_pattern(text: str) -> bool:
    """Whether `text` stands for several names. An address with a query does not."""
    if is_address(text) and "?" in text:
        return False
    return glob.has_magic(text) or expanded(text) != [text]


def split_address(text: str) -> tuple[str, str] | None:
    """(Archive, what is in it) of `photos.tar#cat/1.jpg` or `photos.parquet#12`; None for what is no such address."""
    found = _INSIDE.fullmatch(text)
    return (found[1], found[2]) if found else None
