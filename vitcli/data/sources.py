"""`open_data`: whatever a user names with `--data` → `DataSet`. Decides what a path is; the readers are beside it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitcli.data.idx import class_names as idx_class_names
from vitcli.data.idx import find_idx, read_split
from vitcli.data.samples import ArraySamples, DataSet
from vitcli.data.split import content_split
from vitcli.errors import DataError
from vitcli.text import safe


def open_data(
    path: str | Path, *, val_fraction: float = 0.1, seed: int = 0, class_names: Sequence[str] | None = None
) -> DataSet:
    """Read the data set at `path`. Where it has no validation split, `val_fraction` of train becomes one, by content.

    `seed` draws another such split. `class_names` name the labels 0, 1, … of IDX files. Raises DataError.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{safe(root)} is not a folder")
    if find_idx(root):
        return _open_idx(root, val_fraction, seed, class_names)
    raise DataError(f"{safe(root)} holds no data set: expected MNIST-style IDX files")


def _open_idx(root: Path, val_fraction: float, seed: int, names: Sequence[str] | None) -> DataSet:
    splits = {split: read_split(*files) for split, files in find_idx(root).items()}
    if "train" not in splits:
        raise DataError(f"{safe(root)} holds no training images (train-images-idx3-ubyte[.gz])")
    train, notes = splits["train"], []
    seen = np.unique(np.concatenate([samples.labels for samples in splits.values()]))
    known = idx_class_names(root, train.labels, names)
    if known is None:
        classes = tuple(str(number) for number in seen)
        splits = {split: _relabel(samples, seen) for split, samples in splits.items()}
        train = splits["train"]
    else:
        classes = known
        if seen[-1] >= len(classes):
            raise DataError(f"{safe(root)} has labels up to {seen[-1]} but only {len(classes)} class names")
    if "val" in splits:
        val = splits["val"]
    else:
        digests = [hashlib.blake2b(image, digest_size=16).digest() for image in train.images]
        mask = content_split(digests, train.labels, val_fraction, seed)
        train, val = train.keep(~mask), train.keep(mask)
        notes.append(f"{len(val)} of {len(mask)} training images validate, chosen by content")
    return DataSet(root, "idx", classes, train, val, splits.get("test"), tuple(notes))


def _relabel(samples: ArraySamples, numbers: npt.NDArray[np.int64]) -> ArraySamples:
    """Labels as positions in the sorted `numbers` that occur."""
    return replace(samples, labels=np.searchsorted(numbers, samples.labels).astype(np.int64))
