"""Accuracy of `amp = "auto"` beside float32: the same short runs on Fashion-MNIST, three seeds each.

    python benchmarks/precision.py --data fashion-mnist/ [--share 0.1] [--epochs 3] [--seeds 3] [--images 2000]

A small ViT from scratch on a share of the training images, everything else by default; the best checkpoint's accuracy
on the first --images test images through the path of `vit predict`, with float32's 95 % interval (Wilson's, over the
images of all its seeds), inside which the mean of the other is to lie.
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.data.split import subset
from vitcli.inference.evaluate import evaluate
from vitcli.machine import best_precision
from vitcli.training.recipe import Recipe, small_images
from vitcli.training.settings import Settings
from vitcli.training.train import begin, train

MODEL = {"img_size": [28, 28], "patch_size": [4, 4], "embed_dim": 96, "depth": 4, "num_heads": 3}


def accuracy(data: DataSet, path: str, amp: str, seed: int, epochs: float, images: int) -> tuple[float, float]:
    """Of a run: the share of test images that are right, and the seconds of processor time that it took."""
    recipe = replace(small_images(Recipe(), 28), amp=amp, seed=seed, epochs=epochs, mixup=0.0, batch_size=128)
    settings = Settings("vit_tiny_patch16_224", MODEL, path, recipe)
    assert data.test is not None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        begin(settings, data, folder, device="cpu")
        start = time.process_time()
        for _ in train(settings, data, folder, device="cpu"):
            pass
        taken = time.process_time() - start
        first = replace(
            data.test,
            images=data.test.images[:images],
            labels=data.test.labels[:images],
            indices=data.test.indices[:images],
        )
        return evaluate(folder / "best", first, data.classes).measures.top1, taken


def interval(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share `right` of n."""
    middle, half = right + z * z / (2 * n), z * math.sqrt(right * (1 - right) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    wanted = parser.parse_args()
    data = subset(open_data(wanted.data), wanted.share)
    found: dict[str, list[float]] = {"fp32": [], "auto": []}
    for seed in range(wanted.seeds):
        for amp, accuracies in found.items():
            right, seconds = accuracy(data, wanted.data, amp, seed, wanted.epochs, wanted.images)
            accuracies.append(right)
            print(f"seed {seed}, {amp}: {right:.4f} in {seconds:.0f} s of processor time", flush=True)
    exact, auto = (statistics.mean(values) for values in found.values())
    low, high = interval(exact, wanted.images * wanted.seeds)
    print(f"float32 {exact:.4f} ({low:.4f} to {high:.4f}), auto ({best_precision('cpu')}) {auto:.4f}")


if __name__ == "__main__":
    main()
