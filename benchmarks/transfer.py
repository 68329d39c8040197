"""What pre-training buys: scikit-learn's digits, from a bundled checkpoint and from scratch, at two resolutions.

    python benchmarks/transfer.py --out RUNS [--model fashion-vit] [--seeds 3] [--shots 1,5,10,25,all] [--sizes 28,56]
        [--amp bf16]

Every cell is a run of `vit finetune` (head first, then all of it) or `vit train` with the same architecture, on nested
subsets of the training images; 500 test images are scored once a cell. Cells that are done are read from RUNS, so
the script can be stopped and started again. Prints a Markdown table: mean accuracy ± standard error over the seeds.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

from digits import digits

from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.sources import open_data
from vitcli.inference.evaluate import evaluate
from vitcli.training.recipe import Recipe, load_recipe, override, small_images
from vitcli.training.settings import FineTuning, Settings
from vitcli.training.train import begin, train

# Of so many images a class, None for all of them; the fewer there are, the shorter an epoch is.
EPOCHS = {1: 60, 5: 40, 10: 30, 25: 20, None: 8}


def cell(out: Path, model: str, pretrained: bool, shots: int | None, size: int, seed: int, amp: str) -> float:
    """Test accuracy of one run."""
    folder = out / f"{'pretrained' if pretrained else 'scratch'}-{shots or 'all'}-{size}-{seed}"
    result = folder / "test.json"
    if result.exists():
        return json.loads(result.read_text())["top1"]
    data = digits(out / "data" / f"{shots or 'all'}-{seed if shots else 0}", shots, seed if shots else 0)
    checkpoint = resolve(model)
    recipe = small_images(load_recipe(None, "finetune").recipe, size)
    # Mirrored digits are other digits, and nothing is held out of so few images: the last weights count.
    epochs = float(EPOCHS.get(shots, EPOCHS[None]))
    changes = {"hflip": 0.0, "epochs": epochs, "seed": seed, "random_erasing": 0.0, "amp": amp}
    recipe = override(recipe, changes, "here")
    if not pretrained:
        recipe = replace(recipe, layer_decay=1.0, epochs=recipe.epochs * 2)  # twice as long, every layer at full rate
    start = FineTuning(model, weights_digest(checkpoint), "head+all", img_size=(size, size)) if pretrained else None
    vit = checkpoint.vit
    assert vit is not None
    args = {"img_size": [size, size], "patch_size": list(vit.patch_size), "embed_dim": vit.embed_dim}
    args |= {"depth": vit.depth, "num_heads": vit.num_heads}
    settings = Settings(checkpoint.architecture, {} if pretrained else args, str(data), recipe, 0.0, start)
    samples = open_data(str(data), val_fraction=0.0)
    if not folder.exists():
        begin(settings, samples, folder)
    for _ in train(settings, samples, folder):
        pass
    assert samples.test is not None
    measures = evaluate(folder / "last", samples.test, samples.classes).measures
    result.write_text(json.dumps({"top1": measures.top1, "recipe": asdict(Recipe()) | asdict(recipe)}, default=str))
    return measures.top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="fashion-vit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", default="1,5,10,25,all")
    parser.add_argument("--sizes", default="28,56")
    parser.add_argument("--amp", default="", help="bf16 where the machine has instructions for it")
    wanted = parser.parse_args()
    print("| images a class | size | from scratch | pre-trained |\n|---|---|---|---|")
    for size in map(int, wanted.sizes.split(",")):
        for text in wanted.shots.split(","):
            shots = None if text == "all" else int(text)
            columns = []
            for pretrained in (False, True):
                found = [
                    cell(wanted.out, wanted.model, pretrained, shots, size, s, wanted.amp) for s in range(wanted.seeds)
                ]
                error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
                columns.append(f"{100 * statistics.mean(found):.1f} ± {100 * error:.1f}")
            print(f"| {text} | {size} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
