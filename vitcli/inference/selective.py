"""What a model gains by being silent: accuracy on the share of the images that it is surest of.

How sure it is of an image is the probability of its first class. Risk is 1 − accuracy; El-Yaniv and Wiener 2010 call
its dependence on coverage the risk-coverage curve, Geifman et al. 2019 the area below it AURC.

Legend: N images, K classes.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from vitcli.metrics import Labels, Probabilities

LEVELS = (0.8, 0.9, 0.95)
POINTS = 200  # of a curve: more cannot be seen


@dataclass(frozen=True)
class Coverage:
    """Accuracy where only the surest images are answered."""

    coverage: float  # the share of the images that is answered
    accuracy: float  # on those


@dataclass(frozen=True)
class Selective:
    """Accuracy against coverage, of N images."""

    at: tuple[Coverage, ...]  # at `LEVELS`
    aurc: float  # mean risk over the coverages 1/N, 2/N, … 1
    curve: tuple[Coverage, ...]  # rising coverage, up to `POINTS`


def selective(probabilities: Probabilities, labels: Labels) -> Selective:
    """Accuracy on the surest of N ≥ 1 images, for `probabilities` (N, K) and the true `labels` (N,).

    Images with one and the same probability are in no order: each counts as right as they are together.
    """
    n = len(labels)
    sure = probabilities.max(axis=1)
    _, place, count = np.unique(-sure, return_inverse=True, return_counts=True)
    right = np.bincount(place, weights=probabilities.argmax(axis=1) == labels) / count
    accuracy = np.cumsum(right[np.sort(place)]) / np.arange(1, n + 1)  # of the 1, 2, … N surest

    def at(answered: int) -> Coverage:
        return Coverage(answered / n, float(accuracy[answered - 1]))

    steps = np.unique(np.ceil(np.linspace(n / POINTS, n, POINTS)).astype(int).clip(1, n))
    levels = tuple(Coverage(level, at(max(ceil(round(level * n, 6)), 1)).accuracy) for level in LEVELS)
    return Selective(levels, float(1 - accuracy.mean()), tuple(at(int(step)) for step in steps))
