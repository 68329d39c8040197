"""Every command on EVA-02, DINOv3, Perception Encoder, RoPE-ViT, DeiT III, distilled DeiT and BEiT, random weights."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.helpers.checkpoints import LABELS, edit_config, write_tiny
from tests.helpers.data import write_stripes
from tests.helpers.process import environment
from tests.helpers.relatives import ARCHITECTURES, FAMILIES, TURNED
from tests.helpers.terminal import vit
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.comparison.compare import compare
from vitcli.comparison.study import Contender, contender
from vitcli.errors import CheckpointError
from vitcli.inference.engines import open_engine, probabilities
from vitcli.inference.export import SUFFIXES, Format, export
from vitcli.inference.exported import Options
from vitcli.model.architectures import architecture
from vitcli.training.build import vit_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, class folders of 12 images, and the same as stripes in MNIST's format."""
    place = tmp_path_factory.mktemp("relatives")
    for seed, (family, config) in enumerate(FAMILIES.items()):
        write_tiny(place / family, config, seed, architecture=ARCHITECTURES[family])
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = place / "images" / LABELS[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (40, 50, 3)) + 50 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (place / "stripes").mkdir()
    write_stripes(place / "stripes", np.arange(24) % 3, 24)
    return place


def images(family: str, count: int = 3) -> np.ndarray:
    config = FAMILIES[family]
    return np.random.default_rng(1).standard_normal((count, 3, *config.img_size), np.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_read_as_it_was_meant_and_timm_reads_it_too(place: Path, family: str) -> None:
    checkpoint = resolve(str(place / family))
    assert checkpoint.vit == FAMILIES[family]
    theirs = timm.create_model(f"local-dir:{place / family}", pretrained=True).eval()
    x = torch.from_numpy(images(family))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(checkpoint)(x), theirs(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_timms_own_settings_are_understood(tmp_path: Path, family: str) -> None:
    """What timm says of its model when it saves one."""
    from timm.models import save_for_hf

    small = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 3}
    model = timm.create_model(ARCHITECTURES[family], **small).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    cfg = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    edit_config(tmp_path, pretrained_cfg=cfg | {"input_size": [3, 32, 24]})  # timm leaves there what the name means
    checkpoint = resolve(str(tmp_path))
    assert checkpoint.vit is not None
    x = torch.randn(2, 3, 32, 24)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(checkpoint)(x), model(x))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("DINOv3", {"model_args__rope_type": "cat"}, "rope_type is 'cat', vit_small_patch16_dinov3 has 'dinov3'"),
        ("DINOv3", {"model_args__rope_temperature": 10}, "rope_temperature is 10"),
        ("DINOv3", {"model_args__reg_tokens": 2}, r"reg_tokens is not known\. Did you mean 'num_reg_tokens'"),
        ("DINOv3", {"model_args__use_post_norm": True}, "use_post_norm"),
        ("EVA-02", {"model_args__qkv_fused": True}, "qkv_fused"),
        ("EVA-02", {"model_args__use_post_transformer_norm": True}, "norms before and after the pooling"),
        ("EVA-02", {"model_args__num_heads": 8}, "4 does not divide it"),
        ("BEiT", {"model_args__global_pool": "map"}, "token or avg"),
        ("BEiT", {"model_args__use_shared_rel_pos_bias": True}, "use_shared_rel_pos_bias"),
        ("distilled DeiT", {"model_args__global_pool": "avg"}, "two heads read one token each"),
        ("distilled DeiT", {"model_args__reg_tokens": 2}, "reg_tokens is not known"),
        ("DeiT III", {"model_args__attn_pool_num_heads": 2}, "attn_pool_num_heads is not known"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, family: str, changes: dict[str, object], message: str) -> None:
    folder = write_tiny(tmp_path / "m", FAMILIES[family], architecture=ARCHITECTURES[family])
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_give_the_same(place: Path, family: str) -> None:
    checkpoint, x = resolve(str(place / family)), images(family)
    given = {}
    for engine in ("onnxruntime", "torch"):
        given[engine] = probabilities(open_engine(checkpoint, engine).logits(x))  # type: ignore[arg-type]
        given[f"{engine}, features"] = open_engine(checkpoint, engine, output="features").logits(x)  # type: ignore[arg-type]
    assert given["torch"].std() > 1e-3
    np.testing.assert_allclose(given["onnxruntime"], given["torch"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(given["onnxruntime, features"], given["torch, features"], atol=2e-5, rtol=1e-5)


def test_prediction_and_evaluation_need_no_torch(place: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "from vitcli.__main__ import main\n"
        "for family in ('DINOv3', 'BEiT', 'distilled DeiT'):\n"
        "    for line in (['predict', 'images/cat/0.png', '-m', family], ['evaluate', family, '--data', 'images']):\n"
        "        sys.argv = ['vit', *line]\n"
        "        try: main()\n"
        "        except SystemExit as ending: assert not ending.code, ending.code\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FORMATS: tuple[tuple[Format, Options], ...] = (
    ("onnx", Options(sizes=((24, 32), (32, 16)))),
    ("onnx", Options(precision="fp16")),
    ("openvino", Options()),
    ("torch", Options()),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("to", "options"), FORMATS, ids=["several sizes", "fp16", "openvino", "torch"])
def test_exports_compute_what_the_model_does(
    place: Path, tmp_path: Path, family: str, to: Format, options: Options
) -> None:
    if to == "openvino":
        pytest.importorskip("openvino")
    if FAMILIES[family].rel_pos_bias and options.sizes:
        options = replace(options, sizes=((32, 16),))
    made = export(resolve(str(place / family)), tmp_path / f"m{SUFFIXES[to]}", to, options)
    exact = [one.difference for one in made.parity if one.how in ("", "float32")]
    assert max(exact) <= (1e-2 if options.precision == "fp16" else 1e-5)
    assert {one.size for one in made.parity} == set(options.sizes or [(24, 32)])


def test_an_export_predicts(place: Path, tmp_path: Path) -> None:
    for family in ("DINOv3", "Perception Encoder"):
        export(resolve(str(place / family)), tmp_path / "m.onnx")
        x = images(family)
        exported = open_engine(resolve(str(tmp_path / "m.onnx")), "onnxruntime").logits(x)
        np.testing.assert_allclose(exported, open_engine(resolve(str(place / family)), "torch").logits(x), atol=2e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # timm's resampling of BEiT
@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_size_is_timms(place: Path, family: str) -> None:
    """Turning goes on at any size; position embeddings and addends by distance are resampled as timm does."""
    model = load_model(resolve(str(place / family)), img_size=(40, 24))
    theirs = timm.create_model(f"local-dir:{place / family}", pretrained=True).eval()
    theirs.set_input_size((40, 24))
    x = torch.randn(2, 3, 40, 24)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs(x), atol=2e-5, rtol=1e-5)


def run(place: Path, line: str) -> str:
    result = vit(line)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tune", ["head", "all", "lora"])
def test_finetuning_at_another_size(
    place: Path, tmp_path: Path, family: str, tune: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    size, options = (32, 40), "" if tune == "head" else "--set micro_batch=4 --set batch_size=8 --epochs 2"
    result = vit(
        f"finetune -m '{family}' --data images --tune {tune} --img-size 32x40 {options} --workers 0 --device cpu "
        f"-o {tmp_path / 'run'}"
    )
    assert result.exit_code == 0, result.output
    # Not the best: the first step moves the head alone, which begins as zeros.
    last = resolve(str(tmp_path / "run" / ("best" if tune == "head" else "last")))
    assert last.vit == replace(FAMILIES[family], img_size=size)
    before = load_model(resolve(str(place / family)), img_size=size).state_dict()
    after = load_model(last).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    heads = {name for name in after if name.startswith("head")}
    assert {name for name in heads if name.endswith("weight")} <= changed
    if tune == "head":
        assert changed <= heads
    elif tune == "lora":
        kinds = {name.split(".", 2)[2] for name in changed - heads}
        split = FAMILIES[family].qkv == "split"
        queries = {"attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"} if split else {"attn.qkv.weight"}
        assert kinds == {*queries, "attn.proj.weight"}
    else:
        assert changed >= {name for name in after if ".attn." in name and name.endswith("weight")}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_from_scratch(place: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    small = "--set embed_dim=48 --set num_heads=3 --set depth=2 --set patch_size=8"
    result = vit(
        f"train --data stripes --model {ARCHITECTURES[family]} {small} --set img_size=24 --epochs 1 "
        f"--set batch_size=8 --workers 0 --device cpu -o {tmp_path / 'run'}"
    )
    assert result.exit_code == 0, result.output
    assert resolve(str(tmp_path / "run" / "best")).vit == replace(FAMILIES[family], img_size=(24, 24))


@pytest.mark.parametrize("family", FAMILIES)
def test_inspection(place: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = vit(f"inspect '{family}' --all --images images/cat -o {tmp_path / 'out'} --json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    expected = {"filters", "attention-distance", "locality", "logit-lens", "equivariance"}
    assert expected <= set(document["exhibits"])
    assert ("position-similarity" in document["exhibits"]) == (family != "BEiT")


@pytest.mark.parametrize("family", TURNED)
def test_position_similarity_of_what_turns(
    place: Path, family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    result = vit(f"inspect '{family}' --posemb")
    assert result.exit_code == 0, result.output
    learnt = FAMILIES[family].num_pos_tokens > 0
    assert ("there is no position embedding" in " ".join(result.output.split())) != learnt


@pytest.mark.parametrize("family", ["DINOv3", "RoPE-ViT"])
def test_nothing_to_resize(place: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = vit(f"resize-posemb '{family}' --size 48x48 -o {tmp_path / 'out'}")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "has no position embedding, and none is needed" in said
    assert "vit finetune --img-size" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["EVA-02", "BEiT", "distilled DeiT"])
def test_resizing_what_knows_its_grid(
    place: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run(place, f"resize-posemb '{family}' --size 40x24 -o {tmp_path / 'out'}")
    resized, x = load_model(resolve(str(tmp_path / "out"))), torch.randn(2, 3, 40, 24)
    with torch.inference_mode():
        torch.testing.assert_close(resized(x), load_model(resolve(str(place / family)), img_size=(40, 24))(x))


def test_a_study_of_all_of_them(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, scored and in the table, those of several sizes of patch beside each other."""

    def small(name: str, side: int) -> Contender:
        found = contender(name, side)
        return replace(found, model_args={**found.model_args, "embed_dim": 48, "num_heads": 3, "depth": 1})

    monkeypatch.setattr("vitcli.comparison.compare.contender", small)
    (tmp_path / "data").mkdir()
    write_stripes(tmp_path / "data", np.arange(24) % 3, 24)
    write_stripes(tmp_path / "data", np.arange(6) % 3, 24, "t10k")
    found = compare(
        tmp_path / "data", models=list(ARCHITECTURES.values()), sizes=[1.0], seeds=1, epochs=1, out=tmp_path / "study",
        workers=0, settings={"batch_size": 12, "micro_batch": 12},
    )  # fmt: skip
    assert [point.model for point in found.points] == list(ARCHITECTURES.values())
    assert all(0 <= point.mean <= 1 for point in found.points)
    assert all(found.sizes[name].macs > found.sizes[name].parameters / 2 > 0 for name in ARCHITECTURES.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [28, 224])
def test_comparing(family: str, side: int) -> None:
    """As a contender of `vit compare` each can be built for images of any size, in whole patches."""
    found = contender(ARCHITECTURES[family], side)
    config = vit_config(found.architecture, found.model_args, 3)
    assert config == replace(architecture(ARCHITECTURES[family]), img_size=config.img_size, num_classes=3)
