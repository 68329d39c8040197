"""How many wrong labels `vit check --labels` finds: 5 % of the labels are flipped at random, and then looked for.

    python benchmarks/label_errors.py digits/ clothing/ --models fashion-vit,photo-vit,lite0/ [--seeds 3]

digits/ is what benchmarks/digits.py writes, clothing/ the small Clothing data set as class folders, lite0/ what
benchmarks/lite0.py writes. Prints Markdown: the share of the flipped labels among the first 8 % of the list, and among
those that are called probably wrong, for each seed. Features are computed once for each model and data set; --cache
keeps them in a folder.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import Splits
from vitcli.data.sources import read_splits
from vitcli.inference.stream import Stream
from vitcli.training.doubts import Images, judge, read_images

FLIPPED, LOOKED_AT = 0.05, 0.08


def images_of(name: str, found: Splits, cache: Path | None) -> Images:
    """The features of all images in `found`, by the model `name`, from the cache where they are in it."""
    checkpoint = resolve(name)
    kept = cache and cache / f"{found.root.name}-{weights_digest(checkpoint)[:16]}.npz"
    if kept and kept.exists():
        with np.load(kept) as file:
            return Images(file["x"], file["labels"], [bytes.fromhex(key) for key in file["keys"].tolist()], [], ())
    images = read_images(Stream(checkpoint, precision="fp32", output="features"), found)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, x=images.x, labels=images.labels, keys=[key.hex() for key in images.keys])
    return images


def flip(images: Images, classes: int, seed: int) -> tuple[Images, np.ndarray]:
    """`images` with other labels for some of them, every other class as likely; which, (N,)."""
    rng = np.random.default_rng(seed)
    n = len(images.labels)
    chosen = rng.choice(n, round(FLIPPED * n), replace=False)
    labels = images.labels.copy()
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return replace(images, labels=labels), np.isin(np.arange(n), chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--models", default="fashion-vit,photo-vit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    print(
        "| data | features of | a head on them | flipped ones in the first 8 % | doubted | flipped among the doubted |"
    )
    print("|---|---|---|---|---|---|")
    for place in options.data:
        found = read_splits(place)
        for name in options.models.split(","):
            images = images_of(name, found, options.cache)
            looked_at = round(LOOKED_AT * len(images.labels))
            shares, doubted, right, accuracy = [], [], [], []
            for seed in range(options.seeds):
                wrong, flipped = flip(images, len(found.classes), seed)
                opinion = judge(wrong, len(found.classes))
                shares.append(f"{flipped[opinion.order[:looked_at]].sum() / flipped.sum():.0%}")
                doubted.append(f"{opinion.wrong.sum()}")
                right.append(f"{flipped[opinion.wrong].sum()}")
                accuracy.append((opinion.probabilities.argmax(axis=1) == images.labels).mean())
            columns = (", ".join(each) for each in (shares, doubted, right))
            model = resolve(name).public_name
            print(f"| {found.root.name} | {model} | {np.mean(accuracy):.1%} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
