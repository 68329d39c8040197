"""What `vit finetune --tune head --folds 5` costs beside the same without folds.

    python benchmarks/folds.py photos/ [--model photo-vit] [--rounds 1]

Whole processes in turn, in a temporary folder; CPU seconds, which other work on the machine hardly changes, and wall
seconds. Prints Markdown with the accuracies, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(data: str, model: str, out: Path, *more: str) -> tuple[float, float, dict]:
    """CPU and wall seconds, and what --json says."""
    command = [sys.executable, "-m", "vitcli", "finetune", "--data", data, "-m", model, "--tune", "head", "--json"]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([*command, "--out", str(out), *more], capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="photo-vit")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    spent: dict[str, list[tuple[float, float]]] = {"one head": [], "--folds 5": []}
    said: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as place:
        for i in range(options.rounds):
            for name in spent:
                more = ["--folds", "5"] if name.startswith("--") else []
                cpu, wall, said[name] = run(options.data, options.model, Path(place) / f"{i}{len(more)}", *more)
                spent[name].append((cpu, wall))
    print("| | CPU s | wall s | images scored | accuracy | 95 % |\n|---|---|---|---|---|---|")
    for name, times in spent.items():
        cpu, wall = (statistics.median(each) for each in zip(*times, strict=True))
        found = said[name]["measures"]
        interval = "{low:.3f} to {high:.3f}".format(**found["top1_interval"])
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {found['n']} | {found['top1']:.3f} | {interval} |")


if __name__ == "__main__":
    main()
