"""The numbers on the card of `photo-vit`: its test images, looked at once, at the end, and others' photographs.

    python benchmarks/photo_card.py [--test photos/test] [--cifar-10 test/] [--cifar-100 test/] [--caltech FOLDER]

Every image goes through `vitcli.load(model).predict`, as a user's would. Of the other data sets those classes count
that are some of the 200 by name (below): an answer is right where it is one of them. Prints Markdown: accuracy with
95 % Wilson intervals, calibration error, the pairs of classes most often taken for each other.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import vitcli
from vitcli.data.sources import open_data
from vitcli.metrics import confused_pairs, measure, wilson

# Class there: the classes here that it holds. What would only overlap (a train, a chair, a beetle) is left out.
DOGS = (
    "Chihuahua",
    "German shepherd",
    "Labrador retriever",
    "Yorkshire terrier",
    "golden retriever",
    "standard poodle",
)
CARS = ("beach wagon", "convertible", "limousine", "sports car")
CATS = ("Egyptian cat", "Persian cat", "tabby")
BY_NAME: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar-10": {"automobile": CARS, "cat": CATS, "dog": DOGS, "frog": ("bullfrog", "tailed frog")},
    "cifar-100": {
        "aquarium_fish": ("goldfish",),
        "bear": ("brown bear",),
        "bee": ("bee",),
        "butterfly": ("monarch", "sulphur butterfly"),
        "camel": ("Arabian camel",),
        "chimpanzee": ("chimpanzee",),
        "cockroach": ("cockroach",),
        "crocodile": ("American alligator",),
        "elephant": ("African elephant",),
        "keyboard": ("computer keyboard",),
        "lamp": ("lampshade",),
        "lawn_mower": ("lawn mower",),
        "lion": ("lion",),
        "lobster": ("American lobster", "spiny lobster"),
        "mountain": ("alp",),
        "mushroom": ("mushroom",),
        "orange": ("orange",),
        "plate": ("plate",),
        "snail": ("snail",),
        "spider": ("black widow", "tarantula"),
        "streetcar": ("trolleybus",),
        "sweet_pepper": ("bell pepper",),
        "telephone": ("pay-phone",),
        "tractor": ("tractor",),
    },
    "caltech": {
        "barrel": ("barrel",),
        "binocular": ("binoculars",),
        "butterfly": ("monarch", "sulphur butterfly"),
        "cannon": ("cannon",),
        "car_side": CARS,
        "cougar_body": ("cougar",),
        "cougar_face": ("cougar",),
        "crocodile": ("American alligator",),
        "crocodile_head": ("American alligator",),
        "dragonfly": ("dragonfly",),
        "elephant": ("African elephant",),
        "gerenuk": ("gazelle",),
        "lamp": ("lampshade",),
        "lobster": ("American lobster", "spiny lobster"),
        "pizza": ("pizza",),
        "scorpion": ("scorpion",),
        "trilobite": ("trilobite",),
        "umbrella": ("umbrella",),
    },
}


def shares(model: vitcli.Model, images: list[Path]) -> np.ndarray:
    """Probabilities (N, K) in the order of `model.labels`."""
    rows = np.zeros((len(images), len(model.labels)), np.float32)
    for row, prediction in zip(rows, model.predict(images, top_k=len(model.labels)), strict=True):
        for score in prediction.labels:
            row[score.index] = score.probability
    return rows


def on_test(model: vitcli.Model, folder: Path) -> None:
    data = open_data(str(folder))
    samples = [part for part in (data.train, data.val, data.test) if part is not None]
    paths = [part.path(i) for part in samples for i in range(len(part))]
    names = np.array([model.labels.index(path.parent.name) for path in paths])
    probabilities = shares(model, paths)
    found = measure(probabilities, names, model.labels)
    low, high = found.top1_interval.low, found.top1_interval.high
    print("| test images | top-1 | 95 % interval | top-5 | NLL | calibration error |\n|" + 6 * " --- |")
    print(
        f"| {found.n} | {found.top1:.4f} | {low:.4f} to {high:.4f} | {found.top5:.4f} | {found.nll:.3f} "
        f"| {found.ece:.4f} |"
    )
    recalls = sorted((row.recall or 0.0, row.label) for row in found.classes)
    print("\nbest known:", ", ".join(f"{label} {recall:.2f}" for recall, label in recalls[:-9:-1]))
    print("least known:", ", ".join(f"{label} {recall:.2f}" for recall, label in recalls[:8]))
    print("\n| taken | for | of 50 |\n| --- | --- | --- |")
    for pair in confused_pairs(probabilities, names, model.labels, [str(path) for path in paths])[:12]:
        print(f"| {pair.true} | {pair.predicted} | {pair.n} |")


def rows_by_name(model: vitcli.Model, source: str, folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Class, images, and how many of them have one of its classes first, and among the first five."""
    for name, ours in BY_NAME[source].items():
        assert set(ours) <= set(model.labels), ours
        paths = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        ranked = np.argsort(-shares(model, paths), axis=1)[:, :5]
        right = np.isin(ranked, [model.labels.index(one) for one in ours])
        yield name, len(paths), int(right[:, 0].sum()), int(right.any(axis=1).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("test", *BY_NAME):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--model", default="photo-vit")
    options = parser.parse_args()
    model = vitcli.load(options.model)
    if options.test:
        on_test(model, options.test)
    for source in BY_NAME:
        folder = getattr(options, source.replace("-", "_"))
        if folder is None:
            continue
        rows = list(rows_by_name(model, source, folder))
        n, first, five = (sum(row[i] for row in rows) for i in (1, 2, 3))
        interval = wilson(first, n)
        print(
            f"\n{source}: {n} images of {len(rows)} classes, top-1 {first / n:.3f} ({interval.low:.3f} to "
            f"{interval.high:.3f}), top-5 {five / n:.3f}"
        )
        print(", ".join(f"{name} {right / count:.2f}" for name, count, right, _ in rows))


if __name__ == "__main__":
    main()
