"""Files: written whole or not at all, opened without waiting, and believed only when they are checked.

Writing: a file is the old one or the new one, never half of each, whatever dies in between. A symbolic link at the
destination is replaced, never written through: its target may be a content-addressed blob of the Hub cache.

Reading: a file may be hostile or damaged (SECURITY.md). JSON from it is one dictionary, or one line that says why not;
and that dictionary becomes a frozen dataclass, each value checked against its field's annotation. What the keys mean
and which values make sense is for the rooms above; a dataclass's `__post_init__` may raise ValueError.
"""

import errno
import hashlib
import json
import math
import os
import stat
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Literal,
    NamedTuple,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from vitcli.errors import CheckpointError, VitError
from vitcli.text import safe

MAX_DEPTH = 64  # of objects and lists; configs are six deep
MAX_FILE_BYTES = 512 << 20  # of one image
MAX_CONFIG_BYTES = 16 << 20  # ImageNet-21k's names and definitions take 3 MiB

OnProgress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes done, bytes in all or None) while a file is downloaded or read through."""

T = TypeVar("T")


class Signature(NamedTuple):
    """What tells, without opening it, that a file was changed or replaced."""

    size: int
    mtime: int  # ns
    ctime: int  # ns; a program that puts `mtime` back cannot put back this
    inode: int


class Place(Protocol):
    """Where the bytes of a file lie that is none of this machine's by itself: in an archive, behind an address.

    `str` of it is what a user may call it, and so what messages do.
    """

    def __hash__(self) -> int: ...

    def open(self) -> BinaryIO:
        """The bytes, from the first one; they can be sought in. Raises OSError."""

    def signature(self) -> Signature:
        """Raises OSError."""


Where = Path | Place


class NotAFileError(OSError):
    """There is a folder at this path, or a pipe or a device."""

    def __init__(self, path: Path, *, folder: bool) -> None:
        super().__init__(errno.EISDIR if folder else errno.EINVAL, "not a regular file", str(path))
        self.folder = folder


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` to `path` atomically and durably. Raises OSError naming `path`, which is then untouched."""
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


LEFTOVER = ".*.tmp"  # a glob: what a process that was killed while it wrote leaves behind


def holds_something(folder: Path, *but: str) -> bool:
    """Whether `folder` is there and holds more than entries called `but` and what killed processes left behind."""
    return folder.exists() and any(entry.name not in but and not entry.match(LEFTOVER) for entry in folder.iterdir())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an exception.

    Sequence: temporary file `.<name>.<random>.tmp` in the same folder, fsync, rename, fsync of the folder. A rename
    without the first fsync can come out of a power cut as an empty file; without the second, as no file.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write to a full disk names no file
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. File systems that cannot do it are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """As `open_file`, for a file that a checkpoint or a run consists of. Raises CheckpointError in one line."""
    try:
        return open_file(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{safe(path)}: a link to a file that is gone; download it again") from None
        raise CheckpointError(f"{safe(path)}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{safe(path)}: {error.strerror}") from None


def open_file(path: Where) -> BinaryIO:
    """Open a regular file (or a link to one) for reading, or what lies elsewhere.

    Raises OSError; NotAFileError for a folder, pipe or device. Opened without blocking and only then examined, so that
    neither a FIFO nor a swap between check and use can hang us.
    """
    if not isinstance(path, Path):
        return path.open()
    flags = ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")  # those that this system has
    try:
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotAFileError(path, folder=stat.S_ISDIR(mode))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def signature(where: str | Where) -> Signature | None:
    """The signature of a file; None without such a file."""
    try:
        if not isinstance(where, str | Path):
            return where.signature()
        found = os.stat(where)
    except (OSError, ValueError):
        return None
    return Signature(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def read_at(where: Where, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, fewer where the file ends before. Raises OSError."""
    with open_file(where) as file:
        file.seek(start)
        return file.read(size)


def content_hash(where: Where) -> bytes:
    """16 bytes that are the same for files with the same content. Raises OSError."""
    with open_file(where) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()  # type: ignore[arg-type]


def key_of(where: Where) -> str:
    """A name by which no other file is known."""
    return os.path.abspath(where) if isinstance(where, Path) else str(where)


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`, as `parse_value` reads it. Raises CheckpointError for anything else, too."""
    value = parse_value(data, where)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected, not {_KINDS.get(type(value), 'something else')}")
    return value


def parse_value(data: bytes, where: str) -> Any:
    """The JSON value in `data`. A UTF-8 byte-order mark is allowed.

    Raises CheckpointError, beginning with `where`, for other encodings, NaN and infinities (which Python takes, 1e400
    too), duplicate keys (the last would win silently), numbers of thousands of digits, and deep nesting.
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
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises CheckpointError for anything else, and for more than 16 MiB."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= MAX_CONFIG_BYTES else None
    if data is None:
        raise CheckpointError(f"{safe(path)}: larger than {MAX_CONFIG_BYTES >> 20} MiB; this is not a model's config")
    return parse_object(data, safe(path))


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


def read_typed(kind: type[T], values: Any, where: str = "") -> T:
    """`values`, a dictionary that JSON or TOML gave, as the dataclass `kind`; keys that it does not know are passed by.

    Raises ValueError, naming the value from `where` on down, for one that is missing or of the wrong type; integers
    beyond 64 bits, NaN and infinities are of the wrong type everywhere.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} must be an object, not {shown(values)}")
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{field.name}" if where else field.name
        if field.name in values:
            given[field.name] = typed_value(hints[field.name], values[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    try:
        return kind(**given)
    except VitError as error:  # a dataclass whose values a user may also type
        raise ValueError(str(error)) from None


def typed_value(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` wants it: whole numbers for real ones, lists for tuples. Raises ValueError naming it `name`."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        (hint,) = (one for one in inside if one is not type(None))
        return typed_value(hint, value, name)
    if is_dataclass(hint):
        return read_typed(hint, value, name)  # type: ignore[arg-type]
    if origin is Literal:
        if not (isinstance(value, str) and value in inside):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, inside))}, not {shown(value)}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else inside
        if len(value) == len(kinds):
            return tuple(
                typed_value(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: typed_value(inside[1], item, f"{name}.{safe(key, 40)}") for key, item in value.items()}
    elif hint is Any:
        return value
    elif hint is float and type(value) in (int, float) and _is_finite(value):
        return float(value)
    elif (hint is int and type(value) is int and _is_finite(value)) or (hint in (str, bool) and type(value) is hint):
        return value
    raise ValueError(f"{name} must be {_words(hint)}, not {shown(value)}")


def shown(value: Any) -> str:
    """`value` for a message, short and printable, whatever it is."""
    if isinstance(value, int) and not _is_finite(value):
        return "a number of more than 64 bits"
    try:
        return safe(repr(value), 60)
    except (ValueError, RecursionError):  # a number too long to be written, or lists too deep, inside it
        return f"a {type(value).__name__}"


def _is_finite(value: float) -> bool:
    return -(1 << 63) <= value < 1 << 63 if isinstance(value, int) else math.isfinite(value)


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        _, *more = get_args(hint)
        return "a list" if more == [Ellipsis] else f"a list of {1 + len(more)}"
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}.get(hint, "an object")
