"""Which labelled images a command means: the splits of a data set by name, and the one that is scored.

Knows no models. Reading is `data.sources`'; what it demands for training (images of every class) is not asked here.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vitcli.data.samples import Progress, Samples, Split, Splits
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import DataError
from vitcli.text import safe


def open_splits(
    path: str | Path, wanted: Collection[Split] = (), folders: str | None = None, *, progress: Progress | None = None
) -> Splits:
    """The splits at `path`, those `wanted` among them; `folders` as in `read_splits`. Raises DataError without one.

    A validation split that is asked for and not there is drawn from train, as `vit train` draws it by default: the
    same images, and train is what remains. `progress` is told of the reading that this takes.
    """
    found = read_splits(path, folders=folders)
    if "val" in wanted and "val" not in found.named and "train" in found.named:
        data = open_data(path, folders=folders, progress=progress)
        named: dict[Split, Samples] = {"train": data.train, "val": data.val}
        if data.test is not None:
            named["test"] = data.test
        note = f"val: {len(data.val)} of {len(data.train) + len(data.val)} training images, those of `vit train`"
        found = replace(found, named=cast(Any, named), notes=(*found.notes, f"{note} with its defaults"))
    for split in wanted:
        if split not in found.named:
            raise DataError(f"{safe(path)} has no {split} split, only {', '.join(found.named)}")
    return found


def scored_split(found: Splits, asked: Split | None, used: Split | None = None) -> Split:
    """The split that is scored: the one asked for, else test, val, or whatever there is, in this order.

    One that is `used` already comes last.
    """
    if asked is not None:
        return asked
    order: tuple[Split, ...] = ("test", "val", "train")
    there = [split for split in order if split in found.named]
    return next((split for split in there if split != used), there[0])
