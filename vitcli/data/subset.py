"""A share of the training images: stratified, and nested in every larger share of the same seed."""

from dataclasses import replace
from typing import cast

import numpy as np

from vitcli.data.samples import ArraySamples, DataSet, FileSamples


def subset(data: DataSet, share: float, seed: int = 0) -> DataSet:
    """`data` with `share` (0 to 1] of each class's training images, at least one; validation and test stay whole.

    Each class is put in an order that `seed` draws once, and the first of it are taken: what 3 % holds, 10 % holds.
    """
    train = cast("ArraySamples | FileSamples", data.train)
    keep = np.zeros(len(train), bool)
    for label in range(len(data.classes)):
        members = np.flatnonzero(train.labels == label)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        keep[members[order[: max(1, round(share * len(members)))]]] = True
    return replace(data, train=train.keep(keep))
