"""Parts of the images: those that validate when a data set does not say so itself, folds, and a share to learn from.

A sample goes to validation by its content, not by its place: adding or renaming files moves no other sample, and
exact copies of an image land on one side, as do the images of one group. A share is one of each class, nested in every
larger share of the same seed.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vitcli.data.samples import DataSet, Labels, require_one_label
from vitcli.errors import UsageError

DEALS = 20  # tries to bring every class into two folds


def together(contents: Sequence[bytes], groups: Sequence[str] | None) -> list[bytes]:
    """A key of each image, (N,), the same for those that have to stay on one side of every split.

    `contents` are hashes of the images, (N,); an image alone has its own as its key. `groups` are names of what images
    belong to, such as a patient, "" for none. A copy in two groups joins them.
    """
    if groups is None:
        return list(contents)
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = parent[key]
        return key

    # A group comes before every content, so that a name, and not which images it has, decides where it goes.
    marked = [b"0" + name.encode("utf-8", "surrogatepass") if name else b"" for name in groups]
    for content, group in zip(contents, marked, strict=True):
        first, *others = sorted({root(b"1" + content), *([root(group)] if group else [])})
        parent.update(dict.fromkeys(others, first))
    return [key[1:] if (key := root(b"1" + content))[:1] == b"1" else key for content in contents]


def content_split(
    digests: Sequence[bytes], labels: npt.NDArray[np.int64], fraction: float, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Mask (N,) of the samples that validate: about `fraction` of each class.

    `digests` are hashes of the images' content, (N,), or keys of `together`; samples with the same one stay on one
    side. One validates when its rank, a number in [0, 1) drawn from (seed, digest), lies below `fraction`. Then each
    class gets at least one to train on and, when it has two, one to validate, by rank; only in classes that small can
    new files move an old one. Where a digest is that of several classes, training comes first. Raises UsageError.
    """
    if not 0.0 <= fraction < 1.0:
        raise UsageError(f"validation fraction {fraction} is not at least 0 and below 1")
    if fraction == 0.0:
        return np.zeros(len(digests), dtype=bool)
    rank = _ranks(digests, seed)
    chosen = {digest for digest, value in rank.items() if value < fraction}
    # (K, N)
    members = labels.T.astype(bool) if labels.ndim == 2 else labels == np.unique(labels)[:, None]
    classes = [sorted({digests[i] for i in np.flatnonzero(one).tolist()}, key=rank.__getitem__) for one in members]
    for contents in classes:
        if len(contents) > 1 and not any(content in chosen for content in contents):
            chosen.add(contents[0])
    for contents in classes:
        if contents and all(content in chosen for content in contents):
            chosen.remove(contents[-1])
    return np.array([digest in chosen for digest in digests], dtype=bool)


def folds(keys: Sequence[bytes], labels: Labels, k: int, seed: int = 0) -> Labels:
    """The fold of each sample, from 0 to k − 1, (N,): about the same share of each class in all of them.

    `labels` are (N,) or, where several may hold, (N, K) of 0 and 1. Samples with the same key (see `together`) lie in
    one fold. The order of the samples does not matter. A class whose
    samples have two keys or more lies in two folds at least, if that was found to be possible (`in_one_fold`).
    """
    found = np.zeros(len(labels), np.int64)
    for attempt in range(DEALS):
        found = _dealt(keys, labels, k, seed + attempt)
        if not set(in_one_fold(found, labels)) & _of_several_keys(keys, labels):
            break
    return found


def in_one_fold(found: Labels, labels: Labels) -> list[int]:
    """The classes of which all samples lie in one fold: those who learn from the others never see them."""
    seen: defaultdict[int, set[int]] = defaultdict(set)
    for fold, own in zip(found.tolist(), _classes_of(labels), strict=True):
        for label in own:
            seen[label].add(fold)
    return sorted(label for label, where in seen.items() if len(where) < 2)


def _classes_of(labels: Labels) -> list[list[int]]:
    """The classes of each sample, by `labels` (N,) or, where several may hold, (N, K) of 0 and 1."""
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [np.flatnonzero(row).tolist() for row in labels]


def _of_several_keys(keys: Sequence[bytes], labels: Labels) -> set[int]:
    seen: defaultdict[int, set[bytes]] = defaultdict(set)
    for key, own in zip(keys, _classes_of(labels), strict=True):
        for label in own:
            seen[label].add(key)
    return {label for label, where in seen.items() if len(where) > 1}


def _dealt(keys: Sequence[bytes], labels: Labels, k: int, seed: int) -> Labels:
    """Keys one by one, the largest first, each to the fold that has the least of its classes, of equals the smallest.

    What counts is the share of a class that a fold has and gets, so that rare classes weigh as much as large ones.
    """
    members: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(i)
    rank, classes = _ranks(keys, seed), _classes_of(labels)
    n = Counter(label for own in classes for label in own)
    of_class, of_all = [Counter[int]() for _ in range(k)], [0] * k
    found = np.zeros(len(labels), np.int64)
    for key in sorted(members, key=lambda key: (-len(members[key]), rank[key])):
        own = Counter(label for i in members[key] for label in classes[i])
        filled = [sum(count / n[label] * (fold[label] / n[label]) for label, count in own.items()) for fold in of_class]
        least = min(range(k), key=lambda fold: (filled[fold], of_all[fold]))
        of_class[least].update(own)
        of_all[least] += len(members[key])
        found[members[key]] = least
    return found


def _ranks(digests: Sequence[bytes], seed: int) -> dict[bytes, float]:
    """A number in [0, 1) for each digest, drawn from it and `seed`."""
    key = seed.to_bytes(8, "little", signed=True)
    return {
        digest: int.from_bytes(hashlib.blake2b(digest, digest_size=8, key=key).digest()) / 2**64
        for digest in set(digests)
    }


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
