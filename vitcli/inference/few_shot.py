"""Few-shot linear evaluation: how good a model's features are for new classes with a few images of each.

A regularised least-squares map from frozen features to {-1, +1}^K, in closed form (paper, section 4.1 "Metrics").
The constants are those the authors' code settled on (big_vision `evaluators/fewshot_lsr.py`): features standardised
with the support set, a constant 100 appended as bias, L2 penalty 2^10. Prints nothing.

    print(few_shot("fashion-vit", "photos/", [1, 5, 10, 25]).results)

Legend: N support images, M test images, D features, K classes of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.data.samples import Progress, Samples, Split, Tell, require_one_label
from vitcli.errors import DataError, UsageError
from vitcli.inference.class_names import listed
from vitcli.inference.evaluate import Note, Unreadable, open_scored
from vitcli.inference.knn import Knn, knn
from vitcli.inference.predict import Model
from vitcli.inference.stream import Stream, sources_of
from vitcli.metrics import Interval, Labels, t_interval

BIAS = 100.0
L2 = 2.0**10
STD_EPS = 1e-5

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Features:
    """What a model makes of those images of a split that could be read."""

    x: npt.NDArray[np.float32]  # (M, D)
    labels: Labels  # (M,)
    indices: Labels  # of the images in the split, (M,)
    failed: tuple[Unreadable, ...]


@dataclass(frozen=True)
class Shots:
    """Accuracy with `shots` images a class, once for each draw of them."""

    shots: int
    accuracies: tuple[float, ...]  # of the seeds 0, 1, …
    mean: float
    interval: Interval | None  # of the mean over draws, Student's t; the test images stay the same. None: one draw


@dataclass(frozen=True)
class FewShot:
    """How well a linear map from a model's features learns the data's classes."""

    data: str | None  # as it was named; None where samples were given
    split: str | None  # that was scored
    model: str
    revision: str | None
    classes: tuple[str, ...]
    features: int  # D
    n: int  # test images scored
    results: tuple[Shots, ...]
    failed: tuple[Unreadable, ...]
    knn: Knn | None = None


def few_shot(
    model: str | Path | Checkpoint | Model | Stream | None,
    data: str | Path,
    shots: Sequence[int],
    *,
    neighbours: int | None = None,
    split: Split | None = None,
    folders: str | None = None,
    seeds: int = 5,
    batch_size: int | None = None,
    note: Note | None = None,
    progress: Tell | None = None,
) -> FewShot:
    """What `model` can learn from `shots` images a class of the train split at `data`, scored on another split.

    Each number of `shots` is drawn `seeds` times. With `neighbours` also, or with no `shots` only, how well that many
    nearest training images tell the class. The model's own classes play no part; of a loaded model its
    checkpoint counts, and a `Stream` of features says how that is run. `split` is scored, else test or val, which is
    drawn from train where there is neither. `folders`, `note` and `progress` as in `evaluate`. Raises DataError when a
    class has too few images, and where none can be read.
    """
    if not isinstance(model, Stream):
        if isinstance(model, str | Path | None):
            model = resolve(None if model is None else str(model))
        model = Stream(model.checkpoint if isinstance(model, Model) else model, output="features")
    scored = open_scored(data, split, folders, wanted=("train",), note=note, progress=progress)
    if scored.split == "train" and split is None:  # nothing else is there, so some of it is held out
        scored = open_scored(data, split, folders, wanted=("train", "val"), note=note, progress=progress)
    require_one_label(scored.splits, "--few-shot or --knn")
    if scored.split == "train":
        raise UsageError("--few-shot and --knn learn from train, so it cannot be scored: --split test or val")
    found = few_shot_of(
        model,
        scored.splits.classes,
        scored.splits.named["train"],
        scored.splits.named[scored.split],
        shots,
        neighbours=neighbours,
        seeds=seeds,
        batch_size=batch_size,
        progress=progress and partial(progress, "features"),
    )
    return replace(found, data=scored.data, split=scored.described)


def few_shot_of(
    stream: Stream,
    classes: Sequence[str],
    train: Samples,
    test: Samples | Features,
    shots: Sequence[int],
    *,
    neighbours: int | None = None,
    seeds: int = 5,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> FewShot:
    """Support images drawn from `train`, accuracy on all of `test`; labels of both are indices of `classes`.

    `stream` gives features; `test` may be features that are known already. Draws are nested: those for 1 image are
    among those for 5 of the same seed. An image that cannot be read is left out. Raises DataError when a class has too
    few images, and where none can be read.
    """
    _check(classes, train, test, shots, neighbours, seeds)
    orders = [_order(train.labels, len(classes), seed) for seed in range(seeds)]
    wanted = sorted({i for order in orders for members in order for i in members[: max(shots, default=0)]})
    if neighbours is not None:
        wanted = list(range(len(train)))
    support = read_features(stream, train, wanted, batch_size=batch_size, progress=progress)
    if not isinstance(test, Features):
        test = read_features(stream, test, range(len(test)), batch_size=batch_size, progress=progress)
    place = {i: row for row, i in enumerate(support.indices.tolist())}
    results = []
    for n in sorted(shots):
        accuracies = []
        for order in orders:
            rows = [place[i] for members in order for i in members[:n] if i in place]
            weights = fit(support.x[rows], support.labels[rows], len(classes))
            accuracies.append(float((weights.predict(test.x) == test.labels).mean()))
        results.append(Shots(n, tuple(accuracies), float(np.mean(accuracies)), t_interval(accuracies)))
    nearest = None
    if neighbours is not None:
        nearest = knn(support.x, support.labels, test.x, test.labels, len(classes), neighbours)
    checkpoint = stream.checkpoint
    return FewShot(
        None,
        None,
        checkpoint.name,
        checkpoint.revision,
        tuple(classes),
        test.x.shape[1],
        len(test.x),
        tuple(results),
        (*support.failed, *test.failed),
        nearest,
    )


def read_features(
    stream: Stream,
    samples: Samples,
    indices: Sequence[int],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """What `stream` makes of those images, each read once. Raises DataError where none can be read."""
    found: dict[int, npt.NDArray[np.float32]] = {}
    failed = []
    answers = stream.answers(sources_of(samples, indices), batch_size=batch_size)
    for done, (i, answer) in enumerate(zip(indices, answers, strict=True), start=1):
        if answer.values is None:
            failed.append(Unreadable(answer.name, answer.error or ""))
        else:
            found[i] = answer.values
        if progress:
            progress(done, len(indices))
    if not found:
        raise DataError(f"none of the images could be read, such as {failed[-1].error}")
    kept = np.array(list(found), np.int64)
    return Features(np.stack(list(found.values())), samples.labels[kept], kept, tuple(failed))


@dataclass(frozen=True, eq=False)
class LinearMap:
    """Features → scores of the classes."""

    mean: Matrix  # of the support features, (D,)
    std: Matrix
    weight: Matrix  # (D + 1, K), the last row that of the constant

    def predict(self, x: npt.NDArray[np.float32]) -> Labels:
        """Features (M, D) → classes (M,)."""
        return np.asarray((_design(x, self.mean, self.std) @ self.weight).argmax(axis=1))


def fit(x: npt.NDArray[np.float32], labels: Labels, classes: int) -> LinearMap:
    """Minimises ‖XW − Y‖² + L2 ‖W‖² for features `x` (N, D), Y = 2·onehot − 1, in float64.

    With the smaller of the two matrices: (XᵀX + L2)⁻¹XᵀY, or the same as Xᵀ(XXᵀ + L2)⁻¹Y when N < D + 1.
    """
    mean: Matrix = x.mean(axis=0, dtype=np.float64)
    std: Matrix = x.std(axis=0, dtype=np.float64) + STD_EPS
    design = _design(x, mean, std)  # (N, D + 1)
    target = 2.0 * np.eye(classes)[labels] - 1.0  # (N, K)
    if len(design) >= design.shape[1]:
        gram = design.T @ design + L2 * np.eye(design.shape[1])
        return LinearMap(mean, std, np.asarray(np.linalg.solve(gram, design.T @ target), np.float64))
    kernel = design @ design.T + L2 * np.eye(len(design))
    return LinearMap(mean, std, np.asarray(design.T @ np.linalg.solve(kernel, target), np.float64))


def _design(x: npt.NDArray[np.float32], mean: Matrix, std: Matrix) -> Matrix:
    return np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)


def _order(labels: Labels, classes: int, seed: int) -> list[list[int]]:
    """The samples of each class in the order in which this seed draws them."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)).tolist() for label in range(classes)]


def _check(
    classes: Sequence[str],
    train: Samples,
    test: Samples | Features,
    shots: Sequence[int],
    neighbours: int | None,
    seeds: int,
) -> None:
    """Raises UsageError and DataError for what cannot be done."""
    if min(shots, default=int(neighbours is not None)) < 1 or len(set(shots)) < len(shots):
        raise UsageError("--few-shot: different whole numbers of images a class, from 1, such as 1,5,10,25")
    if seeds < 1:
        raise UsageError("--seeds must be at least 1")
    if len(classes) < 2:
        raise DataError("few-shot evaluation needs at least two classes")
    if not len(test.labels):
        raise DataError("there are no images to score")
    counts = np.bincount(train.labels, minlength=len(classes))
    if few := [name for name, n in zip(classes, counts, strict=True) if n < max(shots, default=0)]:
        raise DataError(f"fewer than {max(shots)} training images of {listed(few)}; ask for fewer with --few-shot")
