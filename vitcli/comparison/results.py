"""What came out: accuracy by model and amount of data, with intervals, and where one model overtakes another.

Seeds draw the subset, the initial weights and the order, so a mean over seeds has an interval (Student's t) that covers
all three; that the test images are a sample, too, is not in it and is the same for every model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vitcli.comparison.study import Cell, Study
from vitcli.metrics import Interval, t_interval

DRAWS = 4000


@dataclass(frozen=True)
class Point:
    """The results of one model with one amount of data, over the seeds."""

    model: str
    share: float
    images: int  # training images
    seeds: tuple[int, ...]  # those that are done
    accuracies: tuple[float, ...]  # test accuracy of each of them
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
    ahead: bool  # from the least amount of data to the greatest
    interval: Interval | None  # 95 % of the crossings among draws that cross
    chance: float | None  # share of the draws from the intervals that cross; None for a single seed


@dataclass(frozen=True)
class Size:
    """What a model costs."""

    params: int
    macs: int  # multiply–adds for one image
    bias: (
        int  # how much of an image's geometry is built in: 0 in a plain ViT, 1 in a hybrid, 2 in whatever else timm has
    )


@dataclass(frozen=True, eq=False)
class Findings:
    """A study and the results of its cells."""

    study: Study
    cells: Mapping[Cell, Mapping[str, Any]]
    sizes: Mapping[str, Size]  # by model

    @property
    def failed(self) -> int:
        """Test images that could not be read, at most in any cell; accuracies are of the others."""
        return max((int(result["failed"]) for result in self.cells.values()), default=0)

    @cached_property
    def points(self) -> list[Point]:
        """One for each model and amount of data that has results."""
        return points(self.cells)

    @cached_property
    def crossings(self) -> list[Crossover]:
        """Whether and where each model overtakes those with more inductive bias: a ViT hybrids and CNNs, a hybrid CNNs.

        Only where one training set is behind every column.
        """
        models = list(self.study.models)
        if self.study.pretrainings or len(self.study.shares) < 2:
            return []
        return [
            crossover(self.points, incumbent, challenger)
            for incumbent in models
            for challenger in models
            if self.sizes[challenger].bias < self.sizes[incumbent].bias
        ]


def points(found: Mapping[Cell, Mapping[str, Any]]) -> list[Point]:
    """The results of cells, joined over the seeds: one for each model and share, in the order of the cells."""
    groups: dict[tuple[str, float, str | None], dict[int, Mapping[str, Any]]] = {}
    for cell, result in found.items():
        before = cell.pretraining.name if cell.pretraining else None
        groups.setdefault((cell.model, cell.share, before), {})[cell.seed] = result
    return [_point(*key, by_seed) for key, by_seed in groups.items()]


def _point(model: str, share: float, before: str | None, by_seed: Mapping[int, Mapping[str, Any]]) -> Point:
    group = list(by_seed.values())
    accuracies = tuple(float(one["test_accuracy"]) for one in group)
    shots = [k for k in group[0]["few_shot"] if all(k in one["few_shot"] for one in group)]
    return Point(
        model=model,
        share=share,
        images=int(group[0]["images"]),
        seeds=tuple(by_seed),
        accuracies=accuracies,
        mean=float(np.mean(accuracies)),
        interval=t_interval(accuracies),
        few_shot={k: float(np.mean([one["few_shot"][k] for one in group])) for k in shots},
        cpu_seconds=float(np.mean([one["cpu_seconds"] for one in group])),
        pretraining=before,
        pretraining_images=group[0].get("pretraining_images"),
    )


def crossover(found: Sequence[Point], incumbent: str, challenger: str, seed: int = 0) -> Crossover:
    """Where the mean of `challenger` passes that of `incumbent`, interpolated on a logarithmic axis of images.

    Uncertainty by drawing each difference from Student's t around its mean. Seeds are paired: the same subset for both.
    """
    by_model = {model: {p.share: p for p in found if p.model == model} for model in (incumbent, challenger)}
    both = by_model[incumbent].keys() & by_model[challenger].keys()
    shares = sorted(s for s in both if set(by_model[incumbent][s].seeds) & set(by_model[challenger][s].seeds))
    images = np.log([by_model[incumbent][share].images for share in shares])
    means, errors, freedom = [], [], []
    for share in shares:
        a, b = (_by_seed(by_model[model][share]) for model in (incumbent, challenger))
        difference = np.array([b[one] - a[one] for one in a if one in b])
        n = len(difference)
        means.append(difference.mean())
        errors.append(difference.std(ddof=1) / n**0.5 if n > 1 else np.nan)
        freedom.append(max(n - 1, 1))
    at = _crossing(images, np.array(means)) if shares else None
    ahead = bool(shares and min(means) > 0)
    if not shares or np.isnan(errors).any():
        return Crossover(incumbent, challenger, at, ahead, None, None)
    rng = np.random.default_rng(seed)
    drawn = np.array(means) + np.array(errors) * np.stack([rng.standard_t(df, DRAWS) for df in freedom], axis=1)
    crossings = [x for row in drawn if (x := _crossing(images, row)) is not None]
    ends = np.quantile(crossings, (0.025, 0.975)) if crossings else None
    return Crossover(
        incumbent, challenger, at, ahead, Interval(float(ends[0]), float(ends[1])) if ends is not None else None,
        len(crossings) / DRAWS,
    )  # fmt: skip


def _by_seed(point: Point) -> dict[int, float]:
    return dict(zip(point.seeds, point.accuracies, strict=True))


def _crossing(images: Any, difference: Any) -> float | None:
    """The first amount of data at which `difference` turns from below zero to above; None when it never does."""
    for i in range(1, len(difference)):
        if difference[i - 1] < 0 <= difference[i]:
            part = -difference[i - 1] / (difference[i] - difference[i - 1])
            return float(np.exp(images[i - 1] + part * (images[i] - images[i - 1])))
    return None
