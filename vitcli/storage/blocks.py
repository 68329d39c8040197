"""Blocks of files that lie elsewhere, kept in a folder of ours that stays within a limit; processes share it.

fsspec's own caches of blocks keep their lists in files that two processes overwrite for each other, and those of whole
files fetch a shard for one image; hence a file a block here, written whole, and known by a sum when it is read.
"""

import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from vitcli.privacy import our_cache
from vitcli.storage.records import Folder, bytes_below

BLOCK = 1 << 20
SHARE = 0.5  # of the free disk that all blocks may take
IN_MEMORY = 16  # blocks of a process
_LOOK_EVERY = 1 << 30  # bytes written between two looks at the limit


class Kept:
    """Records in a folder of ours that stays within its limit: those that were written longest ago go first."""

    def __init__(self, home: Path) -> None:
        self.home, self._folder = home, Folder(home)
        self._written = _LOOK_EVERY  # so that the first record looks

    def path(self, key: str) -> Path:
        """The file of a record, if it is there."""
        return self._folder.place(key)

    def read(self, key: str) -> bytes | None:
        return self._folder.read(key)

    def write(self, key: str, record: bytes) -> None:
        """Keep a record, as far as the disk takes it."""
        if self._written >= _LOOK_EVERY:
            self._written = 0
            self._make_room()
        self._written += len(record)
        self._folder.write(key, record)

    def _make_room(self) -> None:
        """Removes records until no more than half of what is free is taken."""
        with suppress(OSError):
            self.home.mkdir(parents=True, exist_ok=True)
            self.home.chmod(0o700)  # pictures may be private
            taken = bytes_below(self.home)
            limit = SHARE * (shutil.disk_usage(self.home).free + taken) - _LOOK_EVERY
            if taken <= limit:
                return
            for path in sorted(self.home.glob("*/*"), key=lambda path: path.stat().st_mtime):
                if taken <= 0.9 * limit:
                    break
                taken -= path.stat().st_size
                path.unlink(missing_ok=True)


class Blocks:
    """By a file's key and their number."""

    def __init__(self, home: Path | None = None) -> None:
        self._kept_in = Kept(home or our_cache() / "blocks")
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def read(self, key: str, numbers: range, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """The blocks with these numbers of a file of `size` bytes; `fetch` gives those from one byte to another."""
        found = {number: data for number in numbers if (data := self._kept(key, number)) is not None}
        for run in _runs([number for number in numbers if number not in found]):
            data = fetch(run[0] * BLOCK, min(size, (run[-1] + 1) * BLOCK))
            for i, number in enumerate(run):
                found[number] = data[i * BLOCK : (i + 1) * BLOCK]
                self._keep(key, number, found[number])
        return b"".join(found[number] for number in numbers)

    def _kept(self, key: str, number: int) -> bytes | None:
        name = f"{key}\0{number}"
        with self._lock:
            if name in self._recent:
                self._recent.move_to_end(name)
                return self._recent[name]
        record = self._kept_in.read(name)
        if record is None or len(record) < 4 or zlib.crc32(record[4:]).to_bytes(4) != record[:4]:
            return None
        self._remember(name, record[4:])
        return record[4:]

    def _keep(self, key: str, number: int, data: bytes) -> None:
        name = f"{key}\0{number}"
        self._remember(name, data)
        self._kept_in.write(name, zlib.crc32(data).to_bytes(4) + data)

    def _remember(self, name: str, data: bytes) -> None:
        with self._lock:
            self._recent[name] = data
            while len(self._recent) > IN_MEMORY:
                self._recent.popitem(last=False)


def _runs(numbers: list[int]) -> list[list[int]]:
    """`numbers`, in order, in pieces without a gap."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
