"""Conversion: for each family a random original gives the same numbers before and after, and what would not is refused.

Tolerance: 2e-6 of the largest output. The sums are the same; the last block is computed for the class token alone, and
matrix products of other shapes add in another order. With every token computed the results are equal to the last bit
(but for attention pooling), which is asserted on the weights rather than on one processor's rounding.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from tests.helpers import fake_hub, originals
from tests.helpers.checkpoints import DELETED, LABELS, PREPROCESS, TINY, edit_config, random_tensors, write_tiny
from tests.helpers.converting import assert_same, converted, numpy_of, refusal, run, tiny_timm, write_open_clip
from tests.helpers.originals import TRANSFORMERS, edit, images, save_transformers, shake
from vitcli.checkpoint.convert import pickles
from vitcli.checkpoint.convert.processor import preprocess_of
from vitcli.checkpoint.convert.recognise import convert
from vitcli.checkpoint.convert.result import Settings
from vitcli.checkpoint.convert.shape import nearest_architecture
from vitcli.checkpoint.convert.source import open_source
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header, write_tensors
from vitcli.cli.app import app
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.vit import VisionTransformer

HEADS = Settings({"num_heads": 3})


pytestmark = pytest.mark.usefixtures("quiet")


class TestTransformers:
    @pytest.mark.parametrize("new_names", [False, True], ids=["on-disk", "in-memory"])
    @pytest.mark.parametrize("family", TRANSFORMERS)
    def test_same_numbers(self, family: str, new_names: bool, tmp_path: Path) -> None:
        make, expected = TRANSFORMERS[family]
        model = shake(make())
        found = converted(save_transformers(model, tmp_path, new_names=new_names))
        x = images(3, *found.vit.img_size)
        with torch.inference_mode():
            assert_same(run(found, x), expected(model, x))

    def test_no_bit_of_a_weight_is_changed(self, tmp_path: Path) -> None:
        model = shake(TRANSFORMERS["vit"][0]())
        found = converted(save_transformers(model, tmp_path))
        theirs = sorted(
            t.numpy().tobytes() for n, t in model.state_dict().items() if "_proj." not in n or "o_proj" in n
        )
        ours = {array.tobytes() for name, array in found.tensors.items() if ".qkv." not in name}
        assert ours == set(theirs)
        q, k, v = (model.state_dict()[f"vit.layers.1.attention.{part}_proj.weight"] for part in "qkv")
        assert np.array_equal(found.tensors["blocks.1.attn.qkv.weight"], torch.cat([q, k, v]).numpy())

    def test_there_must_be_a_head_to_leave_out(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit-model"][0]()), tmp_path)
        with pytest.raises(UsageError, match="has no head"):
            converted(folder, Settings(head=False))

    def test_what_timm_cannot_be_told_is_said(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        assert any("cannot say norm_eps" in note and "last digits" in note for note in converted(folder).notes)
        edit(folder / "config.json", layer_norm_eps=1e-6)
        assert not any("cannot say" in note for note in converted(folder).notes)

    def test_what_no_shape_tells_comes_from_the_config(self, tmp_path: Path) -> None:
        model = shake(TRANSFORMERS["vit"][0]())
        folder = save_transformers(model, tmp_path)
        edit(folder / "config.json", hidden_act="gelu_new", layer_norm_eps=1e-3, num_attention_heads=6)
        vit = converted(folder).vit
        assert (vit.act, vit.norm_eps, vit.num_heads) == ("gelu_tanh", 1e-3, 6)
        edit(folder / "config.json", hidden_act=None, layer_norm_eps=None, num_attention_heads=None)
        vit = converted(folder).vit
        assert (vit.act, vit.norm_eps, vit.num_heads) == ("gelu", 1e-12, 12)  # transformers' own defaults
        with pytest.raises(UsageError, match="says it already"):
            converted(folder, HEADS)

    @pytest.mark.parametrize(
        ("id2label", "labels"),
        [
            ({"2": "bird", "0": "cat", "1": "dog"}, ("cat", "dog", "bird")),
            ({"0": "crane", "1": "dog", "2": "crane"}, ("crane (0)", "dog", "crane (2)")),
            ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ()),
            (None, ()),
        ],
    )
    def test_class_names(self, id2label: dict[str, str] | None, labels: tuple[str, ...], tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        edit(folder / "config.json", id2label=id2label)
        assert converted(folder).labels == labels

    def test_embeddings_are_not_called_classes(self, tmp_path: Path) -> None:
        found = converted(save_transformers(shake(TRANSFORMERS["clip-projection"][0]()), tmp_path))
        assert found.labels[:2] == ("embedding 0", "embedding 1")
        assert any("not classes" in note for note in found.notes)

    @pytest.mark.parametrize(
        ("family", "dropped"),
        [
            ("vit-model", "pooler"),
            ("mae", "decoder"),
            ("dinov2", "mask token"),
            ("clip", "text tower"),
            ("siglip-classifier", "attention pooling"),
            ("clip-classifier", "last norm"),
        ],
    )
    def test_what_is_dropped_is_said(self, family: str, dropped: str, tmp_path: Path) -> None:
        found = converted(save_transformers(shake(TRANSFORMERS[family][0]()), tmp_path))
        assert any(dropped in one.what and one.weights for one in found.dropped)

    @pytest.mark.parametrize("registers", [False, True])
    def test_dinov2s_classifier_is_refused_and_can_be_left_out(self, registers: bool, tmp_path: Path) -> None:
        if registers:
            config: Any = transformers.Dinov2WithRegistersConfig(**originals.SIZES, patch_size=16, num_labels=3)
            model = shake(transformers.Dinov2WithRegistersForImageClassification(config))
        else:
            config = transformers.Dinov2Config(**originals.SIZES, patch_size=16, num_labels=3)
            model = shake(transformers.Dinov2ForImageClassification(config))
        folder = save_transformers(model, tmp_path)
        assert "class token and mean" in refusal(lambda: converted(folder))
        with torch.inference_mode():
            theirs = model.base_model(images()).last_hidden_state[:, 0]
        assert_same(run(converted(folder, Settings(head=False)), images()), theirs)

    def test_two_classifiers_are_refused(self, tmp_path: Path) -> None:
        config = transformers.DeiTConfig(**originals.SIZES, **originals.PATCH, num_labels=3)
        model = shake(transformers.DeiTForImageClassificationWithTeacher(config))
        folder = save_transformers(model, tmp_path)
        assert "two classifiers" in refusal(lambda: converted(folder))
        with torch.inference_mode():
            theirs = model.deit(images()).last_hidden_state[:, 0]
        assert_same(run(converted(folder, Settings(head=False)), images()), theirs)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "beit", "use_relative_position_bias": True}, "relative position biases"),
            ({"model_type": "beit"}, "keys without a bias"),
            ({"model_type": "dinov3_vit"}, "not a Vision Transformer"),
            ({"model_type": "dinov3_convnext"}, "convolutions"),
            ({"model_type": "bert"}, "converted are vit, deit"),
            ({"model_type": ["vit"]}, "is not converted"),
            ({"num_hidden_layers": 12}, "config.json says num_hidden_layers 12, the weights 2"),
            ({"hidden_size": 47}, "hidden_size"),
            ({"num_attention_heads": 5}, "over 5 heads"),
            ({"num_attention_heads": "3"}, "num_heads must be a whole number"),
            ({"image_size": 96}, "96×96 pixels make 36 patches"),
            ({"image_size": 10**30}, "img_size must be"),
            ({"hidden_act": "relu"}, "activation 'relu'"),
            ({"hidden_act": ["gelu"]}, "activation"),
            ({"layer_norm_eps": -1}, "norm_eps must be"),
            ({"id2label": {"0": "cat"}}, "1 names in id2label for 3 classes"),
        ],
    )
    def test_configs_that_lie(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        edit(folder / "config.json", **changes)
        assert message in refusal(lambda: converted(folder))

    def test_weights_that_do_not_fit_are_listed(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        source = open_source(str(folder))
        more = replace(source, tensors=dict(source.tensors) | {"vit.extra.weight": np.ones(3, np.float32)})
        assert "not of this model: extra.weight" in refusal(lambda: convert(more))
        name = "vit.encoder.layer.1.attention.attention.key.bias"
        less = replace(source, tensors={n: a for n, a in source.tensors.items() if n != name})
        assert "missing: blocks.1.attn.qkv.bias" in refusal(lambda: convert(less))

    def test_without_its_config_it_is_refused(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        (folder / "config.json").unlink()
        assert "config.json must lie beside it" in refusal(lambda: converted(folder))

    def test_a_model_in_several_files(self, tmp_path: Path) -> None:
        model = shake(TRANSFORMERS["vit"][0]())
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        with torch.inference_mode():
            assert_same(run(converted(tmp_path), images()), model(images()).logits)
        edit(tmp_path / "model.safetensors.index.json", weight_map={"a": "../b.safetensors"})
        assert "must name files beside it" in refusal(lambda: converted(tmp_path))

    def test_indices_of_old_files_do_no_harm(self, tmp_path: Path) -> None:
        model = shake(TRANSFORMERS["clip-vision"][0]())
        folder = save_transformers(model, tmp_path)
        tensors: dict[str, Any] = {f"vision_model.{n}": t.numpy() for n, t in model.state_dict().items()}
        tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
        write_tensors(folder / "model.safetensors", tensors, {})
        with torch.inference_mode():
            assert_same(run(converted(folder), images()), model(images()).pooler_output)


class TestProcessor:
    @pytest.mark.parametrize(
        ("make", "size"),
        [
            (lambda: transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}), (64, 64)),
            (lambda: transformers.ViTImageProcessorPil(size={"height": 48, "width": 64}, resample=3), (48, 64)),
            (lambda: transformers.DeiTImageProcessorPil(size=_square(72), crop_size=_square(64)), (64, 64)),
            (lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=_square(64)), (64, 64)),
            (lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 74}, crop_size=_square(64)), (64, 64)),
            (lambda: transformers.SiglipImageProcessorPil(size=_square(64)), (64, 64)),
            (lambda: transformers.ViTImageProcessorPil(size=_square(64), do_normalize=False), (64, 64)),
        ],
        ids=["vit", "vit-wide", "deit", "clip", "clip-cropped", "siglip", "plain"],
    )
    def test_same_pixels(self, make: Callable[[], Any], size: tuple[int, int], tmp_path: Path) -> None:
        """Against transformers' processors that use Pillow. Margins are even here; where they are odd the crops round
        apart by a pixel, which is documented."""
        processor = make()
        processor.save_pretrained(tmp_path)
        ours = preprocess_of(json.loads((tmp_path / "preprocessor_config.json").read_text()), "here")
        assert ours.size == size
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (100, 120, 3), dtype=np.uint8))
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(picture, exact=True), theirs, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"size": 64, "feature_extractor_type": "ViTFeatureExtractor"}, ("squash", 1.0, (64, 64))),
            (
                {"size": 64, "crop_size": 56, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"},
                ("center", 0.875, (56, 56)),
            ),
            ({"size": 64, "crop_size": 56, "do_center_crop": True, "image_processor_type": "DeiTImageProcessor"},
             ("squash", 0.875, (56, 56))),
        ],
    )  # fmt: skip
    def test_old_files_with_bare_numbers(self, config: dict[str, Any], expected: tuple[Any, ...]) -> None:
        found = preprocess_of(config, "here")
        assert (found.crop_mode, found.crop_pct, found.size) == expected

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"do_resize": False}, "do_resize"),
            ({"do_rescale": False}, "do_rescale"),
            ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
            ({"rescale_factor": "1/255"}, "rescale_factor"),
            ({"resample": 4}, "resample"),
            ({"size": {"shortest_edge": 64}}, "not cropped"),
            ({"size": {"longest_edge": 64}}, "neither height and width"),
            ({"size": "64"}, "neither a number nor an object"),
            ({"size": {"height": 0, "width": 64}}, "not a number of pixels"),
            ({"size": 64, "crop_size": {"height": 32, "width": 64}, "do_center_crop": True}, "another share"),
            ({"size": 64, "image_mean": 0.5}, "image_mean is not a list"),
            ({"size": 64, "image_std": [0, 0, 0]}, "std"),
        ],
    )
    def test_what_is_refused(self, config: dict[str, Any], message: str) -> None:
        assert message in refusal(lambda: preprocess_of(config, "here"))

    def test_a_size_that_the_position_embedding_is_not_for(self, tmp_path: Path) -> None:
        """DINOv2's processor makes 224 pixels for a model of 518; the weights stay, and the command is named."""
        folder = save_transformers(shake(TRANSFORMERS["dinov2"][0]()), tmp_path)
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 37}, crop_size=_square(32)).save_pretrained(folder)
        found = converted(folder)
        assert found.preprocess.size == found.vit.img_size == (64, 64)
        assert found.preprocess.crop_pct == pytest.approx(32 / 37)
        assert any("vit resize-posemb --size 32x32 --posemb-kernel hf" in note for note in found.notes)

    def test_the_users_word_goes(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
        found = converted(folder, Settings(preprocess={"mean": (0.1, 0.2, 0.3), "crop_pct": 0.9}))
        assert (found.preprocess.mean, found.preprocess.crop_pct) == ((0.1, 0.2, 0.3), 0.9)
        transformers.ViTImageProcessorPil(size=_square(64), do_resize=False).save_pretrained(folder)
        assert "do_resize" in refusal(lambda: converted(folder))
        found = converted(folder, Settings(preprocess={"crop_mode": "center"}))
        assert (found.preprocess.crop_mode, found.preprocess.std) == ("center", (0.5, 0.5, 0.5))
        assert any("with your --set" in note for note in found.notes)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


class TestGoogle:
    def npz(self, folder: Path, prefix: str = "", more: dict[str, Any] | None = None, **layout: Any) -> Path:
        arrays = {prefix + name: array for name, array in originals.flax_vit(**layout).items()}
        np.savez(folder / "ViT.npz", **arrays, **(more or {}))
        return folder / "ViT.npz"

    @pytest.mark.parametrize(
        ("layout", "prefix", "size"),
        [
            ({}, "", 64),
            ({}, "opt/target/", 64),
            ({"hidden": 20}, "", 64),
            ({"pool": "avg", "big_vision": True}, "params/", 64),
            ({"pool": "map", "big_vision": True}, "params/img/", 64),
            ({"pool": "token", "big_vision": True}, "params/", 64),
        ],
        ids=["vit", "optimiser", "pre-logits", "gap", "siglip", "big_vision"],
    )
    def test_same_numbers_as_the_published_code(
        self, layout: dict[str, Any], prefix: str, size: int, tmp_path: Path
    ) -> None:
        found = converted(self.npz(tmp_path, prefix, **layout))
        assert_same(run(found, images(size=size)).double(), _flax(layout, size))

    @pytest.mark.parametrize(("stem", "size"), [((1, 2), 64), ((1,), 32), ((), 32)])
    def test_hybrids(self, stem: tuple[int, ...], size: int, tmp_path: Path) -> None:
        """timm's epsilons are not the authors' (stem.py): relative to filters of σ 0.1 that is some 1e-5."""
        layout = {"stem": stem}
        found = converted(self.npz(tmp_path, **layout))
        assert found.vit.img_size == (size, size)
        assert_same(run(found, images(size=size)).double(), _flax(layout, size), tolerance=1e-4)

    @pytest.mark.parametrize(
        ("layout", "name", "arguments"),
        [
            ({}, "vit_base_patch16_224", {}),
            ({"pool": "map", "big_vision": True}, "vit_base_patch16_siglip_224", {}),
            ({"pool": "avg", "big_vision": True}, "vit_base_patch16_siglip_gap_224", {}),
            ({"stem": (), "stem_width": 64}, "vit_tiny_r_s16_p8_224", {"patch_size": 2, "img_size": 32}),
        ],
    )
    def test_same_weights_as_in_timm(
        self, layout: dict[str, Any], name: str, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        path = self.npz(tmp_path, **layout)
        sizes = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5, "num_classes": 3}
        model = timm.create_model(name, **sizes | arguments)
        model.load_pretrained(str(path))
        found = converted(path)
        assert found.tensors.keys() == model.state_dict().keys()
        for key, tensor in model.state_dict().items():
            assert np.array_equal(found.tensors[key], tensor.numpy()), key

    def test_stacked_layers_and_bfloat16(self, tmp_path: Path) -> None:
        arrays = originals.flax_vit(pool="avg", big_vision=True)
        block = "Transformer/encoderblock_0/"
        stacked = {n: a for n, a in arrays.items() if "encoderblock_" not in n}
        for name in [n for n in arrays if n.startswith(block)]:
            pair = [arrays[name], arrays[name.replace("block_0", "block_1")]]
            stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(pair)
        halves = {n: (a.view(np.uint32) >> 16).astype("<u2").view("V2") for n, a in stacked.items()}
        np.savez(tmp_path / "stacked.npz", **stacked)
        np.savez(tmp_path / "halves.npz", **halves)
        exact, rounded = (converted(tmp_path / f"{name}.npz") for name in ("stacked", "halves"))
        for name, array in converted(self.npz(tmp_path, pool="avg", big_vision=True)).tensors.items():
            assert np.array_equal(exact.tensors[name], array)
            cut = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
            assert np.array_equal(rounded.tensors[name], cut)

    def test_text_and_optimiser_are_dropped_and_said(self, tmp_path: Path) -> None:
        more = {"params/t": np.ones(1, np.float32), "params/txt/Encoder_0/w": np.ones((2, 2), np.float32)}
        layout = {"pool": "map", "big_vision": True}
        found = converted(self.npz(tmp_path, "params/img/", more, **layout))
        assert [(one.what, one.weights) for one in found.dropped] == [("the text tower", 2)]
        found = converted(self.npz(tmp_path, "opt/target/", {"opt/state/step": np.ones(1, np.float32)}))
        assert [one.what for one in found.dropped] == ["the optimiser's state"]

    def test_nothing_is_ignored(self, tmp_path: Path) -> None:
        """timm leaves a block too many, or a head of another size, out without a word."""
        arrays = originals.flax_vit()
        more = {n.replace("block_0", "block_2"): a for n, a in arrays.items() if "encoderblock_0" in n}
        assert converted(self.npz(tmp_path, "", more)).vit.depth == 3
        more.popitem()
        message = refusal(lambda: converted(self.npz(tmp_path, "", more)))
        assert "missing: blocks.2." in message
        message = refusal(lambda: converted(self.npz(tmp_path, "", {"head2/kernel": np.ones((2, 2), np.float32)})))
        assert "not of this model: head2.weight" in message

    def test_the_activation_can_be_said(self, tmp_path: Path) -> None:
        path = self.npz(tmp_path)
        assert converted(path).vit.act == "gelu_tanh"
        assert converted(path, Settings({"act": "gelu"})).vit.act == "gelu"

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"embedding/kernel": np.array([object()])}, "not a type of weights"),
            ({"embedding/kernel": np.array(["text"])}, "not a type of weights"),
            ({"weights": np.ones(3)}, "no embedding/kernel"),
            ({"embedding/kernel": np.ones(3)}, "no attention"),
            ({"embedding/kernel": np.full((1, 1, 1, 1), np.nan)}, "NaN"),
        ],
    )
    def test_other_archives(self, arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", **arrays)
        assert message in refusal(lambda: converted(tmp_path / "other.npz"))

    def test_bombs_and_lies(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, a=np.zeros(30 << 20, np.uint8))
        assert "more than 20 times" in refusal(lambda: converted(path))
        good = self.npz(tmp_path).read_bytes()
        header = b"'shape': (32,), }"
        assert header in good
        (tmp_path / "lie.npz").write_bytes(good.replace(header, b"'shape': (33,), }"))
        assert "not a readable .npz" in refusal(lambda: converted(tmp_path / "lie.npz"))  # the zip's own checksum
        np.savez(path, **{"a": np.ones(3)})
        path.write_bytes(path.read_bytes()[:-30])
        assert "zip" in refusal(lambda: converted(path))


def _flax(layout: dict[str, Any], size: int) -> Tensor:
    return torch.from_numpy(originals.flax_forward(originals.flax_vit(**layout), images(size=size)))


class TestOriginal:
    """Written as safetensors: what a pickle is and how it is read is another matter (`TestPickle`)."""

    def write(self, folder: Path, tensors: dict[str, Any]) -> Path:
        write_tensors(folder / "weights", tensors, {})
        return folder / "weights"

    def test_dino(self, tmp_path: Path) -> None:
        model = tiny_timm(num_classes=0)
        tensors = numpy_of(model, lambda name: f"module.backbone.{name}")
        tensors |= {"module.head.mlp.0.weight": np.ones((2, 2), np.float32)}
        found = converted(self.write(tmp_path, tensors), HEADS)
        assert_same(run(found, images()), model(images()))
        assert [(one.what, one.weights) for one in found.dropped] == [("what lies outside 'backbone.'", 1)]
        assert found.preprocess == Preprocess(size=(64, 64), crop_pct=0.875)

    @pytest.mark.parametrize("block", ["bottleneck", "basic"])
    def test_a_hybrids_blocks_are_told_by_their_weights(
        self, block: Literal["bottleneck", "basic"], tmp_path: Path
    ) -> None:
        vit = ViTConfig(
            img_size=(32, 32), patch_size=(1, 1), embed_dim=24, depth=1, num_heads=3, num_classes=3,
            stem=StemConfig((1, 2), 32, block),
        )  # fmt: skip
        model = VisionTransformer(vit).eval()
        found = converted(self.write(tmp_path, numpy_of(model)), HEADS)
        assert found.vit.stem == vit.stem
        with torch.inference_mode():
            assert torch.equal(run(found, images(size=32)), model(images(size=32)))

    def test_deit_iii(self, tmp_path: Path) -> None:
        model = tiny_timm("deit3_base_patch16_224")
        old = numpy_of(model, lambda n: n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"))
        found = converted(self.write(tmp_path, old), HEADS)
        assert_same(run(found, images()), model(images()))
        assert found.vit.no_embed_class
        assert found.family == "DeiT III"

    def test_deit_with_distillation(self, tmp_path: Path) -> None:
        model = tiny_timm("deit_base_distilled_patch16_224")
        path = self.write(tmp_path, numpy_of(model))
        assert "two classifiers" in refusal(lambda: converted(path, HEADS))
        found = converted(path, replace(HEADS, head=False))
        assert_same(run(found, images()), model.forward_features(images())[:, 0])

    def test_mae(self, tmp_path: Path) -> None:
        model = tiny_timm(num_classes=0)
        decoder = {
            "mask_token": np.ones((1, 1, 8), np.float32),
            "decoder_blocks.0.mlp.fc1.bias": np.ones(3, np.float32),
        }
        found = converted(self.write(tmp_path, numpy_of(model) | decoder), HEADS)
        assert found.family == "MAE"
        assert [one.weights for one in found.dropped] == [2]
        assert_same(run(found, images()), model(images()))

    def test_mae_fine_tuned(self, tmp_path: Path) -> None:
        model = tiny_timm(global_pool="avg")
        found = converted(self.write(tmp_path, numpy_of(model)), HEADS)
        assert_same(run(found, images()), model(images()))

    @pytest.mark.parametrize("family", ["dinov2", "dinov2-giant", "dinov2-registers"])
    @pytest.mark.parametrize("chunk", ["", "0."])
    def test_dinov2(self, family: str, chunk: str, tmp_path: Path) -> None:
        """The reference is transformers' model, its weights under the original's names."""
        make, expected = TRANSFORMERS[family]
        model = shake(make())
        theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        tensors = {_dinov2_name(name, chunk): a for name, a in theirs.items() if "k_proj" not in name}
        for name in list(tensors):
            for part, joined in {"q_proj": "qkv", "gate_proj": "w12"}.items():
                if f".{part}." in name:
                    block, kind = name.rpartition(f".{part}.")[::2]
                    parts = ["gate_proj", "up_proj"] if joined == "w12" else ["q_proj", "k_proj", "v_proj"]
                    layer = f"encoder.layer.{block.split('.')[-2]}.{'mlp' if joined == 'w12' else 'attention'}"
                    tensors[f"{block}.{joined}.{kind}"] = np.concatenate([theirs[f"{layer}.{p}.{kind}"] for p in parts])
        tensors = {n: a for n, a in tensors.items() if not any(p in n for p in ("q_proj", "v_proj", "gate_", "up_"))}
        found = converted(self.write(tmp_path, tensors), HEADS)
        assert found.family == "DINOv2"
        assert_same(run(found, images()), expected(model, images()))

    def dinov3(self, tmp_path: Path, **changes: Any) -> tuple[Path, Any]:
        """transformers' model, and its weights under the names of DINOv3's authors."""
        model = shake(TRANSFORMERS["dinov3" if "gated" not in changes else "dinov3-gated"][0]())
        theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        tensors: dict[str, Any] = {}
        for name, array in theirs.items():
            new = _dinov3_name(name, "gated" in changes)
            if ".q_proj." in new:
                parts = [theirs.get(name.replace("q_proj", f"{part}_proj"), np.zeros_like(array)) for part in "qkv"]
                tensors[new.replace("q_proj", "qkv")] = np.concatenate(parts)
            elif not re.search(r"[kv]_proj", new):
                tensors[new] = array
        for name in [name for name in tensors if name.endswith("qkv.bias")]:
            tensors[f"{name}_mask"] = np.repeat(np.float32([1, 0, 1]), 48)
        tensors["rope_embed.periods"] = np.float32(100.0) ** (np.arange(4, dtype=np.float32) / 4)
        return self.write(tmp_path, tensors | changes.get("more", {})), model

    @pytest.mark.parametrize("gated", [{}, {"gated": True}], ids=["mlp", "gated"])
    def test_dinov3(self, gated: dict[str, bool], tmp_path: Path) -> None:
        path, model = self.dinov3(tmp_path, **gated)
        found = converted(path, Settings({"img_size": (48, 80)}))
        assert (found.family, found.vit.num_heads, found.vit.global_pool) == ("DINOv3", 3, "token")
        x = images(3, 48, 80)
        with torch.inference_mode():
            assert_same(run(found, x), model(x).pooler_output)

    def test_dinov3_that_cannot_be_exact(self, tmp_path: Path) -> None:
        path, _ = self.dinov3(tmp_path, more={"blocks.1.attn.qkv.bias": np.ones(144, np.float32)})
        assert "keys have a bias" in refusal(lambda: converted(path))
        rounded = np.float32(100.0) ** (np.arange(4, dtype=np.float32) / 4) * np.float32(1 + 2.0**-9)
        path, _ = self.dinov3(tmp_path, more={"rope_embed.periods": rounded})
        assert any("rounded to bfloat16" in note for note in converted(path).notes)

    def test_heads_of_known_sizes_and_of_others(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, numpy_of(tiny_timm()))
        assert "--set num_heads=N" in refusal(lambda: converted(path))
        assert "cannot be split over 5" in refusal(lambda: converted(path, Settings({"num_heads": 5})))
        known = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
        assert converted(self.write(tmp_path, numpy_of(known))).vit.num_heads == 3

    def test_a_grid_that_is_not_square(self, tmp_path: Path) -> None:
        model = tiny_timm(img_size=(32, 48))
        path = self.write(tmp_path, numpy_of(model))
        assert "--set img_size=[HEIGHT,WIDTH]" in refusal(lambda: converted(path, HEADS))
        found = converted(path, Settings({"num_heads": 3, "img_size": (32, 48)}))
        x = images()[..., :32, :48]
        assert_same(run(found, x), model(x))
        assert "make 9 patches" in refusal(lambda: converted(path, Settings({"num_heads": 3, "img_size": (48, 48)})))

    def test_gray_images(self, tmp_path: Path) -> None:
        found = converted(self.write(tmp_path, numpy_of(tiny_timm(in_chans=1))), HEADS)
        assert len(found.preprocess.mean) == 1
        path = self.write(tmp_path, numpy_of(tiny_timm(in_chans=4)))
        assert "4 channels" in refusal(lambda: converted(path, HEADS))

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"blocks.0.attn.relative_position_bias_table": 3}, "relative position biases"),
            ({"rope_embed.periods": 3}, "other periods"),
            ({"blocks.0.rope": 3}, "rotary"),
            ({"other.patch_embed.proj.weight": 3}, "several models"),
            ({"blocks.0.extra": 3}, "not of this model: blocks.0.extra"),
            ({"blocks.7.norm1.weight": 3}, "missing: blocks.2.norm1.weight"),
        ],
    )
    def test_others(self, more: dict[str, int], message: str, tmp_path: Path) -> None:
        tensors = numpy_of(tiny_timm()) | {name: np.ones(size, np.float32) for name, size in more.items()}
        path = self.write(tmp_path, tensors)
        assert message in refusal(lambda: converted(path, HEADS))

    def test_no_vit_at_all(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"conv1.weight": np.ones((2, 3, 7, 7), np.float32)})
        assert "no Vision Transformer that is known here; it holds conv1.weight" in refusal(lambda: converted(path))
        path = self.write(tmp_path, {"patch_embed.proj.weight": np.ones(3, np.float32)})
        assert "is not a Vision Transformer" in refusal(lambda: converted(path))


def _dinov3_name(name: str, gated: bool) -> str:
    up, down = ("w2", "w3") if gated else ("fc1", "fc2")
    for theirs, original in (
        (r"^model\.layer\.", "blocks."),
        (r"^embeddings\.register_tokens$", "storage_tokens"),
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.attention\.", ".attn."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", f".mlp.{up}."),
        (r"\.mlp\.down_proj\.", f".mlp.{down}."),
    ):
        name = re.sub(theirs, original, name)
    return name


def _dinov2_name(name: str, chunk: str) -> str:
    for theirs, original in {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer.": f"blocks.{chunk}",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "attention.o_proj": "attn.proj",
        "attention.": "attn.",
        "mlp.down_proj": "mlp.w3",
        "layernorm.": "norm.",
    }.items():
        name = name.replace(theirs, original)
    return name


class TestOpenClip:
    """The reference is transformers' CLIP, its weights under open_clip's names, or timm inside `visual.trunk`."""

    @pytest.fixture
    def clip(self) -> Any:
        return shake(TRANSFORMERS["clip"][0]())

    def expected(self, clip: Any) -> Any:
        with torch.inference_mode():
            return TRANSFORMERS["clip"][1](clip, images())

    def test_with_its_config(self, clip: Any, tmp_path: Path) -> None:
        found = converted(write_open_clip(tmp_path, clip, width=48, head_width=16, image_size=64))
        assert_same(run(found, images()), self.expected(clip))
        assert found.preprocess == Preprocess((64, 64), 1.0, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3)
        assert [(one.what, one.weights) for one in found.dropped] == [("the text tower", 2)]
        assert found.labels[0] == "embedding 0"

    def test_without_it(self, clip: Any, tmp_path: Path) -> None:
        folder = write_open_clip(tmp_path, clip)
        found = converted(folder, Settings({"num_heads": 3, "act": "quick_gelu"}))
        assert_same(run(found, images()), self.expected(clip))
        assert found.vit.norm_eps == 1e-5
        found = converted(folder, HEADS)
        assert found.vit.act == "gelu"
        assert any("--set act=quick_gelu" in note for note in found.notes)

    def test_mean_of_the_patches_and_no_first_norm(self, clip: Any, tmp_path: Path) -> None:
        """The other settings of open_clip's tower, against the same weights computed by hand."""
        tower = {"width": 48, "head_width": 16, "image_size": 64, "pool_type": "avg"}
        folder = write_open_clip(tmp_path, clip, **tower)
        source = open_source(str(folder))
        tensors = {n: a for n, a in source.tensors.items() if "ln_pre" not in n}
        vision = clip.vision_model
        with torch.inference_mode():
            encoded = vision.encoder(inputs_embeds=vision.embeddings(images())).last_hidden_state
            before = clip.visual_projection(vision.post_layernorm(encoded)[:, 1:].mean(1))
            after = clip.visual_projection(vision.post_layernorm(encoded[:, 1:].mean(1)))
        assert_same(run(convert(replace(source, tensors=tensors))[0], images()), before)
        edit(folder / "open_clip_config.json", model_cfg={"vision_cfg": tower | {"final_ln_after_pool": True}, "quick_gelu": True})  # fmt: skip  # noqa: E501
        last = replace(open_source(str(folder)), tensors=tensors)
        assert_same(run(convert(last)[0], images()), after)

    def test_a_tower_of_timms(self, tmp_path: Path) -> None:
        model = tiny_timm("vit_base_patch16_siglip_224", num_classes=0)
        write_tensors(tmp_path / "clip.safetensors", numpy_of(model, lambda name: f"visual.trunk.{name}"), {})
        found = converted(tmp_path, HEADS)
        assert_same(run(found, images()), model(images()))
        vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}
        edit(tmp_path / "open_clip_config.json", model_cfg={"vision_cfg": vision})
        assert converted(tmp_path).vit.num_heads == 12

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("visual.layer1.0.conv1.weight", "ResNet"),
            ("visual.attn_pool.query", "CoCa"),
            ("visual.surplus", "not of this model: surplus"),
        ],
    )
    def test_other_towers(self, clip: Any, name: str, message: str, tmp_path: Path) -> None:
        source = open_source(str(write_open_clip(tmp_path, clip)))
        more = replace(source, tensors=dict(source.tensors) | {name: np.ones(3, np.float32)})
        assert message in refusal(lambda: convert(more, HEADS))


class Bomb:
    """What a hostile pickle does: it runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class TestPickle:
    def test_refused_unless_allowed(self, tmp_path: Path) -> None:
        torch.save(tiny_timm().state_dict(), tmp_path / "weights")
        assert "--allow-pickle" in refusal(lambda: converted(tmp_path / "weights"))

    def test_a_training_checkpoint_of_dino(self, tmp_path: Path) -> None:
        model = tiny_timm(num_classes=0)
        teacher = {f"backbone.{n}": t.half() for n, t in model.state_dict().items()}
        student = {n: torch.zeros_like(t) for n, t in teacher.items()}
        content = {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(arch="vit_tiny")}
        torch.save(content, tmp_path / "checkpoint.pth")
        source = open_source(str(tmp_path / "checkpoint.pth"), allow_pickle=True)
        found = convert(source, HEADS)[0]
        assert source.notes == ("taken from the pickle: 'teacher'",)
        assert np.array_equal(found.tensors["norm.weight"], model.norm.weight.detach().half().float().numpy())

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_code_is_not_run(self, wrapped: bool, tmp_path: Path) -> None:
        mark, path = tmp_path / "was-run", tmp_path / "model.bin"
        if wrapped:
            torch.save({"model": {"a": torch.ones(2), "b": torch.ones(2)}, "x": Bomb(mark)}, path)
        else:
            path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
        message = refusal(lambda: converted(path, allow_pickle=True))
        assert "system" in message
        assert "code and not weights" in message
        assert not mark.exists()

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1).expand(1 << 29), "b": torch.zeros(1)}, tmp_path / "x.pt")  # 2 GiB out of 1 kB
        assert "memory" in refusal(lambda: converted(tmp_path / "x.pt", allow_pickle=True)).lower()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x80\x04\x95\xff\xff", "no pickle of weights"),
            (b"PK\x03\x04junk", "zip"),
        ],
    )
    def test_damage(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "x.pt").write_bytes(content.ljust(16, b"\x00"))
        assert message in refusal(lambda: converted(tmp_path / "x.pt", allow_pickle=True)).lower()

    def test_the_child_sees_no_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}

        def look(command: list[str], **options: Any) -> Any:
            seen.update(options)
            raise subprocess.TimeoutExpired(command, 1)

        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(pickles.subprocess, "run", look)
        torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
        assert "given up" in refusal(lambda: pickles.read_pickle(tmp_path / "x.pt"))
        assert "hf_secret" not in str(seen["env"])
        assert seen["env"]["HOME"] not in (os.environ.get("HOME"), None)


class TestTimm:
    """timm's layout with a pickle, which `vit predict` refuses and sends here."""

    def pickled(self, folder: Path, **changes: Any) -> Path:
        write_tiny(folder)
        tensors = load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        edit_config(folder, vit=DELETED, **changes)
        return folder

    def test_the_same_checkpoint_comes_out(self, tmp_path: Path) -> None:
        folder = self.pickled(tmp_path / "old", pretrained_cfg__mean=[0.1, 0.2, 0.3])
        with pytest.raises(CheckpointError, match="allow-pickle"):
            resolve(str(folder))
        arguments = ["convert", str(folder), "--allow-pickle", "-o", str(tmp_path / "new")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        new = resolve(str(tmp_path / "new"))
        assert (new.architecture, new.vit, new.labels) == ("vit_tiny_patch16_224", TINY, LABELS)
        assert new.preprocess == replace(PREPROCESS, mean=(0.1, 0.2, 0.3))
        for name, array in random_tensors().items():
            assert np.array_equal(load_file(tmp_path / "new" / "model.safetensors")[name].numpy(), array)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architecture": "resnet18", "model_args": {}}, "resnet18 is no Vision Transformer"),
            ({"model_args__depth": 3}, "missing: blocks.2.norm1.weight"),
            ({"num_classes": "3"}, "num_classes must be"),
        ],
    )
    def test_configs_that_lie(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        folder = edit_config(write_tiny(tmp_path), vit=DELETED, **changes)
        source = open_source(str(folder))
        assert message in refusal(lambda: convert(replace(source, kind="pickle")))
        with pytest.raises(UsageError, match="says it all"):
            convert(replace(source, kind="pickle"), HEADS)


# LingBot's are DINOv3's of other sizes, and what is converted is called by that name.
OFFERED = [name for name in ARCHITECTURES if not name.startswith("test_") and "lingbot" not in name]


@pytest.mark.parametrize("name", OFFERED)
def test_every_architecture_is_nearest_to_itself(name: str) -> None:
    assert ARCHITECTURES[nearest_architecture(ARCHITECTURES[name])] == ARCHITECTURES[name]


ODD = [np.ones(shape, np.float32) for shape in ((), (1,), (5, 0), (1, 2, 3), (1, 2, 3, 4))]


@pytest.mark.parametrize(
    "family", ["vit", "dinov2-registers", "dinov2-giant", "clip-projection", "siglip", "npz", "timm"]
)
def test_any_weight_of_an_odd_shape_is_one_line(family: str, tmp_path: Path) -> None:
    """Every weight in turn with every odd shape: refused (or dropped where it was to be), never a traceback."""
    if family == "npz":
        np.savez(tmp_path / "x.npz", **originals.flax_vit(stem=(1,), hidden=20))
        source = open_source(str(tmp_path / "x.npz"))
    elif family == "timm":
        write_tensors(tmp_path / "x", numpy_of(tiny_timm("deit3_base_patch16_224")), {})
        source = open_source(str(tmp_path / "x"))
    else:
        source = open_source(str(save_transformers(shake(TRANSFORMERS[family][0]()), tmp_path)))
    settings = HEADS if family == "timm" else Settings()
    dropped = ("text_model", "mask_token", "logit_")
    for name in source.tensors:
        if name.startswith(dropped) or name.endswith(dropped) or ".1." in name or "block_1" in name:
            continue
        for odd in ODD:
            changed = replace(source, tensors={**source.tensors, name: odd})
            refusal(lambda changed=changed: convert(changed, settings))  # type: ignore[misc]


class TestCommand:
    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["convert", *map(str, arguments)])

    @pytest.fixture
    def original(self, tmp_path: Path) -> Path:
        model = shake(TRANSFORMERS["vit"][0]())
        folder = save_transformers(model, tmp_path / "original")
        edit(folder / "config.json", layer_norm_eps=1e-6, id2label={"0": "cat", "1": "dog", "2": "bird"})
        transformers.ViTImageProcessorPil(size=_square(64)).save_pretrained(folder)
        return folder

    def test_timm_transformers_and_vit_read_the_result(self, original: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = self.invoke(original, "--out", out, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["schema"] == "vit.convert/1"
        assert (report["family"], report["layers"], report["heads"]) == ("ViT of transformers", 2, 3)
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert {path.name for path in tmp_path.iterdir()} == {"original", "out"}
        checkpoint = resolve(str(out))
        assert checkpoint.labels == ("cat", "dog", "bird")
        assert checkpoint.preprocess.interpolation == "bilinear"
        assert checkpoint.provenance["converted"]["from"] == "original"
        loaded = transformers.ViTForImageClassification.from_pretrained(original).eval()
        theirs = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
        timms = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        with torch.inference_mode():
            want = loaded(images()).logits
            assert_same(load_model(checkpoint)(images()), want)
            assert_same(timms(images()), want)
            assert_same(theirs(images()).logits, want)
        assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "bird"}

    def test_the_report_for_people(self, original: Path, tmp_path: Path) -> None:
        result = self.invoke(original, "-o", tmp_path / "out")
        for text in ("ViT of transformers", "64×64", "2 layers, 3 heads", "3 (cat, dog, bird)", "dropped", "nothing"):
            assert text in result.stdout
        assert "vit predict -m" in result.stderr

    def test_features_and_half_precision(self, tmp_path: Path) -> None:
        folder = save_transformers(shake(TRANSFORMERS["vit-model"][0]()).half(), tmp_path / "original")
        result = self.invoke(folder, "-o", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert "the representation" in result.stdout
        assert {i.dtype for i in read_header(tmp_path / "out" / "model.safetensors").tensors.values()} == {"F16"}
        assert load_model(resolve(str(tmp_path / "out"))).config.num_classes == 0
        assert "image-feature-extraction" in (tmp_path / "out" / "README.md").read_text()

    def test_a_dry_run_writes_nothing(self, original: Path, tmp_path: Path) -> None:
        result = self.invoke(original, "--dry-run")
        assert result.exit_code == 0
        assert "nothing was written" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["original"]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 2, "say where"),
            (["--out", "OUT", "--set", "heads=3"], 2, "Did you mean"),
            (["--out", "OUT", "--set", "act=gelu"], 2, "says it already"),
            (["--out", "OUT", "--set", "num_heads=0"], 1, "must be a whole number"),
            (["--out", "OUT", "--set", "mean=[1,2]"], 1, "mean"),
            (["--out", "ORIGINAL"], 2, "is there already"),
        ],
    )
    def test_wrong_wishes_write_nothing(
        self, original: Path, tmp_path: Path, arguments: list[str], code: int, message: str
    ) -> None:
        places = {"OUT": str(tmp_path / "out"), "ORIGINAL": str(original)}
        result = self.invoke(original, *(places.get(a, a) for a in arguments))
        assert result.exit_code == code
        assert message in " ".join(result.stderr.split())
        assert [path.name for path in tmp_path.iterdir()] == ["original"]

    @pytest.mark.parametrize("source", ["nowhere", "nowhere.safetensors", "a/b/c"])
    def test_sources_that_are_not_there(self, source: str, tmp_path: Path) -> None:
        result = self.invoke(source, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert "no such file or folder" in result.stderr

    def test_a_full_disk_leaves_nothing(self, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device", "README.md")

        monkeypatch.setattr("vitcli.checkpoint.convert.store.write_file", full)
        result = self.invoke(original, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert "No space left on device; nothing was saved" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["original"]

    def test_our_own_checkpoint_needs_no_conversion(self, original: Path, tmp_path: Path) -> None:
        assert self.invoke(original, "-o", tmp_path / "out").exit_code == 0
        result = self.invoke(tmp_path / "out", "-o", tmp_path / "again")
        assert "in timm's layout already" in result.stderr

    def test_a_name_on_the_hub(self, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("HF_") or name == "TRANSFORMERS_OFFLINE"]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        with fake_hub.running() as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            repo = hub.add("someone/vit", {path.name: path.read_bytes() for path in original.iterdir()})
            hub.add("someone/bare", {name: repo.files[name] for name in ("config.json", "model.safetensors")})
            result = self.invoke("someone/vit", "-o", tmp_path / "out", "--json")
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["preprocessing"]["crop_mode"] == "squash"
            assert json.loads(result.stdout)["notes"] == []
            made = resolve(str(tmp_path / "out"))
            assert made.base_model == "someone/vit"
            assert made.provenance["converted"]["from"] == f"someone/vit@{repo.commit}"
            assert "no preprocessor_config.json" in self.invoke("someone/bare", "--dry-run").stderr
            assert "no such model on the Hub" in self.invoke("someone/else", "--dry-run").stderr
        assert self.invoke("someone/vit", "--dry-run").exit_code == 0  # from the cache

    def test_two_files_of_weights(self, original: Path, tmp_path: Path) -> None:
        for name in ("a.safetensors", "b.safetensors"):
            (original / name).write_bytes((original / "model.safetensors").read_bytes())
        (original / "model.safetensors").unlink()
        assert "several files of weights" in self.invoke(original, "--dry-run").stderr
        assert self.invoke(original / "a.safetensors", "--dry-run").exit_code == 0
