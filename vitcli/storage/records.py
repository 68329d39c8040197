"""Where records are kept by their keys: in memory that the processes of one run share, or in a folder that runs share.

A folder is one of several in a home of ours, which stays within a limit: those that nobody uses and that were used
longest ago go first. Both kinds forget rather than fail: what a full disk does not take is made again. Knows no images.
"""

import hashlib
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from vitcli.errors import VitError
from vitcli.files import LEFTOVER
from vitcli.storage.named import is_address
from vitcli.text import safe

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Cache = Literal["none", "ram", "disk"]
"""Where copies are kept, if there are any."""

_PAGE = 4096
_LOCK, _ABOUT, _REMOVED = ".lock", "about.json", ".removed-"


class Memory:
    """Records in memory that child processes share, however they start; it is given back when all have ended.

    Linux only (`shared_memory`). Each key has its place before a child starts, which is in memory once it is written.
    """

    lasting = False

    def __init__(self, record: int) -> None:
        """`record`: bytes that one takes at most."""
        self._slot = -(-record // _PAGE) * _PAGE
        self._places: dict[str, int] = {}
        self._open(os.memfd_create("vit-copies"))

    def _open(self, descriptor: int) -> None:
        self._file = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)

    def claim(self, keys: Iterable[str]) -> None:
        """Give each of `keys` a place, those that have one the same."""
        for key in keys:
            self._places.setdefault(key, len(self._places))

    def read(self, key: str) -> bytes | None:
        place = self._places.get(key)
        return None if place is None else os.pread(self._file, self._slot, place * self._slot)

    def write(self, key: str, record: bytes) -> None:
        place = self._places.get(key)
        if place is not None and len(record) <= self._slot:
            with suppress(OSError):
                os.pwrite(self._file, record, place * self._slot)

    def remove(self, key: str) -> None:
        self.write(key, bytes(self._slot))

    def close(self) -> None:
        self._closing()

    def __getstate__(self) -> dict[str, object]:
        """For a child that is not forked: the parent, which lives longer, lends it the memory."""
        return {"slot": self._slot, "places": self._places, "file": f"/proc/{os.getpid()}/fd/{self._file}"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._slot, self._places = state["slot"], state["places"]  # type: ignore[assignment]
        self._open(os.open(str(state["file"]), os.O_RDWR))


def shared_memory() -> bool:
    """Whether this system has what `Memory` needs."""
    return hasattr(os, "memfd_create")


class Folder:
    """Records in files, each written whole or not at all; one that is damaged later is for the reader to notice."""

    lasting = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, key: str) -> Path:
        """The file of a record, if it is there."""
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.path / name[:2] / name[2:]

    def read(self, key: str) -> bytes | None:
        try:
            return self.place(key).read_bytes()
        except OSError:
            return None

    def write(self, key: str, record: bytes) -> None:
        # Without a wait for the disk: after a power cut a record may be damaged, which its sum tells.
        place = self.place(key)
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            place.parent.mkdir(exist_ok=True)
            with temporary.open("xb") as file:
                file.write(record)
            temporary.replace(place)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def remove(self, key: str) -> None:
        with suppress(OSError):
            self.place(key).unlink()


@contextmanager
def opened_folder(home: Path, about: dict[str, str], need: int, limit: int) -> Iterator[Folder]:
    """The folder in `home` for what `about` says, held until the block ends; it may come to take `need` bytes.

    Those of others go, the ones used longest ago first, until all together will stay within `limit`; those that are in
    use stay, and those whose `about["of"]`, a path, is gone go in any case. Raises VitError where none can be made.
    """
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    folder = home / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # pictures may be private
        lock = _entered(folder, limit)
    except OSError as error:
        raise VitError(f"cannot keep copies in {safe(home)}: {error.strerror}; --cache none goes without") from error
    try:
        (folder / _ABOUT).write_text(json.dumps(about))
        _make_room(home, limit - max(need, bytes_below(folder)), but=folder)
        yield Folder(folder)
    finally:
        os.close(lock)


def bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`, which need not exist."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _entered(folder: Path, limit: int) -> int:
    """Makes `folder` if need be and holds it; a descriptor.

    If nobody is in there, removes what killed writers left, and all where it has outgrown its `limit` in bytes.
    """
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        if _locked(lock, alone=True):
            for leftover in folder.glob(f"*/{LEFTOVER}"):
                leftover.unlink(missing_ok=True)
            if bytes_below(folder) > limit:
                for part in folder.glob("*/"):
                    shutil.rmtree(part, ignore_errors=True)
        _locked(lock, alone=False)
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):  # else removed meanwhile
                os.utime(folder / _LOCK)
                return lock
        os.close(lock)


def _locked(descriptor: int, *, alone: bool) -> bool:
    """Whether it could be locked at once; a lock that is shared waits for whoever is alone in there."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:  # held by others, or a file system without locks: then nothing is ever removed
        return False
    return True


def _make_room(home: Path, most: int, but: Path) -> None:
    """Removes folders in `home` until the others than `but` take no more than `most` bytes."""
    for half in home.glob(f"{_REMOVED}*"):
        shutil.rmtree(half, ignore_errors=True)
    others = [folder for folder in home.iterdir() if folder != but and (folder / _LOCK).is_file()]
    others.sort(key=lambda folder: (folder / _LOCK).stat().st_mtime)
    sizes = {folder: bytes_below(folder) for folder in others}
    left = sum(sizes.values())
    for folder in others:
        if (left > most or _orphan(folder)) and _removed(folder):
            left -= sizes[folder]


def _orphan(folder: Path) -> bool:
    try:
        of = json.loads((folder / _ABOUT).read_text())["of"]
        return not is_address(of) and not os.path.lexists(of)
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nobody can say what it is of


def _removed(folder: Path) -> bool:
    """Whether it could be removed: nobody holds it."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        if not _locked(lock, alone=True):
            return False
        half = folder.with_name(f"{_REMOVED}{secrets.token_hex(4)}")  # all of it at once, for whoever comes meanwhile
        folder.rename(half)
        shutil.rmtree(half, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
