"""Two models on the same images: is one better, by how much, and on which images do they differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitcli.errors import DataError
from vitcli.inference.evaluate import Evaluation
from vitcli.metrics import Paired, paired


@dataclass(frozen=True)
class Flip:
    """An image that one of the models alone gets right."""

    name: str
    true: str  # as the data call it
    first: str  # predicted by the first model
    second: str
    gained: bool  # right with the second model


@dataclass(frozen=True, eq=False)
class Comparison:
    first: Evaluation
    second: Evaluation
    paired: Paired
    flips: tuple[Flip, ...]  # in the order of the data


def compare(first: Evaluation, second: Evaluation, labels: Sequence[int], classes: Sequence[str]) -> Comparison:
    """Two evaluations of the same samples, whose labels are indices of `classes`; of the images that both answered.

    Raises DataError when there is no such image.
    """
    both, in_first, in_second = np.intersect1d(first.indices, second.indices, return_indices=True)
    if not len(both):
        raise DataError("the two models have no image in common that both could score")
    right = first.correct[in_first], second.correct[in_second]
    answers = [
        [evaluation.classes[k] for k in evaluation.probabilities[rows].argmax(axis=1)]
        for evaluation, rows in ((first, in_first), (second, in_second))
    ]
    flips = tuple(
        Flip(first.names[in_first[i]], classes[labels[both[i]]], answers[0][i], answers[1][i], bool(right[1][i]))
        for i in np.flatnonzero(right[0] != right[1])
    )
    return Comparison(first, second, paired(*right), flips)
