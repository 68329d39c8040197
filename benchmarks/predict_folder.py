"""A folder of 300 camera-size JPEGs, ViT-Ti/16, whole process: `vit predict --csv` beside timm's inference.py.

    python benchmarks/predict_folder.py --timm-inference PATH/inference.py [--rounds 3] [--count 300] [--work FOLDER]

inference.py comes from timm's repository (it is not in the package) and needs pandas. It runs at its best setting on
two cores: batch 32, two workers. Both read the same checkpoint folder with random weights; first classes are compared.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from predict_one import photograph, write_ti16
from processes import in_turn, report

SIZES = [(1000, 750), (1600, 1200), (2048, 1536), (3000, 2250), (4000, 3000)]


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        path = folder / f"{i:04d}.jpg"
        if not path.exists():
            photograph(np.random.default_rng(i), *SIZES[i % len(SIZES)]).save(path, quality=90)


def first_classes(table: Path) -> dict[str, int]:
    """File name → first class in timm's CSV, whose column `index` reads "[398 388 848]"."""
    with table.open() as file:
        return {Path(row["filename"]).name: int(row["index"].strip("[] ").split()[0]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-inference", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vit-benchmark")
    options = parser.parse_args()
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "onnxruntime", "pillow")))
    options.work.mkdir(exist_ok=True)
    photos, ti16, results = options.work / "photos", options.work / "ti16", options.work / "timm"
    results.mkdir(exist_ok=True)
    write_photos(photos, options.count)
    write_ti16(ti16)
    vit = [sys.executable, "-m", "vitcli", "predict", "-m", str(ti16), str(photos), "--csv"]
    timm = [sys.executable, options.timm_inference, "--data-dir", str(photos), "--model", f"local-dir:{ti16}"]
    timm += [
        "--batch-size",
        "32",
        "--workers",
        "2",
        "--topk",
        "5",
        "--results-dir",
        str(results),
        "--results-file",
        "top5",
    ]
    timm += ["--results-format", "csv", "--num-classes", "1000", "--include-index", "--device", "cpu"]
    commands = {"vit predict": vit, "timm inference.py": timm}
    print(f"{options.count} JPEGs")
    report(in_turn(commands, options.rounds), *commands)
    for name, more in (("default decoding", []), ("--exact", ["--exact"])):
        shown = subprocess.run([*vit, *more], capture_output=True, text=True, check=True).stdout.splitlines()
        ours = [row for row in csv.DictReader(shown) if row["rank"] == "1"]
        theirs = first_classes(results / "top5.csv")
        same = sum(row["label"] == f"class {theirs[Path(row['path']).name]}" for row in ours)
        print(f"  first class equal to timm's, {name}: {same} of {len(ours)}")


if __name__ == "__main__":
    main()
