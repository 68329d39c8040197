"""Labelled images → what a model makes of them, and how good that is. Prints nothing.

Images take the path of `predict`, so the probabilities are its own to the last bit. Pixels are streamed; logits stay.

Legend: K classes of the model, N images that could be read.

MERGED: Two models on the same images: is one better, by how much, and on which images do they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.checkpoint.config import Checkpoint
from vitcli.data.samples import Progress, Samples
from vitcli.errors import CheckpointError, DataError, UsageError
from vitcli.inference.class_names import listed, map_classes, unknown_line
from vitcli.inference.engines import probabilities
from vitcli.inference.predict import Model, load
from vitcli.inference.stream import sources_of
from vitcli.metrics import Labels, Measures, Paired, measure, paired
from vitcli.model.shapes import Array
from vitcli.text import command, plural, safe


@dataclass(frozen=True)
class Unreadable:
    name: str
    error: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    model: str
    revision: str | None
    classes: tuple[str, ...]  # the model's, (K,)
    logits: Array  # (N, K)
    temperature: float  # by which `probabilities` divides them
    labels: Labels  # true classes, indices of `classes`, (N,)
    indices: Labels  # of the images among the samples, (N,)
    names: tuple[str, ...]  # of the images, (N,)
    failed: tuple[Unreadable, ...]
    notes: tuple[str, ...]  # how classes were matched, and what was left out

    @cached_property
    def probabilities(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """(N, K), those of `predict`."""
        return probabilities(self.logits, self.temperature)

    @cached_property
    def measures(self) -> Measures:
        return measure(self.probabilities, self.labels, self.classes)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,)"""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


def evaluate(
    model: str | Path | Checkpoint | Model | None,
    samples: Samples,
    classes: Sequence[str],
    *,
    ignore_unknown: bool = False,
    batch_size: int | None = None,
    exact: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """`model` on all of `samples`, whose labels are indices of `classes`.

    Classes are matched by name with the model's; images of one that it does not know are an error, or left out with
    `ignore_unknown`. `batch_size` and `exact` as in `Model.predict`. Raises DataError for unknown classes and where no
    image can be read, CheckpointError for a model that cannot be measured.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError("batch_size must be at least 1")
    loaded = model if isinstance(model, Model) else load(model)
    if len(loaded.labels) < 2:
        raise CheckpointError(f"{safe(loaded.checkpoint.name)} has a single class: there is nothing to measure")
    if loaded.checkpoint.outputs != "classes":
        raise CheckpointError(
            f"{safe(loaded.checkpoint.name)}: several of its labels may hold for one image (multi-label), and these "
            "measures are for one class an image; `vit predict` gives its probabilities"
        )
    labels, notes = model_labels(loaded, samples.labels, classes, ignore_unknown=ignore_unknown)
    wanted = np.flatnonzero(labels >= 0)
    logits = np.empty((len(wanted), len(loaded.labels)), np.float32)
    read = np.zeros(len(wanted), dtype=bool)
    failed = []
    answers = loaded.answers(sources_of(samples, wanted.tolist()), batch_size=batch_size, exact=exact)
    for done, answer in enumerate(answers):
        if answer.values is None:
            failed.append(Unreadable(answer.name, answer.error or ""))
        else:
            logits[done], read[done] = answer.values, True
        if progress:
            progress(done + 1, len(wanted))
    if not read.any():
        raise DataError(f"none of the {len(wanted)} images could be read, such as {failed[0].error}")
    indices = wanted[read]
    return Evaluation(
        model=loaded.checkpoint.name,
        revision=loaded.checkpoint.revision,
        classes=loaded.labels,
        logits=logits if read.all() else logits[read],
        temperature=loaded.temperature,
        labels=labels[indices],
        indices=indices,
        names=tuple(samples.name(i) for i in indices.tolist()),
        failed=tuple(failed),
        notes=notes,
    )


def model_labels(
    model: Model, labels: Labels, classes: Sequence[str], *, ignore_unknown: bool = False
) -> tuple[Labels, tuple[str, ...]]:
    """`labels` (N,) of the data as labels of the model, -1 for what is left out; and what a user should know of it.

    Raises DataError for images of classes that the model does not know, unless they are to be ignored.
    """
    name, known = safe(model.checkpoint.name), model.labels
    mapped = map_classes(classes, known, model.checkpoint.label_ids)
    table = np.array([-1 if label is None else label for label in mapped.labels], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if not len(labels):
        raise DataError("no images to evaluate")
    unknown = [cls for cls, label, n in zip(classes, table, counts, strict=True) if n and label < 0]
    found = table[labels]
    notes = list(mapped.notes)
    if not (found >= 0).any():
        hint = f"fine-tune it first: {command('vit', 'finetune', '-m', model.checkpoint.name)} --data …"
        raise DataError(f"{name} knows none of the data's classes: {listed(unknown)}; it knows {listed(known)}; {hint}")
    if unknown and not ignore_unknown:
        raise DataError(f"{unknown_line(unknown, known, name)} --ignore-unknown-classes leaves their images out")
    if unknown:
        left_out = plural(int((found < 0).sum()), "image")
        notes.append(f"{left_out} left out, of classes that {name} does not know: {listed(unknown)}")
    present = np.unique(found[found >= 0])
    if len(present) < len(known):
        absent = [known[i] for i in np.setdiff1d(np.arange(len(known)), present)]
        notes.append(
            f"no images of {len(absent)} of the model's {len(known)} classes ({listed(absent)}): scored on the "
            f"{len(present)} that are there, against all {len(known)}"
        )
    return found, tuple(notes)


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
