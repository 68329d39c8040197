"""Training and inference on one GPU, beside timm as its scripts run there: ViT-S/16 and B/16 at 224, images in memory.

    python benchmarks/gpu.py [--device cuda] [--seconds 420] [--tiny]

No argument is needed: about five minutes on one H100; a part that would begin after --seconds is left out and named.
`vit train` without options is a step of its learner with a settled recipe, fed with bytes, compiled block by block. The
peer is what timm's `train.py --amp --amp-dtype bfloat16 --torchcompile` and `inference.py --amp --torchcompile` do with
a batch: the compiled model under autocast, fused AdamW, clipping, bytes normalised on the device. A B A B; medians.

MFU: three forward passes' floating-point operations (two per multiply-add) of the encoder, times images a second, over
the device's dense bfloat16 peak. The share of the step that waits for data is measured with the run's own loader. At
the end a run is killed with SIGKILL and resumed, and its last state is compared with that of a whole one, bit by bit.
--tiny is for a test on the CPU: the same code on models of two blocks.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from timm.optim import create_optimizer_v2

from vitcli.data.samples import ArraySamples, DataSet
from vitcli.inference.engines import operations
from vitcli.machine import default_device, default_workers, on_cpu, wait_for
from vitcli.training.auto import settled
from vitcli.training.batches import Plan, training_batches
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.feed import onto
from vitcli.training.learner import Learner
from vitcli.training.precision import tensor_cores
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings
from vitcli.training.task import Task

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "RTX 4090": 165e12}  # dense bfloat16, FLOP/s
TINY = {"img_size": [32, 32], "patch_size": [16, 16], "embed_dim": 24, "depth": 2, "num_heads": 3}
Work = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """How much is measured: images a batch, in memory, steps a round, rounds."""

    batch: int
    images: int
    steps: int
    rounds: int


WHOLE, SMALL = Size(256, 2048, 8, 3), Size(8, 32, 1, 1)


def data_in_memory(side: int, size: Size) -> DataSet:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (size.images, side, side, 3), np.uint8), rng.integers(0, 10, size.images)
    samples = ArraySamples(images, labels, "random", np.arange(size.images))
    return DataSet(Path("random"), "idx", tuple("abcdefghij"), samples, samples)


def endless(side: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The same few batches of bytes again and again, in memory that a GPU reads beside its work."""
    made = [
        (torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8), torch.randint(0, 10, (batch,))) for _ in "ab"
    ]
    if torch.cuda.is_available():
        made = [(images.pin_memory(), labels.pin_memory()) for images, labels in made]
    while True:
        for images, labels in made:
            yield images, labels, labels


def vit_step(task: Task, device: torch.device) -> Work:
    learner = Learner(task, World(device=device), task.recipe.batch_size // task.recipe.micro_batch)
    batches = onto(endless(task.preprocess.size[0], task.recipe.micro_batch), device)

    def step() -> object:
        with tensor_cores(task.recipe.amp, device):
            return learner.step(batches, 100, 1e-4)

    return step


def timm_step(name: str, args: dict, recipe: Recipe, device: torch.device, compiled: bool) -> Work:
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    model = timm.create_model(name, num_classes=10, drop_path_rate=recipe.drop_path, **args).to(device).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=recipe.weight_decay, fused=True)
    forward = torch.compile(model) if compiled else model
    batches = onto(endless(args.get("img_size", (224, 224))[0], recipe.batch_size), device)
    mean = std = torch.full((3, 1, 1), 127.5, device=device)

    def step() -> None:
        images, labels, _ = next(batches)
        images = images.float().sub_(mean).div_(std)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(forward(images), labels.to(device), label_smoothing=recipe.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turns(ours: Work, theirs: Work, size: Size, device: torch.device) -> tuple[float, float, float]:
    """Images a second of both, and the ratio of ours to theirs: medians of the rounds, after one that warms up."""
    rates: tuple[list[float], list[float]] = ([], [])
    for round_ in range(size.rounds + 1):
        for work, found in zip((ours, theirs), rates, strict=True):
            wait_for(str(device))
            start = time.perf_counter()
            for _ in range(size.steps if round_ else 2):
                work()
            wait_for(str(device))
            if round_:
                found.append(size.steps * size.batch / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
    return statistics.median(rates[0]), statistics.median(rates[1]), ratio


def training(name: str, args: dict, size: Size, device: torch.device, compiled: bool) -> Task:
    recipe = replace(Recipe(batch_size=size.batch), compile=compiled)
    recipe = settled(recipe, str(device))
    side = args.get("img_size", [224])[0]
    task = build_task(Settings(name, args, "random", recipe), data_in_memory(side, size))
    ours, theirs = vit_step(task, device), timm_step(name, args, recipe, device, compiled)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    a, b, ratio = in_turns(ours, theirs, size, device)
    assert task.vit is not None
    peak = peak_of(device)
    used = f", MFU {300 * operations(task.vit) * a / peak:.1f} %" if peak else ""
    if device.type == "cuda":
        used += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB for both"
    print(
        f"{name}, batch {size.batch}, {recipe.amp}: vit {a:.0f}, timm {b:.0f} images/s, ratio {ratio:.2f}{used}",
        flush=True,
    )
    return task


def peak_of(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return next((peak for kind, peak in PEAKS.items() if kind in torch.cuda.get_device_name(device)), None)


def waiting(task: Task, size: Size, device: torch.device) -> None:
    """With the run's own loader and augmentation: the share of the time in which the step waits for a batch."""
    plan = Plan.of(len(task.data.train), size.batch, task.recipe.micro_batch, 0)
    workers = 0 if on_cpu(str(device)) else default_workers("idx", str(device))
    steps = 4 * size.steps
    batches = training_batches(task.data.train, task.transform, plan, steps=range(steps + 2), workers=workers)
    waited = 0.0

    def timed() -> Iterator[object]:
        nonlocal waited
        while True:
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            yield batch

    learner = Learner(
        replace(task, recipe=replace(task.recipe, compile=False)), World(device=device), plan.micro_batches
    )
    fed = onto(timed(), device)  # type: ignore[arg-type]
    for step in range(steps + 2):
        if step == 2:  # the workers have started
            wait_for(str(device))
            waited, start = 0.0, time.perf_counter()
        learner.step(fed, step, 1e-4)
    wait_for(str(device))
    taken = time.perf_counter() - start
    batches.close()
    print(
        f"{task.architecture} with its own loader, {workers} workers, not compiled: {steps * size.batch / taken:.0f} "
        f"images/s, {100 * waited / taken:.0f} % of the step waits for data",
        flush=True,
    )


@torch.inference_mode()
def inference(name: str, args: dict, size: Size, device: torch.device, compiled: bool) -> None:
    """As `vit predict` computes on a GPU (weights in float16, not compiled), and as timm's `inference.py` does."""
    from vitcli.model.architectures import architecture
    from vitcli.model.vit import VisionTransformer

    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    own = VisionTransformer(replace(architecture(name), num_classes=10, **tuples)).to(device, half).eval()
    other = timm.create_model(name, num_classes=10, **tuples).to(device).eval()
    other = torch.compile(other) if compiled else other
    images = torch.randn(size.batch, 3, *own.config.img_size, device=device)

    def theirs() -> object:
        with torch.autocast(device.type, half):
            return other(images)

    a, b, ratio = in_turns(lambda: own(images.to(half)), theirs, size, device)
    print(f"{name}, inference, batch {size.batch}: vit {a:.0f}, timm {b:.0f} images/s, ratio {ratio:.2f}", flush=True)


CHILD = """
import os, signal, sys
from functools import partial
from pathlib import Path
from vitcli.training import train as training
from vitcli.training.events import Stepped
from vitcli.training.fit import fit
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings

training.fit = partial(fit, save_every=0.0, show_every=0.0)
data, folder, device, kill_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
recipe = Recipe(steps=12, batch_size=16, micro_batch=8, crop_scale=1.0, randaugment="")
size = {"img_size": [32, 32], "patch_size": [8, 8], "embed_dim": 48, "depth": 2, "num_heads": 3}
settings = Settings("vit_tiny_patch16_224", size, data, recipe)
samples = training.open_settings_data(settings)
if not folder.exists():
    training.begin(settings, samples, folder, device=device)
for event in training.train(settings, samples, folder, device=device):
    if isinstance(event, Stepped) and event.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_and_resumed(device: torch.device) -> bool:
    """Whether a run that was killed at step 7 of 12 ends with the bits of one that was not."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        data.mkdir()
        rng = np.random.default_rng(0)
        for name, array in (("images-idx3", rng.integers(0, 256, (64, 32, 32))), ("labels-idx1", np.arange(64) % 3)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (data / f"train-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
        ended = []
        for folder, kills in (("whole", [0]), ("cut", [7, 0])):
            for kill in kills:
                command = [sys.executable, "-c", CHILD, str(data), f"{place}/{folder}", str(device), str(kill)]
                ended.append(
                    subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
                )
        assert ended == [0, -9, 0], ended
        states = [max(Path(place, folder, "checkpoints").iterdir()) for folder in ("whole", "cut")]
        return len({digest(state) for state in states}) == 1


def digest(state: Path) -> str:
    found = hashlib.sha256()
    for name, array in sorted(load_file(state).items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args(arguments)
    device, size = torch.device(chosen.device or default_device()), SMALL if chosen.tiny else WHOLE
    args, compiled = (TINY, False) if chosen.tiny else ({}, device.type == "cuda")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {name}")
    began, tasks = time.monotonic(), {}
    models = ("vit_small_patch16_224", "vit_base_patch16_224")
    parts: dict[str, Work] = {
        f"training {model}": lambda model=model: tasks.update({model: training(model, args, size, device, compiled)})
        for model in models
    }
    parts |= {
        "inference": lambda: inference(models[0], args, size, device, compiled),
        "the data path": lambda: waiting(tasks[models[0]], size, device),
        "a kill": lambda: print(f"killed and resumed to the same bits: {killed_and_resumed(device)}"),
    }
    for part, work in parts.items():
        if time.monotonic() - began > chosen.seconds:
            print(f"left out for time: {part}")
        else:
            work()


if __name__ == "__main__":
    main()
