"""Members of tar archives, found by their headers and read one by one, in any order.

Nothing is unpacked, no link is followed, and nothing is believed but what `tarfile` reads: a header may be damaged, an
archive cut off.
"""

import errno
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vitcli.errors import ArchiveError
from vitcli.files import MAX_FILE_BYTES, Signature, Where, open_file, read_at, signature
from vitcli.text import safe

SUFFIX = ".tar"
_PADDING = 1 << 20  # bytes of zeros at the end, at most
MARK = "#"  # between an archive and its member, as users write it


@dataclass(frozen=True)
class Member:
    """A file in an archive that is not compressed."""

    archive: Where
    name: str
    start: int  # of its bytes in the archive
    size: int
    fault: str = ""  # why its bytes cannot be had

    def __str__(self) -> str:
        return f"{self.archive}{MARK}{self.name}"

    def open(self) -> BinaryIO:
        """Raises OSError."""
        if self.fault:
            raise OSError(errno.EINVAL, self.fault)
        wanted = min(self.size, MAX_FILE_BYTES + 1)  # whoever decodes refuses more
        data = read_at(self.archive, self.start, wanted)
        if len(data) < wanted:
            raise OSError(errno.EIO, "the archive is cut off before its end")
        return io.BytesIO(data)

    def signature(self) -> Signature:
        """Raises OSError. Where in the archive it lies stands for an inode."""
        found = signature(self.archive)
        if found is None:
            raise OSError(errno.ENOENT, "no such archive")
        return found._replace(size=self.size, inode=self.start)


def members(archive: Where) -> Iterator[Member]:
    """The files in a tar archive, in order; folders are passed over. Raises ArchiveError where it breaks off.

    A link has a fault, and so has a file in pieces.
    """
    last = ""
    try:
        with open_file(archive) as file:
            if compressed(file.read(6)):
                raise ArchiveError(safe(archive), "it is compressed, and members are read in any order: unpack it")
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if not size:
                raise ArchiveError(safe(archive), "it is empty")
            with tarfile.open(fileobj=file, mode="r:") as found:
                while (one := found.next()) is not None:
                    found.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                    if one.isdir():
                        continue
                    fault = "" if one.isreg() and not one.issparse() else "it is a link or in pieces: pack the file"
                    if one.isreg() and one.offset_data + one.size > size:
                        raise ArchiveError(safe(archive), f"it is cut off in {safe(one.name)}: fetch it again")
                    yield Member(archive, one.name, one.offset_data, one.size, fault)
                    last = one.name
                _require_end(archive, file, found.offset, size)
    except tarfile.TarError as error:
        after = f" behind {safe(last)}" if last else ""
        raise ArchiveError(safe(archive), f"it is damaged or no tar archive{after}: {safe(error)}") from error
    except OSError as error:
        raise ArchiveError(safe(archive), f"it cannot be read: {error.strerror or safe(error)}") from error
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:  # of numbers that make no sense
        raise ArchiveError(safe(archive), f"it is damaged: {safe(error)}") from error


def _require_end(archive: Where, file: BinaryIO, offset: int, size: int) -> None:
    """Raises ArchiveError unless nothing but zeros follows the last member: `tarfile` takes any damage for an end."""
    file.seek(offset)
    rest = file.read(_PADDING)
    if len(rest) < tarfile.BLOCKSIZE:
        raise ArchiveError(safe(archive), "it is cut off: there is no end; fetch it again")
    if rest.strip(b"\0") or offset + len(rest) < size:
        raise ArchiveError(safe(archive), f"it is damaged at byte {offset}, or two in one: what follows is lost")


def compressed(head: bytes) -> bool:
    """Whether a file that begins with `head` is compressed, by any of the usual programs."""
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))


def member(archive: Where, name: str) -> Member:
    """A member by its name, the last one of several; one that is not there has a fault, which opening it raises."""
    try:
        known = _by_name(archive, signature(archive))
    except ArchiveError as error:
        return Member(archive, name, 0, 0, error.why)
    return known.get(name) or Member(archive, name, 0, 0, "the archive has no such member")


@lru_cache(maxsize=4)
def _by_name(archive: Where, as_it_is: Signature | None) -> dict[str, Member]:
    return {one.name: one for one in members(archive)}


def is_tar(name: str | Path | PurePosixPath) -> bool:
    """Whether a file is called like an archive of that kind."""
    return str(name).casefold().endswith(SUFFIX)
