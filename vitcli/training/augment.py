"""RGB image → uint8 tensor, with the recipe's augmentation; then a micro-batch → normalised, erased float tensor.

Timm's transforms are used as they are. Shift, flip and negative are array operations of our own: on 28-pixel images the
library's cost more than a tenth of the training step. Everything draws from the global generators (see `seeds`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitcli.errors import UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.training.recipe import Recipe

if TYPE_CHECKING:
    from timm.data.auto_augment import RandAugment

Pixels = npt.NDArray[np.uint8]  # (H, W, C)
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of one sample: RGB image → (C, H, W) uint8. A value: workers that are not forked get it pickled."""

    recipe: Recipe
    preprocess: Preprocess
    on_image: tuple[Callable[[Image.Image], Image.Image], ...]  # before it is an array

    def __call__(self, image: Image.Image) -> Tensor:
        for step in self.on_image:
            image = step(image)
        channels = self.preprocess.in_chans
        pixels = _channels(image, channels) if self.on_image else self.preprocess.pixels(image)
        if self.recipe.crop_padding:
            pixels = shifted(pixels, self.recipe.crop_padding)
        if random.random() < self.recipe.hflip:
            pixels = pixels[:, ::-1]
        if random.random() < self.recipe.invert:
            pixels = 255 - pixels
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


@dataclass(frozen=True)
class AsEvaluated:
    """An image at the size and crop that evaluation sees, before augmentation."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.preprocess.pixels(image).squeeze()).convert("RGB")


def training_transform(recipe: Recipe, preprocess: Preprocess) -> Transform:
    """The augmentation that `recipe` asks for, to what `preprocess` takes. Raises UsageError when it cannot be."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import RandomResizedCropAndInterpolation

    height, width = preprocess.size
    if recipe.crop_padding >= min(height, width):
        raise UsageError(
            f"crop_padding {recipe.crop_padding} would shift images of {height}x{width} pixels out of sight"
        )
    on_image: list[Callable[[Image.Image], Image.Image]] = []
    if recipe.crop_scale < 1:
        scale, interpolation = (recipe.crop_scale, 1.0), preprocess.interpolation
        on_image.append(RandomResizedCropAndInterpolation((height, width), scale, interpolation=interpolation))
    elif recipe.randaugment:
        on_image.append(AsEvaluated(preprocess))
    if recipe.randaugment:
        fill = tuple(min(255, round(255 * mean)) for mean in preprocess.mean) * (3 // preprocess.in_chans)
        hyper = {"img_mean": fill, "translate_const": int(width * 0.45)}
        on_image.append(_posterizing(rand_augment_transform(recipe.randaugment, hyper)))
    return Augmentation(recipe, preprocess, tuple(on_image))


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
