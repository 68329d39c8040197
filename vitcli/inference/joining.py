"""The parts of all shards as one result: found to be complete and of one kind, then read in the order of the list.

for row in join(folder, form).rows: ...  # as one process would have made them
"""

import hashlib
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic

import numpy as np

from vitcli.errors import CheckpointError, VitError
from vitcli.files import LEFTOVER, sync_folder
from vitcli.inference.parts import NAME, Form, Head, Row, add_name, damaged, difference, entries, part_name, read_head
from vitcli.inference.shards import Shard
from vitcli.text import plural, safe

POLL = 0.2  # seconds between two looks at what other processes have done


@dataclass(frozen=True, eq=False)
class Joined(Generic[Row]):
    """The rows of all parts of a folder, which were found to be all."""

    about: dict[str, Any]  # what they were made with
    images: int
    failed: int
    rows: Iterator[Row]  # in the order of the list


def join(folder: Path, form: Form[Row], *, option: str = "--shard") -> Joined[Row]:
    """The parts in `folder` as one result. Raises VitError for one that is missing, doubled or of something else.

    `option` is what is said to make a missing one.
    """
    if not folder.is_dir():
        raise VitError(f"{safe(folder)}: no such folder")
    shards: dict[int, list[Head]] = {}
    about: dict[str, Any] | None = None
    first: Path | None = None
    seen: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    failed, whole = 0, None
    for path in sorted(entries(folder, form)):
        head, own = read_head(path, form)
        if about is None:
            about, first = own, path
        if differs := difference(own, about):
            raise VitError(f"{safe(path)} was made with {differs} (as {safe(first)} was): these are not one result")
        if head.whole is not None and whole not in (None, head.whole):
            raise VitError(f"{safe(path)} is of another list of images than other shards: these are not one result")
        whole = whole or head.whole
        failed += head.failed
        shards.setdefault(head.index, []).append(head)
    if about is None:
        raise VitError(f"{safe(folder)} holds no parts that end in {form.ending}")
    count = next(iter(shards.values()))[0].count
    for index in range(count):
        _require_whole(folder, shards.get(index, []), Shard(index, count), option)
    assert whole is not None
    seen = np.zeros(whole.images, bool)
    for head in chain.from_iterable(shards.values()):
        places = np.array(head.positions, np.int64)
        if len(places) and (places[-1] >= len(seen) or seen[places].any()):
            raise VitError(f"{safe(folder / head.name)}{form.ending}: its images are in other parts, too")
        seen[places] = True
    if not seen.all():
        raise VitError(f"{safe(folder)}: {plural(int((~seen).sum()), 'image')} of the list are in none of the parts")
    names = [[head.name + form.ending for head in heads] for heads in shards.values()]
    streams = [_placed([folder / name for name in one], form) for one in names]
    rows = (row for _, row in heapq.merge(*streams, key=lambda placed: placed[0]))
    return Joined(about, whole.images, failed, rows)


def _require_whole(folder: Path, heads: list[Head], shard: Shard, option: str) -> None:
    """Raises VitError where a part of a shard is missing, or one is left of something else; sorts `heads`."""
    again = f"`{option} {shard}` makes it" if option == "--shard" else option
    if any(head.count != shard.count for head in heads):
        raise VitError(f"{safe(folder)} holds parts of {shard.count} shards and of others: these are not one result")
    heads.sort(key=lambda head: head.number)
    ended = [head.number for head in heads if head.whole is not None]
    there = {head.number for head in heads}
    missing = sorted(set(range(max(there, default=-1) + 1)) - there)
    if missing:
        name = part_name(shard, missing[0])
        raise VitError(f"{safe(folder)}: {name} is missing: {again}")
    if not ended:
        raise VitError(f"{safe(folder)}: shard {shard} is not done: {again}")
    if ended != [heads[-1].number] or len(there) != len(heads):
        raise VitError(f"{safe(folder)}: shard {shard} has parts of two lists of images: these are not one result")


def _placed(paths: Sequence[Path], form: Form[Row]) -> Iterator[tuple[int, Row]]:
    """The rows of one shard, each with its place in the list."""
    for path in paths:
        head, _ = read_head(path, form)
        try:
            rows = form.rows(path)
        except (VitError, ValueError) as error:
            raise damaged(path, error) from None
        names = hashlib.sha256()
        for row in rows:
            add_name(names, form.name(row))
        if len(rows) != len(head.positions) or names.hexdigest() != head.names:
            raise damaged(path, CheckpointError("its rows are not those that it names"))
        yield from zip(head.positions, rows, strict=True)


def remove(folder: Path) -> None:
    """Remove the parts of `folder`, and it where nothing else is in it."""
    for path in [*folder.iterdir()]:
        if NAME.match(path.name) or path.match(LEFTOVER):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
        sync_folder(folder.parent)


def wait_for_all(folder: Path, count: int) -> None:
    """Return when each of `count` shards has its last part. Of a dead one, whoever started it ends the wait."""
    while True:
        ended = {found[1] for path in folder.iterdir() if (found := NAME.match(path.name)) and found[4]}
        if len(ended) >= count:
            return
        time.sleep(POLL)
