"""What a folder of packed shards says of itself in its manifest: that every shard is there, whole, and as it was."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from vitcli.data.layout import quoted
from vitcli.errors import DataError
from vitcli.files import open_file, parse_value, signature
from vitcli.storage.remote import Root
from vitcli.text import safe

PLAN, MANIFEST, SCHEMA = "pack.json", "manifest.json", "vit.pack/1"
_MOST = 256 << 20


def listed(folder: Root) -> list[tuple[str, int, str]] | None:
    """(Name, bytes, SHA-256) of each shard in the manifest of a folder; None without one. Raises DataError."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        with open_file(path) as file:
            content: Any = parse_value(file.read(_MOST), safe(path))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            return None
        return [(_text(one["file"]), int(one["bytes"]), _text(one["sha256"])) for one in content["files"]]
    except OSError as error:
        raise DataError(f"{safe(path)} cannot be read: {error.strerror or safe(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{safe(path)} is damaged: pack the data again") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def require_all(folder: Root, archives: Sequence[Root]) -> None:
    """Raises DataError where a shard of the manifest is missing or of another size, or one is not in it."""
    known = listed(folder)
    if known is None:
        if (folder / PLAN).is_file():
            raise DataError(f"{safe(folder)} is half a pack: start the same `vit pack` again, which goes on")
        return
    there = {archive.name: archive for archive in archives if archive.parent == folder}
    missing = [name for name, *_ in known if name not in there]
    others = sorted(there.keys() - {name for name, *_ in known})
    if missing:
        raise DataError(f"{safe(folder)}: shards are missing: {quoted(missing)}; fetch or pack them again")
    if others:
        raise DataError(f"{safe(folder)}: shards that its manifest does not know: {quoted(others)}; move them away")
    for name, size, _ in known:
        found = signature(there[name])
        if found is None or found.size != size:
            raise DataError(f"{safe(folder / name)} is not as large as its manifest says: fetch or pack it again")


def damaged(folder: Root) -> Iterator[str]:
    """The shards whose bytes are not those that were packed; each is read whole."""
    for name, _, known in listed(folder) or ():
        with open_file(folder / name) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known:  # type: ignore[arg-type]
                yield name
