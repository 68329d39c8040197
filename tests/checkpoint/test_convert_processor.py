"""transformers' image processors: every class that is known, random settings, and the pixels that they give.

Tolerance against the classes that work with torchvision, which transformers takes by default: 3 of 255, since
torchvision and Pillow round between the two passes of a resize, and bicubic enlarges that; on average half of one.
Against those that work with Pillow: rounding of float32.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from tests.helpers.checkpoints import TINY, write_tiny
from tests.helpers.originals import TRANSFORMERS, edit, save_transformers, shake
from vitcli.checkpoint.convert.processor import CLASSES, preprocess_of
from vitcli.checkpoint.convert.recognise import convert
from vitcli.checkpoint.convert.source import open_source
from vitcli.checkpoint.convert.transformers import FAMILIES
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess

TORCHVISION, PILLOW = 3.01, 1e-3  # of 255


pytestmark = pytest.mark.usefixtures("quiet")


def picture(rng: np.random.Generator) -> Image.Image:
    """Waves and noise, of any shape."""
    height, width = rng.integers(20, 200, 2)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([127 + 100 * np.sin(x / 17 + c) * np.cos(y / 23) for c in range(3)], -1)
    return Image.fromarray((waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8))


def settings(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """Some keys of a preprocessor_config.json for the class `kind`; the rest is left to its defaults."""

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    side = int(rng.integers(30, 90))
    crop = int(rng.integers(24, side + 10))
    square = {"height": side, "width": side}
    said: dict[str, Any] = {}
    if kind == "ConvNext":
        said["size"] = one_of({"shortest_edge": side}, side, {"shortest_edge": 400})
        said |= one_of({}, {"crop_pct": 0.9})
    elif CLASSES[kind]["default_to_square"]:
        said["size"] = one_of(square, [side, side], side)
    elif CLASSES[kind]["do_center_crop"]:
        said["size"] = one_of({"shortest_edge": side}, side, square)
    else:
        said["size"] = one_of(square, [side, side])
    if kind not in ("ConvNext", "ViT", "Siglip"):
        said["crop_size"] = one_of(crop, {"height": crop, "width": crop})
    if kind in ("DeiT", "Beit"):
        said |= one_of({}, {"do_center_crop": True}, {"do_center_crop": None})
    said |= one_of({}, {"resample": one_of(1, 2, 3)})
    said |= one_of(
        {},
        {"do_normalize": False},
        {"do_normalize": None},
        {"image_mean": [0.4, 0.5, 0.6]},
        {"image_std": [0.3, 0.2, 0.1]},
    )
    return said | one_of({}, {"do_convert_rgb": True}, {"do_pad": False}, {"data_format": "channels_first"})


def off(ours: Preprocess, image: Image.Image, processor: Any) -> np.ndarray[Any, Any]:
    """Differences to `processor`'s pixels, in steps of 255."""
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    found = ours(image, exact=True)
    assert found.shape == theirs.shape
    return np.abs(found - theirs) * np.array(ours.std).reshape(-1, 1, 1) * 255


@pytest.mark.parametrize("with_pillow", [False, True], ids=["torchvision", "pillow"])
@pytest.mark.parametrize("kind", CLASSES)
def test_any_processor_gives_its_pixels(kind: str, with_pillow: bool) -> None:
    """A file that names a few keys, and the one that transformers writes of it, which names all."""
    name = f"{kind}ImageProcessor{'Pil' if with_pillow else ''}"
    if with_pillow and not hasattr(transformers, name):
        pytest.skip("transformers has none that computes with Pillow")
    make = getattr(transformers, name)
    rng = np.random.default_rng(len(kind) + with_pillow)
    for _ in range(15):
        said, image = settings(kind, rng), picture(rng)
        processor = make(**said)
        whole = json.loads(processor.to_json_string())
        for config in ({**said, "image_processor_type": f"{kind}ImageProcessorFast"}, whole):
            ours = preprocess_of(config, "here")
            if with_pillow and ours.crop_pct > 1:
                continue  # transformers' two kinds pad by other halves of an odd margin; torchvision's are taken
            worst = off(ours, image, processor)
            assert worst.max() < (PILLOW if with_pillow else TORCHVISION), (said, image.size)
            assert worst.mean() < 0.5


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_file_leaves_out_is_as_in_its_class(kind: str) -> None:
    """All of it: transformers 5's own defaults, and the old name of the class."""
    image = picture(np.random.default_rng(0))
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    for name in (f"{kind}ImageProcessor", f"{kind}ImageProcessorFast", f"{kind}FeatureExtractor"):
        if kind == "ConvNext" or name.endswith(("Processor", "Fast")):
            config = {"image_processor_type": name}
        else:
            config = {"feature_extractor_type": name}
        assert off(preprocess_of(config, "here"), image, processor).max() < TORCHVISION


def test_a_file_without_a_class_has_its_familys() -> None:
    registered = {kind: name for kind, name in _registered().items() if kind in FAMILIES}
    for kind, name in registered.items():
        assert f"{FAMILIES[kind].processor}ImageProcessor" == name, kind
    assert len(registered) >= 5
    for family in FAMILIES.values():
        assert family.processor in CLASSES


def _registered() -> dict[str, str]:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    return {
        kind: names["torchvision"] for kind, names in IMAGE_PROCESSOR_MAPPING_NAMES.items() if "torchvision" in names
    }


@pytest.mark.parametrize(
    "config",
    [
        {"do_flip_channel_order": True},
        {"do_pad": True},
        {"do_pad": "no"},
        {"do_normalize": 1},
        {"do_thumbnail": True},
        {"offset": True},
        {"patch_size": 16},
        {"use_square_size": True},
        {"max_size": 300},
        {"crop_pct": 0.9},
        {"size_divisor": 32},
        {"resample": 0},
        {"resample": True},
        {"resample": None},
        {"size": None},
        {"do_resize": None},
        {"image_mean": None},
        {"size": {"height": 64, "width": 64, "longest_edge": 80}},
        {"size": {"shortest_edge": 64, "longest_edge": 80}, "image_processor_type": "CLIPImageProcessor"},
        {"size": {"max_height": 64, "max_width": 64}},
        {"size": 64},  # the shorter side, for SigLIP, and no crop
        {"auto_map": {"AutoImageProcessor": "own.Processor"}},
        {"image_processor_type": "MobileViTImageProcessor"},
        {"image_processor_type": "Siglip2ImageProcessorFast"},
        {"image_processor_type": "ViTProcessor"},
        {"image_processor_type": ["ViTImageProcessor"]},
        {"do_center_crop": True, "image_processor_type": "ConvNextImageProcessor"},
        {"a key with \x1b[31m": 1},
    ],
    ids=str,
)
def test_whatever_could_change_a_pixel_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="image processor is not carried over") as error:
        preprocess_of({"image_processor_type": "SiglipImageProcessor", **config}, "here")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_what_is_off_or_empty_is_harmless() -> None:
    plain = {"image_processor_type": "ViTImageProcessor"}
    more = {"do_flip_channel_order": False, "do_thumbnail": False, "crop_pct": None, "do_pad": None, "crop_size": None}
    assert preprocess_of(plain | more, "here") == preprocess_of(plain, "here")


def test_a_crop_lies_as_in_transformers_wherever_the_checkpoint_goes(tmp_path: Path) -> None:
    """Half of an odd margin is rounded down there, and to even in timm; the stored checkpoint still knows."""
    folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path / "original")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 70}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    found, _ = convert(open_source(str(folder)))
    write_tiny(tmp_path / "out", TINY, preprocess=found.preprocess)
    stored = resolve(str(tmp_path / "out")).preprocess
    assert stored == found.preprocess
    image = picture(np.random.default_rng(3)).resize((103, 70))  # a margin of 39 pixels beside the crop
    assert off(stored, image, processor).max() < TORCHVISION
    assert off(replace(stored, crop_margin="round"), image, processor).max() > 10


def test_the_settings_of_a_whole_processor_come_first(tmp_path: Path) -> None:
    folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
    edit(folder / "preprocessor_config.json", image_processor_type="ViTImageProcessor", image_mean=[0.1, 0.1, 0.1])
    inner = {"image_processor_type": "ViTImageProcessor", "size": 64, "image_mean": [0.2, 0.2, 0.2]}
    edit(folder / "processor_config.json", image_processor=inner)
    assert convert(open_source(str(folder)))[0].preprocess.mean == (0.2, 0.2, 0.2)
    edit(folder / "processor_config.json", image_processor=None, processor_class="CLIPProcessor")
    assert convert(open_source(str(folder)))[0].preprocess.mean == (0.1, 0.1, 0.1)
