"""Whether a file of the Hub cache is the one the Hub named: large files are stored under their own SHA-256.

huggingface_hub compares sizes only. The digest is computed once for each file: a note in our own cache folder remembers
size and time of what was found good. Knows files, not models.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from vitcli.errors import CheckpointError
from vitcli.privacy import our_cache
from vitcli.text import safe


def verify_blob(path: Path, repo: str) -> None:
    """Raises CheckpointError when the file behind the cache link `path` is not what its name says.

    Where the cache has no links (a file system without them) the name says nothing and nothing is checked.
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
    with open(blob, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        raise CheckpointError(
            f"{safe(repo)}: {path.name} in the Hub cache is damaged (its SHA-256 is not the Hub's); fetch it again: "
            f"`hf download {safe(repo)} {path.name} --force-download`"
        )
    with suppress(OSError):  # a cache that cannot be written only means the same work next time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(state, encoding="ascii")


def _notes() -> Path:
    return our_cache() / "verified"
