"""scikit-learn's digits (UCI, 8×8 pixels) as a folder of 28×28 PNGs: the other real data set of the examples.

    python benchmarks/digits.py FOLDER

Writes train/ and test/, a folder a class; 500 test images.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 28  # as Fashion-MNIST
TEST = 500
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(folder: Path, shots: int | None = None, seed: int = 0) -> Path:
    """Fill `folder` and return it: the first `shots` of each class in the order of `seed`, else all; one test split."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    test, rest = order[:TEST], np.random.default_rng(seed).permutation(order[TEST:])
    for label, name in enumerate(NAMES):
        mine = [i for i in rest if data.target[i] == label][:shots]
        for split, chosen in (("train", mine), ("test", [i for i in test if data.target[i] == label])):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in chosen:
                small = Image.fromarray((data.images[i] * (255 / 16)).astype(np.uint8))
                small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / split / name / f"{i:04d}.png")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(digits(parser.parse_args().folder))
