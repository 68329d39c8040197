"""One process at a time in a folder: the lock that a run or a cell of a study holds. Knows nothing of what is in it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vitcli.errors import UsageError, VitError
from vitcli.files import LEFTOVER
from vitcli.text import safe

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_LOCKS: dict[Path, IO[str]] = {}  # of this process, which its own locks would not keep out


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run in it, and removes what a killed one left half-written.

    The lock dies with the process, however it dies. A POSIX lock, which forked children do not inherit: data workers
    outlive a killed trainer by seconds.
    """
    if fcntl is None:
        raise VitError("training needs a POSIX system (Linux, macOS); on Windows, WSL is one")
    place = folder.resolve()
    busy = UsageError(f"another run is at work in {safe(folder)}; wait for it or choose another --out")
    if place in _LOCKS:  # not even opened again: closing the second descriptor would drop the lock
        raise busy
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise busy from None
            raise VitError(
                f"{safe(folder)}: its file system cannot lock files ({error.strerror}), and nothing else would keep a "
                "second run out: choose a folder on another file system, such as a local disk"
            ) from error
        _LOCKS[place] = file
        try:
            for leftover in folder.rglob(LEFTOVER):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            del _LOCKS[place]


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in the folder; asked by holding it for an instant together with who else asks."""
    if folder.resolve() in _LOCKS:
        return True
    try:
        with (folder / LOCK).open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN) and fcntl is not None
    return False


def removed(folder: Path) -> VitError:
    """The error that says so of a run folder."""
    return VitError(f"{safe(folder)} was removed while its run was at work; nothing of it is left to go on with")


def require_there(folder: Path) -> None:
    """Raises VitError when a folder that we hold was removed, even if another run has made a new one since."""
    lock = _LOCKS.get(folder.resolve())
    if lock is not None and not os.fstat(lock.fileno()).st_nlink:
        raise removed(folder)
