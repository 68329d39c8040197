"""Checkpoints as torch models: the shape table against the model, loading, resampling, the self-test, and that timm and
transformers read what we write.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tests.helpers.checkpoints import (
    ARCHITECTURE,
    DELETED,
    LABELS,
    PREPROCESS,
    TINY,
    edit_config,
    random_tensors,
    write_tiny,
)
from tests.helpers.process import python
from vitcli.checkpoint.config import Description
from vitcli.checkpoint.load import build, load_any, load_model, selftest_logits
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.selftest import selftest_input
from vitcli.checkpoint.tensor_file import read_tensors, write_tensors
from vitcli.checkpoint.write import save_model
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.resample import resample_pos_embed
from vitcli.model.shapes import weight_shapes
from vitcli.model.vit import VisionTransformer

SMALL = {"img_size": (64, 64), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 3}
HYBRID = replace(TINY, stem=StemConfig(()), patch_size=(8, 8))
VARIANTS = {
    "plain": TINY,
    "not square": replace(TINY, img_size=(32, 80)),
    "registers, averaged": replace(TINY, reg_tokens=2, class_token=False, global_pool="avg", no_embed_class=True),
    "attention pool": replace(TINY, class_token=False, global_pool="map", act="gelu_tanh"),
    "clip": replace(TINY, pre_norm=True, act="quick_gelu", qkv_bias=False),
    "layer scale, qk norm": replace(TINY, init_values=1e-5, qk_norm=True),
}


TOLD = Description(architecture=ARCHITECTURE, labels=LABELS, preprocess=PREPROCESS)


def tiny_model(vit: ViTConfig = TINY, seed: int = 0) -> VisionTransformer:
    return build(vit, {name: torch.from_numpy(a) for name, a in random_tensors(vit, seed).items()})


def save(folder: Path, vit: ViTConfig = TINY, architecture: str = ARCHITECTURE, **more: Any) -> VisionTransformer:
    model = tiny_model(vit)
    said: dict[str, Any] = {"labels": LABELS, "preprocess": replace(PREPROCESS, size=vit.img_size)}
    dtype = more.pop("dtype", "float32")
    described = Description(architecture=architecture, provenance={"made_by": "a test"}, **(said | more))
    save_model(folder, model, described, dtype=dtype)
    return model


def some_images(vit: ViTConfig = TINY) -> torch.Tensor:
    return torch.randn(2, vit.in_chans, *vit.img_size, generator=torch.Generator().manual_seed(1))


# --- the shape table ---


def test_the_shape_table_is_the_models() -> None:
    """For every architecture (two blocks of each, all of one), and for fields that none of them uses."""
    others = {
        "head": replace(TINY, head_hidden=7),
        "no position": replace(TINY, pos_embed="none"),
        "no head": replace(TINY, num_classes=0),
        "no biases": replace(TINY, proj_bias=False, qkv_bias=False),
        "small hybrid": replace(TINY, stem=StemConfig((1, 2), 32), patch_size=(1, 1)),
        "hybrid of basic blocks": replace(TINY, stem=StemConfig((1, 2), 32, "basic"), patch_size=(1, 1)),
    }
    shallow = {name: replace(vit, depth=2) for name, vit in ARCHITECTURES.items()}
    for name, vit in {**shallow, **VARIANTS, **others, "whole": ARCHITECTURES[ARCHITECTURE]}.items():
        with torch.device("meta"):
            model = VisionTransformer(vit)
        assert weight_shapes(vit) == {key: tuple(value.shape) for key, value in model.state_dict().items()}, name


# --- loading ---


@pytest.mark.parametrize("vit", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, vit: ViTConfig) -> None:
    model = save(tmp_path, vit)
    loaded = load_model(resolve(str(tmp_path)))
    assert loaded.config == vit
    assert not loaded.training
    assert torch.equal(loaded(some_images(vit)), model(some_images(vit)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_float16_storage_rounds_the_weights_and_nothing_else(tmp_path: Path) -> None:
    """The self-test was computed with the rounded weights, so it holds to rounding of float32."""
    model = save(tmp_path, dtype="float16")
    loaded = load_model(resolve(str(tmp_path)))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())
    stored = json.loads((tmp_path / "config.json").read_text())["vit"]["selftest"]["logits"]
    np.testing.assert_allclose(selftest_logits(loaded, PREPROCESS)[0], stored, rtol=1e-5)


def test_saving_changes_nothing_about_the_model(tmp_path: Path) -> None:
    model = tiny_model().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_model(tmp_path, model, TOLD, dtype="float16")
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_in_its_training_wrapper_is_saved_like_itself(tmp_path: Path) -> None:
    class Wrapper(nn.Module):  # as DistributedDataParallel, which needs a process group
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = tiny_model()
    save_model(tmp_path, Wrapper(model), TOLD)
    assert torch.equal(load_model(resolve(str(tmp_path)))(some_images()), model(some_images()))


def test_a_bfloat16_model_is_saved_with_its_values(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    save_model(tmp_path, model, TOLD)
    loaded = load_model(resolve(str(tmp_path))).state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in model.state_dict().items())
    assert model.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_model_whose_answers_are_not_finite_is_not_saved(tmp_path: Path, value: float) -> None:
    """3e38 is finite, and overflows in the sum."""
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.fill_(value)
    with pytest.raises(CheckpointError, match="answers are not finite"):
        save_model(tmp_path, model, TOLD)
    assert list(tmp_path.iterdir()) == []


def test_no_parameter_is_initialised_when_weights_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("random initialisation")

    for name in ("normal_", "trunc_normal_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, forbidden)
    load_model(resolve(str(tmp_path)))


# --- another image size ---


def test_resampling_happens_when_asked_and_is_said(tmp_path: Path) -> None:
    model = save(tmp_path)
    checkpoint = resolve(str(tmp_path))
    said: list[str] = []
    larger = load_model(checkpoint, img_size=(96, 64), say=said.append)
    assert said == ["position embedding resampled from 4×4 to 6×4 patches (kernel timm)"]
    assert larger.config.img_size == (96, 64)
    assert model.pos_embed is not None
    assert larger.pos_embed is not None
    assert torch.equal(larger.pos_embed, resample_pos_embed(model.pos_embed, (4, 4), (6, 4), 1))
    reference = timm.create_model(
        ARCHITECTURE, img_size=(64, 64), embed_dim=TINY.embed_dim, depth=TINY.depth, num_classes=TINY.num_classes
    ).eval()
    reference.load_state_dict(model.state_dict())
    reference.set_input_size((96, 64))
    torch.testing.assert_close(larger(some_images(larger.config)), reference(some_images(larger.config)))


def test_the_same_image_size_changes_nothing(tmp_path: Path) -> None:
    model = save(tmp_path)
    said: list[str] = []
    loaded = load_model(resolve(str(tmp_path)), img_size=(64, 64), say=said.append)
    assert said == []
    assert torch.equal(loaded(some_images()), model(some_images()))


def test_another_size_on_the_same_grid_keeps_the_embedding(tmp_path: Path) -> None:
    model = save(tmp_path)
    said: list[str] = []
    loaded = load_model(resolve(str(tmp_path)), img_size=(70, 70), say=said.append)
    assert said == []
    assert loaded.pos_embed is not None
    assert model.pos_embed is not None
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert loaded.config.img_size == (70, 70)


def test_a_wrong_config_can_be_overruled_by_asking(tmp_path: Path) -> None:
    """The weights' grid is the one stored, whatever the config's image size says."""
    model = save(tmp_path)
    edit_config(tmp_path, model_args__img_size=[128, 128], pretrained_cfg__input_size=[3, 128, 128])
    with pytest.raises(CheckpointError, match="--img-size"):
        load_model(resolve(str(tmp_path)))
    loaded = load_model(resolve(str(tmp_path)), img_size=(64, 64))
    assert torch.equal(loaded(some_images()), model(some_images()))


def test_an_image_smaller_than_a_patch_is_an_error(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError, match="less than one patch"):
        load_model(resolve(str(tmp_path)), img_size=(8, 64))


# --- the self-test ---


@pytest.mark.parametrize(
    "lie",
    [
        {"model_args__num_heads": 6},
        {"model_args__act_layer": "quick_gelu"},
        {"vit__model": {"norm_eps": 0.1}},
        {"model_args__pool_include_prefix": True, "model_args__global_pool": "avg", "model_args__fc_norm": False},
    ],
)
def test_a_lie_that_changes_no_shape_is_found_by_the_selftest(tmp_path: Path, lie: dict[str, Any]) -> None:
    save(tmp_path)
    edit_config(tmp_path, **lie)
    with pytest.raises(CheckpointError, match="self-test gives other logits"):
        load_model(resolve(str(tmp_path)))
    load_model(resolve(str(edit_config(tmp_path, vit__selftest=DELETED))))  # without it nobody would know


def test_weights_of_another_training_step_are_found_by_the_selftest(tmp_path: Path) -> None:
    save(tmp_path)
    write_tensors(tmp_path / "model.safetensors", random_tensors(seed=7), {})
    with pytest.raises(CheckpointError, match="self-test gives other logits"):
        load_model(resolve(str(tmp_path)))


def test_between_two_saves_either_weights_are_good(tmp_path: Path) -> None:
    """The state that a kill between config.json and model.safetensors leaves."""
    save(tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())["vit"]["selftest"]
    model = tiny_model(seed=7)
    save_model(tmp_path, model, TOLD)
    edit_config(tmp_path, vit__selftest_before=old)
    load_model(resolve(str(tmp_path)))
    write_tensors(tmp_path / "model.safetensors", random_tensors(seed=0), {})
    load_model(resolve(str(tmp_path)))


def test_a_checkpoint_is_replaced_by_one_with_other_classes(tmp_path: Path) -> None:
    save(tmp_path)
    model = save(tmp_path, replace(TINY, num_classes=5), labels=list("abcde"))
    assert torch.equal(load_model(resolve(str(tmp_path)))(some_images()), model(some_images()))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "seed"),
        ({"seed": "0", "logits": [1, 2, 3]}, "seed"),
        ({"seed": 0}, "a list with the model's classes"),
        ({"seed": 0, "logits": [1, 2]}, "a list with the model's classes"),
        ({"seed": 0, "logits": [1, 2, "x"]}, "numbers"),
        ({"seed": 0, "logits": [1e400, 2, 3]}, "Infinity|not valid|self-test gives"),
    ],
)
def test_a_selftest_that_makes_no_sense_is_said(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    save(tmp_path)
    edit_config(tmp_path, vit__selftest=entry)
    with pytest.raises(CheckpointError, match=said):
        load_model(resolve(str(tmp_path)))


def test_the_selftest_image_is_the_same_in_numpy_and_torch() -> None:
    """The formula of the docstring in torch's integers, and in Python's for a few values."""
    image = selftest_input(PREPROCESS, seed=3)
    index = torch.arange(image.size)
    bits = ((index * 2654435761 + 3 * 40503) % 2**32) // 2**16
    assert torch.equal(torch.from_numpy(image).flatten(), bits.float() / 16384 - 2)
    assert [float(v) for v in image.flat[:3]] == [
        ((i * 2654435761 + 121509) % 2**32 >> 16) / 16384 - 2 for i in range(3)
    ]
    assert -2 <= image.min() < -1.99 < 1.99 < image.max() < 2
    assert abs(image.mean()) < 0.01


# --- timm and transformers ---

READABLE = {
    "plain": (ARCHITECTURE, TINY),
    "not square": (ARCHITECTURE, VARIANTS["not square"]),
    "averaged": (ARCHITECTURE, VARIANTS["registers, averaged"]),
    "quick gelu, pre-norm": (ARCHITECTURE, VARIANTS["clip"]),
    "layer scale, qk norm": (ARCHITECTURE, VARIANTS["layer scale, qk norm"]),
    "attention pool": (ARCHITECTURE, VARIANTS["attention pool"]),
    "hybrid": ("vit_tiny_r_s16_p8_224", HYBRID),
    "eps of the architecture": (
        "vit_base_patch16_clip_224",
        replace(ARCHITECTURES["vit_base_patch16_clip_224"], **SMALL),
    ),
}


@pytest.mark.parametrize(("architecture", "vit"), READABLE.values(), ids=READABLE.keys())
def test_timm_reads_what_we_write(tmp_path: Path, architecture: str, vit: ViTConfig) -> None:
    model = save(tmp_path, vit, architecture)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(some_images(vit)), model(some_images(vit)))
    assert theirs.pretrained_cfg["label_names"] == list(LABELS)


@pytest.mark.filterwarnings("ignore")  # transformers' own imports
def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    """Equal logits, label names and pixels, from an image file on."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    for name, (architecture, vit) in READABLE.items():
        model = save(tmp_path / name, vit, architecture, dtype="float16")
        model = load_model(resolve(str(tmp_path / name)))
        theirs = AutoModelForImageClassification.from_pretrained(tmp_path / name).eval().float()
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        pixels = processor(image)["pixel_values"]
        assert torch.equal(pixels[0], torch.from_numpy(replace(PREPROCESS, size=vit.img_size)(image, exact=True)))
        torch.testing.assert_close(theirs(pixels).logits, model(pixels), msg=name)
        assert theirs.config.id2label == dict(enumerate(LABELS))


def test_timm_says_so_when_it_cannot_read_our_head(tmp_path: Path) -> None:
    """The pre-training head is ours alone: refused by timm, not computed without it."""
    save(tmp_path, replace(TINY, head_hidden=7))
    load_model(resolve(str(tmp_path)))
    with pytest.raises(RuntimeError):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_timms_own_layout_is_read(tmp_path: Path) -> None:
    """What timm 1.0.31 saves, with all the arguments it records."""
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "class_token": False, "global_pool": "avg"}
    theirs = timm.create_model(ARCHITECTURE, num_classes=3, drop_path_rate=0.1, **arguments).eval()
    nn.init.normal_(theirs.head.weight)
    timm.models.save_for_hf(theirs, tmp_path, model_config={"label_names": list(LABELS)}, safe_serialization=True)
    checkpoint = resolve(str(tmp_path))
    torch.testing.assert_close(load_model(checkpoint)(some_images()), theirs(some_images()))
    assert checkpoint.labels == LABELS


def test_a_cnn_is_saved_and_loaded_through_timm(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=3, in_chans=3).eval()
    preprocess = Preprocess(size=(64, 64))
    save_model(tmp_path, model, Description(architecture="resnet18", labels=LABELS, preprocess=preprocess))
    checkpoint = resolve(str(tmp_path))
    assert checkpoint.vit is None
    loaded = load_any(checkpoint)
    assert torch.equal(loaded(some_images()), model(some_images()))
    assert loaded.bn1.num_batches_tracked.dtype == torch.int64
    with pytest.raises(CheckpointError, match="a plain Vision Transformer is needed, not resnet18"):
        load_model(checkpoint)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(theirs(some_images()), model(some_images()))


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    edit_config(tmp_path, architecture="resnett18", model_args={}, vit=DELETED)
    with pytest.raises(CheckpointError, match=r"timm knows no 'resnett18'\. Did you mean 'resnet18'"):
        load_any(resolve(str(tmp_path)))
    edit_config(tmp_path, architecture="resnet18")
    with pytest.raises(CheckpointError, match="not those of the config: resnet18 has no cls_token"):
        load_any(resolve(str(tmp_path)))


def test_every_float_type_gives_the_same_model(tmp_path: Path) -> None:
    """bfloat16 weights as other tools store them: upcast exactly."""
    save(tmp_path)
    edit_config(tmp_path, vit__selftest=DELETED)
    from safetensors.torch import save_file

    weights = {name: torch.from_numpy(a).bfloat16() for name, a in read_tensors(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_model(resolve(str(tmp_path))).state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("resnet18", "resnet18 has no cls_token"), ("resnet1800", "timm knows no 'resnet1800'. Did you mean")],
)
def test_another_architecture_is_refused_before_timm_is_imported(
    architecture: str, message: str, tmp_path: Path
) -> None:
    folder = edit_config(write_tiny(tmp_path), vit=DELETED, model_args={}, architecture=architecture)
    code = (
        "import sys\nfrom vitcli.checkpoint.load import load_any\nfrom vitcli.checkpoint.resolve import resolve\n"
        f"try: load_any(resolve({str(folder)!r}))\n"
        "except Exception as error: print(error, 'timm' in sys.modules)"
    )
    said = python("-c", code).stdout
    assert message in said
    assert said.endswith("False\n")


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224", "dla34"])
def test_no_architecture_is_foreign_to_its_own_weights(name: str) -> None:
    from vitcli.checkpoint.weights import foreign

    with torch.device("meta"):
        names = timm.create_model(name).state_dict()
    assert foreign(name, names) == []
    assert foreign(name, [*names, "no_such_part.weight"]) == ["no_such_part"]


def test_the_source_names_every_architecture_of_timm() -> None:
    from vitcli.checkpoint.weights import architectures

    assert architectures().keys() == set(timm.list_models())
