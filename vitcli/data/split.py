"""Parts of the training images: those that validate when a data set does not say so itself, and a share to learn from.

A sample goes to validation by its content, not by its place: adding or renaming files moves no other sample, and
exact copies of an image land on one side. A share is one of each class, nested in every larger share of the same seed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vitcli.data.samples import DataSet, require_one_label
from vitcli.errors import UsageError


def content_split(
    digests: Sequence[bytes], labels: npt.NDArray[np.int64], fraction: float, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Mask (N,) of the samples that validate: about `fraction` of each class.

    `digests` are hashes of the images' content, (N,). A content validates when its rank, a number in [0, 1)
    drawn from (seed, digest), lies below `fraction`. Then each class gets at least one to train on and, when it
    has two, one to validate, by rank; only in classes that small can new files move an old one. Raises UsageError.
    """
    if not 0.0 <= fraction < 1.0:
        raise UsageError(f"validation fraction {fraction} is not at least 0 and below 1")
    if fraction == 0.0:
        return np.zeros(len(digests), dtype=bool)
    key = seed.to_bytes(8, "little", signed=True)
    rank = {
        digest: int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest()) / 2**64 for digest in digests
    }
    chosen = {digest for digest, value in rank.items() if value < fraction}
    # (K, N)
    members = labels.T.astype(bool) if labels.ndim == 2 else labels == np.unique(labels)[:, None]
    of_class = [sorted({digests[i] for i in np.flatnonzero(one).tolist()}, key=rank.__getitem__) for one in members]
    for contents in of_class:
        if contents and all(content in chosen for content in contents):
            chosen.remove(contents[-1])
        elif len(contents) > 1 and not any(content in chosen for content in contents):
            chosen.add(contents[0])
    if labels.ndim == 2:  # what was added for one label may have been the last of another: training goes before
        for contents in of_class:
            if contents and all(content in chosen for content in contents):
                chosen.remove(contents[-1])
    return np.array([digest in chosen for digest in digests], dtype=bool)


def subset(data: DataSet, share: float, seed: int = 0) -> DataSet:
    """`data` with `share` (0 to 1] of each class's training images, at least one; validation and test stay whole.

    Each class is put in an order that `seed` draws once, and the first of it are taken: what 3 % holds, 10 % holds.
    """
    keep = np.zeros(len(data.train), bool)
    require_one_label(data, "a share of each class's images")
    for label in range(len(data.classes)):
        members = np.flatnonzero(data.train.labels == label)
        order = np.random.default_rng((seed, label)).permutation(len(members))
        keep[members[order[: max(1, round(share * len(members)))]]] = True
    return replace(data, train=data.train.keep(keep))
