"""Files that may be hostile or damaged, and JSON from them: one dictionary, or one line that says why not.

Knows the traps of files and of JSON only (SECURITY.md); what the keys mean is for
`config` and `header`.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from vitcli.errors import CheckpointError
from vitcli.text import safe

MAX_DEPTH = 64  # of objects and lists; configs are six deep
MAX_CONFIG_BYTES = 16 << 20  # ImageNet-21k's names and definitions take 3 MiB


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`. A UTF-8 byte-order mark is allowed.

    Raises CheckpointError, beginning with `where`, for other encodings, NaN and infinities (which Python takes, 1e400
    too), duplicate keys (the last would win silently), numbers of thousands of digits, deep nesting, and anything that
    is not an object.
    """
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_reject_constant,
            parse_float=_finite,
            object_pairs_hook=_reject_duplicates,
        )
        _reject_depth(value)
    except _Refused as refused:
        raise CheckpointError(f"{where}: {refused}") from None
    except UnicodeDecodeError as error:
        hint = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise CheckpointError(f"{where}: not UTF-8 text at byte {error.start}{hint}") from None
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply for a configuration") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{where}: not valid JSON, line {error.lineno} column {error.colno}: {safe(error.msg)}"
        ) from None
    except ValueError:  # an integer of more than 4300 digits
        raise CheckpointError(f"{where}: a number has too many digits") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected, not {_KINDS.get(type(value), 'something else')}")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises CheckpointError for anything else, and for more than 16 MiB."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= MAX_CONFIG_BYTES else None
    if data is None:
        raise CheckpointError(f"{safe(path)}: larger than {MAX_CONFIG_BYTES >> 20} MiB; this is not a model's config")
    return parse_object(data, safe(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file (or a link to one) for reading; CheckpointError for everything else.

    Opened without blocking and only then examined, so that neither a FIFO nor a swap between check and use can hang us.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{safe(path)}: a link to a file that is gone; download it again") from None
        raise CheckpointError(f"{safe(path)}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{safe(path)}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{safe(path)}: not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


class _Refused(Exception):
    pass


_KINDS = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}


def _reject_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a number JSON allows")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"{safe(text, 40)} is beyond all numbers")
    return value


def _reject_depth(value: Any) -> None:
    """Whoever walks through `value` later may do so recursively."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise RecursionError


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key '{safe(key, 80)}' appears twice")
            seen.add(key)
    return result
