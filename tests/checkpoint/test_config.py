"""config.json: what it may say and what it may not (reliability notes 2.3: where timm loads lies silently), and that
what we write is what we read. No torch.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.checkpoints import ARCHITECTURE, DELETED, LABELS, PREPROCESS, TINY, edit_config, write_tiny
from vitcli.checkpoint.config import Checkpoint, Description, build_config, parse_config
from vitcli.checkpoint.related_args import SETTLED
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header
from vitcli.errors import CheckpointError
from vitcli.files import parse_object
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.config import StemConfig, ViTConfig


def built(vit: ViTConfig | None = TINY, architecture: str = ARCHITECTURE, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"labels": LABELS, "preprocess": PREPROCESS}
    return build_config(Description(architecture=architecture, vit=vit, **(arguments | more)))


def parsed(config: dict[str, Any]) -> Checkpoint:
    return parse_config(
        config, name="x", source="folder", config_path=Path("x/config.json"), weights_path=Path("x/model.safetensors")
    )


def changed(**changes: Any) -> dict[str, Any]:
    """The honest config with keys changed; `a__b` reaches inside, DELETED takes away."""
    config = json.loads(json.dumps(built()))
    for key, value in changes.items():
        *outer, last = key.split("__")
        level = config
        for step in outer:
            level = level[step]
        if value is DELETED:
            del level[last]
        else:
            level[last] = value
    return config


def test_the_honest_config_is_read() -> None:
    checkpoint = parsed(changed())
    assert checkpoint.vit == TINY
    assert checkpoint.labels == LABELS
    assert checkpoint.preprocess == PREPROCESS
    assert checkpoint.notes == ()
    assert checkpoint.grid == (4, 4)


# --- lies ---


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"architecture": DELETED}, "no architecture"),
        ({"architecture": 7}, "no architecture"),
        ({"architecture": "hf-hub:evil/model"}, "not an architecture name"),
        ({"architecture": "../../etc/passwd"}, "not an architecture name"),
        ({"architecture": DELETED, "model_type": "vit"}, "written by transformers"),
        ({"num_classes": DELETED, "pretrained_cfg__num_classes": DELETED}, "num_classes"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": 10**9}, "num_classes"),
        ({"num_classes": "3"}, "num_classes"),
        ({"num_classes": 5}, "3 label_names for 5 classes"),
        ({"label_names": ["cat", "dog"]}, "2 label_names for 3 classes"),
        ({"label_names": ["cat", "dog", "cat"]}, "two classes are called 'cat'"),
        ({"label_names": ["caf\u00e9", "dog", "cafe\u0301"]}, "two classes are called"),
        ({"label_names": ["cat", "dog", ""]}, "none of them empty"),
        ({"label_names": ["cat", "dog", 3]}, "list of strings"),
        ({"label_names": "cat"}, "list of strings"),
        ({"label_names": {"0": "cat", "1": "dog", "3": "bird"}}, "keys 0, 1, 2"),
        ({"label_descriptions": {"cat": 7}}, "label_descriptions"),
        ({"pretrained_cfg": []}, "pretrained_cfg must be an object"),
        ({"pretrained_cfg__crop_pct": 0}, "crop_pct"),
        ({"pretrained_cfg__crop_pct": -1}, "crop_pct"),
        ({"pretrained_cfg__crop_pct": "0.9"}, "crop_pct"),
        ({"pretrained_cfg__std": [0, 0.5, 0.5]}, "std"),
        ({"pretrained_cfg__mean": ["a", "b", "c"]}, "mean"),
        ({"pretrained_cfg__mean": [0.5, 0.5]}, "mean"),
        ({"pretrained_cfg__interpolation": "evil"}, "interpolation"),
        ({"pretrained_cfg__crop_mode": "evil"}, "crop_mode"),
        ({"pretrained_cfg__input_size": [3, 96, 96]}, "input_size is 96×96, but model_args.img_size 64×64"),
        ({"pretrained_cfg__input_size": [1, 64, 64], "pretrained_cfg__mean": [0.5], "pretrained_cfg__std": [0.5]},
         "1 channels, model_args.in_chans is 3"),
        ({"model_args": [1]}, "model_args must be an object"),
        ({"model_args__num_classes": 7}, "num_classes 7 is not num_classes 3"),
        ({"model_args__embed_dim": 50}, "cannot be split over 3 heads"),
        ({"model_args__embed_dim": 1_000_000}, "embed_dim must be a whole number from 1 to 16384"),
        ({"model_args__embed_dim": -48}, "embed_dim"),
        ({"model_args__embed_dim": 48.0}, "embed_dim"),
        ({"model_args__embed_dim": "48"}, "embed_dim"),
        ({"model_args__depth": 10**9}, "depth"),
        ({"model_args__depth": True}, "depth"),
        ({"model_args__num_heads": 0}, "num_heads"),
        ({"model_args__mlp_ratio": -4}, "mlp_ratio"),
        ({"model_args__mlp_ratio": 1e300}, "mlp_ratio"),
        ({"model_args__img_size": [10**6, 10**6]}, "img_size"),
        ({"model_args__img_size": [64]}, "img_size"),
        ({"model_args__img_size": {"h": 64}}, "img_size"),
        ({"model_args__patch_size": 65}, "0 patches"),
        ({"model_args__reg_tokens": 10**12}, "reg_tokens"),
        ({"model_args__qkv_bias": 1}, "qkv_bias must be true or false"),
        ({"model_args__global_pool": "max"}, "global_pool must be one of token, avg, map"),
        ({"model_args__global_pool": ["token"]}, "global_pool"),
        ({"model_args__class_token": False}, "global_pool 'token' needs class_token"),
        ({"model_args__act_layer": "relu"}, "act_layer"),
        ({"model_args__features_only": True}, "features_only is not known"),
        ({"model_args__checkpoint_path": "/etc/passwd"}, "checkpoint_path is not known"),
        ({"model_args__embed_dims": 48}, "Did you mean 'embed_dim'?"),
        ({"model_args__a\x1b]0;evil\x07": 1}, r"a\x1b]0;evil\x07 is not known"),
        ({"vit": [1]}, "'vit' must be an object"),
        ({"vit__format": 2}, "format 2 of 'vit' is not known"),
        ({"vit__format": DELETED}, "format None"),
        ({"vit__grid": [4]}, "vit.grid"),
        ({"vit__grid": [4, -4]}, "vit.grid"),
        ({"vit__selftest": [1]}, "vit.selftest"),
        ({"vit__model": {"norm_eps": 0}}, "norm_eps must be a number above 0"),
        ({"vit__model": {"embed_dim": 48}}, "vit.model.embed_dim is not known"),
        ({"vit__model": {"stem": {"layers": [10**9], "width": 64}}}, "blocks as layers"),
        ({"vit__model": {"stem": {"layers": [3], "width": 7}}}, "multiple of 32"),
        ({"vit__model": {"stem": {"layers": [3], "width": 32, "block": "wide"}}}, "bottleneck or basic as block"),
        ({"vit__model": {"stem": {"layers": [3], "width": 32, "blok": "basic"}}}, "layers, width and block"),
        ({"vit__model": {"stem": [3]}}, "layers, width and block"),
    ],
)  # fmt: skip
def test_a_lie_is_one_line_that_names_the_field(lie: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        parsed(changed(**lie))
    message = str(error.value)
    assert message.startswith("x/config.json: ")
    assert said in message
    assert "\n" not in message
    assert "\x1b" not in message


@pytest.mark.parametrize(
    "field", ["pretrained_cfg__custom_load", "pretrained_cfg__hf_hub_filename", "pretrained_cfg__first_conv", "url"]
)
def test_fields_that_choose_code_or_files_are_never_read(field: str) -> None:
    assert parsed(changed(**{field: "evil.bin"})) == parsed(changed())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PLACES = [
    "architecture",
    "num_classes",
    "label_names",
    "label_descriptions",
    "model_args",
    "pretrained_cfg",
    "vit",
    *(f"pretrained_cfg__{key}" for key in ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")),
    *(f"model_args__{key}" for key in ("img_size", "patch_size", "mlp_ratio", "init_values", "fc_norm", "pos_embed")),
    *(f"vit__{key}" for key in ("format", "grid", "selftest", "model", "provenance", "base_model")),
]


@given(st.sampled_from(PLACES), json_values)
def test_no_json_value_anywhere_is_a_bug(place: str, value: Any) -> None:
    """Read or refused; never another exception."""
    try:
        checkpoint = parsed(changed(**{place: value}))
    except CheckpointError:
        return
    assert checkpoint.num_classes == 3 or place == "num_classes"


# --- what other writers do ---


def test_timms_newest_model_args_are_understood() -> None:
    """timm 1.0.31 records all it was called with."""
    training = {"drop_rate": 0.1, "drop_path_rate": 0.2, "dynamic_img_size": True, "weight_init": "jax"}
    args = {"num_classes": 3, "fc_norm": None, "init_values": None, **training}
    assert parsed(changed(**{f"model_args__{key}": value for key, value in args.items()})).vit == TINY


def test_a_config_without_model_args_takes_the_size_of_its_images() -> None:
    """The layout of timm's own repositories: no model_args, no label_names; some are larger than their name says."""
    name = "vit_base_patch16_224"
    cfg = {
        "input_size": [3, 384, 384],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": 1000,
        "tag": "a",
        "url": "b",
    }
    checkpoint = parsed({"architecture": name, "num_classes": 1000, "pretrained_cfg": cfg})
    assert checkpoint.vit == replace(ARCHITECTURES[name], img_size=(384, 384))
    assert checkpoint.labels == ()


def test_a_config_from_before_pretrained_cfg() -> None:
    old = {"architecture": ARCHITECTURE, "num_classes": 2, "input_size": [3, 224, 224], "labels": ["a", "b"]}
    checkpoint = parsed(old | {"mean": [0.5] * 3, "std": [0.5] * 3})
    assert checkpoint.labels == ("a", "b")
    assert checkpoint.preprocess == Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("written", ["timm/vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224_in21k"])
def test_architectures_with_prefix_tag_or_old_name_are_read_and_noted(written: str) -> None:
    checkpoint = parsed(changed(architecture=written))
    assert checkpoint.vit == TINY
    assert "read as 'vit_tiny_patch16_224'" in checkpoint.notes[0]


def test_numbered_labels_and_listed_descriptions() -> None:
    checkpoint = parsed(changed(label_names={"0": "a", "2": "c", "1": "b"}, label_descriptions=["A", "B", "C"]))
    assert checkpoint.labels == ("a", "b", "c")
    assert checkpoint.label_descriptions == {"a": "A", "b": "B", "c": "C"}


def test_strange_labels_are_kept_as_they_are() -> None:
    """They are made safe where they are shown."""
    labels = ["../../x", "a\nb\0\x1b[31m", "[/red]\u202e" + "x" * 1_000_000]
    assert parsed(changed(label_names=labels)).labels == tuple(labels)


def test_labels_that_utf_8_cannot_hold_are_written_and_read(tmp_path: Path) -> None:
    labels = ("half of a pair \ud800", "é", "plain")
    write_tiny(tmp_path, labels=labels)
    (tmp_path / "config.json").read_bytes().decode("utf-8")
    assert resolve(str(tmp_path)).labels == labels


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        ({"num_heads": 6}, "num_heads is 6, vit_tiny_patch16_224 has 3"),
        ({"act_layer": "quick_gelu"}, "act is quick_gelu"),
    ],
)
def test_a_lie_that_changes_no_shape_is_noted_unless_a_selftest_can_tell(change: dict[str, Any], noted: str) -> None:
    config = changed(**{f"model_args__{key}": value for key, value in change.items()}, model_args__embed_dim=192)
    assert noted in parsed(config).notes[0]
    config["vit"]["selftest"] = {"seed": 0, "logits": [1, 2, 3]}
    assert parsed(config).notes == ()


def test_another_models_config_is_passed_on_to_timm() -> None:
    args = {"in_chans": 3, "num_classes": 3}
    checkpoint = parsed(changed(architecture="resnet18", model_args=args, vit={}))
    assert checkpoint.vit is None
    assert checkpoint.timm_args == {"in_chans": 3}
    with pytest.raises(CheckpointError, match="pretrained is not known"):
        parsed(changed(architecture="resnet18", model_args={"pretrained": True}))


# --- what we write ---


def some_values() -> dict[str, list[Any]]:
    """For each field of ViTConfig, values other than those of the tiny architecture."""
    return {
        "img_size": [(32, 96)],
        "patch_size": [(8, 8), (8, 16)],
        "in_chans": [1],
        "num_classes": [0, 3],
        "embed_dim": [96],
        "depth": [3],
        "num_heads": [6],
        "mlp_ratio": [2.5],
        "qkv_bias": [False],
        "proj_bias": [False],
        "qk_norm": [True],
        "init_values": [1e-5],
        "class_token": [False],
        "reg_tokens": [2],
        "no_embed_class": [True],
        "pos_embed": ["none"],
        "pre_norm": [True],
        "final_norm": [False],
        "fc_norm": [True, False],
        "global_pool": ["avg", "map"],
        "pool_include_prefix": [True],
        "norm_eps": [1e-12],
        "act": ["quick_gelu", "gelu_tanh"],
        "mlp": ["swiglu"],
        "head_hidden": [7],
        "head_act": ["gelu"],
        "stem": [StemConfig((1, 2), 32), StemConfig((1, 2), 32, "basic"), StemConfig(())],
    }


def test_every_field_survives_writing_and_reading() -> None:
    values = some_values()
    of_relatives = {*SETTLED, "attn_pool_num_heads", "attn_pool_mlp_ratio"}  # cli/test_relatives.py has those
    assert values.keys() == {f.name for f in fields(ViTConfig)} - of_relatives
    for name, others in values.items():
        for value in others:
            vit = replace(TINY, **{name: value})
            if name == "class_token":
                vit = replace(vit, global_pool="avg")
            if name == "stem":
                vit = replace(vit, patch_size=(1, 1))  # a cell of the feature map is 4 or 8 pixels
            mean = (0.5,) * vit.in_chans
            preprocess = Preprocess(size=vit.img_size, mean=mean, std=mean)
            config = built(vit, labels=LABELS[: vit.num_classes], preprocess=preprocess)
            again = parsed(parse_object(json.dumps(config).encode(), ""))
            assert again.vit == vit, name
            assert again.preprocess == preprocess


def test_every_architecture_survives_writing_and_reading() -> None:
    """With its own defaults nothing is needed but size, channels and pooling."""
    for name, vit in ARCHITECTURES.items():
        config = built(vit, name, labels=(), preprocess=Preprocess(size=vit.img_size))
        assert config["model_args"].keys() == {"img_size", "in_chans", "global_pool"}
        assert "model" not in config["vit"]
        assert parsed(config).vit == vit


def test_what_timm_cannot_be_told_is_in_our_own_block() -> None:
    config = built(replace(TINY, norm_eps=1e-12, head_hidden=7))
    assert config["vit"]["model"] == {"norm_eps": 1e-12, "head_hidden": 7}
    assert not config["model_args"].keys() & {"norm_eps", "head_hidden", "num_classes"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: built(labels=["a", "b"]), "2 label_names for 3 classes"),
        (lambda: built(labels=["a", "b", "a"]), "two classes are called 'a'"),
        (lambda: built(preprocess=Preprocess(size=(32, 32))), "input_size is 32×32"),
        (lambda: built(architecture="vit_tinny_patch16_224"), "Did you mean 'vit_tiny_patch16_224'?"),
    ],
)
def test_a_config_that_would_not_be_read_is_not_written(make: Callable[[], object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said.replace("?", r"\?")):
        make()


def test_the_selftest_of_the_old_weights_stays_until_the_new_ones_are_there(tmp_path: Path) -> None:
    """config.json while the two files are of two moments, and after."""
    import numpy as np

    from vitcli.checkpoint import write

    write_tiny(tmp_path, selftest_logits=np.array([[1.0, 2.0, 3.0]], np.float32))
    seen: list[dict[str, Any]] = []
    write_tensors = write.write_tensors

    def look_then_write(*arguments: Any) -> None:
        seen.append(json.loads((tmp_path / "config.json").read_text())["vit"])
        write_tensors(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_tensors", look_then_write)
        write_tiny(tmp_path, selftest_logits=np.array([[4.0, 5.0, 6.0]], np.float32))
        write_tiny(tmp_path, replace(TINY, num_classes=2), selftest_logits=np.array([[7.0, 8.0]], np.float32))
    assert seen[0]["selftest"]["logits"] == [4, 5, 6]
    assert seen[0]["selftest_before"]["logits"] == [1, 2, 3]
    assert "selftest_before" not in seen[1]  # three logits could not be those of a model with two classes
    assert resolve(str(tmp_path)).selftest_before is None


def test_a_written_folder_holds_the_two_files_only(tmp_path: Path) -> None:
    edit_config(write_tiny(tmp_path / "new" / "folder"), vit__tool_version="0")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    assert read_header(tmp_path / "new" / "folder" / "model.safetensors").metadata == {"format": "pt"}
