"""Steps per second of `vit train` beside a plain timm loop: same model, batch, augmentation, optimiser, clipping.

    python benchmarks/training.py [--rounds 5] [--processor-time] [--set amp=fp32]

The peer is what one writes with timm by hand: `timm.create_model`, a DataLoader over PIL images with torchvision's and
timm's transforms, `create_optimizer_v2`, one forward and backward pass a batch. Both run in this process in turn
(A B A B …) on the same random images held in memory; medians over the steps, and the ratio of each round's pair.
Each has its defaults: `vit` bfloat16 where the processor has instructions for it, the loop float32; `--set amp=fp32`
makes both float32. `--processor-time` counts that of one thread in place of the wall's, for a machine that is not idle.
Also: the share of our step that the data path takes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.optim import create_optimizer_v2
from torchvision import transforms

from vitcli.data.samples import ArraySamples, DataSet
from vitcli.training.auto import settled
from vitcli.training.batches import Plan, training_batches
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.learner import Learner
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings

Work = Callable[[], None]
FM = {"img_size": [28, 28], "patch_size": [4, 4], "embed_dim": 192, "depth": 6, "num_heads": 3}
PLAIN = dict(mixup=0.0, randaugment="", random_erasing=0.0, drop_path=0.0, ema_decay=0.0, label_smoothing=0.0, lr=1e-3)
FM_RECIPE = Recipe(batch_size=256, crop_scale=1.0, crop_padding=2, **PLAIN)
TI_RECIPE = Recipe(batch_size=32, crop_scale=0.35, **PLAIN)
clock = time.perf_counter  # what `seconds` reads
CASES = {
    "28-pixel ViT, patch 4, D 192, L 6, batch 256": (28, FM, FM_RECIPE, 2),
    "Ti/16 at 224, batch 32": (224, {}, TI_RECIPE, 2),
}


def ours(side: int, args: dict, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> tuple[Work, Work]:
    """(one training step, the data path of one step)"""
    samples = ArraySamples(images, labels, "random", np.arange(len(labels)))
    data = DataSet(Path("random"), "idx", tuple("abcdefghij"), samples, samples)
    task = build_task(Settings("vit_tiny_patch16_224", args, "random", recipe), data)
    recipe = settled(recipe, "cpu")
    plan = Plan.of(len(labels), recipe.batch_size, recipe.micro_batch, 0)
    learner = Learner(task, World(), plan.micro_batches)
    stream, spare = (training_batches(samples, task.transform, plan, steps=range(10**6)) for _ in range(2))

    def data_path() -> None:
        for _ in range(plan.micro_batches):
            learner.prepare(next(spare)[0])

    return lambda: learner.step(stream, 0, recipe.lr) and None, data_path


def timm_loop(side: int, args: dict, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> Work:
    if recipe.crop_padding:
        crop = transforms.RandomCrop(side, recipe.crop_padding)
    else:
        crop = RandomResizedCropAndInterpolation(side, (recipe.crop_scale, 1.0), interpolation="bicubic")
    transform = transforms.Compose(
        [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    samples = ArraySamples(images, labels, "random", np.arange(len(labels)))

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return transform(samples.image(i)), int(labels[i])

    def endless() -> Iterator[list[torch.Tensor]]:
        loader = torch.utils.data.DataLoader(Images(), recipe.batch_size, shuffle=True, drop_last=True)
        while True:
            yield from loader

    args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **args)
    optimizer = create_optimizer_v2(model, "adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
    stream = endless()

    def step() -> None:
        model.train()
        pixels, target = next(stream)
        F.cross_entropy(model(pixels), target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Work, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = clock()
        work()
        taken.append(clock() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    chosen = parser.parse_args()
    rounds, changes = chosen.rounds, dict(change.split("=") for change in chosen.changes)
    if chosen.processor_time:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"
    )
    rng = np.random.default_rng(0)
    for name, (side, args, recipe, steps) in CASES.items():
        recipe = settled(replace(recipe, **changes), "cpu")
        images = rng.integers(0, 256, (512, side, side), np.uint8)
        labels = rng.integers(0, 10, 512)
        torch.manual_seed(0)
        (step_a, data_path), step_b = (make(side, args, recipe, images, labels) for make in (ours, timm_loop))
        step_a(), step_b()  # warm-up
        a, b, ratios = [], [], []
        for _ in range(rounds):
            now_a, now_b = seconds(step_a, steps), seconds(step_b, steps)
            ratios.append(statistics.median(now_b) / statistics.median(now_a))
            a, b = a + now_a, b + now_b
        data = statistics.median(seconds(data_path, 2 * steps))
        a_s, b_s = statistics.median(a), statistics.median(b)
        n = recipe.batch_size
        print(f"{name}, vit in {recipe.amp}: vit {n / a_s:.1f} img/s, timm loop {n / b_s:.1f} img/s")
        print(f"  ratio {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")
        print(f"  data path {100 * data / a_s:.1f} % of the step", flush=True)


if __name__ == "__main__":
    main()
