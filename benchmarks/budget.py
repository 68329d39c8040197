"""Whole runs under a time budget: how long they take of it.

    python benchmarks/budget.py --data FOLDER [--budgets 60,180] [--rounds 2]

`vit finetune --time-budget` with `--tune auto` and `--tune all`, from the start of the process to its end: plan,
training, score on the test split, report. Prints seconds and their share of the budget; more than 1.05 is over.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fashion-vit")
    parser.add_argument("--budgets", default="60,180")
    parser.add_argument("--rounds", type=int, default=2)
    wanted = parser.parse_args()
    fixed = [sys.executable, "-m", "vitcli", "finetune", "--data", wanted.data, "-m", wanted.model, "--epochs", "1000"]
    for budget in map(float, wanted.budgets.split(",")):
        for tune in ("auto", "all"):
            took = []
            for _ in range(wanted.rounds):
                with tempfile.TemporaryDirectory() as place:
                    more = ["--tune", tune, "--time-budget", f"{budget}s", "--out", str(Path(place) / "run")]
                    took.append(processes.run([*fixed, *more]).seconds)
            shares = ", ".join(f"{seconds / budget:.3f}" for seconds in took)
            print(f"{budget:.0f} s, --tune {tune}: {statistics.median(took):.1f} s; of the budget {shares}", flush=True)


if __name__ == "__main__":
    main()
