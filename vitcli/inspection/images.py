"""Which images a model is looked at with: files, a data set's, or 128 that come with the program.

Legend: B batch, C channels, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitcli.checkpoint.config import Checkpoint
from vitcli.data.samples import Samples, labelled
from vitcli.data.sources import open_splits, scored_split
from vitcli.errors import ImageError
from vitcli.images.find import find_images
from vitcli.images.preprocess import Preprocess, load

Pixels = npt.NDArray[np.float32]

BATCH = 8
COUNT = 128  # images that are looked with unless told otherwise, as in the paper


@dataclass(frozen=True)
class Sheet:
    """Pictures that come with the program, in one file: square tiles of `tile` pixels, row by row."""

    file: Path
    tile: int
    called: str

    def pictures(self, count: int) -> "list[Picture]":
        """The first `count` of them."""
        with Image.open(self.file) as image:
            pixels = np.asarray(image.convert("RGB"))
        side = self.tile
        tiles = pixels.reshape(-1, side, pixels.shape[1] // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
        return [Picture(f"picture {i + 1}", partial(_prepared, tile)) for i, tile in enumerate(tiles[:count])]


CLOTHES = Sheet(Path(__file__).with_name("pictures.png"), 28, "pictures of Fashion-MNIST")  # training images; MIT
# Caltech-101, CC BY 4.0: Fei-Fei Li, M. Andreeto, M. Ranzato, P. Perona; by benchmarks/photo_sheet.py
PHOTOGRAPHS = Sheet(Path(__file__).with_name("photographs.jpg"), 96, "photographs of Caltech-101")


def built_in(checkpoint: Checkpoint) -> Sheet:
    """The pictures of the kind that a checkpoint was trained with: clothes for a model as small or with their names."""
    of_clothes = max(checkpoint.preprocess.size) <= CLOTHES.tile or "Ankle boot" in checkpoint.labels
    return CLOTHES if of_clothes else PHOTOGRAPHS


@dataclass(frozen=True)
class Picture:
    """An image that is not yet read; `load` gives it as a model sees it, float32 (C, H, W), or raises ImageError."""

    name: str
    load: Callable[[Preprocess], Pixels]
    label: str = ""  # its class in a data set; "" where none is known, several with semicolons

    def pixels(self, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        """The image as a model sees it, but as colours (H, W, 3), enlarged by whole pixels to about 224."""
        return colours(self.load(preprocess), preprocess)


def colours(array: Pixels, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Float32 (C, H, W) as a model sees it → colours (H, W, 3), enlarged by whole pixels to about 224."""
    mean, std = (np.array(part)[:, None, None] for part in (preprocess.mean, preprocess.std))
    shades = (array * std + mean).clip(0, 1)
    pixels = (shades * 255).round().astype(np.uint8).transpose(1, 2, 0)
    times = max(1, 224 // max(pixels.shape[:2]))
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(times, axis=0).repeat(times, axis=1)


def pictures_of(
    checkpoint: Checkpoint,
    images: Sequence[str] | None,
    data: str | None,
    count: int = COUNT,
    *,
    folders: str | None = None,
    doing: str = "looking",
    say: Callable[[str], None] = lambda line: None,
) -> list[Picture]:
    """At most `count` pictures for `checkpoint`: of the files `images`, of the data set `data`, or the built-in ones.

    `images` may be folders and globs, too; `folders` says what the folders of `data` are. `say` is told notes, among
    them what is done (`doing`) with built-in pictures. Raises as `find_images` and `open_splits` do.
    """
    if images:
        return from_files(images, count)
    if data:
        splits = open_splits(data, folders=folders)
        for line in splits.notes:
            say(line)
        return from_samples(splits.named[scored_split(splits, None)], count, classes=splits.classes)
    sheet = built_in(checkpoint)
    pictures = sheet.pictures(count)
    say(f"{doing} with {len(pictures)} built-in {sheet.called}; --images or --data takes yours")
    return pictures


def from_files(arguments: Iterable[str], count: int) -> list[Picture]:
    """The first `count` images that files, folders and globs name."""
    found = islice(find_images(arguments), count)
    return [Picture(one.name, partial(load, one.source, name=one.name)) for one in found]


def from_samples(samples: Samples, count: int, seed: int = 0, classes: Sequence[str] = ()) -> list[Picture]:
    """`count` of a data set's images, drawn at random, in the data set's order, with the names of their `classes`."""
    chosen = np.random.default_rng(seed).permutation(len(samples))[:count]
    return [
        Picture(samples.name(i), partial(samples.load, i), labelled(samples.labels[i], classes) if classes else "")
        for i in sorted(chosen.tolist())
    ]


def _prepared(tile: npt.NDArray[np.uint8], preprocess: Preprocess) -> Pixels:
    return preprocess(Image.fromarray(tile))


class Feed:
    """Pictures in batches, as often as asked for. One that cannot be read is left out and listed in `failed`."""

    def __init__(self, pictures: Sequence[Picture], preprocess: Preprocess, device: torch.device) -> None:
        self.pictures, self.preprocess, self.device = pictures, preprocess, device
        self.shown: list[Picture] = []
        self.failed: list[str] = []

    def __iter__(self) -> Iterator[Tensor]:
        """Float32 (B, C, H, W) with B ≤ 8, in order."""
        self.shown.clear()
        self.failed.clear()
        waiting: list[Pixels] = []
        for picture in self.pictures:
            try:
                waiting.append(picture.load(self.preprocess))
            except ImageError as error:
                self.failed.append(str(error))
                continue
            self.shown.append(picture)
            if len(waiting) == BATCH:
                yield self._batch(waiting)
                waiting = []
        if waiting:
            yield self._batch(waiting)

    def _batch(self, arrays: list[Pixels]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)
