"""Pictures with several labels each, which a tiny model learns: which quarters of the picture are bright."""

import csv
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

QUARTERS = ("one", "two", "three", "four")


def write_quarters(folder: Path, each: int = 4, first: int = 0, split: str = "") -> Path:
    """A manifest `labels.csv` of `each` 28×28 pictures of every set of quarters, the empty one among them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, holds in enumerate(itertools.product((0, 1), repeat=4)):
        for n in range(first, first + each):
            pixels = np.random.default_rng((number, n)).integers(0, 90, (28, 28), np.uint8)
            for k in np.flatnonzero(holds):
                pixels[:, 7 * k : 7 * k + 7] += 150
            name = f"{split or 'all'}-{number}-{n}.png"
            Image.fromarray(pixels).save(folder / name)
            labels = ";".join(QUARTERS[k] for k in np.flatnonzero(holds))
            rows.append([name, labels, *([split] if split else [])])
    manifest = folder / "labels.csv"
    new = not manifest.exists()
    with manifest.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([*([["file_name", "labels", *(["split"] if split else [])]] if new else []), *rows])
    return manifest
