"""What a data set is once it has been read: classes, splits and samples that can be asked for an image.

Knows nothing of file layouts (they are in `idx`, `folders` and `manifest`), of batches or of augmentation.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Kind = Literal["idx", "folders", "manifest"]
Labels = npt.NDArray[np.int64]


class Samples(Protocol):
    """One split, in a fixed order: N labelled images."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels:
        """Class indices, (N,)."""

    @property
    def fingerprint(self) -> str:
        """Changes when an image, a label or the order does; the same on every machine that holds the same data."""

    def image(self, i: int) -> Image.Image:
        """Image `i`, decoded in full, upright, RGB. Raises ImageError."""

    def name(self, i: int) -> str:
        """Where image `i` comes from, for messages and reports."""


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Gray images held in memory: `images` uint8 (N, H, W)."""

    images: npt.NDArray[np.uint8]
    labels: Labels
    source: str  # file that the images were read from
    indices: Labels  # position of each image in that file, (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.images[i]).convert("RGB")

    def name(self, i: int) -> str:
        return f"{self.source}[{self.indices[i]}]"

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def keep(self, mask: npt.NDArray[np.bool_]) -> "ArraySamples":
        """The samples where `mask` (N,) is true, in the same order."""
        return replace(self, images=self.images[mask], labels=self.labels[mask], indices=self.indices[mask])


@dataclass(frozen=True, eq=False)
class DataSet:
    """Everything that one `--data` argument names. `classes[label]` is the name of a label."""

    root: Path
    kind: Kind
    classes: tuple[str, ...]
    train: Samples
    val: Samples
    test: Samples | None = None
    notes: tuple[str, ...] = field(default=())  # what a user should know before training starts

    @cached_property
    def fingerprint(self) -> str:
        """Of the classes and all splits."""
        splits: Sequence[Samples | None] = (self.train, self.val, self.test)
        parts = [*self.classes, *("" if split is None else split.fingerprint for split in splits)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
