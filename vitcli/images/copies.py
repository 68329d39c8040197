"""Copies of images that are made once: as large as training needs them, as plain bytes, in memory or in files.

A copy is defined by its original and a `Rule`; where it is kept changes no bit, nor does whether it is there already.
One that cannot be kept, or is damaged, is made again each time. A record is checked by a sum, so a writer that was
killed leaves nothing that is taken for whole; and by what the file system says of the original, so that a file that
changed is copied again.

Legend: C channels, H W pixels.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from vitcli.files import Signature, Where, content_hash, key_of, signature
from vitcli.images.decode import open_image, scale_of
from vitcli.images.preprocess import Preprocess, load_reduced

Pixels = npt.NDArray[np.uint8]  # (H, W, C)

LAYOUT = 2  # of a record and of what a rule means; another number means other copies
MARGIN = 2  # a JPEG is decoded with at least so many times the pixels of its copy, on each side
_DIGEST = 16  # bytes of a hash of content
_NOTE = struct.Struct(f"<4sIqqqQ{_DIGEST}s")  # magic, sum; of the original size, mtime, ctime, inode and content
_NOTE_MAGIC = b"vitN"
_HEAD = struct.Struct("<4sIIIIIB")  # magic, sum; width and height of the original; H, W, C
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
        return _NOTE.size + _HEAD.size + self.pixels * (self.preprocess.in_chans if self.least == 1 else 3)

    @cached_property
    def name(self) -> str:
        """A digest of all that the bytes of a copy depend on beside its original: this rule, and who decodes."""
        seen = self.preprocess
        geometry = (seen.size, seen.crop_pct, seen.crop_mode, seen.interpolation, seen.crop_margin, seen.in_chans)
        fill = seen.mean if seen.crop_mode == "border" else ()
        jpeg = features.version("libjpeg_turbo") or features.version("jpg")
        what = (LAYOUT, self.least, self.reduced, geometry, fill, PIL.__version__, jpeg)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]

    def copy(self, path: Where) -> "Copy":
        """The copy of the image in `path`. Raises ImageError."""
        if self.least < 1:
            return self._smaller(path)
        height, width = self.preprocess.size
        seen = load_reduced(path, self.preprocess) if self.reduced else self.preprocess.pixels(open_image(path))
        return Copy(seen, (width, height))

    def _smaller(self, path: Where) -> "Copy":
        """The whole image, RGB, with no more than `self.pixels`."""
        whole: tuple[int, int] | None = None

        def shrink(width: int, height: int) -> float:
            nonlocal whole
            whole = width, height
            return math.sqrt(width * height / self.pixels) / MARGIN

        image = open_image(path, shrink=shrink)
        width, height = whole or image.size
        ratio = math.sqrt(self.pixels / (width * height))
        if ratio < 1:
            size = (max(1, min(int(side * ratio), self.pixels)) for side in (width, height))
            across, down = scale_of(image, width, height)
            seen = (0, 0, width / across, height / down)
            image = image.resize(tuple(size), Image.Resampling.LANCZOS, seen)  # type: ignore[arg-type]
        return Copy(np.asarray(image), (width, height))


class Copy(NamedTuple):
    """What is kept of an image."""

    pixels: Pixels  # (H, W, C)
    whole: tuple[int, int]  # width and height of the picture that they show


class Store(Protocol):
    """Where records are kept. No call ever raises for what the place does not hold or take."""

    @property
    def lasting(self) -> bool:
        """Whether other runs find them."""

    def read(self, key: str) -> bytes | None:
        """The record of that key as it was written, or None; what a dying writer left may come, too."""

    def write(self, key: str, record: bytes) -> None:
        """Keep the record, if there is room for it."""

    def remove(self, key: str) -> None:
        """Keep it no longer."""


@dataclass(frozen=True, eq=False)
class Copies:
    """The copies by one rule, each made when it is first asked for. Many processes and threads may share a store.

    In one that lasts they are named by the content of their originals, and for each path there is noted which content
    the file has that was found there. So an original that was renamed or touched is read, but not decoded again.
    """

    rule: Rule
    store: Store
    known: dict[str, Signature]  # the originals by path

    def copy(self, path: Where) -> Copy:
        """The copy of the image in `path`. Raises ImageError where there is none yet and none can be made.

        The file itself is not opened where there is a copy of it as it was when `known` was.
        """
        key = key_of(path)
        original = self.known.get(key) or signature(path)
        note = _note(self.store.read(key))
        if note and note.original == original:
            kept = _copy(self.store.read(note.content.hex()) if self.store.lasting else note.rest)
            if kept:
                return kept
        if self.store.lasting:
            return self._made_by_content(path, key, original, note)
        made = self.rule.copy(path)
        if original:
            self.store.write(key, _noted(original, bytes(_DIGEST)) + _record(made))
        return made

    def image(self, path: Where) -> tuple[Image.Image, tuple[int, int]]:
        """The copy of the image in `path`, RGB, and the width and height of the whole picture. Raises ImageError."""
        pixels, whole = self.copy(path)
        return Image.fromarray(pixels), whole

    def _made_by_content(self, path: Where, key: str, original: Signature | None, before: "_Note | None") -> Copy:
        """The copy of that content, made where there is none; what was noted `before` for the path is let go."""
        content = _content(path)
        kept = content and _copy(self.store.read(content.hex()))
        made = kept or self.rule.copy(path)
        if content and original and signature(path) == original:  # else it changes while we look
            if not kept:
                self.store.write(content.hex(), _record(made))
            self.store.write(key, _noted(original, content))
            if before and before.content != content:
                self.store.remove(before.content.hex())
        return made


def signatures(places: Iterable[Where]) -> dict[str, Signature]:
    """`Copies.known` for the files that are there."""
    found = {key_of(where): signature(where) for where in places}
    return {key: one for key, one in found.items() if one is not None}


class _Note(NamedTuple):
    """What is known of the file in a path."""

    original: Signature
    content: bytes
    rest: memoryview  # what stands behind the note


def _noted(original: Signature, content: bytes) -> bytes:
    return _NOTE.pack(_NOTE_MAGIC, zlib.crc32(_NOTE.pack(b"", 0, *original, content)), *original, content)


def _note(record: bytes | None) -> _Note | None:
    """The note at the beginning of a record, unless that is damaged."""
    if record is None or len(record) < _NOTE.size:
        return None
    *_, size, mtime, ctime, inode, content = _NOTE.unpack_from(record)
    original = Signature(size, mtime, ctime, inode)
    whole = record.startswith(_noted(original, content))
    return _Note(original, content, memoryview(record)[_NOTE.size :]) if whole else None


def _content(path: Where) -> bytes | None:
    """A hash of the bytes in a file; None where they cannot be read, of which the decoder says why."""
    try:
        return content_hash(path)
    except (OSError, ValueError):
        return None


def _record(copy: Copy) -> bytes:
    data = np.ascontiguousarray(copy.pixels).tobytes()
    facts = (*copy.whole, *copy.pixels.shape)
    return _HEAD.pack(_MAGIC, _sum(facts, data), *facts) + data


def _sum(facts: tuple[int, ...], data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(_HEAD.pack(_MAGIC, 0, *facts)))


def _copy(record: bytes | memoryview | None) -> Copy | None:
    """The copy in a record, unless that is damaged."""
    if record is None or len(record) < _HEAD.size:
        return None
    magic, known_sum, *facts = _HEAD.unpack_from(record)
    wide, high, height, width, channels = facts
    data = memoryview(record)[_HEAD.size : _HEAD.size + height * width * channels]
    if magic != _MAGIC or not data or len(data) != height * width * channels or _sum(tuple(facts), data) != known_sum:
        return None
    return Copy(np.frombuffer(data, np.uint8).reshape(height, width, channels), (wide, high))
