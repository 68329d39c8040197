"""On an NVIDIA GPU: training, resuming and every command run, losses and logits are the CPU's. Skipped without one.

Small enough for a minute of the device: `pytest tests/test_gpu.py`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.helpers.data import write_stripes
from vitcli.checkpoint.layout import bundled_names
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.inference.engines import open_engine
from vitcli.training import train as training
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Shrunk, Stepped
from vitcli.training.learner import Learner
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # the compiler's advice for larger models
]

PLAIN = Recipe(
    epochs=2, batch_size=32, micro_batch=16, optimizer="muon", lr=3e-3, mixup=0, crop_scale=1, crop_padding=2,
    randaugment="", hflip=0.5, invert=0.1, random_erasing=0.25, drop_path=0, ema_decay=0.9, amp="fp32", compile=False,
)  # fmt: skip
VIT = {"img_size": [28, 28], "patch_size": [4, 4], "embed_dim": 48, "depth": 2, "num_heads": 3}
HYBRID = {"img_size": [56, 56], "patch_size": [1, 1], "embed_dim": 48, "depth": 2, "num_heads": 3,
          "stem": {"layers": [1, 1], "width": 32, "block": "basic"}}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 images of 28×28 in three classes."""
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder, np.arange(360) % 3, 28)
    return folder


def settings_of(data: Path, model: dict[str, Any], recipe: Recipe = PLAIN) -> Settings:
    return Settings("vit_tiny_patch16_224", model, str(data), recipe)


def run_to_end(settings: Settings, folder: Path, workers: int = 2) -> list[Any]:
    samples = training.open_settings_data(settings)
    if not folder.exists():
        training.begin(settings, samples, folder)
    return list(training.train(settings, samples, folder, workers=workers))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT that learned on the GPU, the device that is chosen by itself."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    recipe = replace(PLAIN, epochs=8, hflip=0)  # which would swap two of the classes
    last = run_to_end(settings_of(data, VIT, recipe), folder)[-1]
    assert isinstance(last, Evaluated)
    assert last.validation.accuracy > 0.9  # chance is a third
    return folder


@pytest.mark.parametrize("model", [VIT, HYBRID], ids=["vit", "hybrid"])
@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
def test_first_losses_are_the_cpu_s(data: Path, model: dict[str, Any], amp: str) -> None:
    settings = settings_of(data, model, replace(PLAIN, amp=amp, random_erasing=0.0))  # whose noise is the device's
    losses = []
    for device in ("cpu", "cuda"):
        learning = settings if device == "cuda" else replace(settings, recipe=replace(settings.recipe, amp="fp32"))
        task = build_task(learning, training.open_settings_data(settings))
        images = torch.stack([task.transform(task.data.train.image(i)) for i in range(16)])
        labels = torch.from_numpy(task.data.train.labels[:16])
        learner = Learner(task, World(device=torch.device(device)), 1)
        batch = (images, labels, torch.arange(16))
        losses.append([learner.step(iter([batch]), step, 1e-3).item() for step in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2 if amp != "fp32" else 2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_run_goes_on_on_the_other_device(data: Path, tmp_path: Path, optimizer: str) -> None:
    """Begun on the GPU in bfloat16 with erasing, mixup and dropout; goes on there, then on the CPU."""
    recipe = replace(PLAIN, epochs=1, optimizer=optimizer, amp="bf16", mixup=0.2, cutmix=0.5, dropout=0.1)  # type: ignore[arg-type]
    folder = tmp_path / "run"
    run_to_end(settings_of(data, VIT, recipe), folder)
    for epochs, device in ((2, "cuda"), (3, "cpu")):
        settings, samples = training.resumed(folder, epochs)
        training.extend(settings, folder)
        events = list(training.train(settings, samples, folder, device=device))
        assert sum(isinstance(event, Stepped) for event in events) == 10
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if line["event"] == "stepped"] == list(range(1, 31))


def test_compiled(data: Path, tmp_path: Path) -> None:
    run_to_end(settings_of(data, VIT, replace(PLAIN, epochs=1, compile=True, amp="bf16")), tmp_path / "run")
    assert load_model(resolve(str(tmp_path / "run")))


def test_out_of_memory_takes_smaller_bites(data: Path, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 1.5 * 2**30) / total))
    try:
        large = {"img_size": [224, 224], "patch_size": [8, 8], "depth": 6}
        recipe = replace(PLAIN, epochs=1, batch_size=256, micro_batch=256)
        events = run_to_end(settings_of(data, large, recipe), tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [event.micro_batch for event in events if isinstance(event, Shrunk)]
    assert isinstance(events[-1], Evaluated)


def test_engines_agree(trained: Path) -> None:
    checkpoint = resolve(str(trained))
    images = np.random.default_rng(0).standard_normal((5, 3, 28, 28), np.float32)
    cpu = open_engine(checkpoint, "onnxruntime").logits(images)
    gpu = open_engine(checkpoint, "torch", device="cuda", precision="fp32").logits(images)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-4)
    for name in bundled_names():
        bundled = resolve(name)
        size = bundled.preprocess.size
        pixels = np.random.default_rng(1).standard_normal((2, 3, *size), np.float32)
        cpu = open_engine(bundled, "onnxruntime").logits(pixels)
        gpu = open_engine(bundled, "torch", device="cuda", precision="fp32").logits(pixels)
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "line",
    [
        "train -d DATA --epochs 1 --out OUT/a",
        "finetune -d DATA -m MODEL --tune head --out OUT/b",
        "finetune -d DATA -m MODEL --tune all --epochs 1 --out OUT/c",
        "finetune -d DATA -m MODEL --tune lora --epochs 1 --out OUT/d",
        "finetune -d DATA -m MODEL --time-budget 20s --out OUT/e",
        "evaluate MODEL -d DATA --split train --device cuda",
        "inspect MODEL --attention-distance --data DATA --count 16 --out OUT/f",
        "inspect MODEL --equivariance --locality --data DATA --count 16 --out OUT/g",
    ],
)
def test_from_the_command_line(line: str, data: Path, trained: Path, tmp_path: Path) -> None:
    words = {"DATA": str(data), "MODEL": str(trained)}
    given = [words.get(word, word.replace("OUT", str(tmp_path))) for word in line.split()]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
