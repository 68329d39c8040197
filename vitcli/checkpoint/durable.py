"""Files that are either the old ones or the new ones, never half of each, whatever dies in between (docs/design.md, 6).

Knows bytes and names only. A symbolic link at the destination is replaced, never written through: its target may be a
content-addressed blob of the Hub cache.
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` to `path` atomically and durably. Raises OSError naming `path`, which is then untouched."""
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an exception.

    Sequence: temporary file `.<name>.<random>.tmp` in the same folder, fsync, rename, fsync of the folder. A rename
    without the first fsync can come out of a power cut as an empty file; without the second, as no file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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
