"""The one preprocessing: RGB image → what a model sees. Resize, crop, normalise, as timm's evaluation transform does.

`exact=True` is timm's transform bit for bit. The default resizes only the part that the crop keeps, in one step, and
differs from it by rounding (on photos by 1 of 255, seldom). `load` is the whole way from a file; every command reads
its images with it.

Legend: C channels, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitcli.errors import CheckpointError
from vitcli.files import Where
from vitcli.images.decode import open_image, scale_of
from vitcli.text import safe

CropMode = Literal["center", "squash", "border"]
CropMargin = Literal["round", "floor"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]

MAX_SIDE = 8192  # pixels of a model's input: a config may not ask for memory that no model of ours uses
_MAX_RESIZED = 64_000_000  # pixels of an image resized in full; a 60000 × 1 strip would need 4 billion
SHRINK_MARGIN = 4
"""An image is decoded for training with at least so many times the pixels, on each side, that resizing leaves.

The result is then 0.14 of 255 from that of the full decode in the mean, and no crop was further off than 0.25
(benchmarks/decoding.py).
"""
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class _Plan(NamedTuple):
    """Where things lie after resizing, in pixels of the resized image; x and y in Pillow's order."""

    width: int
    height: int
    left: int  # of the crop; negative where the crop is larger than the image and is padded
    top: int


@dataclass(frozen=True)
class Preprocess:
    """How images become pixels for one model. Fields and defaults are those of timm's `resolve_data_config`.

    Raises CheckpointError for values that cannot be meant, naming the field as a config file spells it.
    """

    size: tuple[int, int] = (224, 224)  # (H, W) of the result
    crop_pct: float = 0.875  # the crop's share of the resized image's side
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # one per channel, of pixels in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_margin: CropMargin = (
        "round"  # half of an odd margin, in whole pixels: as timm, or rounded down as transformers
    )

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in self.size):
            raise CheckpointError(f"input_size {safe(self.size)} is not a height and width from 1 to {MAX_SIDE}")
        if not _is_number(self.crop_pct) or not 0.01 <= self.crop_pct <= 1.5:
            raise CheckpointError(f"crop_pct {safe(self.crop_pct)} is not between 0.01 and 1.5")
        if self.crop_mode not in get_args(CropMode):
            raise CheckpointError(f"crop_mode {safe(self.crop_mode)} is none of {', '.join(get_args(CropMode))}")
        if self.interpolation not in get_args(Interpolation):
            raise CheckpointError(
                f"interpolation {safe(self.interpolation)} is none of {', '.join(get_args(Interpolation))}"
            )
        if self.crop_margin not in get_args(CropMargin):
            raise CheckpointError(f"crop_margin {safe(self.crop_margin)} is none of {', '.join(get_args(CropMargin))}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or not all(map(_is_number, values)):
                raise CheckpointError(f"{name} {safe(values)} is not one number per channel, for 1 or 3 channels")
        if len(self.mean) != len(self.std):
            raise CheckpointError(f"mean has {len(self.mean)} channels but std has {len(self.std)}")
        if min(self.std) <= 0:
            raise CheckpointError(f"std {safe(self.std)} is not above 0")

    @property
    def in_chans(self) -> int:
        """C: 3 (RGB) or 1 (gray)."""
        return len(self.mean)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocess":
        """From timm's `pretrained_cfg`: input_size (C, H, W), crop_pct, crop_mode, interpolation, mean, std.

        What is absent or null takes the default; other keys are not looked at. Raises CheckpointError.
        """
        fields: dict[str, Any] = {}
        for name in ("crop_pct", "crop_mode", "interpolation"):
            if config.get(name) is not None:
                fields[name] = config[name]
        for name in ("mean", "std"):
            if config.get(name) is not None:
                fields[name] = tuple(_list(config, name))
        if config.get("input_size") is not None:
            chans, *size = _list(config, "input_size")
            fields["size"] = tuple(size)
            if chans == 1 and not fields.keys() & {"mean", "std"}:
                fields.update(mean=(sum(cls.mean) / 3,), std=(sum(cls.std) / 3,))
            preprocess = cls(**fields)
            if chans != preprocess.in_chans:
                raise CheckpointError(f"input_size has {safe(chans)} channels but mean has {preprocess.in_chans}")
            return preprocess
        return cls(**fields)

    def to_config(self) -> dict[str, Any]:
        """The same keys, ready for JSON; timm knows none for `crop_margin`."""
        return {
            "input_size": [self.in_chans, *self.size],
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a whole image of this width and height once resized, before the crop."""
        plan = self._plan(width, height)
        return plan.width, plan.height

    def shrink(self, width: int, height: int) -> float:
        """How many times smaller an image of so many pixels may be decoded for training (see `SHRINK_MARGIN`)."""
        if self.interpolation == "nearest":
            return 1.0
        plan = self._plan(width, height)
        return min(width / plan.width, height / plan.height) / SHRINK_MARGIN

    def pixels(
        self, image: Image.Image, *, exact: bool = False, whole: tuple[int, int] | None = None
    ) -> npt.NDArray[np.uint8]:
        """RGB image → uint8 (H, W, C): resized and cropped.

        `whole` is the width and height of the picture, where `image` is a smaller one of it.
        """
        if self.in_chans == 1:
            image = image.convert("L")
        if whole and image.size != whole:
            across, down = scale_of(image, *whole)
            result = self._resize_the_crop(image, self._plan(*whole), (whole[0] / across, whole[1] / down))
            return np.asarray(result).reshape(*self.size, self.in_chans)
        plan = self._plan(*image.size)
        # "nearest" would pick other pixels by its rounding. Pillow resizes one axis first, and in a picture higher than
        # wide it may choose the other one for a part than for the whole: levels then differ by up to five.
        exact = exact or self.interpolation == "nearest" or image.height > image.width
        if exact and plan.width * plan.height <= _MAX_RESIZED:
            result = self._resize_then_crop(image, plan)
        else:
            result = self._resize_the_crop(image, plan, image.size)
        return np.asarray(result).reshape(*self.size, self.in_chans)

    def __call__(self, image: Image.Image, *, exact: bool = False) -> npt.NDArray[np.float32]:
        """RGB image → float32 (C, H, W), normalised. Arguments as for `pixels`."""
        return self.normalised(self.pixels(image, exact=exact))

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What `pixels` gave, (H, W, C) → float32 (C, H, W)."""
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)  # (C, H, W)
        values /= np.float32(255)
        values -= np.array(self.mean, np.float32).reshape(-1, 1, 1)
        values /= np.array(self.std, np.float32).reshape(-1, 1, 1)
        return values

    def _plan(self, width: int, height: int) -> _Plan:
        """timm's geometry, with its roundings: `transforms_imagenet_eval` and torchvision's `CenterCrop`."""
        crop_h, crop_w = self.size
        scaled_h, scaled_w = (math.floor(side / self.crop_pct) for side in self.size)
        if self.crop_mode == "squash":
            new_w, new_h = scaled_w, scaled_h
        elif self.crop_mode == "center" and scaled_h == scaled_w:
            # torchvision's Resize: the shorter side exactly, the longer one rounded down
            new_w = scaled_w if width <= height else int(scaled_w * width / height)
            new_h = scaled_h if height <= width else int(scaled_h * height / width)
        else:  # timm's ResizeKeepRatio: fill the crop, or with borders fit into it
            ratios = height / scaled_h, width / scaled_w
            ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
            new_w, new_h = round(width / ratio), round(height / ratio)
        new_w, new_h = max(new_w, 1), max(new_h, 1)
        left, top = (_offset(*sides, self.crop_margin) for sides in ((new_w, crop_w), (new_h, crop_h)))
        return _Plan(new_w, new_h, left, top)

    def _resize_then_crop(self, image: Image.Image, plan: _Plan) -> Image.Image:
        if image.size != (plan.width, plan.height):
            image = image.resize((plan.width, plan.height), RESAMPLING[self.interpolation])
        height, width = self.size
        if plan.left >= 0 and plan.top >= 0 and plan.left + width <= plan.width and plan.top + height <= plan.height:
            return image.crop((plan.left, plan.top, plan.left + width, plan.top + height))
        canvas = self._canvas(image.mode)
        canvas.paste(image, (-plan.left, -plan.top))
        return canvas

    def _resize_the_crop(self, image: Image.Image, plan: _Plan, extent: tuple[float, float]) -> Image.Image:
        """`extent`: the width and height of the whole picture, in pixels of `image`."""
        height, width = self.size
        left, right = max(plan.left, 0), min(plan.left + width, plan.width)
        top, bottom = max(plan.top, 0), min(plan.top + height, plan.height)
        scale_x, scale_y = extent[0] / plan.width, extent[1] / plan.height
        box = (left * scale_x, top * scale_y, min(right * scale_x, extent[0]), min(bottom * scale_y, extent[1]))
        part = image.resize((right - left, bottom - top), RESAMPLING[self.interpolation], box)
        if part.size == (width, height):
            return part
        canvas = self._canvas(image.mode)
        canvas.paste(part, (max(-plan.left, 0), max(-plan.top, 0)))
        return canvas

    def _canvas(self, mode: str) -> Image.Image:
        """What shows where the crop is larger than the image: the mean colour around "border", black otherwise."""
        fill = [min(max(round(255 * value), 0), 255) * (self.crop_mode == "border") for value in self.mean]
        return Image.new(mode, self.size[::-1], fill[0] if mode == "L" else tuple(fill))


def _offset(image: int, crop: int, margin: CropMargin) -> int:
    """Where a centred crop begins on one axis; negative: that much padding comes first."""
    if crop > image:
        return -((crop - image) // 2)
    return (image - crop) // 2 if margin == "floor" else round((image - crop) / 2)


def _is_number(value: object) -> bool:
    # A comparison, since math.isfinite raises for integers that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e6 < value < 1e6


def _list(config: Mapping[str, Any], name: str) -> Sequence[Any]:
    values = config[name]
    if not isinstance(values, (list, tuple)) or (name == "input_size" and len(values) != 3):
        raise CheckpointError(
            f"{name} {safe(values)} is not a list" + (" of 3 numbers" if name == "input_size" else "")
        )
    return values


def load(
    source: Where | bytes, preprocess: Preprocess, *, exact: bool = False, name: str | None = None
) -> npt.NDArray[np.float32]:
    """One image as float32 (C, H, W), normalised. Raises ImageError.

    `exact` gives timm's evaluation transform of the upright image bit for bit (timm itself leaves a photograph lying
    as the sensor lay; here EXIF turns it). Otherwise, unless the image is higher than wide, only the part that the crop
    keeps is resized: faster, and seldom 1 of 255 away (benchmarks/preprocess.py).
    """
    return preprocess(open_image(source, name=name), exact=exact)


def load_reduced(source: Where | bytes, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """One image for training as uint8 (H, W, C), a JPEG decoded no larger than that needs. Raises ImageError."""
    whole: tuple[int, int] | None = None

    def shrink(width: int, height: int) -> float:
        nonlocal whole
        whole = width, height
        return preprocess.shrink(width, height)

    image = open_image(source, shrink=shrink)
    return preprocess.pixels(image, whole=whole)
