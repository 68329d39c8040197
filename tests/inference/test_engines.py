"""Engines: one answer from both, chosen by device and work, and a softmax checked against SciPy."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import timm
import torch

from tests.helpers.checkpoints import LABELS, TINY, edit_config, random_tensors, write_tiny
from vitcli import machine
from vitcli.checkpoint.config import Checkpoint, Description
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.selftest import selftest_input
from vitcli.checkpoint.write import save_model
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inference import engines
from vitcli.inference.engines import Choice, OnnxEngine, choose, open_engine, probabilities, temperature_of
from vitcli.model.architectures import architecture


def random_images(checkpoint: Checkpoint, count: int = 6) -> np.ndarray:
    preprocess = checkpoint.preprocess
    shape = (count, preprocess.in_chans, *preprocess.size)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve(str(write_tiny(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A ResNet of timm's: not a ViT, so not for our own graph."""
    folder = tmp_path_factory.mktemp("cnn")
    torch.manual_seed(0)
    save_model(
        folder,
        timm.create_model("test_resnet", num_classes=3).eval(),
        Description(architecture="test_resnet", labels=LABELS, preprocess=Preprocess(size=(64, 64))),
    )
    return resolve(str(folder))


VITS = {
    "class token": ("vit_tiny_patch16_224", TINY),
    "one channel": ("vit_tiny_patch16_224", replace(TINY, in_chans=1, qk_norm=True)),
    "average": ("vit_medium_patch16_gap_240", None),
    "attention pooling": ("vit_base_patch16_siglip_224", None),
    "hybrid": ("vit_tiny_r_s16_p8_224", None),
}


@pytest.mark.parametrize("name", VITS)
def test_both_engines_give_the_same_probabilities(name: str, tmp_path: Path) -> None:
    base, vit = VITS[name]
    vit = vit or replace(architecture(base), img_size=(64, 64), embed_dim=48, num_heads=3, depth=2, num_classes=3)
    preprocess = Preprocess(size=(64, 64), mean=(0.5,) * vit.in_chans, std=(0.5,) * vit.in_chans)
    checkpoint = resolve(str(write_tiny(tmp_path, vit, architecture=base, preprocess=preprocess)))
    images = random_images(checkpoint)
    ours, theirs = (open_engine(checkpoint, engine).logits(images) for engine in ("onnxruntime", "torch"))
    assert ours.dtype == theirs.dtype == np.float32
    assert theirs.std() > 0.05, "the test would see nothing"
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
    # the design's promise: float32 rounding in another order
    np.testing.assert_allclose(probabilities(ours), probabilities(theirs), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_an_image_does_not_see_its_neighbours(precision: Any, at_once: int) -> None:
    tensors = random_tensors(TINY)
    alone = OnnxEngine(TINY, tensors, precision=precision)
    images = np.random.default_rng(5).standard_normal((5, 3, 64, 64), np.float32)
    images *= np.array([1, 10, 0.1, 1, 3], np.float32).reshape(-1, 1, 1, 1)  # int8: no scale fits all of them
    expected = np.concatenate([alone.logits(images[i : i + 1]) for i in range(5)])
    engine = OnnxEngine(TINY, tensors, precision=precision, at_once=at_once)
    np.testing.assert_array_equal(engine.logits(images), expected)
    with ThreadPoolExecutor(3) as threads:
        np.testing.assert_array_equal([*threads.map(engine.logits, np.split(images, 5))], expected[:, None])


def test_a_model_that_is_no_vit_runs_on_torch(cnn: Checkpoint) -> None:
    assert cnn.vit is None
    assert choose(cnn) == Choice("torch", "test_resnet is not a plain ViT")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    images = random_images(cnn)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(open_engine(cnn, "torch").logits(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wishes", "gpu", "expected"),
    [
        ({}, False, "onnxruntime"),
        ({"images": 10**6}, False, "onnxruntime"),
        ({"device": "cpu", "images": 10**6}, True, "onnxruntime"),
        ({"images": 1}, True, "onnxruntime"),
        ({"images": 10**6}, True, "torch"),
        ({"images": 10**6, "precision": "int8"}, True, "onnxruntime"),
        ({"device": "cuda"}, True, "torch"),
        ({"engine": "torch"}, False, "torch"),
        ({"precision": "bf16"}, False, "torch"),
        ({"precision": "fp16", "device": "cpu"}, True, "torch"),
        ({"precision": "fp32", "images": 10**6}, True, "torch"),
        ({"engine": "onnxruntime", "images": 10**6}, True, "onnxruntime"),
    ],
)
def test_the_engine_fits_device_and_work(
    wishes: dict[str, Any], gpu: bool, expected: str, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "gpu_visible", lambda: gpu)
    monkeypatch.setattr(engines, "default_device", lambda: "cuda" if gpu else "cpu")
    assert choose(tiny, **wishes).engine == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_in_range(precision: Any, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float16 cannot hold is computed again in float32, and `auto` on a CPU never rounds."""
    images = random_images(tiny)
    exact = open_engine(tiny, "torch", device="cpu", precision="fp32").logits(images)
    auto = open_engine(tiny, "torch", device="cpu").logits(images)
    np.testing.assert_array_equal(auto, exact)
    engine = open_engine(tiny, "torch", device="cpu", precision=precision)
    rounded = engine.logits(images)
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() > 0
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())
    real = engine._run  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_run", lambda pixels, half: real(pixels, half) * (np.inf if half else 1))
    np.testing.assert_array_equal(engine.logits(images), exact)


@pytest.mark.parametrize("output", ["logits", "features", "both", "signature", "patches", "blocks.0"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_of_half_the_size_compute_the_same(
    precision: Any, output: str, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: a copy of the weights is rounded, and what it cannot hold is computed by the exact ones."""
    images = random_images(tiny)
    exact = open_engine(tiny, "torch", device="cpu", precision="fp32", output=output).logits(images)
    monkeypatch.setattr(engines, "on_cpu", lambda kind: False)
    engine = open_engine(tiny, "torch", device="cpu", precision=precision, output=output)
    dtypes: list[torch.dtype] = []
    rounding = engine._halved  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "_halved", lambda x: (dtypes.append(x.dtype), rounding(x))[1])
    rounded = engine.logits(images)
    assert dtypes == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())
    monkeypatch.setattr(engine, "_halved", lambda x: rounding(x) * np.inf)
    np.testing.assert_array_equal(engine.logits(images), exact)


def test_a_driver_without_a_torch_that_knows_it_is_no_gpu(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "gpu_visible", lambda: True)
    monkeypatch.setattr(engines, "default_device", lambda: "cpu")
    assert choose(tiny, images=10**6).engine == "onnxruntime"


@pytest.mark.parametrize(
    ("wishes", "line"),
    [
        ({"engine": "torch", "precision": "int8"}, "int8"),
        ({"device": "cuda", "precision": "int8"}, "int8"),
        ({"engine": "onnxruntime", "device": "cuda"}, "runs on the CPU, not on cuda"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "bf16 is computed by torch"),
        ({"engine": "onnxruntime", "precision": "fp16"}, "fp16 is computed by torch"),
    ],
)
def test_wishes_that_exclude_each_other(wishes: dict[str, Any], line: str, tiny: Checkpoint) -> None:
    with pytest.raises(UsageError, match=line):
        choose(tiny, **wishes)


def test_onnxruntime_is_for_vits(cnn: Checkpoint) -> None:
    with pytest.raises(UsageError, match="runs with --engine torch"):
        choose(cnn, engine="onnxruntime")
    with pytest.raises(UsageError, match="int8 is for plain ViTs"):
        choose(cnn, precision="int8")


def test_operations_are_those_of_the_paper_s_model() -> None:
    # 35.1 GFLOP for ViT-B/16 at 224 (two per multiply-add), of which patches and head are 0.23
    assert engines.operations(architecture("vit_base_patch16_224")) == pytest.approx(35.1e9, rel=0.02)


def test_a_config_that_lies_is_noticed(tmp_path: Path) -> None:
    logits = OnnxEngine(TINY, random_tensors(TINY)).logits
    preprocess = resolve(str(write_tiny(tmp_path))).preprocess
    write_tiny(tmp_path, selftest_logits=logits(selftest_input(preprocess)))
    open_engine(resolve(str(tmp_path)), "onnxruntime")
    edit_config(tmp_path, model_args__num_heads=4)
    for engine in ("onnxruntime", "torch"):
        with pytest.raises(CheckpointError, match="self-test"):
            open_engine(resolve(str(tmp_path)), engine)


def test_probabilities_are_a_softmax() -> None:
    logits = np.random.default_rng(6).normal(0, 5, (4, 7)).astype(np.float32)
    logits[0, 0], logits[1, 1] = 3e4, -3e4  # overflow without the shift
    for temperature in (1.0, 2.5):
        expected = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
        np.testing.assert_allclose(probabilities(logits, temperature), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(probabilities(logits[2]), probabilities(logits)[2])


def test_temperature_comes_from_the_checkpoint(tmp_path: Path) -> None:
    assert temperature_of(resolve(str(write_tiny(tmp_path / "none")))) == 1
    assert temperature_of(resolve(str(write_tiny(tmp_path / "two", temperature=2)))) == 2
    for value in (0, -1, "1", True, 1e9, None):
        wrong = edit_config(write_tiny(tmp_path / "wrong"), vit__temperature=value)
        with pytest.raises(CheckpointError, match=r"vit\.temperature must be a number"):
            temperature_of(resolve(str(wrong)))


def test_cores_are_those_that_the_user_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.available_cpus() == 3
    for nonsense in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert machine.available_cpus() >= 1


@pytest.mark.parametrize(
    ("driver", "devices", "visible"), [(True, None, True), (True, "1", True), (True, "", False), (False, None, False)]
)
def test_a_gpu_is_seen_without_torch(
    driver: bool, devices: str | None, visible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert machine.gpu_visible() is visible
