"""Copies of images that are made once: as large as training needs them, as plain bytes, in memory or in files.

A copy is defined by its original and a `Rule`; where it is kept changes no bit, nor does whether it is there already.
One that cannot be kept, or is damaged, is made again each time. A record is checked by a sum, so a writer that was
killed leaves nothing that is taken for whole; and by what the file system says of the original, so that a file that
changed is copied again.

Legend: C channels, H W pixels.
"""

import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess, load_reduced

Pixels = npt.NDArray[np.uint8]  # (H, W, C)

LAYOUT = 1  # of a record and of what a rule means; another number means other copies
MARGIN = 2  # a JPEG is decoded with at least so many times the pixels of its copy, on each side
_HEAD = struct.Struct("<4sIqqQHHB")  # magic, sum, size, mtime and inode of the original, H, W, C
_MAGIC = b"vitC"


@dataclass(frozen=True)
class Rule:
    """What is kept of an image, so that `preprocess` can be done to it, or a random part of it be cut out."""

    preprocess: Preprocess
    least: float = 1.0  # share of the area of the smallest random part; 1: what evaluation sees, and nothing else
    reduced: bool = False  # decode JPEGs no larger than needed, as training does

    @property
    def pixels(self) -> int:
        """How many a copy has at most.

        The smallest random part, of sides as unequal as 4 to 3, has no fewer on either side than the model.
        """
        height, width = self.preprocess.size
        return height * width if self.least == 1 else math.ceil(4 / 3 * height * width / self.least)

    @property
    def bytes(self) -> int:
        """How many a record takes at most."""
        return _HEAD.size + self.pixels * (self.preprocess.in_chans if self.least == 1 else 3)

    @cached_property
    def name(self) -> str:
        """A digest of all that the bytes of a copy depend on beside its original: this rule, and who decodes."""
        seen = self.preprocess
        geometry = (seen.size, seen.crop_pct, seen.crop_mode, seen.interpolation, seen.crop_margin, seen.in_chans)
        fill = seen.mean if seen.crop_mode == "border" else ()
        jpeg = features.version("libjpeg_turbo") or features.version("jpg")
        what = (LAYOUT, self.least, self.reduced, geometry, fill, PIL.__version__, jpeg)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]

    def copy(self, path: Path) -> Pixels:
        """The copy of the image in `path`, (H, W, C). Raises ImageError."""
        if self.least < 1:
            return np.asarray(self._smaller(path))
        return load_reduced(path, self.preprocess) if self.reduced else self.preprocess.pixels(open_image(path))

    def _smaller(self, path: Path) -> Image.Image:
        """The whole image, RGB, with no more than `self.pixels`."""
        whole: tuple[int, int] | None = None

        def shrink(width: int, height: int) -> float:
            nonlocal whole
            whole = width, height
            return math.sqrt(width * height / self.pixels) / MARGIN

        image = open_image(path, shrink=shrink)
        width, height = whole or image.size
        ratio = math.sqrt(self.pixels / (width * height))
        if ratio >= 1:
            return image
        return image.resize(
            (max(1, min(int(width * ratio), self.pixels)), max(1, min(int(height * ratio), self.pixels))),
            Image.Resampling.LANCZOS,
        )


class Store(Protocol):
    """Where records are kept. Neither call ever raises for what the place does not hold or take."""

    def read(self, key: str) -> bytes | None:
        """The record of that key as it was written, or None; what a dying writer left may come, too."""

    def write(self, key: str, record: bytes) -> None:
        """Keep the record, if there is room for it."""


@dataclass(frozen=True, eq=False)
class Copies:
    """The copies by one rule, each made when it is first asked for. Many processes and threads may share a store."""

    rule: Rule
    store: Store
    known: dict[str, tuple[int, int, int]]  # the originals by path: size, mtime in ns, inode

    def pixels(self, path: Path) -> Pixels:
        """The copy of the image in `path`, (H, W, C). Raises ImageError where there is none yet and none can be made.

        The file itself is not opened where there is a copy of it as it was when `known` was.
        """
        key = os.path.abspath(path)
        original = self.known.get(key) or signature(key)
        record = self.store.read(key)
        kept = None if record is None or original is None else _pixels(record, original)
        if kept is None:
            kept = self.rule.copy(path)
            if original is not None:
                self.store.write(key, _record(kept, original))
        return kept

    def image(self, path: Path) -> Image.Image:
        """The copy of the image in `path`, as an RGB image. Raises ImageError."""
        return Image.fromarray(self.pixels(path).squeeze()).convert("RGB")


def signature(path: str) -> tuple[int, int, int] | None:
    """What tells that a file was changed or replaced: size, mtime in ns, inode. None without such a file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def signatures(paths: Iterable[Path]) -> dict[str, tuple[int, int, int]]:
    """`Copies.known` for the files that are there."""
    found = {key: signature(key) for key in map(os.path.abspath, paths)}
    return {key: one for key, one in found.items() if one is not None}


def _record(pixels: Pixels, original: tuple[int, int, int]) -> bytes:
    data = np.ascontiguousarray(pixels).tobytes()
    size, mtime, inode = original
    head = _HEAD.pack(_MAGIC, 0, size, mtime, inode, *pixels.shape)
    return _HEAD.pack(_MAGIC, zlib.crc32(data, zlib.crc32(head)), size, mtime, inode, *pixels.shape) + data


def _pixels(record: bytes, original: tuple[int, int, int]) -> Pixels | None:
    """The copy in a record, unless that is damaged or of another `original`."""
    if len(record) < _HEAD.size:
        return None
    magic, known_sum, size, mtime, inode, height, width, channels = _HEAD.unpack_from(record)
    if magic != _MAGIC or (size, mtime, inode) != original:
        return None
    data = memoryview(record)[_HEAD.size : _HEAD.size + height * width * channels]
    head = _HEAD.pack(magic, 0, size, mtime, inode, height, width, channels)
    if len(data) != height * width * channels or not data or zlib.crc32(data, zlib.crc32(head)) != known_sum:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, channels)
