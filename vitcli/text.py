"""Strings from outside (labels, file names, config values) made safe to show, lists cut short, commands to type, JSON.

Every external string passes `safe` before it reaches a terminal, a CSV cell or HTML (docs/design.md, 12).
"""

import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_SHOWN = 200
_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(value: object, limit: int | None = MAX_SHOWN) -> str:
    """`value` as one printable line: control, bidi and surrogate characters become escapes, long text is cut."""
    shown = []
    for character in str(value)[: None if limit is None else limit + 1]:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
            shown.append(character.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(character)
    if limit is None or len(shown) <= limit:
        return "".join(shown)
    return "".join(shown[:limit]) + "…"


def some(names: Sequence[object], most: int, *, quote: str = "", limit: int = 60, counted: bool = False) -> str:
    """The first of `names`, `most` of them, each as `safe` text in `quote`s; `counted`: and how many more there are."""
    shown = ", ".join(f"{quote}{safe(name, limit)}{quote}" for name in names[:most])
    if len(names) <= most:
        return shown
    return f"{shown} and {len(names) - most} more" if counted else f"{shown}, …"


def by(size: Iterable[int], sign: str = "×") -> str:
    """A size in words: `224×320`."""
    return sign.join(map(str, size))


def csv_cell(value: object, limit: int | None = MAX_SHOWN) -> str:
    """`safe` text that a spreadsheet will not take for a formula."""
    text = safe(value, limit)
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def folded(name: str) -> str:
    """What is left of a name when case, spaces, underscores and Unicode's composed or decomposed forms do not count.

    Nothing else goes: signs, points and digits change what a name means ("-1", "C++", "2.5"), as do a letter's
    superscript or "ss" for "ß".
    """
    words = re.sub(r"(?<=\S)[\s_]+(?=\S)", " ", unicodedata.normalize("NFC", name).strip())
    lower = "".join(low if len(low := letter.casefold()) == 1 else letter.lower() for letter in words)
    return unicodedata.normalize("NFC", lower)


def command(*words: object) -> str:
    """A command to type, whole: each of `words` means itself to a shell, whatever it holds."""
    return " ".join(map(_quoted, words))


def _quoted(word: object) -> str:
    text = str(word)
    if safe(text, None) == text:
        return shlex.quote(text)
    # Control characters and bytes that are no UTF-8, as bash, zsh and ksh read them.
    shown = []
    for character in text:
        if safe(character) == character:
            shown.append("\\" + character if character in "'\\" else character)
        else:
            shown += [f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape")]
    return f"$'{''.join(shown)}'"


def as_json(document: Any) -> str:
    """`document` as one line of JSON. NaN and infinities, which JSON does not have, are null."""
    return json.dumps(finite(document), allow_nan=False)


def finite(value: Any) -> Any:
    """`value`, and whatever lies in it, with None for floats that are NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, list | tuple) else value


def plural(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known word is near."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
