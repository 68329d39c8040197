"""Camera photographs through `vit finetune`: the second epoch, and the head's features, beside an earlier checkout.

    git worktree add /tmp/earlier f937b4b
    python benchmarks/data_path.py --earlier /tmp/earlier --images FOLDER [--count 300] [--rounds 2] [--epochs 2]

Each way is a process of its own on the same cores, and they take turns: the earlier checkout, this one as it comes
(`--cache auto`), this one without copies, again. Images per second of the second epoch are those of metrics.jsonl. For
features `--tune head` of a folder of the same images, timed from the first to the end of the fit; this checkout with
`--cache disk` once for the first time and once again. The model is a ViT-Ti/16 of random weights at 224 pixels. Printed
are ratios to the earlier checkout in the same round.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
MODEL = """
import sys, timm
from safetensors.torch import save_file
import json, torch
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
save_file(model.state_dict(), sys.argv[1] + "/model.safetensors")
config = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 224, 224]}}
open(sys.argv[1] + "/config.json", "w").write(json.dumps(config))
"""


def classed(images: Path, count: int, folder: Path) -> Path:
    """Links to `count` of the JPEGs below `images`, again from the first where they are fewer, as two classes."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(found)
    for i in range(count):
        split = "val" if i % 16 >= 14 else "train"
        place = folder / split / ("a", "b")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").symlink_to(found[i % len(found)].resolve())
    return folder


def finetuned(checkout: Path, data: Path, model: Path, work: Path, tune: str, *more: str) -> Path:
    """The run folder of `vit finetune` from `checkout`."""
    out = Path(tempfile.mkdtemp(dir=work)) / "run"
    line = ["finetune", "--data", data, "-m", model, "--tune", tune, "--score", "none", "--device", "cpu", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(work / "cache")}
    subprocess.run(
        [sys.executable, "-m", "vitcli", *map(str, line), *more],
        env=environment, cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return out


def second_epoch(run: Path) -> float:
    """Images per second of the steps after the first epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    later = [line["images_per_second"] for line in lines if line["event"] == "stepped" and line["epoch"] > 1]
    return len(later) / sum(1 / rate for rate in later)


def head_seconds(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(next(line["seconds"] for line in lines if line["event"] == "headfitted"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--skip", choices=["epochs", "features"], help="measure only the other")
    args = parser.parse_args()
    recipe = ["--epochs", "2", "--batch-size", str(args.batch_size)]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model, data = work / "model", classed(args.images, args.count, work / "data")
        model.mkdir()
        subprocess.run([sys.executable, "-c", MODEL, str(model)], check=True)
        epochs: dict[str, list[float]] = {"earlier": [], "this, --cache auto": [], "this, --cache none": []}
        heads: dict[str, list[float]] = {"earlier": [], "this, first": [], "this, again": []}
        for _ in range(args.rounds):
            if args.skip != "epochs":
                for name, rates in epochs.items():
                    checkout = args.earlier if name == "earlier" else HERE
                    more = [] if name == "earlier" else name.split(", ")[1].split()
                    rates.append(second_epoch(finetuned(checkout, data, model, work, "all", *recipe, *more)))
                    print(f"second epoch, {name}: {rates[-1]:.2f} images/s", flush=True)
            if args.skip != "features":
                shutil.rmtree(work / "cache", ignore_errors=True)
                for name, times in heads.items():
                    checkout = args.earlier if name == "earlier" else HERE
                    more = [] if name == "earlier" else ["--cache", "disk"]
                    times.append(head_seconds(finetuned(checkout, data, model, work, "head", *more)))
                    print(f"features and head, {name}: {times[-1]:.2f} s", flush=True)
        for name, rates in list(epochs.items())[1:]:
            if rates:
                ratios = [rate / before for rate, before in zip(rates, epochs["earlier"], strict=True)]
                print(f"second epoch, {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        for name, times in list(heads.items())[1:]:
            if times:
                ratios = [before / one for one, before in zip(times, heads["earlier"], strict=True)]
                print(f"features, {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
