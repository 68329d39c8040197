"""RGB image → uint8 tensor, with the recipe's augmentation; then a micro-batch → normalised, erased float tensor.

Timm's transforms are used as they are. Shift, flip and negative are array operations of our own: on 28-pixel images the
library's cost more than a tenth of the training step. Everything draws from the global generators (see `seeds`).
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitcli.images.preprocess import Preprocess
from vitcli.training.recipe import Recipe

if TYPE_CHECKING:
    from timm.data.auto_augment import RandAugment

Pixels = npt.NDArray[np.uint8]  # (H, W, C)
Transform = Callable[[Image.Image], Tensor]


def training_transform(recipe: Recipe, preprocess: Preprocess) -> Transform:
    """Augmentation of one sample: RGB image → (C, H, W) uint8."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import RandomResizedCropAndInterpolation

    height, width = preprocess.size
    on_image: list[Callable[[Image.Image], Image.Image]] = []
    if recipe.crop_scale < 1:
        scale, interpolation = (recipe.crop_scale, 1.0), preprocess.interpolation
        on_image.append(RandomResizedCropAndInterpolation((height, width), scale, interpolation=interpolation))
    elif recipe.randaugment:
        on_image.append(lambda image: Image.fromarray(preprocess.pixels(image).squeeze()).convert("RGB"))
    if recipe.randaugment:
        fill = tuple(min(255, round(255 * mean)) for mean in preprocess.mean) * (3 // preprocess.in_chans)
        hyper = {"img_mean": fill, "translate_const": int(width * 0.45)}
        on_image.append(_posterizing(rand_augment_transform(recipe.randaugment, hyper)))

    def transform(image: Image.Image) -> Tensor:
        for step in on_image:
            image = step(image)
        pixels = _channels(image, preprocess.in_chans) if on_image else preprocess.pixels(image)
        if recipe.crop_padding:
            pixels = shifted(pixels, recipe.crop_padding)
        if random.random() < recipe.hflip:
            pixels = pixels[:, ::-1]
        if random.random() < recipe.invert:
            pixels = 255 - pixels
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    return transform


def _channels(image: Image.Image, count: int) -> Pixels:
    """RGB image → (H, W, `count`), gray for one channel as `Preprocess` does it."""
    return np.asarray(image) if count == 3 else np.asarray(image.convert("L"))[..., None]


def _posterizing(augment: "RandAugment") -> "RandAugment":
    """Keep at least one bit: at the highest magnitude timm 1.0.31 asks for none, which Pillow 13 refuses."""
    from timm.data.auto_augment import posterize

    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = lambda image, bits, **_: posterize(image, max(bits, 1))
    return augment


def shifted(pixels: Pixels, most: int) -> Pixels:
    """Moved by up to `most` pixels each way, black where nothing was: padding and a random crop in one."""
    down, right = random.randint(-most, most), random.randint(-most, most)
    height, width, _ = pixels.shape
    moved = np.zeros_like(pixels)
    moved[max(down, 0) : height + down, max(right, 0) : width + right] = pixels[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return moved


def batch_transform(recipe: Recipe, preprocess: Preprocess, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What is cheaper for a whole micro-batch, on the model's device.

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
