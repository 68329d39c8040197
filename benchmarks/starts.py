"""What a fine-tuning begins with: the bundled starts beside each other, each for ten minutes, with several seeds.

python benchmarks/starts.py flowers/ clothing/ cifar10/ [--starts default,fashion-vit,scratch] [--seeds 3]

One `vit finetune DATA --time-budget 10m` a cell (`scratch`: `vit train` with that budget), defaults but for start and
seed; the start `default` leaves even that out. Prints a table of medians with all values in brackets. A data set whose
training split has more than --most images a class is cut to that many, the first by name.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def cut(data: Path, most: int, place: Path) -> Path:
    """`data`, or links to the first `most` training images of each class and to the other splits."""
    train = data / "train"
    if not train.is_dir() or max(len(list(label.iterdir())) for label in train.iterdir() if label.is_dir()) <= most:
        return data
    cut_down = place / f"{data.name}-{most}"
    for label in train.iterdir():
        (cut_down / "train" / label.name).mkdir(parents=True)
        for file in sorted(label.iterdir())[:most]:
            os.link(file, cut_down / "train" / label.name / file.name)
    for split in data.iterdir():
        if split.is_dir() and split.name != "train":
            (cut_down / split.name).symlink_to(split.resolve())
    return cut_down


def accuracy(data: Path, start: str, seed: int, budget: str, out: Path) -> float:
    """Of the split that the command scores by itself: the test split, else the validation split."""
    command = ["train"] if start == "scratch" else ["finetune"]
    command += ["--data", str(data), "--time-budget", budget, "--seed", str(seed), "--out", str(out), "--json"]
    command += ["-m", start] if start not in ("scratch", "default") else []
    done = subprocess.run(
        [sys.executable, "-m", "vitcli", *command], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return float(json.loads(done.stdout)["measures"]["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--starts", default="default,fashion-vit,scratch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--most", type=int, default=1000, help="training images a class")
    args = parser.parse_args()
    starts = args.starts.split(",")
    print(f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores")
    print(f"| data | {' | '.join(starts)} |\n| --- |{' --- |' * len(starts)}")
    with tempfile.TemporaryDirectory() as place:
        for data in args.data:
            data = cut(data, args.most, Path(place))
            found: dict[str, list[float]] = {start: [] for start in starts}
            for seed in range(args.seeds):
                for start in starts:
                    out = Path(place) / f"{data.name}-{start}-{seed}"
                    found[start].append(accuracy(data, start, seed, args.budget, out))
            cells = (
                f"{statistics.median(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"
                for values in found.values()
            )
            print(f"| {data.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
