"""Files behind an address (`s3://`, `gs://`, `https://`, `hf://`, …), through fsspec, block by block into a cache.

A store may be slow, say that it is too busy, or break off: what may pass is tried again, with longer and longer waits.
A file is known by its size, date and tag; one that changes is another file to the cache. Nobody writes here.
"""

import errno
import hashlib
import io
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from vitcli.errors import DataError, VitError
from vitcli.files import Signature
from vitcli.storage.blocks import BLOCK, Blocks
from vitcli.storage.named import is_address
from vitcli.text import safe

TRIES = 7
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds; each is twice the one before
GIVEN_UP = 60.0  # seconds for which a store that did not answer is asked once and no more
EXTRA = "pip install 'vitcli[data]'"
_PACKAGES = {  # those of fsspec's that only read bytes where they are told to; what each needs beside fsspec
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
    "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oci": "ocifs", "memory": "nothing",
}  # fmt: skip
_FOR_GOOD = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError)

T = TypeVar("T")


class Remote:
    """A file or a folder behind an address; what `pathlib.Path` can do as far as it makes sense there."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if address.count("/") > 2 else address

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"Remote({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __truediv__(self, name: object) -> "Remote":
        parts = [part for part in str(name).split("/") if part not in ("", ".")]
        return Remote("/".join([self.address.rstrip("/"), *parts])) if parts else self

    @property
    def name(self) -> str:
        return PurePosixPath(self.address.partition("?")[0]).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Remote":
        return Remote(self.address.rpartition("/")[0]) if self.address.count("/") > 2 else self

    def with_name(self, name: str) -> "Remote":
        return self.parent / name

    def resolve(self) -> "Remote":
        return self

    def is_relative_to(self, other: object) -> bool:
        return self.address == str(other) or self.address.startswith(f"{str(other).rstrip('/')}/")

    def relative_to(self, other: object) -> PurePosixPath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.address[len(str(other).rstrip("/")) + 1 :] or ".")

    def is_file(self) -> bool:
        found = self._known()
        return found is not None and found[0] == "file"

    def is_dir(self) -> bool:
        found = self._known()
        return found is not None and found[0] == "directory"

    def exists(self) -> bool:
        return self._known() is not None

    def open(self) -> BinaryIO:
        """Raises OSError."""
        return io.BufferedReader(_Reading(self), 1 << 16)

    def signature(self) -> Signature:
        """Raises OSError. A tag stands for an inode."""
        return _told(self)[1]

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer at the end. Raises OSError."""
        own = self.signature()
        end = min(start + size, own.size)
        if end <= start:
            return b""
        key = "\0".join(map(str, (self.address, *own)))
        first, last = start // BLOCK, (end - 1) // BLOCK
        found = _blocks(os.getpid()).read(key, range(first, last + 1), own.size, lambda a, b: _fetched(self, a, b))
        return found[start - first * BLOCK : end - first * BLOCK]

    def _known(self) -> tuple[str, Signature] | None:
        try:
            return _told(self)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{safe(self)} cannot be read: {error.strerror or safe(error)}") from error


Root = Path | Remote


def place(text: str | Path | Remote) -> Root:
    """What a path or an address means."""
    if isinstance(text, Remote):
        return text
    return Remote(text) if isinstance(text, str) and is_address(text) else Path(text)


def entries(folder: Root) -> list[tuple[str, bool]]:
    """(Name, whether it is a folder) of what lies directly in a folder. Raises OSError.

    Behind an address all below is listed at once, when the first part of it is asked for, and remembered.
    """
    if isinstance(folder, Path):
        return [(name, os.path.isdir(folder / name)) for name in os.listdir(folder)]
    if folder.address not in _FOLDERS:
        _list(folder)
    return list(_FOLDERS[folder.address].items())


def matching(pattern: str) -> list[Remote]:
    """The files and folders that a glob behind an address means, in no order. Raises DataError."""

    def found() -> list[Remote]:
        system, path = _system(pattern)
        return [Remote(_prefix(pattern, path) + one.lstrip("/")) for one in system.glob(path)]

    try:
        return _tried(pattern, found)
    except OSError as error:
        raise DataError(f"{safe(pattern)} cannot be listed: {error.strerror or safe(error)}") from error


# ---- what fsspec says

_TOLD: dict[str, tuple[str, Signature]] = {}  # by address: "file" or "directory", and what tells that it changed
_DOWN: dict[str, float] = {}  # by store: when it was given up
_FOLDERS: dict[str, dict[str, bool]] = {}  # by address: what lies directly in it, and whether that is a folder


def _told(remote: Remote) -> tuple[str, Signature]:
    if remote.address not in _TOLD:

        def found() -> tuple[str, Signature]:
            system, path = _system(remote.address)
            info = system.info(path)
            if info.get("type") == "file" and info.get("size") is None:  # a web server that does not say
                info = {**info, "size": len(system.cat_file(path))}
            listing = info.get("mimetype") == "text/html" and system.isdir(path)
            return "directory" if listing else str(info.get("type")), _signature(info)

        _TOLD[remote.address] = _tried(remote.address, found)
    return _TOLD[remote.address]


def _list(folder: Remote) -> None:
    def found() -> dict[str, Any]:
        system, path = _system(folder.address)
        infos = system.find(path, detail=True)
        return {_prefix(folder.address, path) + name.lstrip("/"): info for name, info in infos.items()}

    inside: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    inside[folder.address] = {}
    for address, info in _tried(folder.address, found).items():
        if not address.startswith(folder.address.rstrip("/") + "/") or address.endswith("/"):
            continue
        if info.get("size") is not None:  # web servers list names alone
            _TOLD[address] = "file", _signature(info)
        one, is_folder = Remote(address), False
        while one != folder:
            if one.name in inside[one.parent.address]:
                break
            inside[one.parent.address][one.name] = is_folder
            if is_folder:
                _TOLD[one.address] = "directory", Signature(0, 0, 0, 0)
            one, is_folder = one.parent, True
    _FOLDERS.update(inside)


def _signature(info: dict[str, Any]) -> Signature:
    """Of what a store says of a file, in one of many ways."""
    tag = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "blob_id", "md5", "ino") if info.get(key)), "")
    date = next(
        (
            info[key]
            for key in ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
            if info.get(key)
        ),
        None,
    )
    inode = int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=7).digest()) if tag else 0
    return Signature(int(info.get("size") or 0), _nanoseconds(date), 0, inode)


def _nanoseconds(date: Any) -> int:
    """Since 1970; 0 where nobody knows."""
    from email.utils import parsedate_to_datetime  # takes a while to import

    try:
        if isinstance(date, str):
            date = datetime.fromisoformat(date) if date[:4].isdigit() else parsedate_to_datetime(date)
        return int((date.timestamp() if isinstance(date, datetime) else float(date)) * 1e9)
    except (ValueError, TypeError, OverflowError):
        return 0


def _fetched(remote: Remote, start: int, end: int) -> bytes:
    def found() -> bytes:
        system, path = _system(remote.address)
        data: bytes = system.cat_file(path, start=start, end=end)
        if len(data) > end - start:  # a web server that knows no ranges
            data = data[start:end]
        if len(data) < end - start:
            raise OSError(errno.EIO, "it broke off")
        return data

    return _tried(remote.address, found)


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and what it calls the file. Raises VitError where a package is missing."""
    protocol = address.partition("://")[0].casefold()
    if protocol not in _PACKAGES or "::" in address:
        raise DataError(f"{safe(address)} is no address that is read; known are {_known()}")
    try:
        import fsspec.core
    except ImportError:
        raise VitError(f"{safe(address)}: addresses need the extra `data`: {EXTRA}") from None
    try:
        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError:
        package = _PACKAGES[protocol]
        raise VitError(f"{safe(address)}: {protocol}:// needs {package} beside fsspec: pip install {package}") from None
    except ValueError as error:
        raise DataError(f"{safe(address)} is no address that can be read: {safe(error)}") from None


def _known() -> str:
    return ", ".join(f"{protocol}://" for protocol in _PACKAGES if protocol != "memory")


def _prefix(address: str, path: str) -> str:
    """What a store leaves out of an address when it calls the file `path`."""
    return address[: len(address) - len(path.lstrip("/"))]


def _tried(address: str, call: Callable[[], T]) -> T:
    """What `call` gives, in one of several tries. Raises OSError: what cannot be mended by waiting at once.

    A store that was given up is asked once a file for a while, or each of a million images would wait for it.
    """
    store = address.split("/")[2]
    tries = 1 if time.monotonic() - _DOWN.get(store, -math.inf) < GIVEN_UP else TRIES
    for attempt in range(tries):
        try:
            found = call()
            _DOWN.pop(store, None)
            return found
        except VitError:
            raise
        except Exception as error:  # each store has exceptions of its own
            refused = _refusal(error, tries)
            if isinstance(refused, _FOR_GOOD):
                raise refused from error
            if attempt == tries - 1:
                _DOWN[store] = time.monotonic()
                raise refused from error
        time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
    raise AssertionError


def _refusal(error: Exception, tries: int) -> OSError:
    """`error` in one line; a ConnectionError where it may pass."""
    status = _status(error)
    # fsspec says so of a web server that did not answer, too, and then has the reason behind it.
    unheard = isinstance(error.__cause__, TimeoutError) or type(error.__cause__).__module__.startswith("aiohttp")
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and not status and not unheard):
        return FileNotFoundError(errno.ENOENT, "there is nothing at this address")
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, "the store does not let us read it (credentials?)")
    if isinstance(error, (NotADirectoryError, IsADirectoryError)):
        return error
    said = f"the store answers {status}" if status else safe(error, 100) or type(error).__name__
    if status and 400 <= status < 500 and status not in (408, 425, 429):
        return PermissionError(errno.EACCES, said)
    return ConnectionError(errno.ECONNABORTED, f"{said}, {tries} times" if tries > 1 else f"{said}, as before")


def _status(error: Exception) -> int | None:
    """The HTTP status behind an exception, where there is one."""
    one: Any = error
    for _ in range(5):
        response = getattr(one, "response", None)
        known = [getattr(one, "status", None), getattr(response, "status_code", None)]
        if isinstance(response, dict):
            known.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        found = next((value for value in known if isinstance(value, int) and 100 <= value < 600), None)
        if found or one.__cause__ is None:
            return found
        one = one.__cause__
    return None


@lru_cache(maxsize=1)
def _blocks(process: int) -> Blocks:
    return Blocks()


class _Reading(io.RawIOBase):
    """A remote file, to be read and sought in."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._at, self._size = remote, 0, remote.signature().size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._remote.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._remote.read(self._at, self._size - self._at)
        self._at += len(data)
        return data
