"""Models whose labels each hold by themselves, on images with several labels: how good they are, and from which
probability on a label is said to hold. Prints nothing.

    result = evaluate_labels("runs/scenes-1/best", "scenes.csv")
    print(result.measures.mean_average_precision)

Images take the path of `predict`. scikit-learn is the oracle of the tests.

Legend: K labels of the model, N images that could be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.checkpoint.config import Checkpoint
from vitcli.data.samples import Samples, Split, Tell, multi_hot
from vitcli.errors import CheckpointError, DataError, UsageError
from vitcli.inference.class_names import listed, map_classes, unknown_line
from vitcli.inference.engines import probabilities
from vitcli.inference.evaluate import Note, Scored, Scoring, Unreadable, open_scored
from vitcli.inference.predict import DEFAULT_THRESHOLD, Model, load
from vitcli.metrics import Labels, ratio
from vitcli.model.shapes import Array
from vitcli.text import plural, safe

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelMeasures:
    """One label, on images of which it holds for `n`."""

    label: str
    n: int
    average_precision: float | None  # None: it holds for no image
    threshold: float  # from which probability on it is said to hold
    precision: float | None  # None: never said
    recall: float | None  # None: it holds for no image
    f1: float | None  # None: neither


@dataclass(frozen=True)
class ManyMeasures:
    """Of N images. Means over labels are over those that hold for some image."""

    n: int
    mean_average_precision: float  # mAP: of the labels' average precisions
    macro_f1: float
    micro_f1: float  # of all decisions together
    exact: float  # share of images with every label right
    nll: float  # binary cross-entropy, mean over images and labels, nats
    labels: tuple[LabelMeasures, ...]


@dataclass(frozen=True, eq=False)
class LabelEvaluation:
    """A model's answers to images with several labels. Images that could not be read are in `failed` alone."""

    model: str
    revision: str | None
    classes: tuple[str, ...]  # the model's, (K,)
    logits: Array  # (N, K)
    temperature: float
    thresholds: tuple[float, ...]  # (K,)
    labels: Labels  # 0 and 1, (N, K)
    indices: Labels  # of the images among the samples, (N,)
    names: tuple[str, ...]  # of the images, (N,)
    failed: tuple[Unreadable, ...]
    notes: tuple[str, ...]
    data: str | None = None
    split: str | None = None

    @cached_property
    def probabilities(self) -> Shares:
        """(N, K), those of `predict`."""
        return probabilities(self.logits, self.temperature, "labels")

    @cached_property
    def measures(self) -> ManyMeasures:
        return measure_labels(self.probabilities, self.labels, self.classes, self.thresholds)


def average_precision(shares: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float | None:
    """Σ (R_i − R_{i−1}) · P_i over the distinct probabilities, as scikit-learn computes it; None where nothing holds.

    `shares` (N,), `truth` (N,) of 0 and 1. Equal probabilities are one step, whatever their order.
    """
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-shares, kind="stable")
    hits = truth[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(shares[order])), len(shares) - 1)  # of each run of equals
    precision, recall = hits[ends] / (ends + 1), hits[ends] / positives
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def best_threshold(shares: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """The threshold of the best F1, midway to the next lower probability; a half where nothing holds or nothing helps.

    Of equally good ones the one nearest a half.
    """
    positives = int(truth.sum())
    if not positives:
        return DEFAULT_THRESHOLD
    order = np.argsort(-shares, kind="stable")
    ordered, hits = shares[order].astype(np.float64), truth[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    f1 = 2 * hits[ends] / (ends + 1 + positives)
    below = np.append(ordered[ends[:-1] + 1], 0.0)
    between = (ordered[ends] + below) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = between[best[np.argmin(np.abs(between[best] - DEFAULT_THRESHOLD))]]
    return float(f"{min(max(chosen, 1e-6), 1.0):.6g}")  # as it is stored


def best_thresholds(shares: Shares, truth: Labels) -> tuple[float, ...]:
    """`best_threshold` of each label, (K,), from probabilities (N, K) and `truth` (N, K)."""
    return tuple(best_threshold(shares[:, k], truth[:, k]) for k in range(shares.shape[1]))


def measure_labels(
    shares: Shares, truth: Labels, names: Sequence[str], thresholds: Sequence[float] = ()
) -> ManyMeasures:
    """All measures of probabilities (N, K) for `truth` (N, K) of 0 and 1, indices of `names` (K,).

    `thresholds` (K,): a half for each where there are none. Raises ValueError for no samples and shapes that differ.
    """
    if not len(truth) or shares.shape != truth.shape or shares.shape[1] != len(names):
        raise ValueError(f"probabilities {shares.shape} for labels {truth.shape} of {len(names)} names")
    limits = np.array(thresholds or [DEFAULT_THRESHOLD] * len(names))
    said, holds = shares >= limits, truth.astype(bool)
    rows = []
    for k, name in enumerate(names):
        right, answers, n = (int(one.sum()) for one in (said[:, k] & holds[:, k], said[:, k], holds[:, k]))
        rows.append(
            LabelMeasures(
                name,
                n,
                average_precision(shares[:, k], truth[:, k]),
                float(limits[k]),
                ratio(right, answers),
                ratio(right, n),
                ratio(2 * right, n + answers),
            )
        )
    present = [row for row in rows if row.n]
    if not present:
        raise ValueError("no label holds for any image")
    inside = np.clip(shares, np.finfo(np.float64).tiny, 1 - 2**-53)
    return ManyMeasures(
        n=len(truth),
        mean_average_precision=float(np.mean([row.average_precision for row in present])),
        macro_f1=float(np.mean([row.f1 for row in present])),
        micro_f1=ratio(2 * int((said & holds).sum()), int(said.sum() + holds.sum())) or 0.0,
        exact=float((said == holds).all(axis=1).mean()),
        nll=float(-np.where(holds, np.log(inside), np.log1p(-inside)).mean()),
        labels=tuple(rows),
    )


def evaluate_labels(
    model: str | Path | Checkpoint | Model | None,
    data: str | Path | Samples,
    classes: Sequence[str] | None = None,
    *,
    split: Split | None = None,
    folders: str | None = None,
    multi_label: bool = False,
    ignore_unknown: bool = False,
    batch_size: int | None = None,
    exact: bool = False,
    parts: str | Path | None = None,
    note: Note | None = None,
    progress: Tell | None = None,
) -> LabelEvaluation:
    """A multi-label `model` on labelled images; arguments and errors are those of `evaluate`.

    Data that give one label an image say nothing of the others, which may hold, too: they are a DataError, unless with
    `multi_label` the others are taken not to hold.
    """
    loaded = model if isinstance(model, Model) else load(model)
    if loaded.checkpoint.outputs != "labels":
        raise CheckpointError(f"{safe(loaded.checkpoint.name)} gives one class an image: evaluate() measures that")
    scoring = Scoring(ignore_unknown, batch_size, exact, note, progress, None if parts is None else Path(parts))
    if not isinstance(data, str | Path):
        if classes is None:
            raise UsageError("samples have labels alone: give the names of their classes, too")
        return _of_samples(scoring, loaded, data, classes, multi_label)
    scored = open_scored(data, split, folders, note=note, progress=progress)
    return of_split(scoring, loaded, scored, multi_label=multi_label)


def of_split(scoring: Scoring, model: Model, scored: Scored, *, multi_label: bool) -> LabelEvaluation:
    """`model` on the split that is scored; notes are told."""
    result = _of_samples(scoring, model, scored.samples, scored.splits.classes, multi_label)
    for line in result.notes:
        if scoring.note:
            scoring.note(line)
    return replace(result, data=scored.data, split=scored.described)


def _of_samples(
    scoring: Scoring, model: Model, samples: Samples, classes: Sequence[str], multi_label: bool
) -> LabelEvaluation:
    truth, kept, notes = truth_of(scoring, model, samples, classes, multi_label)
    wanted = np.flatnonzero(kept)
    logits, read, failed = scoring.answers(model, samples, wanted)
    if not read.any():
        raise DataError(f"none of the {len(wanted)} images could be read, such as {failed[0].error}")
    indices = wanted[read]
    if not truth[indices].any():
        raise DataError("no label holds for any of the images that could be read: there is nothing to measure")
    return LabelEvaluation(
        model=model.checkpoint.name,
        revision=model.checkpoint.revision,
        classes=model.labels,
        logits=logits[read],
        temperature=model.temperature,
        thresholds=model.thresholds or (DEFAULT_THRESHOLD,) * len(model.labels),
        labels=truth[indices],
        indices=indices,
        names=tuple(samples.name(i) for i in indices.tolist()),
        failed=tuple(failed),
        notes=notes,
    )


def truth_of(
    scoring: Scoring, model: Model, samples: Samples, classes: Sequence[str], multi_label: bool
) -> tuple[Labels, npt.NDArray[np.bool_], tuple[str, ...]]:
    """What `_model_labels` makes of the samples' labels. Raises DataError, too, where these give one an image."""
    if samples.labels.ndim == 1 and not multi_label:
        raise DataError(
            f"several labels of {safe(model.checkpoint.name)} may hold for one image (multi-label), and these data "
            "give one: a manifest's `labels` column gives all, --multi-label says that no others hold"
        )
    return _model_labels(model, samples.labels, classes, scoring.ignore_unknown)


def _model_labels(
    model: Model, labels: Labels, classes: Sequence[str], ignore_unknown: bool
) -> tuple[Labels, npt.NDArray[np.bool_], tuple[str, ...]]:
    """`labels` of the data as the model's, (N, K); which images count, (N,); and what a user should know of it.

    An image with a label that the model does not know is left out with `ignore_unknown`: whether the model would be
    right to be silent about it is unknown. Raises DataError for unknown labels otherwise.
    """
    if not len(labels):
        raise DataError("no images to evaluate")
    name, known = safe(model.checkpoint.name), model.labels
    mapped = map_classes(classes, known, model.checkpoint.label_ids)
    notes = list(mapped.notes)
    if labels.ndim == 1:
        notes.append("the data give one label an image: the others are taken not to hold")
    hot = multi_hot(labels, len(classes))
    strange = [k for k, label in enumerate(mapped.labels) if label is None and hot[:, k].any()]
    kept: npt.NDArray[np.bool_] = np.logical_not(hot[:, strange].any(axis=1))
    unknown = [classes[k] for k in strange]
    if unknown and (not ignore_unknown or not kept.any()):
        raise DataError(f"{unknown_line(unknown, known, name)} --ignore-unknown-classes leaves their images out")
    if unknown:
        notes.append(
            f"{plural(int((~kept).sum()), 'image')} left out, with labels unknown to {name}: {listed(unknown)}"
        )
    truth = np.zeros((len(hot), len(known)), np.int64)
    for k, label in enumerate(mapped.labels):
        if label is not None:
            truth[:, label] = hot[:, k]
    absent = [known[k] for k in np.flatnonzero(~truth[kept].any(axis=0)).tolist()]
    if absent:
        notes.append(f"no image has {len(absent)} of the model's {len(known)} labels ({listed(absent)})")
    return truth, kept, tuple(notes)
