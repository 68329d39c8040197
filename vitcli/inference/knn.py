"""k nearest neighbours: how good a model's features are when the class of an image is that of the most similar ones.

Plain: each of the k neighbours has a vote. Weighted: by exp(cosine / 0.07), as in DINO's evaluation (arXiv 2104.14294,
appendix). Neighbours by the cosine, exactly (`similar`); of classes with equal votes the first.

Legend: N training images, M test images, D features, K classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitcli.errors import UsageError
from vitcli.inference.similar import Held, neighbours
from vitcli.metrics import Interval, Labels, wilson

TEMPERATURE = 0.07
QUERIES = 512  # at a time


@dataclass(frozen=True)
class Share:
    """Of the test images whose class is right."""

    accuracy: float
    interval: Interval  # Wilson's


@dataclass(frozen=True)
class Knn:
    k: int
    images: int  # training images among which the neighbours are
    plain: Share
    weighted: Share


def knn(
    train: npt.NDArray[np.float32],
    train_labels: Labels,
    test: npt.NDArray[np.float32],
    test_labels: Labels,
    classes: int,
    k: int,
) -> Knn:
    """Features (N, D) and (M, D) with their labels (N,) and (M,) of K classes. Raises UsageError for k above N."""
    if not 1 <= k <= len(train):
        raise UsageError(f"--knn {k}: there are {len(train)} training images to choose neighbours from")
    source = Held([""] * len(train), train)
    right = np.zeros(2, np.int64)
    for start in range(0, len(test), QUERIES):
        found = neighbours(source, test[start : start + QUERIES], k)
        rows = np.array([[one.row for one in nearest] for nearest in found])  # (queries, k)
        cosines = np.array([[one.similarity for one in nearest] for nearest in found])
        truth = test_labels[start : start + QUERIES]
        for i, weights in enumerate((np.ones_like(cosines), np.exp(cosines / TEMPERATURE))):
            right[i] += int((votes(train_labels[rows], weights, classes).argmax(axis=1) == truth).sum())
    shares = (Share(correct / len(test), wilson(correct, len(test))) for correct in right.tolist())
    return Knn(k, len(train), *shares)


def votes(labels: Labels, weights: npt.NDArray[np.float64], classes: int) -> npt.NDArray[np.float64]:
    """Sums of `weights` (M, k) by the class in `labels` (M, k), (M, K)."""
    found = np.zeros((len(labels), classes))
    np.add.at(found, (np.arange(len(labels))[:, None], labels), weights)
    return found
