"""Which shards a user means, and how each kind of them is read: tar archives and Parquet files."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitcli.data.layout import quoted
from vitcli.data.samples import Splits
from vitcli.data.shards import read_shards
from vitcli.errors import AmbiguousData, DataError
from vitcli.images.find import ARCHIVES, natural_key, walk
from vitcli.storage.named import expanded, is_address
from vitcli.storage.remote import Remote, Root, matching
from vitcli.text import safe


def named_archives(text: str) -> list[Root]:
    """What a pattern with braces or a glob means: shards, in order. Raises DataError."""
    found: list[Any] = []
    for one in expanded(text):
        if not glob.has_magic(one):
            found.append(Remote(one) if is_address(one) else Path(one))
        elif is_address(one):
            found += sorted(matching(one), key=lambda remote: natural_key(remote.address))
        else:
            found += [Path(name) for name in sorted(glob.glob(one, recursive=True), key=natural_key)]
    if not found:
        raise DataError(f"{safe(text)} matches nothing")
    others = [str(one) for one in found if not one.name.casefold().endswith(ARCHIVES)]
    if others:
        raise DataError(f"{safe(text)} means {quoted(others[:3])}, which are no shards ({', '.join(ARCHIVES)})")
    return list(dict.fromkeys(found))


def archives_in(folder: Root) -> list[Root]:
    """The shards in a folder and below, in natural order."""
    return list(walk(folder, suffixes=ARCHIVES))


def read_archives(root: Root, archives: Sequence[Root]) -> Splits:
    """The images in shards of one kind that were found at `root`. Raises DataError."""
    kinds = sorted({archive.suffix.casefold() for archive in archives})
    if len(kinds) > 1:
        raise AmbiguousData(
            f"{safe(root)} holds shards of two kinds, {quoted(kinds)}", f"name one kind, as '{safe(root)}/*{kinds[0]}'"
        )
    return read_shards(root, archives)
