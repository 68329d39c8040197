"""RGB image → uint8 tensor, with the recipe's augmentation; then a micro-batch → normalised, erased float tensor.

Timm's transforms are used as they are. Shift, flip and negative are array operations of our own: on 28-pixel images the
library's cost more than a tenth of the training step. Everything draws from the global generators (see `seeds`).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitcli.data.samples import Sample
from vitcli.errors import UsageError
from vitcli.images.decode import scale_of
from vitcli.images.preprocess import RESAMPLING, SHRINK_MARGIN, Interpolation, Preprocess
from vitcli.training.recipe import Recipe

if TYPE_CHECKING:
    from timm.data.auto_augment import RandAugment

Pixels = npt.NDArray[np.uint8]  # (H, W, C)
Transform = Callable[[Image.Image | Sample], Tensor]


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class RandomCrop:
    """A random part of an image, resized: timm's, but that a JPEG is decoded no larger than the drawn part needs."""

    size: tuple[int, int]  # (H, W) of the result
    least: float  # share of the image's area
    interpolation: Interpolation

    def __call__(self, source: Image.Image | Sample) -> Image.Image:
        """Raises ImageError for a sample that cannot be read."""
        if isinstance(source, Image.Image):
            return self._resized(source, source.size, self._draw(*source.size))
        drawn: tuple[tuple[int, int], Box] | None = None

        def shrink(width: int, height: int) -> float:
            nonlocal drawn
            box = self._draw(width, height)
            drawn = (width, height), box
            return 1.0 if self.interpolation == "nearest" else self._ratio(box) / SHRINK_MARGIN

        image = source.samples.image(source.index, shrink)
        return self._resized(image, *(drawn or (image.size, self._draw(*image.size))))

    def _draw(self, width: int, height: int) -> Box:
        from timm.data.transforms import RandomResizedCropAndInterpolation

        stand_in = torch.empty((height, width), device="meta")  # only its size is asked for
        draw = RandomResizedCropAndInterpolation.get_params
        top, left, high, wide = draw(stand_in, (self.least, 1.0), (3 / 4, 4 / 3))  # the ratios are timm's own
        return Box(left, top, wide, high)

    def _ratio(self, box: Box) -> float:
        return min(box.width / self.size[1], box.height / self.size[0])

    def _resized(self, image: Image.Image, whole: tuple[int, int], box: Box) -> Image.Image:
        """The part `box` of an image of size `whole`, of which `image` is a smaller copy or the same."""
        height, width = self.size
        across, down = scale_of(image, *whole)
        left, right = (side / across for side in (box.left, box.left + box.width))
        top, bottom = (side / down for side in (box.top, box.top + box.height))
        # Cut first, as timm does: else the resampling would also look at what lies beside the part.
        part = image.crop((int(left), int(top), math.ceil(right), math.ceil(bottom)))
        inside = (left - int(left), top - int(top), right - int(left), bottom - int(top))
        return part.resize((width, height), RESAMPLING[self.interpolation], inside)


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of one sample: RGB image → (C, H, W) uint8. A value: workers that are not forked get it pickled."""

    recipe: Recipe
    preprocess: Preprocess
    crop: RandomCrop | None  # None: the part that evaluation sees
    policy: "RandAugment | None"

    def __call__(self, source: Image.Image | Sample) -> Tensor:
        """Raises ImageError for a sample that cannot be read."""
        if self.crop:
            pixels = self._on_image(self.crop(source))
        else:
            pixels = self._as_evaluated(source)
            if self.policy:
                pixels = self._on_image(Image.fromarray(pixels.squeeze()).convert("RGB"))
        if self.recipe.crop_padding:
            pixels = shifted(pixels, self.recipe.crop_padding)
        if random.random() < self.recipe.hflip:
            pixels = pixels[:, ::-1]
        if random.random() < self.recipe.invert:
            pixels = 255 - pixels
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    def _as_evaluated(self, source: Image.Image | Sample) -> Pixels:
        if isinstance(source, Image.Image):
            return self.preprocess.pixels(source)
        return source.samples.reduced(source.index, self.preprocess)

    def _on_image(self, image: Image.Image) -> Pixels:
        return _channels(self.policy(image) if self.policy else image, self.preprocess.in_chans)


def training_transform(recipe: Recipe, preprocess: Preprocess) -> Transform:
    """The augmentation that `recipe` asks for, to what `preprocess` takes. Raises UsageError when it cannot be."""
    from timm.data.auto_augment import rand_augment_transform

    height, width = preprocess.size
    if recipe.crop_padding >= min(height, width):
        raise UsageError(
            f"crop_padding {recipe.crop_padding} would shift images of {height}x{width} pixels out of sight"
        )
    crop = RandomCrop(preprocess.size, recipe.crop_scale, preprocess.interpolation) if recipe.crop_scale < 1 else None
    policy = None
    if recipe.randaugment:
        fill = tuple(min(255, round(255 * mean)) for mean in preprocess.mean) * (3 // preprocess.in_chans)
        hyper = {"img_mean": fill, "translate_const": int(width * 0.45)}
        policy = _posterizing(rand_augment_transform(recipe.randaugment, hyper))
    return Augmentation(recipe, preprocess, crop, policy)


def _channels(image: Image.Image, count: int) -> Pixels:
    """RGB image → (H, W, `count`), gray for one channel as `Preprocess` does it."""
    return np.asarray(image) if count == 3 else np.asarray(image.convert("L"))[..., None]


def _posterizing(augment: "RandAugment") -> "RandAugment":
    """`augment`, which keeps at least one bit: at full magnitude timm 1.0.31 asks for none, which Pillow 13 refuses."""
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterized
    return augment


def _posterized(image: Image.Image, bits: int, **_: object) -> Image.Image:
    from timm.data.auto_augment import posterize

    return posterize(image, max(bits, 1))  # type: ignore[no-any-return]


def shifted(pixels: Pixels, most: int) -> Pixels:
    """`pixels` moved by up to `most` each way, black where nothing was: padding and a random crop in one."""
    down, right = random.randint(-most, most), random.randint(-most, most)
    height, width, _ = pixels.shape
    moved = np.zeros_like(pixels)
    moved[max(down, 0) : height + down, max(right, 0) : width + right] = pixels[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return moved


def batch_transform(recipe: Recipe, preprocess: Preprocess, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The part of the augmentation that is cheaper for a whole micro-batch, on the model's device.

    (B, C, H, W) uint8 → normalised float32, random erasing after it.
    """
    from timm.data.random_erasing import RandomErasing

    mean = torch.tensor(preprocess.mean, device=device).view(-1, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=device).view(-1, 1, 1) * 255
    erase = RandomErasing(recipe.random_erasing, mode="pixel", device=str(device)) if recipe.random_erasing else None

    def transform(images: Tensor) -> Tensor:
        images = images.float().sub_(mean).div_(std)
        return erase(images) if erase is not None else images

    return transform
