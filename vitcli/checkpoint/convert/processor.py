"""transformers' preprocessor_config.json → `Preprocess`. Knows no weights.

A file need not name everything: what it leaves out is as in its class of transformers (5.24), so an unknown class is
refused, and so is every key that is neither understood nor known to change no pixel. Geometry and numbers are carried
over exactly. Pixels can still differ by rounding: transformers resizes with torchvision, this program with Pillow.
"""

import math
from collections.abc import Mapping
from typing import Any

from vitcli.checkpoint.convert.result import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import CropMode, Interpolation, Preprocess
from vitcli.text import safe

_RESAMPLE: Mapping[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_COMMON: Mapping[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "size": _square(224),
    "crop_size": _square(224),
    "default_to_square": True,
    "resample": 3,
    "image_mean": HALF,
    "image_std": HALF,
}
_SHORTER_SIDE: Mapping[str, Any] = {"size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True}
_CLIP: Mapping[str, Any] = {**_COMMON, **_SHORTER_SIDE, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}

# The image processors that transformers registers for what is converted, or that people put before it: their defaults.
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**_COMMON, "resample": 2},
    "DeiT": {**_COMMON, "size": _square(256), "do_center_crop": True},
    "Beit": _COMMON,
    "DINOv3ViT": {**_COMMON, "resample": 2, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Bit": _CLIP,  # DINOv2's
    "Siglip": {**_COMMON, "default_to_square": False},
    "Levit": {**_COMMON, **_SHORTER_SIDE, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "ConvNext": {**_COMMON, "size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 224 / 256},
}

_HARMLESS = {  # names, the form of the result, colours (images are RGB here), labels: no pixel is another
    *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "name_or_path"),
    *("transformers_version", "_commit_hash", "_valid_processor_keys", "model_input_names", "use_fast", "backend"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length"),
    *("do_convert_rgb", "do_reduce_labels", "reduce_labels", "pad_size"),
}


def preprocess_of(processor: Mapping[str, Any], where: str, usual: str = "ViT") -> Preprocess:
    """How the images of a model with this processor are prepared; `size` is the one the processor makes.

    `usual` is the class of `CLASSES` that is meant when the file names none. Raises CheckpointError naming what this
    program does not know, or cannot do in the same way.
    """
    try:
        return _preprocess(processor, usual)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: its image processor is not carried over: {error}; --set crop_pct=… and the like say what to do"
        ) from None


def _preprocess(said: Mapping[str, Any], usual: str) -> Preprocess:
    kind = _class(said, usual)
    # What is null is off, for transformers too, or has no value; only what is absent has the default.
    config = {**CLASSES[kind], **said}
    config |= {key: False for key, value in said.items() if value is None and key.startswith("do_")}
    _check_keys(config, kind)
    if not config["do_resize"]:
        raise CheckpointError("do_resize is off, and every image must come to the model's size")
    if not config["do_rescale"]:
        raise CheckpointError("do_rescale is off; pixels from 0 to 255 are not what models of this program take")
    if config["do_pad"]:
        raise CheckpointError("do_pad is on, and nothing is put around images here")
    factor = config["rescale_factor"]
    if not isinstance(factor, (int, float)) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError("rescale_factor is not 1/255")
    resample = config["resample"]
    if type(resample) is not int or resample not in _RESAMPLE:
        raise CheckpointError("resample is none of nearest (0), lanczos (1), bilinear (2), bicubic (3)")
    if resample == 0:
        raise CheckpointError("resample is nearest (0), for which torchvision takes other pixels than Pillow does")
    size, crop_pct, mode = _geometry(config, kind)
    return Preprocess(
        size=size,
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation=_RESAMPLE[resample],
        mean=_channels(config, "image_mean") if config["do_normalize"] else (0.0,) * 3,
        std=_channels(config, "image_std") if config["do_normalize"] else (1.0,) * 3,
        crop_margin="round" if mode == "squash" and crop_pct == 1 else "floor",
    )


def _class(said: Mapping[str, Any], usual: str) -> str:
    """The class by its name in `CLASSES`; transformers writes the same one for those that work with Pillow."""
    if "auto_map" in said:
        raise CheckpointError("auto_map says that it is code of its own")
    name = said.get("image_processor_type") or said.get("feature_extractor_type") or f"{usual}ImageProcessor"
    base = str(name).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    kind = base.removesuffix("ImageProcessor")
    if kind not in CLASSES or kind == base:
        known = ", ".join(f"{one}ImageProcessor" for one in CLASSES)
        raise CheckpointError(f"'{safe(name, 60)}' is none of the classes that are known: {known}")
    return kind


def _check_keys(config: Mapping[str, Any], kind: str) -> None:
    for key, value in config.items():
        known = key in CLASSES[kind]
        if key.startswith("do_") and type(value) is not bool:
            raise CheckpointError(f"{safe(key, 40)} is neither true nor false")
        off = value is None or (value is False and key.startswith(("do_", "use_")))
        if not known and key not in _HARMLESS and not off:
            raise CheckpointError(f"the meaning of {safe(key, 40)} is not known for {kind}ImageProcessor")


def _geometry(config: Mapping[str, Any], kind: str) -> tuple[tuple[int, int], float, CropMode]:
    """(height, width) of the result, crop_pct, crop_mode."""
    size = _sides(config["size"], square=bool(config["default_to_square"]))
    cropped = config["do_center_crop"]
    if kind == "ConvNext":
        return _convnext(config, size)
    if size.keys() == {"shortest_edge"}:
        edge = _side(size, "shortest_edge")
        if not cropped:
            raise CheckpointError("images are resized by their shorter side and not cropped, so their sizes differ")
        if kind == "Levit":
            edge = int(256 / 224 * edge)
        final = _crop(config)
        if final[0] != final[1]:
            raise CheckpointError("a crop that is not square, after resizing by the shorter side")
        return final, _share(final[0], edge), "center"
    if size.keys() != {"height", "width"}:
        raise CheckpointError("size has neither height and width nor the shortest_edge alone")
    resized = _side(size, "height"), _side(size, "width")
    final = _crop(config) if cropped else resized
    shares = {_share(part, whole) for part, whole in zip(final, resized, strict=True)}
    if len(shares) != 1:
        raise CheckpointError("the crop takes another share of the height than of the width")
    return final, shares.pop(), "squash"


def _convnext(config: Mapping[str, Any], size: Mapping[str, Any]) -> tuple[tuple[int, int], float, CropMode]:
    """Below 384 pixels the middle of a larger picture, from there on the whole of it."""
    edge, crop_pct = _side(size, "shortest_edge"), config["crop_pct"]
    if size.keys() != {"shortest_edge"} or config["do_center_crop"]:
        raise CheckpointError("a ConvNextImageProcessor has a shortest_edge alone and crops by its crop_pct")
    if edge >= 384:
        return (edge, edge), 1.0, "squash"
    if not isinstance(crop_pct, (int, float)) or not 0.01 <= crop_pct <= 1:
        raise CheckpointError("crop_pct is not between 0.01 and 1")
    return (edge, edge), _share(edge, int(edge / crop_pct)), "center"


def _crop(config: Mapping[str, Any]) -> tuple[int, int]:
    crop = _sides(config["crop_size"], square=True)
    return _side(crop, "height"), _side(crop, "width")


def _sides(value: Any, *, square: bool) -> Mapping[str, Any]:
    """transformers' ways to write a size: an object, [height, width], a number for a `square` or the shorter side."""
    if type(value) is int:
        return _square(value) if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if not isinstance(value, dict):
        raise CheckpointError("size or crop_size is neither a number nor an object")
    return value


def _share(part: int, whole: int) -> float:
    """The crop_pct with which `floor(part / crop_pct)` is `whole`."""
    share = part / whole
    return share if math.floor(part / share) == whole else math.nextafter(share, 0)


def _side(sizes: Mapping[str, Any], name: str) -> int:
    value = sizes.get(name)
    if type(value) is not int or not 1 <= value <= 1 << 14:
        raise CheckpointError(f"{name} of size or crop_size is not a number of pixels")
    return value


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = config[name]
    if not isinstance(value, (list, tuple)):
        raise CheckpointError(f"{name} is not a list")
    return tuple(value) * 3 if len(value) == 1 else tuple(value)


# When no preprocessor_config.json is there: what transformers would take for the family.
VIT = Preprocess(crop_pct=1.0, crop_mode="squash", interpolation="bilinear", mean=HALF, std=HALF)
META = Preprocess(crop_pct=0.875, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)
SIGLIP = Preprocess(crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
