"""Where originals lie: every form that converts from a folder converts from the Hub, and what is no model is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers import fake_hub, originals
from tests.helpers.checkpoints import DELETED, LABELS, edit_config, random_tensors, write_tiny
from tests.helpers.converting import assert_same, converted, numpy_of, refusal, run, tiny_timm, write_open_clip
from tests.helpers.originals import TRANSFORMERS, edit, images, save_transformers, shake
from tests.helpers.terminal import invoke
from vitcli.checkpoint.convert.recognise import convert
from vitcli.checkpoint.convert.result import Settings
from vitcli.checkpoint.convert.source import open_source
from vitcli.checkpoint.layout import INDEX_NAME
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import write_tensors
from vitcli.checkpoint.weights import read_weights, weights_digest
from vitcli.errors import CheckpointError

REPO = "someone/vit"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sharded(folder: Path, tensors: dict[str, Any], save: Callable[..., Any], stem: str, suffix: str) -> None:
    """`tensors` in two files and an index, as transformers writes them."""
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{i}-of-00002.{suffix}"
        save({name: tensors[name].clone() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    edit(folder / f"{stem}.{suffix}.index.json", metadata={"total_size": 1}, weight_map=weight_map)


def vit_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A ViT of transformers without weights, and its weights."""
    save_transformers(shake(TRANSFORMERS["vit"][0]()), folder)
    transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


def _shards(folder: Path) -> None:
    folder, tensors = vit_folder(folder)
    sharded(folder, tensors, save_file, "model", "safetensors")


def _pickle(folder: Path) -> None:
    folder, tensors = vit_folder(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({"lr": 1e-3}, folder / "optimizer.bin")
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")


def _pickled_shards(folder: Path) -> None:
    folder, tensors = vit_folder(folder)
    sharded(folder, tensors, torch.save, "pytorch_model", "bin")


def _open_clip(folder: Path) -> None:
    clip = shake(TRANSFORMERS["clip"][0]())
    write_open_clip(folder, clip, width=48, head_width=16, image_size=64)


def _open_clip_pickle(folder: Path) -> None:
    _open_clip(folder)
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()


def _npz(folder: Path) -> None:
    np.savez(folder / "ViT-B_16.npz", **originals.flax_vit())


def _timm_pickle(folder: Path) -> None:
    write_tiny(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _single(folder: Path) -> None:
    save_transformers(shake(TRANSFORMERS["vit"][0]()), folder)


def _odd_name(folder: Path) -> None:
    folder, tensors = vit_folder(folder)
    save_file(tensors, folder / "epoch-12.safetensors")


def _timm_by_another_name(folder: Path) -> None:
    """Which `vit predict` looks for in a folder and not on the Hub."""
    write_tiny(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


FORMS = {
    "safetensors": _single, "shards": _shards, "pickle": _pickle, "pickled shards": _pickled_shards,
    "open_clip": _open_clip, "open_clip pickle": _open_clip_pickle, "npz": _npz, "timm pickle": _timm_pickle,
    "another name": _odd_name,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_converts_from_a_folder_converts_from_the_hub(form: str, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    FORMS[form](folder)
    pickled = form.endswith(("pickle", "pickled shards"))
    local = converted(folder, allow_pickle=pickled)
    repo = hub.add(REPO, contents(folder) | {"README.md": b"#", "modeling.py": b"evil", "model.gguf": b"GGUF"})
    if pickled:
        assert "--allow-pickle" in refusal(lambda: open_source(REPO))
        assert not any("/resolve/" in path for path in hub.requests)  # refused by its name, nothing is fetched
    source = open_source(REPO, allow_pickle=pickled)
    found = convert(source)[0]
    assert source.origin == f"{REPO}@{repo.commit}"
    assert (found.vit, found.labels, found.preprocess) == (local.vit, local.labels, local.preprocess)
    assert found.tensors.keys() == local.tensors.keys()
    assert all(np.array_equal(found.tensors[name], array) for name, array in local.tensors.items())
    fetched = {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}
    assert not fetched & {"README.md", "modeling.py", "model.gguf", "optimizer.bin", "training_args.bin"}
    assert all(f"/resolve/{repo.commit}/" in path for path in hub.requests if "/resolve/" in path)
    if form in ("timm pickle", "pickled shards", "open_clip pickle"):
        return  # reading a pickle starts a process, which takes a second or two
    hub.faults["*", "*"] = "500"  # from here on the cache alone
    again = convert(open_source(REPO, allow_pickle=pickled))[0]
    assert all(np.array_equal(again.tensors[name], array) for name, array in local.tensors.items())


def test_a_damaged_file_of_the_hub_is_noticed_in_every_form(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    _shards(tmp_path / "original")
    hub.add(REPO, contents(tmp_path / "original"))
    hub.faults["GET", "model-00002-of-00002.safetensors"] = "flipped"
    assert "SHA-256 is not the Hub's" in refusal(lambda: open_source(REPO))


def test_a_model_that_cannot_be_converted_is_refused_before_its_weights_come(
    hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    hub.add(REPO, {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x" * 1000})
    assert "model_type 'bert' is not converted" in invoke("convert", REPO, "--dry-run").stderr
    assert not any("model.safetensors" in path for path in hub.requests)


def test_a_cached_model_without_its_processor_asks_for_that(hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    folder, tensors = vit_folder(tmp_path / "original")
    save_file(tensors, folder / "model.safetensors")
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    repo = hub.add(REPO, {name: data for name, data in contents(folder).items() if "processor" not in name})
    open_source(REPO)
    repo.files = contents(folder)
    assert open_source(REPO).processor["image_mean"] == [0.1, 0.2, 0.3]
    assert open_source(REPO).origin == f"{REPO}@{repo.commit}"


# --- several files of weights ---


def shards_of_ours(folder: Path) -> Path:
    write_tiny(folder)
    sharded(folder, load_file(folder / "model.safetensors"), save_file, "model", "safetensors")
    (folder / "model.safetensors").unlink()
    return folder


class TestShards:
    def test_are_read_everywhere(self, tmp_path: Path) -> None:
        folder, whole = shards_of_ours(tmp_path / "parts"), write_tiny(tmp_path / "whole")
        for name in (folder, folder / INDEX_NAME):
            checkpoint = resolve(str(name))
            weights = read_weights(checkpoint)
            for key, array in read_weights(resolve(str(whole))).items():
                np.testing.assert_array_equal(weights[key], array)
            x = images()[..., : checkpoint.preprocess.size[0], : checkpoint.preprocess.size[1]]
            with torch.inference_mode():
                assert torch.equal(load_model(checkpoint)(x), load_model(resolve(str(whole)))(x))
        assert len(weights_digest(checkpoint)) == 64
        assert "in timm's layout already" in invoke("convert", folder, "--dry-run").stderr
        shown = json.loads(invoke("inspect", folder, "--weights", "--json").stdout)
        assert shown["parameters"] == sum(array.size for array in random_tensors().values())

    def test_on_the_hub(self, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
        hub.add(REPO, contents(shards_of_ours(tmp_path / "parts")))
        np.testing.assert_array_equal(read_weights(resolve(REPO))["head.weight"], random_tensors()["head.weight"])
        hub.requests.clear()
        assert resolve(REPO).why.endswith("in the local Hub cache")
        assert hub.requests == []
        next(resolve(REPO).folder.glob("*-00002-*")).unlink()
        assert resolve(REPO).why.endswith("downloaded from the Hub")  # a part is missing, so the model is

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"head.bias": "../x.safetensors"}, "must name files beside it"),
            ({"head.bias": 3}, "weight_map must say"),
            ({"head.bias": "model-00003-of-00003.safetensors"}, "no such file"),
            ({"other": "model-00001-of-00002.safetensors"}, "not of one model"),
            ({"head.bias": None}, "not of one model"),
        ],
    )
    def test_an_index_that_lies(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        folder = shards_of_ours(tmp_path)
        index = json.loads((folder / INDEX_NAME).read_text())
        said = {name: file for name, file in (index["weight_map"] | change).items() if file is not None}
        edit(folder / INDEX_NAME, weight_map=said)
        assert message in refusal(lambda: read_weights(resolve(str(folder))))

    def test_parts_without_the_index(self, tmp_path: Path) -> None:
        folder = shards_of_ours(tmp_path)
        part = folder / "model-00001-of-00002.safetensors"
        assert "one part of a model" in refusal(lambda: open_source(str(part)))
        (folder / INDEX_NAME).unlink()
        assert "without the index" in refusal(lambda: open_source(str(folder)))

    def test_a_copy_takes_all_files_along(self, tmp_path: Path) -> None:
        from vitcli.checkpoint.push import plan
        from vitcli.inference.calibrate import store_temperature

        checkpoint = resolve(str(shards_of_ours(tmp_path / "parts")))
        copy = resolve(str(store_temperature(checkpoint, 2.0, tmp_path / "copy")))
        assert weights_digest(copy) == weights_digest(checkpoint)
        assert len(plan(checkpoint, REPO, "mit").files) == 5


def test_a_save_of_transformers_timm_wrapper_is_read(tmp_path: Path) -> None:
    """Its weights are timm's under the prefix timm_model., its config is timm's with a model_type."""
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={"depth": 2}, num_labels=3, id2label=dict(enumerate(LABELS))
    )
    model = shake(transformers.TimmWrapperForImageClassification(config))
    for shards in (False, True):
        folder = tmp_path / str(shards)
        model.save_pretrained(folder, max_shard_size="1MB" if shards else "1GB")
        checkpoint = resolve(str(folder))
        assert checkpoint.labels == LABELS
        x = images(size=224)
        with torch.inference_mode():
            assert_same(load_model(checkpoint)(x), model(x).logits)
        assert "vit predict" in invoke("convert", folder, "--dry-run").stderr


def test_timms_layout_under_a_name_that_predict_does_not_look_for_is_converted(
    hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    _timm_by_another_name(tmp_path / "timm")
    assert "in timm's layout already" in invoke("convert", tmp_path / "timm", "--dry-run").stderr
    assert resolve(str(tmp_path / "timm")).labels == LABELS
    hub.add(REPO, contents(tmp_path / "timm"))
    assert "vit convert" in refusal(lambda: resolve(REPO))
    assert invoke("convert", REPO, "-o", tmp_path / "out").exit_code == 0
    assert resolve(str(tmp_path / "out")).labels == LABELS


def test_timms_layout_is_never_sent_to_predict_with_weights_of_another_model(tmp_path: Path) -> None:
    folder = edit_config(write_tiny(tmp_path), vit=DELETED, model_args__depth=3)
    assert "missing: blocks.2.norm1.weight" in refusal(lambda: converted(folder))


# --- wrappers ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda name: name.replace("attn.", "attn._orig_mod."),
        lambda name: name.replace("blocks.", "blocks._fsdp_wrapped_module."),
        lambda name: name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.").replace("norm.", "norm."),
    ],
)
def test_the_names_of_wrappers_are_taken_off(wrap: Callable[[str], str], tmp_path: Path) -> None:
    model = tiny_timm()
    write_tensors(tmp_path / "weights.safetensors", numpy_of(model, wrap), {})
    assert_same(run(converted(tmp_path, Settings({"num_heads": 3})), images()), model(images()))
    folder = write_tiny(tmp_path / "ours")
    write_tensors(folder / "model.safetensors", {wrap(name): a for name, a in random_tensors().items()}, {})
    assert read_weights(resolve(str(folder))).keys() == random_tensors().keys()


def test_averaged_models_are_taken(tmp_path: Path) -> None:
    model = tiny_timm()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "x.pth")
    found = open_source(str(tmp_path / "x.pth"), allow_pickle=True)
    assert any("averaged" in note for note in found.notes)
    assert_same(run(convert(found, Settings({"num_heads": 3}))[0], images()), model(images()))
    folder = write_tiny(tmp_path / "ours")
    counted = {"n_averaged": np.array(7), **{f"module.{name}": a for name, a in random_tensors().items()}}
    write_tensors(folder / "model.safetensors", counted, {})
    assert read_weights(resolve(str(folder))).keys() == random_tensors().keys()


def test_a_weight_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = {"_orig_mod.head.bias": np.ones(3, np.float32), "head.bias": np.ones(3, np.float32)}
    write_tensors(tmp_path / "x.safetensors", twice, {})
    assert "there twice" in refusal(lambda: open_source(str(tmp_path / "x.safetensors")))


# --- torchvision ---


TORCHVISION: dict[str, Any] = {
    "image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 100,
    "num_classes": 3,
}  # fmt: skip


class TestTorchvision:
    @pytest.mark.parametrize("more", [{}, {"representation_size": 20}], ids=["plain", "pre-logits"])
    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_same_numbers(self, more: dict[str, Any], prefix: str, tmp_path: Path) -> None:
        model = shake(torchvision.models.VisionTransformer(**TORCHVISION, **more))
        write_tensors(tmp_path / "x.safetensors", numpy_of(model, lambda name: prefix + name), {})
        found = converted(tmp_path, Settings({"num_heads": 3}))
        assert found.family == "ViT of torchvision"
        with torch.inference_mode():
            assert_same(run(found, images()), model(images()))

    @pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
    def test_the_published_sizes_say_all(self, name: str) -> None:
        """On the meta device: shapes without numbers."""
        from vitcli.checkpoint.convert.result import Source

        with torch.device("meta"):
            model = getattr(torchvision.models, name)(image_size=224)
        tensors = {n: np.broadcast_to(np.float32(0), t.shape) for n, t in model.state_dict().items()}
        found, _ = convert(Source(name, name, "safetensors", tensors))
        attention = model.encoder.layers[0].self_attention
        assert (found.vit.num_heads, found.vit.depth) == (attention.num_heads, len(model.encoder.layers))
        assert (found.vit.norm_eps, found.vit.img_size) == (model.encoder.ln.eps, (224, 224))
        assert (found.preprocess.crop_pct, found.preprocess.interpolation) == (0.875, "bilinear")
        assert "SWAG_LINEAR" in found.notes[0]

    def test_old_names_of_the_mlp(self, tmp_path: Path) -> None:
        model = shake(torchvision.models.VisionTransformer(**TORCHVISION))
        old = numpy_of(model, lambda n: n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."))
        write_tensors(tmp_path / "x.safetensors", old, {})
        with torch.inference_mode():
            assert_same(run(converted(tmp_path, Settings({"num_heads": 3})), images()), model(images()))

    def test_a_stem_of_convolutions_is_refused(self, tmp_path: Path) -> None:
        stem = [torchvision.models.vision_transformer.ConvStemConfig(8, 3, 2) for _ in range(4)]
        model = torchvision.models.VisionTransformer(**TORCHVISION, conv_stem_configs=stem)
        floats = {n: a for n, a in numpy_of(model).items() if a.dtype == np.float32}
        write_tensors(tmp_path / "x.safetensors", floats, {})
        assert "several convolutions" in refusal(lambda: converted(tmp_path))


# --- what is no model, or not one to convert ---


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "an empty folder"),
        (["README.md", "notes.txt"], "no .safetensors"),
        (["preprocessor_config.json"], "an image processor without its model"),
        (["tokenizer.json", "vocab.txt"], "a tokenizer"),
        (["config.json"], "settings without its weights"),
        (["config.json", "tf_model.h5"], "TensorFlow's weights"),
        (["config.json", "flax_model.msgpack"], "Flax's"),
        (["model.keras"], "Keras's"),
        (["model-q4.gguf", "config.json"], "GGUF"),
        (["model.onnx", "config.json"], "ONNX"),
        (["adapter_config.json"], "PEFT"),
        (["optimizer.pt", "scheduler.pt"], "a trainer's state without its model"),
        (["model.tar.gz"], "an archive"),
    ],
)
def test_what_a_folder_or_repository_holds_instead_is_said(
    names: list[str], message: str, hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"{}")
    assert message in refusal(lambda: open_source(str(folder), allow_pickle=True))
    hub.add(REPO, contents(folder))
    assert message in refusal(lambda: open_source(REPO, allow_pickle=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.onnx", b"\x08\x0a\x12\x04test" * 9, "ONNX"),
        ("x.gguf", b"GGUF" + b"\0" * 60, "GGUF"),
        ("renamed.safetensors", b"GGUF" + b"\0" * 60, "GGUF"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "Keras"),
        ("x.msgpack", b"\x81\xa6params\x80" * 9, "Flax"),
        ("x.npy", b"\x93NUMPY" + b"\0" * 60, "a single NumPy array"),
        ("config.json", b'{"model_type": "vit"}' + b" " * 60, "settings"),
        ("x.tar", b"\0" * 257 + b"ustar\0" + b"\0" * 300, "tar archive"),
        ("x.safetensors", b"\xfd7zXZ\0" + b"\0" * 60, "compressed"),
    ],
)
def test_what_a_file_is_instead_is_said(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(lambda: open_source(str(tmp_path / name), allow_pickle=True))


def test_zips_that_are_no_pickles_are_not_called_so(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"x" * 40)
    assert "Keras" in refusal(lambda: open_source(str(tmp_path / "x.keras")))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("photo.jpg", b"x" * 40)
    assert "neither PyTorch's weights nor arrays" in refusal(lambda: open_source(str(tmp_path / "x.pth")))


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    ones = np.ones((2, 2), np.float32)
    for name in ("base_model.model.vit.layer.0.query.lora_A.weight", "lora_unet_x.lora_down.weight"):
        write_tensors(tmp_path / "adapter_model.safetensors", {name: ones}, {})
        edit(tmp_path / "config.json", model_type="vit")
        assert "an adapter" in refusal(lambda: converted(tmp_path))


def test_dinov2_is_not_said_to_have_lost_a_decoder(tmp_path: Path) -> None:
    model = tiny_timm(num_classes=0, init_values=1.0)
    write_tensors(tmp_path / "x.safetensors", numpy_of(model) | {"mask_token": np.ones((1, 48), np.float32)}, {})
    found = converted(tmp_path, Settings({"num_heads": 3}))
    assert found.family == "DINOv2"
    assert [one.what for one in found.dropped] == ["the mask token of its pre-training"]


def test_of_teacher_and_student_the_teacher_is_taken(tmp_path: Path) -> None:
    model = tiny_timm(num_classes=0)
    both = numpy_of(model, lambda n: f"teacher.backbone.{n}")
    both |= {n.replace("teacher", "student"): np.zeros_like(a) for n, a in both.items()}
    write_tensors(tmp_path / "x.safetensors", both, {})
    found = converted(tmp_path, Settings({"num_heads": 3}))
    assert_same(run(found, images()), model(images()))
    assert "teacher.backbone." in found.dropped[0].what


def test_transformers_names_beside_a_config_of_another_kind(tmp_path: Path) -> None:
    folder = save_transformers(shake(TRANSFORMERS["vit"][0]()), tmp_path)
    edit(folder / "config.json", model_type=None)
    assert "the config.json beside it has no model_type" in refusal(lambda: converted(folder))


def test_a_beit_without_relative_places_is_refused(tmp_path: Path) -> None:
    sizes = {**originals.SIZES, **originals.PATCH}
    config = transformers.BeitConfig(**sizes, use_absolute_position_embeddings=True)
    folder = save_transformers(shake(transformers.BeitModel(config)), tmp_path / "m")
    assert "no relative position biases" in refusal(lambda: converted(folder))


def test_dinov3_of_another_kind_is_refused(tmp_path: Path) -> None:
    for changes, message in (({"rope_theta": 50.0}, "rope_theta 50"), ({"key_bias": True}, "keys have a bias")):
        config = transformers.DINOv3ViTConfig(**originals.SIZES, patch_size=16, **changes)
        folder = save_transformers(shake(transformers.DINOv3ViTModel(config)), tmp_path / next(iter(changes)))
        assert message in refusal(lambda folder=folder: converted(folder))  # type: ignore[misc]


def test_a_cache_that_holds_other_files_of_the_repository_is_no_hindrance(
    hub: fake_hub.FakeHub, tmp_path: Path
) -> None:
    """As after `hf download org/name README.md`."""
    _single(tmp_path / "original")
    hub.add(REPO, contents(tmp_path / "original"))
    folder = Path(open_source(REPO).where).parent
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    shutil.copy(__file__, folder / "README.md")
    assert open_source(REPO).config["model_type"] == "vit"


def test_an_unknown_name_is_one_line(hub: fake_hub.FakeHub) -> None:
    with pytest.raises(CheckpointError, match="no such model on the Hub"):
        open_source("someone/else")
    hub.add(REPO, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="has no revision"):
        open_source(f"{REPO}@v9")
