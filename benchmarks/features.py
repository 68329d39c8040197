"""`vit embed` beside `vit predict` of the same pictures, whole processes; and exact search beside the bare product.

python benchmarks/features.py [--images 10000] [--rows 1000000] [--rounds 3]

The search is of 100 queries among vectors of 384 values; seconds are the processor's, by the process's own clock.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from processes import in_turn, report

from vitcli.inference.similar import Held, neighbours

WIDTH, QUERIES, NEAREST = 384, 100, 5


def write_pictures(folder: Path, count: int) -> None:
    """`count` pictures of noise, 96 pixels wide."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / f"{i:06d}.jpg", quality=85)


def processes(images: int, rounds: int) -> None:
    vit = [sys.executable, "-m", "vitcli"]
    with tempfile.TemporaryDirectory() as place:
        pictures, out = Path(place, "pictures"), Path(place, "e.npz")
        write_pictures(pictures, images)
        commands = {
            "vit embed": [*vit, "embed", str(pictures), "-m", "photo-vit", "-o", str(out), "--force"],
            "vit predict": [*vit, "predict", "-m", "photo-vit", "--csv", str(pictures)],
        }
        print(f"{images} pictures of 96 pixels, photo-vit (bar: 1.05)")
        report(in_turn(commands, rounds), *commands)


def search(rows: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, WIDTH), np.float32)
    queries = rng.standard_normal((QUERIES, WIDTH), np.float32)
    source = Held(range(rows), vectors)  # type: ignore[arg-type]  # a number is as good a name
    ours, bare = [], []
    for _ in range(rounds):
        start = time.process_time()
        _ = queries @ vectors.T
        bare.append(time.process_time() - start)
        start = time.process_time()
        neighbours(source, queries, NEAREST)
        ours.append(time.process_time() - start)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(f"{QUERIES} queries among {rows} x {WIDTH} (bar: 3)")
    print(f"  search {statistics.median(ours):.2f} s, product {statistics.median(bare):.2f} s: ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.rows:
        search(options.rows, options.rounds)
    if options.images:
        processes(options.images, options.rounds)


if __name__ == "__main__":
    main()
