"""Which score tells strangers from a model's own kind of images, and the bundled models' statistics.

    python benchmarks/familiarity.py --photos val.csv --fashion fashion-mnist/ --strangers strangers/ --cache cache/
    python benchmarks/familiarity.py --photos val.csv --fashion fashion-mnist/ --cache cache/ --store

val.csv names photo-vit's validation images; Fashion-MNIST's are the twentieth that the bundled clothes models held
out. Below strangers/ lie cifar-100/ (its test/), caltech-101/, flowers/, clothing/ and textures/ as class folders,
receipts/ as files, digits/ as MNIST's test files; noise and flat colours are made here. Prints Markdown: for each model
a table of AUROC / the share of strangers that pass where 95 % of its own images do. Half of the validation images make
the statistics, the other half is told from the strangers. Signatures are kept in the cache by the checkpoint's digest,
so another checkpoint (--models name=folder) is measured by the same command. --store writes the statistics of all
validation images into the checkpoint's folder.
"""

import argparse
import csv
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import Facts
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.sources import open_data, open_splits
from vitcli.inference.familiarity import fit, known_signature, parts_of, store, widths_of
from vitcli.inference.stream import Stream, sources

# Classes that are, or hold, one of photo-vit's 200.
KNOWN_CIFAR = (
    "aquarium_fish bear bee beetle bottle bridge bus butterfly camel cattle chair chimpanzee cockroach "
    "crocodile cup elephant keyboard lamp lawn_mower lion lobster mountain mushroom orange plate rocket "
    "sea snail snake spider streetcar sweet_pepper table telephone tractor train"
)
KNOWN_CALTECH = (
    "BACKGROUND_Google Faces_easy barrel binocular butterfly cannon car_side chair windsor_chair "
    "cougar_body cougar_face crocodile crocodile_head cup dragonfly elephant ewer gerenuk lamp lobster "
    "pizza scorpion trilobite umbrella wild_cat"
)
Array = np.ndarray[Any, Any]
Images = Callable[[], list[Any]]


def files(folder: Path, most: int, but: Sequence[str] = ()) -> list[Path]:
    """Up to `most` pictures below `folder`, of classes that are not in `but`, the same at every call."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    kept = [p for p in found if p.parent.name not in but]
    random.Random(0).shuffle(kept)
    return kept[:most]


def noise() -> list[Image.Image]:
    """In turn uniform, normal, gray, and smooth: twelve by twelve cells, enlarged."""
    rng, made = np.random.default_rng(0), []
    for i in range(240):
        if i % 4 == 1:
            pixels = rng.normal(128, 64, (96, 96, 3)).clip(0, 255)
        elif i % 4 == 2:
            pixels = np.repeat(rng.integers(0, 256, (96, 96, 1)), 3, 2)
        else:
            pixels = rng.integers(0, 256, (12, 12, 3) if i % 4 == 3 else (96, 96, 3))
        made.append(Image.fromarray(pixels.astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC))
    return made


def flat() -> list[Image.Image]:
    """Every second one gray."""
    colours = np.random.default_rng(1).integers(0, 256, (160, 3)).tolist()
    return [Image.new("RGB", (96, 96), tuple(c if i % 2 else [c[0]] * 3)) for i, c in enumerate(colours)]


def strangers_of(model: str, options: argparse.Namespace) -> dict[str, Images]:
    """Kinds of images that are none of the model's, in the table's order."""
    place, most = options.strangers, options.most

    def digits() -> list[Image.Image]:
        samples = open_splits(place / "digits", set(), None).named["test"]
        return [samples.image(i) for i in range(min(most, 1000))]

    def clothes() -> list[Image.Image]:
        samples = open_data(options.fashion, val_fraction=0.05).val
        return [samples.image(i) for i in range(min(most, 600))]

    if model.startswith("photo"):
        own: dict[str, Images] = {
            "flowers, photographs": lambda: files(place / "flowers", min(most, 400)),
            "worn clothes, photographs": lambda: files(place / "clothing", most),
            "Fashion-MNIST": clothes,
        }
    else:
        own = {"Tiny ImageNet": lambda: files(options.photos.parent / "tiny" / "train", 2 * most)}
    return {
        "CIFAR-100, unseen classes": lambda: files(place / "cifar-100", most, KNOWN_CIFAR.split()),
        "Caltech-101, unseen classes": lambda: files(place / "caltech-101", most, KNOWN_CALTECH.split()),
        **own,
        "digits (MNIST)": digits,
        "receipts, scanned": lambda: files(place / "receipts", 100),
        "textures (DTD)": lambda: files(place / "textures", 400),
        "noise": noise,
        "flat colours": flat,
    }


def own_images(model: str, checkpoint: Checkpoint, options: argparse.Namespace) -> tuple[list[Any], Array, str]:
    """The model's validation images, their labels, and the name of the data."""
    if not model.startswith("photo"):
        val = open_data(options.fashion, val_fraction=0.05).val
        return [val.image(i) for i in range(len(val))], val.labels, "Fashion-MNIST"
    with options.photos.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    place = {name: i for i, name in enumerate(checkpoint.labels)}
    return [row["path"] for row in rows], np.array([place[row["label"]] for row in rows]), "Tiny ImageNet"


class Seen:
    """Signatures and logits, computed once for each checkpoint and kind of image."""

    def __init__(self, checkpoint: Checkpoint, cache: Path) -> None:
        self.checkpoint, self.cache = checkpoint, cache / weights_digest(checkpoint)[:16]
        self.cache.mkdir(parents=True, exist_ok=True)

    def of(self, kind: str, images: Images) -> tuple[Array, Array]:
        """(N, W) and (N, K)"""
        kept = self.cache / f"{re.split('[ ,-]', kind)[0]}.npy"
        if not kept.exists():
            stream = Stream(self.checkpoint, output="signature")
            answers = list(stream.answers(sources(images())))
            assert all(one.values is not None for one in answers), kind
            np.save(kept, np.stack([one.values for one in answers if one.values is not None]))
        values = np.load(kept)
        count = self.checkpoint.num_classes
        return values[:, :-count], values[:, -count:]


def log_sum(logits: Array) -> Array:
    highest = logits.max(axis=1)
    return np.asarray(highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)))


def scores_of(
    signatures: Array, logits: Array, labels: Array, widths: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[Array, Array], Array]]]:
    """Name and score of each candidate, fitted to a model's own images; more is more usual."""
    head = slice(sum(widths[:-1]), None)
    features = signatures[:, head].astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, spread, by_class = parts_of(signatures, labels, widths)
    _, _, as_one = parts_of(signatures, np.zeros(len(labels), np.int64), widths)
    cut = np.cumsum(widths)[:-1]

    def nearest(x: Array, _: Array) -> Array:
        x = x[:, head] / np.linalg.norm(x[:, head], axis=1, keepdims=True)
        return np.concatenate([np.partition(part @ unit.T, -10, axis=1)[:, -10] for part in np.array_split(x, 20)])

    values, vectors = np.linalg.eigh(np.cov(features.T))
    rest, middle = vectors[:, : len(values) // 2], features.mean(axis=0)

    def residual(x: Array) -> Array:
        return np.asarray(np.linalg.norm((x[:, head] - middle) @ rest, axis=1))

    alpha = logits.max(axis=1).mean() / residual(signatures).mean()
    chosen = fit(
        signatures, logits, labels, widths, known=signatures[0], facts=Facts("", len(labels), 1.0), exclusive=False
    )
    yield "max softmax", lambda x, z: z.max(axis=1) - log_sum(z)
    yield "max logit", lambda x, z: z.max(axis=1)
    yield "energy", lambda x, z: log_sum(z)
    yield "Mahalanobis", lambda x, z: -by_class.distance(x[:, head])
    yield "relative Mahalanobis", lambda x, z: as_one.distance(x[:, head]) ** 2 - by_class.distance(x[:, head]) ** 2
    yield "10-NN", nearest
    yield "ViM", lambda x, z: log_sum(z) - alpha * residual(x)
    yield "mean of patches", lambda x, z: -mean.distance(x[:, : cut[0]])
    yield "spread of patches", lambda x, z: -spread.distance(x[:, cut[0] : cut[1]])
    yield "**chosen**", lambda x, z: chosen.score(x)


def auroc(own: Array, others: Array) -> float:
    """The chance that an own image looks more usual than a stranger."""
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, own, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(others))


def false_alarms(own: Array, others: Array) -> float:
    """The share of strangers that pass where 95 % of the own images do."""
    return float((others >= np.quantile(own, 0.05)).mean())


def measure(model: str, seen: Seen, own: tuple[list[Any], Array, str], kinds: dict[str, Images]) -> None:
    signatures, logits = seen.of("own", lambda: own[0])
    order = np.random.default_rng(0).permutation(len(signatures))
    half, other = np.array_split(order, 2)
    widths = widths_of(seen.checkpoint, signatures.shape[1])
    scores = dict(scores_of(signatures[half], logits[half], own[1][half], widths))
    usual = {name: score(signatures[other], logits[other]) for name, score in scores.items()}
    print(f"\n{model}, {len(half)} own images in the statistics, {len(other)} beside the strangers:\n")
    print("| strangers | n |", " | ".join(scores), "|\n| --- | ---: |", " --- |" * len(scores))
    for kind, images in kinds.items():
        x, z = seen.of(kind, images)
        cells = []
        for name, score in scores.items():
            strange = score(x, z)
            cells.append(f"{auroc(usual[name], strange):.3f} / {false_alarms(usual[name], strange):.2f}")
        print(f"| {kind} | {len(x)} |", " | ".join(cells), "|", flush=True)


def put(seen: Seen, own: tuple[list[Any], Array, str]) -> None:
    """Statistics of all validation images into the checkpoint's folder."""
    checkpoint, (_, labels, data) = seen.checkpoint, own
    signatures, logits = seen.of("own", lambda: own[0])
    facts = Facts(data, len(labels), checkpoint.temperature or 1.0)
    made = fit(
        signatures,
        logits,
        labels,
        widths_of(checkpoint, signatures.shape[1]),
        known=known_signature(checkpoint),
        facts=facts,
    )
    store(checkpoint.folder, made)
    print(
        f"{checkpoint.folder}: {len(labels)} images, {(checkpoint.folder / 'familiarity.safetensors').stat().st_size}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--photos", "--fashion", "--cache"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--strangers", type=Path)
    parser.add_argument("--models", nargs="*", default=["photo-vit", "fashion-vit"], help="NAME or NAME=CHECKPOINT")
    parser.add_argument("--most", type=int, default=1500, help="strangers of a kind, at most")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    for text in options.models:
        name, _, place = text.partition("=")
        seen = Seen(resolve(place or name), options.cache)
        own = own_images(name, seen.checkpoint, options)
        if options.store:
            put(seen, own)
        else:
            measure(name, seen, own, strangers_of(name, options))


if __name__ == "__main__":
    main()
