"""The numbers on the card of a Fashion-MNIST model: its accuracy on the test split, looked at once, at the end.

    python benchmarks/fashion_card.py --data fashion-mnist/ [--model fashion-vit]

Every test image goes through `vitcli.load(model).predict`, as a user's would: once as the data set has it (light on
black) and once as its negative (dark on white). Prints Markdown: accuracy with 95 % Wilson intervals, confusion.
"""

import argparse
import math
import time

import numpy as np
from PIL import ImageOps

import vitcli
from vitcli.data.sources import open_data


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share, shrink = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    return middle - half, middle + half


def confusion(model: vitcli.Model, samples, negative: bool) -> np.ndarray:
    """(K, K) counts: rows are the true classes, columns the predicted."""
    counts = np.zeros((len(model.labels),) * 2, int)
    images = (samples.image(i) for i in range(len(samples)))
    if negative:
        images = map(ImageOps.invert, images)
    for truth, prediction in zip(samples.labels, model.predict(images, top_k=1), strict=True):
        counts[truth, prediction.labels[0].index] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fashion-vit")
    options = parser.parse_args()
    data, model = open_data(options.data), vitcli.load(options.model)
    assert data.test is not None
    assert model.labels == data.classes
    print("| test images | accuracy | 95 % interval |\n| --- | --- | --- |")
    tables = {}
    for name, negative in (("as in the data set, light on black", False), ("negatives, dark on white", True)):
        start = time.perf_counter()
        tables[name] = table = confusion(model, data.test, negative)
        right, n = int(np.trace(table)), int(table.sum())
        low, high = wilson(right, n)
        rate = n / (time.perf_counter() - start)
        print(f"| {name} | {right / n:.4f} ({right} of {n}, {rate:.0f} images/s) | {low:.4f} to {high:.4f} |")
    for name, table in tables.items():
        print(f"\nConfusion, {name}; rows are the truth, columns what was predicted:\n")
        print("| |", " | ".join(model.labels), "| recall |\n|", "--- |" * (len(model.labels) + 2))
        for label, row in zip(model.labels, table, strict=True):
            own = row[model.labels.index(label)]
            print(f"| {label} |", " | ".join(str(count or "") for count in row), f"| {own / row.sum():.3f} |")


if __name__ == "__main__":
    main()
