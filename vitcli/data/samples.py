"""What a data set is once it has been read: classes, splits and samples that can be asked for an image.

Knows nothing of file layouts (they are in `idx`, `folders` and `manifest`), of batches or of augmentation.

Legend: C channels, H W pixels, K classes, N samples.
"""

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitcli.errors import DataError, ImageError
from vitcli.files import Where, content_hash, signature
from vitcli.images.copies import Copies, Rule
from vitcli.images.decode import Shrink, image_size, open_image
from vitcli.images.preprocess import Preprocess, load, load_reduced
from vitcli.storage.remote import Root
from vitcli.text import safe

Kind = Literal["idx", "folders", "manifest", "shards"]
Split = Literal["train", "val", "test"]
Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]  # done, of how many
Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class Samples(Protocol):
    """One split, in a fixed order: N labelled images."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels:
        """Class indices, (N,); where several classes may hold for an image 0 and 1, (N, K)."""

    @property
    def fingerprint(self) -> str:
        """Changes when an image, a label or the order does; the same on every machine that holds the same data."""

    def image(self, i: int, shrink: Shrink | None = None) -> Image.Image:
        """Image `i`, upright, RGB; in full unless there is a copy of it (`vitcli.images.copies`), or `shrink` is given.

        That is told the size of the whole picture where it may come smaller. Raises ImageError.
        """

    def reduced(self, i: int, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        """Image `i` resized and cropped for training, uint8 (H, W, C), decoded no larger than needed.

        Raises ImageError.
        """

    def load(self, i: int, preprocess: Preprocess, *, exact: bool = False) -> npt.NDArray[np.float32]:
        """Image `i` as a model sees it, float32 (C, H, W): what `preprocess.load` gives for its file.

        Raises ImageError.
        """

    def name(self, i: int) -> str:
        """Where image `i` comes from, for messages and reports."""


@dataclass(frozen=True)
class Sample:
    """One of some samples, of which nothing has been read yet."""

    samples: Samples
    index: int


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Gray images held in memory."""

    images: npt.NDArray[np.uint8]  # (N, H, W)
    labels: Labels
    source: str  # file that the images were read from
    indices: Labels  # position of each image in that file, (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int, shrink: Shrink | None = None) -> Image.Image:
        return Image.fromarray(self.images[i]).convert("RGB")

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of image `i`."""
        height, width = self.images[i].shape[:2]
        return width, height

    def reduced(self, i: int, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        return preprocess.pixels(self.image(i))

    def load(self, i: int, preprocess: Preprocess, *, exact: bool = False) -> npt.NDArray[np.float32]:
        return preprocess(self.image(i), exact=exact)

    def name(self, i: int) -> str:
        return f"{self.source}[{self.indices[i]}]"

    @property
    def contents(self) -> list[bytes]:
        """A hash of each image, (N,)."""
        return [hashlib.blake2b(image, digest_size=16).digest() for image in self.images]

    @property
    def groups(self) -> None:
        """Nobody says what the images of such files belong to."""

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def keep(self, mask: npt.NDArray[np.bool_]) -> "ArraySamples":
        """The samples where `mask` (N,) is true, in the same order."""
        return replace(self, images=self.images[mask], labels=self.labels[mask], indices=self.indices[mask])


class Places(Protocol):
    """Where images lie that are not in files of their own names, in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Where: ...

    def take(self, rows: Labels) -> "Places":
        """Those at `rows`, in that order."""

    def joined(self, *others: Any) -> "Places":
        """These and then the `others`, of the same kind."""

    def hashes(self) -> list[bytes] | None:
        """Of each image's bytes, (N,), where they are known without reading them."""

    def digest(self) -> bytes:
        """Changes when a name or a size does."""


@dataclass(frozen=True)
class Addresses(Sequence[str]):
    """What images in archives are called."""

    places: Places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: Any) -> Any:
        return str(self.places[i])


@dataclass(frozen=True, eq=False)
class FileSamples:
    """Images in files, read when asked for."""

    root: Root
    names: Sequence[str]  # paths, relative to root or absolute, or what they are called where `places` has them, (N,)
    labels: Labels
    contents: list[bytes] | None = None  # a hash of each file, (N,), where the split was drawn from it
    groups: tuple[str, ...] | None = None  # what each image belongs to, "" for nothing, (N,); None: nobody says
    copies: Copies | None = None  # what is read instead of the files where it will do
    places: Places | None = None  # where each image is, if it is in no file of its own below root, (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> Where:
        """Where image `i` lies."""
        return self.root / self.names[i] if self.places is None else self.places[i]

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of image `i`, of which only the header is read, as they lie in it. Raises ImageError."""
        return image_size(self.path(i))

    def image(self, i: int, shrink: Shrink | None = None) -> Image.Image:
        if self.copies and self.copies.rule.least < 1:
            image, whole = self.copies.image(self.path(i))
            if shrink:
                shrink(*whole)
            return image
        return open_image(self.path(i), shrink=shrink)

    def reduced(self, i: int, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        if self.copies and self.copies.rule.least < 1:
            image, whole = self.copies.image(self.path(i))
            return preprocess.pixels(image, whole=whole)
        if self.copies and self.copies.rule == Rule(preprocess, reduced=True):
            return self.copies.copy(self.path(i)).pixels
        return load_reduced(self.path(i), preprocess)

    def load(self, i: int, preprocess: Preprocess, *, exact: bool = False) -> npt.NDArray[np.float32]:
        if self.copies and self.copies.rule == Rule(preprocess) and not exact:
            return preprocess.normalised(self.copies.copy(self.path(i)).pixels)
        return load(self.path(i), preprocess, exact=exact)

    def name(self, i: int) -> str:
        return str(self.path(i))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, labels and contents where those were hashed, of names, labels and sizes otherwise.

        Groups count where there are any. Times do not count, so that a copy of the data on another disk resumes a run.
        """
        digest = hashlib.sha256()
        if self.places is not None:
            digest.update(self.places.digest())
            digest.update(np.ascontiguousarray(self.labels, "<i8").data)
            digest.update("\0".join(self.groups or ()).encode("utf-8", "surrogatepass"))
            return digest.hexdigest()
        for i, name in enumerate(self.names):
            content = self.contents[i].hex() if self.contents else _size(self.path(i))
            label = ",".join(map(str, np.flatnonzero(self.labels[i]))) if self.labels.ndim == 2 else self.labels[i]
            digest.update(f"{name}\0{label}\0{content}\0".encode("utf-8", "surrogateescape"))
            if self.groups:
                digest.update(f"{self.groups[i]}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def hashed(self, progress: Progress | None = None) -> "FileSamples":
        """The same samples with `contents`. Reads every file; for one that cannot be read its name is hashed."""
        known = self.contents or (self.places and self.places.hashes())
        if known:
            return replace(self, contents=known)
        contents = []
        for i, name in enumerate(self.names):
            try:
                contents.append(content_hash(self.path(i)))
            except OSError:  # decoding will report it, in its place
                contents.append(_content_hash(name.encode("utf-8", "surrogateescape")).digest())
            if progress:
                progress(i + 1, len(self.names))
        return replace(self, contents=contents)

    def keep(self, mask: npt.NDArray[np.bool_]) -> "FileSamples":
        """The samples where `mask` (N,) is true, in the same order."""
        rows = np.flatnonzero(mask)
        kept, labels, places = rows.tolist(), self.labels[mask], self.places and self.places.take(rows)
        names = tuple(self.names[i] for i in kept) if places is None else Addresses(places)
        contents = None if self.contents is None else [self.contents[i] for i in kept]
        groups = None if self.groups is None else tuple(self.groups[i] for i in kept)
        return replace(self, names=names, labels=labels, contents=contents, groups=groups, places=places)

    def joined(self, other: "FileSamples") -> "FileSamples":
        """These samples and then those of `other`, of the same root; what one of them lacks, both lack."""
        contents = None if self.contents is None or other.contents is None else [*self.contents, *other.contents]
        groups = None if self.groups is None or other.groups is None else (*self.groups, *other.groups)
        labels = np.concatenate([self.labels, other.labels])
        places = self.places and self.places.joined(other.places)
        names = (*self.names, *other.names) if places is None else Addresses(places)
        return replace(self, names=names, labels=labels, contents=contents, groups=groups, places=places)


Stored = ArraySamples | FileSamples


@dataclass(frozen=True, eq=False)
class Splits:
    """What a reader found, before anything is asked of it: any split may be missing, any class empty."""

    root: Root
    kind: Kind
    classes: tuple[str, ...]  # of all splits, in the order of labels
    named: Mapping[Split, Stored]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # what holds images and stands in no split
    known: int = 0  # so many of the classes, the first, are known to a model already and need no training images

    @property
    def multi_label(self) -> bool:
        """Whether several classes may hold for one image."""
        return any(samples.labels.ndim == 2 for samples in self.named.values())


@dataclass(frozen=True, eq=False)
class DataSet:
    """What training needs. `classes[label]` is the name of a label; every class but the `known` has training images."""

    root: Root
    kind: Kind
    classes: tuple[str, ...]
    train: Stored
    val: Stored  # may be empty
    test: Stored | None = None
    notes: tuple[str, ...] = ()  # what a user should know before training starts
    known: int = 0  # so many of the classes, the first, the model knows already

    @property
    def multi_label(self) -> bool:
        """Whether several classes may hold for one image."""
        return self.train.labels.ndim == 2

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the classes and of all splits."""
        parts = [
            *self.classes,
            *("" if split is None else split.fingerprint for split in (self.train, self.val, self.test)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def side(self) -> int:
        """`usual_side` of the training images, for which the headers of some are read."""
        return usual_side(self.train)

    @property
    def counts(self) -> dict[Split, tuple[int, ...]]:
        """Images of each class in each split that there is, (K,)."""
        splits: dict[Split, Stored | None] = {"train": self.train, "val": self.val, "test": self.test}
        return class_counts({split: part for split, part in splits.items() if part is not None}, len(self.classes))


def class_counts(named: Mapping[Split, Samples], classes: int) -> dict[Split, tuple[int, ...]]:
    """Images of each of `classes` classes, (K,), in each split, in the order train, val, test."""
    return {
        split: tuple(label_counts(named[split].labels, classes).tolist()) for split in get_args(Split) if split in named
    }


def label_counts(labels: Labels, classes: int) -> Labels:
    """Images of each class, (K,), of `labels` (N,) or (N, K)."""
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def multi_hot(labels: Labels, classes: int) -> Labels:
    """`labels` (N,) as 0 and 1, (N, K); such ones as they are."""
    return labels if labels.ndim == 2 else np.eye(classes, dtype=np.int64)[labels]


def labelled(label: Any, classes: Sequence[str]) -> str:
    """The class of an image by its `label`; where several may hold (0 and 1 for each), they with semicolons."""
    return ";".join(classes[k] for k in np.flatnonzero(label).tolist()) if np.ndim(label) else classes[label]


def with_many_labels(found: Splits) -> Splits:
    """`found`, of whose images each may have several labels, whether any has or not."""
    named = {
        split: replace(samples, labels=multi_hot(samples.labels, len(found.classes)))
        for split, samples in found.named.items()
    }
    return replace(found, named=named)


def require_one_label(data: Splits | DataSet, what: str) -> None:
    """Raises DataError where several classes may hold for an image of `data`, which `what` does not know."""
    if data.multi_label:
        raise DataError(f"{safe(data.root)} gives several labels an image, and {what} is for one class an image")


def usual_side(samples: Stored) -> int:
    """Pixels: the median of the shorter sides of the first 16 images, those left out that cannot be read.

    Raises ImageError when none of them can.
    """
    sides, unreadable = [], None
    for i in range(min(16, len(samples))):
        try:
            sides.append(min(samples.size(i)))
        except ImageError as error:
            unreadable = error
    if unreadable and not sides:
        raise unreadable
    return int(statistics.median(sides))


def _content_hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def _size(path: Where) -> int:
    found = signature(path)
    return -1 if found is None else found.size
