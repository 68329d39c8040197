"""Images in the rows of Parquet files, in Hugging Face's layout: a column of `{bytes, path}`, read in any order.

A Parquet file gives its rows in groups, so that one row costs its whole group. The groups that were read last stay in
memory, which does for reading in order; one that is asked for again later is kept in the user's cache, unpacked.
"""

import errno
import io
import json
import os
import struct
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import numpy as np

from vitcli.errors import ArchiveError, VitError
from vitcli.files import Signature, Where, key_of, open_file, signature
from vitcli.privacy import our_cache
from vitcli.storage.blocks import Kept
from vitcli.storage.remote import EXTRA
from vitcli.text import safe, some

SUFFIX = ".parquet"
IN_MEMORY = 128 << 20  # bytes of unpacked groups, and one in any case
_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")  # of a column of bytes that are images
_HEAD = struct.Struct("<4sIQ")  # magic, sum of what follows up to the bytes, number of rows
_MAGIC = b"vitG"

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """The image in one row."""

    archive: Where
    number: int  # from 0, in the file

    def __str__(self) -> str:
        return f"{self.archive}#{self.number}"

    def open(self) -> BinaryIO:
        """Raises OSError."""
        found = signature(self.archive)
        if found is None:
            raise OSError(errno.ENOENT, "no such file")
        try:
            data, path = _table(self.archive, found, os.getpid()).image(self.number)
        except ArchiveError as error:
            raise OSError(errno.EIO, error.why) from error
        return io.BytesIO(data) if data is not None else self._named(path)

    def signature(self) -> Signature:
        """Raises OSError. The row stands for an inode."""
        found = signature(self.archive)
        if found is None:
            raise OSError(errno.ENOENT, "no such file")
        return found._replace(inode=self.number)

    def _named(self, path: str | None) -> BinaryIO:
        """The file that a row names instead of holding it: below the folder of its Parquet file alone."""
        if not path or "\0" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise OSError(errno.ENOENT, f"the row holds no bytes, and no file beside it is named ({safe(path, 60)})")
        parent: Any = self.archive.parent  # type: ignore[union-attr]
        return open_file(parent / path)


def rows(archive: Where) -> Iterator[Row]:
    """All rows with images. Raises ArchiveError for a file without."""
    return (Row(archive, number) for number in range(opened(archive).n))


def opened(archive: Where) -> "Table":
    """Raises ArchiveError for what is no Parquet file with images."""
    found = signature(archive)
    if found is None:
        raise ArchiveError(safe(archive), "it does not exist or cannot be read")
    return _table(archive, found, os.getpid())


@lru_cache(maxsize=64)
def _table(archive: Where, as_it_is: Signature, process: int) -> "Table":
    """Of one process: children would share the place in an open file."""
    return Table(archive, as_it_is)


class Table:
    """One file, of which the end is read at once and a group when it is asked for."""

    def __init__(self, archive: Where, as_it_is: Signature) -> None:
        self.archive, self._key = archive, "\0".join(map(str, (key_of(archive), *as_it_is)))
        self._lock = Lock()
        raw = self._said(lambda: open_file(archive))
        weakref.finalize(self, raw.close)
        self._file = self._said(lambda: parquet().ParquetFile(raw, pre_buffer=False))
        self.schema = self._file.schema_arrow
        self.column = self._image_column()
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        self.ends = np.cumsum([0, *sizes])  # of the rows of each group
        self.n = int(self.ends[-1])

    @property
    def features(self) -> dict[str, Any]:
        """What the `datasets` library says of each column, by its name."""
        try:
            known = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return known if isinstance(known, dict) else {}
        except (KeyError, ValueError, TypeError, RecursionError):
            return {}

    def read(self, column: str) -> Iterator[Any]:
        """A column, group by group. Raises ArchiveError."""
        for group in range(len(self.ends) - 1):
            with self._lock:
                table = self._said(partial(self._file.read_row_group, group, [column], use_threads=False))
            yield table[0]

    def image(self, number: int) -> tuple[bytes | None, str | None]:
        """The bytes of a row's image, or else the path that it names. Raises ArchiveError."""
        if not 0 <= number < self.n:
            raise ArchiveError(safe(self.archive), f"it has {self.n} rows, and none with the number {number}")
        group = int(np.searchsorted(self.ends, number, side="right")) - 1
        return _groups(os.getpid()).row(
            f"{self._key}\0{group}", int(number - self.ends[group]), lambda: self._unpacked(group)
        )

    def _unpacked(self, group: int) -> "Unpacked":
        with self._lock:
            table = self._said(lambda: self._file.read_row_group(group, [self.column], use_threads=False))
        column = self._said(lambda: table[0].combine_chunks())
        if types().is_struct(column.type):
            names = [field.name for field in column.type]
            paths = column.field("path").to_pylist() if "path" in names else [None] * len(column)
            column = column.field("bytes")
        else:
            paths = [None] * len(column)
        return Unpacked([one.as_buffer() if one.is_valid else None for one in column], paths)

    def _image_column(self) -> str:
        found = []
        for field in self.schema:
            kind = field.type
            inside = [one.type for one in kind if one.name == "bytes"] if types().is_struct(kind) else []
            if any(map(_is_binary, inside)) or (_is_binary(kind) and field.name.casefold() in _NAMES):
                found.append(str(field.name))
        if len(found) == 1:
            return found[0]
        names = some(list(self.schema.names), 8, quote="'")
        if not found:
            raise ArchiveError(safe(self.archive), f"it has no column of images, as `image.bytes` is one: {names}")
        raise ArchiveError(safe(self.archive), f"it has {len(found)} columns of images, {some(found, 8)}: keep one")

    def _said(self, call: Callable[[], T]) -> T:
        """What pyarrow gives; whatever it says of a damaged file becomes one line."""
        try:
            return call()
        except VitError:
            raise
        except Exception as error:  # what Arrow and Thrift say of damage has no common base but this
            said = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
            raise ArchiveError(safe(self.archive), f"it is damaged or no Parquet file: {safe(said, 120)}") from error


class Unpacked:
    """The images of one group: bytes, or else paths."""

    def __init__(self, images: Sequence[Any], paths: Sequence[str | None]) -> None:
        self.images, self.paths = images, paths
        self.size = sum(len(one) for one in images if one is not None)  # bytes

    def row(self, i: int) -> tuple[bytes | None, str | None]:
        return None if self.images[i] is None else bytes(self.images[i]), self.paths[i]

    def record(self) -> bytes | None:
        """As it is kept: a head, start, end and sum of each image, the images. None where some are in other files."""
        if any(one is None for one in self.images):
            return None
        lengths = [len(one) for one in self.images]
        ends = np.cumsum([0, *lengths])
        table = np.array(
            [[a, b, zlib.crc32(one)] for a, b, one in zip(ends, ends[1:], self.images, strict=False)], "<u8"
        )
        head = table.tobytes()
        start = _HEAD.pack(_MAGIC, zlib.crc32(head), len(lengths))
        return b"".join([start, head, *map(bytes, self.images)])


class Groups:
    """Groups of rows, unpacked: the last ones in memory, and those that are asked for again and again in files."""

    def __init__(self, home: Path | None = None) -> None:
        self._kept = Kept(home or our_cache() / "rows")
        self._recent: OrderedDict[str, Unpacked] = OrderedDict()
        self._seen: set[str] = set()
        self._lock = Lock()

    def row(self, key: str, i: int, unpack: Callable[[], Unpacked]) -> tuple[bytes | None, str | None]:
        """Row `i` of a group, which `unpack` reads where there is none."""
        with self._lock:
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key].row(i)
            if key in self._seen and (data := self._stored(key, i)) is not None:
                return data, None
            group = self._recent[key] = unpack()
            while len(self._recent) > 1 and sum(one.size for one in self._recent.values()) > IN_MEMORY:
                self._recent.popitem(last=False)
            if key in self._seen and (record := group.record()):
                self._kept.write(key, record)
            self._seen.add(key)
            return group.row(i)

    def _stored(self, key: str, i: int) -> bytes | None:
        """The bytes of one image in a file of ours, unless that is damaged."""
        try:
            with self._kept.path(key).open("rb") as file:
                magic, known_sum, n = _HEAD.unpack(file.read(_HEAD.size))
                head = file.read(24 * n) if magic == _MAGIC else b""
                if zlib.crc32(head) != known_sum or i >= n:
                    return None
                start, end, of_image = np.frombuffer(head, "<u8").reshape(n, 3)[i].tolist()
                file.seek(_HEAD.size + len(head) + start)
                data = file.read(end - start)
        except (OSError, ValueError, struct.error, MemoryError, OverflowError):
            return None
        return data if zlib.crc32(data) == of_image and len(data) == end - start else None


@lru_cache(maxsize=1)
def _groups(process: int) -> Groups:
    return Groups()


def parquet() -> Any:
    """pyarrow's own module. Raises VitError where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise VitError(f"Parquet needs the extra `data`: {EXTRA}") from None
    return pyarrow.parquet


def types() -> Any:
    """pyarrow's questions about types."""
    import pyarrow.types

    return pyarrow.types


def _is_binary(kind: Any) -> bool:
    return bool(types().is_binary(kind) or types().is_large_binary(kind))
