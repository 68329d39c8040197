"""Class probabilities and true labels → measures with their uncertainty.

All of it is counting and closed forms, in NumPy and float64: a library of measures takes longer to import than they
take to compute (docs/decisions.md). Knows no files, models or terminals.

Ties are broken as in `predict`: of equally probable classes the first is the prediction.

Legend: K classes, N samples.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
ROWS = 1024  # ranked at a time
ALL_CLASSES = 2000  # up to here every class has its row, though it may not occur
Z = NormalDist().inv_cdf(0.975)  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Interval:
    """95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassMeasures:
    label: str
    n: int
    precision: float | None  # None: never predicted
    recall: float | None  # None: no samples
    f1: float | None  # None: neither


@dataclass(frozen=True)
class Bin:
    """Predictions with a probability in [low, high); the last bin holds 1 as well."""

    low: float
    high: float
    n: int
    confidence: float | None  # mean probability of the predicted class; None: no predictions
    accuracy: float | None


@dataclass(frozen=True)
class Measures:
    """Of N samples. Means over classes are over those that have samples."""

    n: int
    top1: float
    top1_interval: Interval  # Wilson's
    top5: float | None  # None: no more than five classes
    balanced_accuracy: float  # mean recall
    macro_f1: float
    nll: float  # mean negative log-likelihood, nats
    brier: float  # mean squared error summed over all classes, from 0 to 2
    ece: float
    classes: tuple[ClassMeasures, ...]
    confusion: tuple[tuple[int, ...], ...]  # row true, column predicted, in the order of `classes`
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class Mistake:
    name: str
    true: str
    predicted: str
    probability: float  # of the predicted class


@dataclass(frozen=True)
class ConfusedPair:
    true: str
    predicted: str
    n: int
    names: tuple[str, ...]  # of the samples, most confident first


@dataclass(frozen=True)
class Paired:
    """Two models on the same N samples."""

    n: int
    only_first: int  # samples that the first model alone gets right
    only_second: int
    difference: float  # accuracy of the second minus that of the first
    interval: Interval  # of the difference
    p_value: float  # McNemar's, exact, two-sided


def measure(
    probabilities: Probabilities, labels: Labels, names: Sequence[str], groups: Labels | None = None
) -> Measures:
    """All measures of `probabilities` (N, K) for `labels` (N,), indices of `names` (K,).

    Samples of the same one of `groups` (N,) are alike, and the interval is as wide as that makes it.
    With more than 2000 classes, `classes` and `confusion` hold those that occur as a label or as a prediction.
    Raises ValueError for no samples, shapes that do not fit, labels or probabilities out of range.
    """
    n, k = _check(probabilities, labels, names)
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == labels).sum())
    classes, confusion = _class_measures(predicted, labels, names)
    present = [row for row in classes if row.n]
    error, bins = _calibration(probabilities.max(axis=1), predicted == labels)
    return Measures(
        n=n,
        top1=correct / n,
        top1_interval=wilson(correct, n) if groups is None else clustered(predicted == labels, groups),
        top5=_top_k(probabilities, labels, 5) if k > 5 else None,
        balanced_accuracy=float(np.mean([row.recall for row in present])),
        macro_f1=float(np.mean([row.f1 for row in present])),
        nll=_nll(probabilities, labels),
        brier=_brier(probabilities, labels),
        ece=error,
        classes=classes,
        confusion=confusion,
        reliability=bins,
    )


def t_interval(values: Sequence[float]) -> Interval | None:
    """95 % for the mean of independent draws, Student's; None for a single one."""
    n = len(values)
    if n < 2:
        return None
    half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / sqrt(n)
    return Interval(float(np.mean(values)) - half, float(np.mean(values)) + half)


def t_quantile(freedom: int) -> float:
    """What |t| with that many degrees of freedom exceeds in 5 % of cases (Abramowitz, Stegun 26.7.3, 26.7.4)."""
    low, high = 0.0, pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        term = total = cos(angle) if freedom % 2 else 1.0
        for i in range(2 + freedom % 2, freedom - 1, 2):
            term *= cos(angle) ** 2 * (i - 1) / i
            total += term
        inside = 2 / pi * (angle + sin(angle) * total * (freedom > 1)) if freedom % 2 else sin(angle) * total
        low, high = (angle, high) if inside < 0.95 else (low, angle)
    return sqrt(freedom) * tan((low + high) / 2)


def clustered(right: npt.NDArray[np.bool_], groups: Labels) -> Interval:
    """Wilson's interval for the share of `right` (N,) where samples of one of `groups` (N,) are alike.

    For as many samples as would, each by itself, vary as the groups do (Korn and Graubard 1998, Surv. Methodol. 24,
    193: the effective sample size, with Student's t for few groups); at most all of them, and as many as there are
    groups where all or none are right.
    """
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1])
    n, g, share = len(right), len(sizes), float(right.mean())
    if g < 2:
        return Interval(0.0, 1.0)
    rights = np.bincount(np.unique(groups, return_inverse=True)[1], right)
    variance = g / (g - 1) * float(((rights - share * sizes) ** 2).sum()) / n**2
    spread = share * (1 - share)
    few = (Z / t_quantile(g - 1)) ** 2
    effective = float(g) if not spread else min(n, few * spread / variance) if variance else float(n)
    return wilson(share * effective, effective)


def wilson(correct: float, n: float) -> Interval:
    """Score interval of a share (Wilson 1927); the whole range when there is nothing to go by."""
    if not n:
        return Interval(0.0, 1.0)
    share, scale = correct / n, 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At the ends the bound is exact; rounding must not push it past the share itself.
    return Interval(max(0.0, middle - half) if correct else 0.0, min(1.0, middle + half) if correct < n else 1.0)


def paired(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Paired:
    """Compare two models by which of the same samples (N,) each gets right.

    P-value: McNemar's exact test, binomial with share ½ over the samples on which they disagree. Interval: Wald's with
    the adjustment of Bonett and Price (2012, J. Educ. Behav. Stat. 37, 479, eq. 3), one sample added to each of the
    two counts: recommended by Fagerland, Lydersen and Laake (2014, Stat. Med. 33, 2850) for its coverage.
    """
    n = len(first)
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    gained, lost = (c + 1) / (n + 2), (b + 1) / (n + 2)
    half = Z * sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    interval = Interval(max(-1.0, gained - lost - half), min(1.0, gained - lost + half))
    return Paired(n, b, c, (c - b) / n, interval, _two_sided(min(b, c), b + c))


def mistakes(
    probabilities: Probabilities, labels: Labels, names: Sequence[str], sample_names: Sequence[str]
) -> list[Mistake]:
    """The samples that are predicted wrongly, most confident first; arguments as for `measure`, `sample_names` (N,)."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return [Mistake(sample_names[i], names[labels[i]], names[predicted[i]], float(confidence[i])) for i in order]


def confused_pairs(
    probabilities: Probabilities, labels: Labels, names: Sequence[str], sample_names: Sequence[str]
) -> list[ConfusedPair]:
    """Which class is taken for which other, most often first; arguments as for `mistakes`."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for mistake in mistakes(probabilities, labels, names, sample_names):
        found[mistake.true, mistake.predicted].append(mistake.name)
    pairs = [
        ConfusedPair(true, predicted, len(samples), tuple(samples)) for (true, predicted), samples in found.items()
    ]
    return sorted(pairs, key=lambda pair: -pair.n)


def _two_sided(fewer: int, n: int) -> float:
    """Twice the chance of at most `fewer` heads in `n` tosses, at most 1; in whole numbers, so exact for any `n`."""
    term = tail = 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def _check(probabilities: Probabilities, labels: Labels, names: Sequence[str]) -> tuple[int, int]:
    n, k = len(labels), len(names)
    if not n:
        raise ValueError("nothing to measure: no samples")
    if k < 2 or probabilities.shape != (n, k):
        raise ValueError(f"probabilities {probabilities.shape} for {n} labels and {k} classes")
    if labels.min() < 0 or labels.max() >= k:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {k} classes")
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-6):  # false for NaN, too
        raise ValueError("probabilities must lie between 0 and 1")
    return n, k


def _class_measures(
    predicted: Labels, labels: Labels, names: Sequence[str]
) -> tuple[tuple[ClassMeasures, ...], tuple[tuple[int, ...], ...]]:
    kept = np.arange(len(names)) if len(names) <= ALL_CLASSES else np.union1d(predicted, labels)
    k = len(kept)
    cells = np.searchsorted(kept, labels) * k + np.searchsorted(kept, predicted)
    confusion = np.bincount(cells, minlength=k * k).reshape(k, k)  # row true, column predicted
    counts = zip(
        kept.tolist(), confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True
    )
    rows = tuple(
        ClassMeasures(names[i], n, ratio(right, answers), ratio(right, n), ratio(2 * right, n + answers))
        for i, right, n, answers in counts
    )
    return rows, tuple(map(tuple, confusion.tolist()))


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _top_k(probabilities: Probabilities, labels: Labels, top: int) -> float:
    """Share of samples whose label is among the `top` most probable classes; of equals the first count."""
    k, correct = probabilities.shape[1], 0
    for start in range(0, len(labels), ROWS):
        shares, label = probabilities[start : start + ROWS], labels[start : start + ROWS, None]
        own = shares[np.arange(len(label)), label[:, 0], None]  # (rows, 1)
        before = (shares > own) | ((shares == own) & (np.arange(k) < label))  # (rows, K)
        correct += int((before.sum(axis=1) < top).sum())
    return correct / len(labels)


def _nll(probabilities: Probabilities, labels: Labels) -> float:
    """A label that the model holds impossible costs 708 nats, not infinity: JSON knows no such number."""
    share = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(share, np.finfo(np.float64).tiny)).mean())


def _brier(probabilities: Probabilities, labels: Labels) -> float:
    # Σ(p − onehot)² = Σp² − 2p + 1, without a second array of that size.
    share = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return float((squares - 2 * share + 1).mean())


def _calibration(confidence: Probabilities, correct: npt.NDArray[np.bool_]) -> tuple[float, tuple[Bin, ...]]:
    """Expected calibration error, Σ n/N · |accuracy − confidence| over the bins, and these."""
    shares = confidence.astype(np.float64)
    edges = np.linspace(0, 1, BINS + 1)
    inside = np.searchsorted(edges[1:-1], shares, side="right")
    n = np.bincount(inside, minlength=BINS)
    sums = np.bincount(inside, shares, BINS), np.bincount(inside, correct, BINS)
    bins = tuple(
        Bin(low, high, count, *((total / count, right / count) if count else (None, None)))
        for low, high, count, total, right in zip(
            edges[:-1].tolist(), edges[1:].tolist(), n.tolist(), sums[0].tolist(), sums[1].tolist(), strict=True
        )
    )
    return float(np.abs(sums[1] - sums[0]).sum() / len(shares)), bins
