"""transformers' preprocessor_config.json → `Preprocess`. Knows no weights.

The geometry and the numbers are carried over exactly or refused. Pixels can still differ by a step or two of 255:
transformers resizes with torchvision, this program with Pillow, and where a crop's margin is odd the two round apart.
"""

import math
from collections.abc import Mapping
from typing import Any

from vitcli.checkpoint.convert.result import HALF, IMAGENET_MEAN, IMAGENET_STD
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import CropMode, Interpolation, Preprocess

_RESAMPLE: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_BY_SHORTER_SIDE = ("CLIP", "Bit", "Chinese")  # processors for which a bare number is the shorter side


def preprocess_of(processor: Mapping[str, Any], where: str) -> Preprocess:
    """How the images of a model with this processor are prepared; `size` is the one the processor makes.

    Raises CheckpointError naming what this program cannot do in the same way.
    """
    try:
        return _preprocess(processor)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: its image processor is not carried over: {error}; --set crop_pct=… and the like say what to do"
        ) from None


def _preprocess(config: Mapping[str, Any]) -> Preprocess:
    if not config.get("do_resize", True):
        raise CheckpointError("do_resize is off, and every image must come to the model's size")
    if not config.get("do_rescale", True):
        raise CheckpointError("do_rescale is off; pixels from 0 to 255 are not what models of this program take")
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, (int, float)) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError("rescale_factor is not 1/255")
    resample = config.get("resample", 2)
    if not isinstance(resample, int) or resample not in _RESAMPLE:
        raise CheckpointError("resample is none of nearest (0), lanczos (1), bilinear (2), bicubic (3)")
    normalised = config.get("do_normalize", True)
    size, crop_pct, mode = _geometry(config)
    return Preprocess(
        size=size,
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation=_RESAMPLE[resample],
        mean=_channels(config, "image_mean", IMAGENET_MEAN) if normalised else (0.0,) * 3,
        std=_channels(config, "image_std", IMAGENET_STD) if normalised else (1.0,) * 3,
    )


def _geometry(config: Mapping[str, Any]) -> tuple[tuple[int, int], float, CropMode]:
    """(height, width) of the result, crop_pct, crop_mode."""
    size, crop = config.get("size", 224), config.get("crop_size", 224)
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if isinstance(size, int):
        kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
        size = {"shortest_edge": size} if kind.startswith(_BY_SHORTER_SIDE) else {"height": size, "width": size}
    cropped = config.get("do_center_crop", False)
    if not isinstance(size, dict) or (cropped and not isinstance(crop, dict)):
        raise CheckpointError("size or crop_size is neither a number nor an object")
    if "shortest_edge" in size and "longest_edge" not in size:
        edge = _side(size, "shortest_edge")
        if not cropped:
            raise CheckpointError("images are resized by their shorter side and not cropped, so their sizes differ")
        final = _side(crop, "height"), _side(crop, "width")
        if final[0] != final[1]:
            raise CheckpointError("a crop that is not square, after resizing by the shorter side")
        return final, _share(final[0], edge), "center"
    if not {"height", "width"} <= size.keys():
        raise CheckpointError("size has neither height and width nor the shortest_edge")
    resized = _side(size, "height"), _side(size, "width")
    final = (_side(crop, "height"), _side(crop, "width")) if cropped else resized
    shares = {_share(part, whole) for part, whole in zip(final, resized, strict=True)}
    if len(shares) != 1:
        raise CheckpointError("the crop takes another share of the height than of the width")
    return final, shares.pop(), "squash"


def _share(part: int, whole: int) -> float:
    """The crop_pct with which `floor(part / crop_pct)` is `whole`."""
    share = part / whole
    return share if math.floor(part / share) == whole else math.nextafter(share, 0)


def _side(sizes: Mapping[str, Any], name: str) -> int:
    value = sizes.get(name)
    if type(value) is not int or not 1 <= value <= 1 << 14:
        raise CheckpointError(f"{name} of size or crop_size is not a number of pixels")
    return value


def _channels(config: Mapping[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = config.get(name, default)
    if not isinstance(value, (list, tuple)):
        raise CheckpointError(f"{name} is not a list")
    return tuple(value)


# When no preprocessor_config.json is there: what transformers would take for the family.
VIT = Preprocess(crop_pct=1.0, crop_mode="squash", interpolation="bilinear", mean=HALF, std=HALF)
META = Preprocess(crop_pct=0.875, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)
SIGLIP = Preprocess(crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
