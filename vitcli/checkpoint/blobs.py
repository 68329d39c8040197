"""Whether a file of the Hub cache is the one the Hub named: large files are stored under their own SHA-256.

huggingface_hub compares sizes only. The digest is computed once for each file: a note in our own cache folder remembers
size and time of what was found good. Knows files, not models.
"""

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitcli.checkpoint.hub import OnProgress
from vitcli.errors import CheckpointError
from vitcli.privacy import our_cache
from vitcli.text import safe


def verify_blob(path: Path, repo: str, progress: OnProgress | None = None) -> None:
    """Raises CheckpointError when the file behind the cache link `path` is not what its name says.

    `progress` is told of the reading, which happens once for each file. Where the cache has no links (a file
    system without them) the name says nothing and nothing is checked.
    """
    blob = path.resolve()
    if len(blob.name) != 64 or not blob.is_file():
        return
    found = blob.stat()
    state = f"{found.st_size} {found.st_mtime_ns}"
    note = _notes() / blob.name
    with suppress(OSError):
        if note.read_text(encoding="ascii") == state:
            return
    with open(blob, "rb", buffering=0) as file:
        told = _Told(file, lambda done: progress and progress(path.name, done, found.st_size))
        digest = hashlib.file_digest(told, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != blob.name:
        raise CheckpointError(
            f"{safe(repo)}: {path.name} in the Hub cache is damaged (its SHA-256 is not the Hub's); fetch it again: "
            f"`hf download {safe(repo)} {path.name} --force-download`"
        )
    with suppress(OSError):  # a cache that cannot be written only means the same work next time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(state, encoding="ascii")


class _Told:
    """A binary file that says how far it has been read."""

    def __init__(self, file: io.FileIO, tell: Callable[[int], Any]) -> None:
        self.file, self.tell, self.done = file, tell, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self.file.readinto(buffer)
        self.done += count or 0
        self.tell(self.done)
        return count or 0


def _notes() -> Path:
    return our_cache() / "verified"
