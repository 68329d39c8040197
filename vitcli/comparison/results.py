"""What came out: accuracy by model and amount of data, with intervals, and where one model overtakes another.

Seeds draw the subset, the initial weights and the order, so a mean over seeds has an interval (Student's t) that covers
all three; that the test images are a sample, too, is not in it and is the same for every model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitcli.comparison.contenders import inductive_bias
from vitcli.comparison.study import Cell, Study
from vitcli.metrics import Interval, t_interval

DRAWS = 4000


@dataclass(frozen=True)
class Point:
    """One model with one amount of data."""

    model: str
    share: float
    images: int  # training images
    accuracies: tuple[float, ...]  # test accuracy of each seed
    mean: float
    interval: Interval | None  # 95 %, None for a single seed
    few_shot: Mapping[str, float]  # shots → mean accuracy
    cpu_seconds: float  # mean of a cell
    pretraining: str | None = None
    pretraining_images: int | None = None


@dataclass(frozen=True)
class Crossover:
    """Where `challenger`, behind on less data, overtakes `incumbent`. `images` is None when no crossing is seen."""

    incumbent: str
    challenger: str
    images: float | None
    interval: Interval | None  # 95 % of the crossings among draws that cross
    chance: float | None  # share of the draws from the intervals that cross; None for a single seed


@dataclass(frozen=True)
class Size:
    params: int
    macs: int  # multiply–adds for one image


@dataclass(frozen=True, eq=False)
class Findings:
    """A study and the results of its cells."""

    study: Study
    cells: Mapping[Cell, Mapping[str, Any]]
    sizes: Mapping[str, Size]  # by model

    @cached_property
    def points(self) -> list[Point]:
        return points(self.cells)

    @cached_property
    def crossings(self) -> list[Crossover]:
        """Does each model, sooner or later, pass those with more inductive bias: a ViT hybrids and CNNs, a hybrid CNNs?

        Only where one training set is behind every column.
        """
        models = self.study.models
        if self.study.pretrainings or len(self.study.shares) < 2:
            return []
        return [
            crossover(self.points, incumbent, challenger)
            for incumbent in models
            for challenger in models
            if inductive_bias(challenger) < inductive_bias(incumbent)
        ]


def points(found: Mapping[Cell, Mapping[str, Any]]) -> list[Point]:
    """One for each model and share that has results, in the order of the cells."""
    groups: dict[tuple[str, float, str | None], list[Mapping[str, Any]]] = {}
    for cell, result in found.items():
        before = cell.pretraining.name if cell.pretraining else None
        groups.setdefault((cell.model, cell.share, before), []).append(result)
    return [_point(*key, group) for key, group in groups.items()]


def _point(model: str, share: float, before: str | None, group: Sequence[Mapping[str, Any]]) -> Point:
    accuracies = tuple(float(one["test_accuracy"]) for one in group)
    shots = {k: float(np.mean([one["few_shot"][k] for one in group])) for k in group[0]["few_shot"]}
    return Point(
        model, share, int(group[0]["images"]), accuracies, float(np.mean(accuracies)), t_interval(accuracies), shots,
        float(np.mean([one["cpu_seconds"] for one in group])), before, group[0].get("pretraining_images"),
    )  # fmt: skip


def crossover(found: Sequence[Point], incumbent: str, challenger: str, seed: int = 0) -> Crossover:
    """Where the mean of `challenger` passes that of `incumbent`, interpolated on a logarithmic axis of images.

    Uncertainty by drawing each difference from Student's t around its mean. Seeds are paired: the same subset for both.
    """
    by_model = {model: {p.share: p for p in found if p.model == model} for model in (incumbent, challenger)}
    shares = sorted(by_model[incumbent].keys() & by_model[challenger].keys())
    images = np.log([by_model[incumbent][share].images for share in shares])
    means, errors, freedom = [], [], []
    for share in shares:
        a, b = (np.array(by_model[model][share].accuracies) for model in (incumbent, challenger))
        n = min(len(a), len(b))
        difference = b[:n] - a[:n]
        means.append(difference.mean())
        errors.append(difference.std(ddof=1) / n**0.5 if n > 1 else np.nan)
        freedom.append(max(n - 1, 1))
    at = _crossing(images, np.array(means)) if shares else None
    if not shares or np.isnan(errors).any():
        return Crossover(incumbent, challenger, at, None, None)
    rng = np.random.default_rng(seed)
    drawn = np.array(means) + np.array(errors) * np.stack([rng.standard_t(df, DRAWS) for df in freedom], axis=1)
    crossings = [x for row in drawn if (x := _crossing(images, row)) is not None]
    ends = np.quantile(crossings, (0.025, 0.975)) if crossings else None
    return Crossover(
        incumbent, challenger, at, Interval(float(ends[0]), float(ends[1])) if ends is not None else None,
        len(crossings) / DRAWS,
    )  # fmt: skip


def _crossing(images: Any, difference: Any) -> float | None:
    """The first amount of data at which `difference` turns from below zero to above; None when it never does."""
    for i in range(1, len(difference)):
        if difference[i - 1] < 0 <= difference[i]:
            part = -difference[i - 1] / (difference[i] - difference[i - 1])
            return float(np.exp(images[i - 1] + part * (images[i] - images[i - 1])))
    return None
