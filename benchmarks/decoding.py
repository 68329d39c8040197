"""How far training's pixels are from those of the full decode: crops decoded no larger than needed, and of copies.

    python benchmarks/decoding.py --images FOLDER [--count 40] [--crops 4] [--size 224] [--least 0.35]

JPEGs below FOLDER, in an order drawn at random, and random crops as in training, drawn anew for each way from the same
seed. Levels are those of 0 to 255: the mean over the pixels of a crop; of those means the mean and the largest over all
crops. Milliseconds are of processor time for one crop, the full decode's beside the others'. A copy (`--cache`) is
decoded for the first time in "copy, cold", read again in "copy, warm".
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from vitcli.data.samples import FileSamples, Sample
from vitcli.images.copies import Copies, Rule, signatures
from vitcli.images.decode import image_size, open_image
from vitcli.images.find import walk
from vitcli.images.preprocess import Preprocess
from vitcli.storage.records import Memory
from vitcli.training.augment import RandomCrop
from vitcli.training.seeds import reseed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--least", type=float, default=0.35, help="crop_scale")
    args = parser.parse_args()
    paths = sorted(path for path in walk(args.images) if path.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(paths)
    paths = paths[: args.count]
    crop = RandomCrop((args.size, args.size), args.least, "bicubic")
    rule = Rule(Preprocess((args.size, args.size)), least=args.least, reduced=True)
    files = FileSamples(Path(), tuple(map(str, paths)), np.zeros(len(paths), np.int64))
    away: dict[str, list[float]] = defaultdict(list)
    took: dict[str, list[float]] = defaultdict(list)
    for i, path in enumerate(paths):
        for k in range(args.crops):
            memory, known = Memory(rule.bytes), signatures([path])
            memory.claim(known)
            copies = Copies(rule, memory, known)
            copied = FileSamples(Path(), files.names, files.labels, copies=copies)
            ways = {
                "full": lambda i=i: crop(open_image(files.path(i))),
                "reduced": lambda i=i: crop(Sample(files, i)),
                "copy, cold": lambda i=i, copied=copied: crop(Sample(copied, i)),
                "copy, warm": lambda i=i, copied=copied: crop(Sample(copied, i)),
            }
            seen = {}
            for name, way in ways.items():
                reseed(0, i, k)
                begin = time.process_time()
                seen[name] = np.asarray(way()).astype(int)
                took[name].append(time.process_time() - begin)
                if name != "full":
                    away[name].append(float(np.abs(seen[name] - seen["full"]).mean()))
    sides = [max(image_size(path)) for path in paths]
    print(f"{len(paths)} JPEGs, longer side {min(sides)} to {max(sides)} pixels, {args.crops} crops of each")
    for name, seconds in took.items():
        levels = away[name] or [0.0]
        print(
            f"{name:10}  {1000 * statistics.mean(seconds):6.1f} ms  "
            f"levels: mean {statistics.mean(levels):.3f}, largest {max(levels):.3f}"
        )
    print(f"a copy takes up to {rule.bytes / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
