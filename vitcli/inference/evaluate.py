"""Labelled images → what a model makes of them, and how good that is; of two models, which is better. Prints nothing.

    result = evaluate("fashion-vit", "photos/")
    print(result.measures.top1, result.measures.top1_interval)

Images take the path of `predict`, so the probabilities are its own to the last bit. Pixels are streamed; logits stay.

Legend: K classes of the model, N images that could be read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.naming import only_numbered
from vitcli.data.layout import quoted
from vitcli.data.samples import Progress, Samples, Split, Splits, Tell
from vitcli.data.sources import READING, open_splits, scored_split
from vitcli.errors import CheckpointError, DataError, UsageError
from vitcli.inference.class_names import listed, map_classes, unknown_line
from vitcli.inference.engines import probabilities
from vitcli.inference.predict import Model, load
from vitcli.inference.scored_parts import kept_answers
from vitcli.inference.stream import sources_of
from vitcli.metrics import Labels, Measures, Paired, measure, paired
from vitcli.model.shapes import Array
from vitcli.text import command, plural, safe

Note = Callable[[str], None]  # told what a user should know, a line at a time


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out, and why."""

    name: str
    error: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's answers to labelled images. Images that could not be read are in `failed` alone."""

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
    data: str | None = None  # as it was named; None where samples were given
    split: str | None = None  # "test", "val", "train"; "all" where there are no splits
    groups: Labels | None = None  # which images belong together, (N,); None: each is by itself

    @cached_property
    def probabilities(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """(N, K), those of `predict`."""
        return probabilities(self.logits, self.temperature)

    @cached_property
    def measures(self) -> Measures:
        return measure(self.probabilities, self.labels, self.classes, self.groups)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,)"""
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)


def evaluate(
    model: str | Path | Checkpoint | Model | None,
    data: str | Path | Samples,
    classes: Sequence[str] | None = None,
    *,
    split: Split | None = None,
    folders: str | None = None,
    ignore_unknown: bool = False,
    batch_size: int | None = None,
    exact: bool = False,
    parts: str | Path | None = None,
    note: Note | None = None,
    progress: Tell | None = None,
) -> Evaluation:
    """`model`, by name or loaded, on labelled images: those at the place `data`, or samples with labels of `classes`.

    At a place `split` is scored, else test, val, or all there is; `folders` as in `read_splits`. Classes are matched by
    name with the model's; images of one that it does not know are an error, or left out with `ignore_unknown`.
    `batch_size` and `exact` as in `Model.predict`. `parts` is a folder where `vit evaluate --shard` left the answers:
    they are read from there, and nothing is computed. `note` is told what should be known of data and result,
    `progress` what is being done and how far it is. Raises DataError for unknown classes and where no image can be
    read, CheckpointError for a model that cannot be measured.
    """
    loaded = model if isinstance(model, Model) else load(model)
    scoring = Scoring(ignore_unknown, batch_size, exact, note, progress, None if parts is None else Path(parts))
    if isinstance(data, str | Path):
        return scoring.of_split(loaded, open_scored(data, split, folders, note=note, progress=progress))
    if classes is None:
        raise UsageError("samples have labels alone: give the names of their classes, too")
    return scoring.of_samples(loaded, data, classes)


def pairs(
    first: str | Path | Checkpoint | Model | None,
    second: str | Path | Checkpoint | Model | None,
    data: str | Path,
    *,
    split: Split | None = None,
    folders: str | None = None,
    ignore_unknown: bool = False,
    batch_size: int | None = None,
    exact: bool = False,
    note: Note | None = None,
    progress: Tell | None = None,
) -> "Pairs":
    """Two models on the same labelled images, answer by answer; arguments and errors are those of `evaluate`."""
    models = [one if isinstance(one, Model) else load(one) for one in (first, second)]
    scored = open_scored(data, split, folders, note=note, progress=progress)
    scoring = Scoring(ignore_unknown, batch_size, exact, note, progress)
    one, other = (scoring.of_split(model, scored) for model in models)
    return pair_up(one, other, scored.samples.labels.tolist(), scored.splits.classes)


@dataclass(frozen=True)
class Scored:
    """A data set that was read, and the split of it that is scored."""

    data: str  # as it was named
    splits: Splits
    split: Split

    @property
    def samples(self) -> Samples:
        """Raises DataError where there are none."""
        samples: Samples = self.splits.named[self.split]
        if not len(samples):
            raise DataError(f"the {self.split} split of {safe(self.splits.root)} holds no images")
        return samples

    @property
    def described(self) -> str:
        """The split in a word: "all" where there are no others."""
        return "all" if self.split == "train" and len(self.splits.named) == 1 else self.split


def open_scored(
    data: str | Path,
    split: Split | None,
    folders: str | None,
    *,
    wanted: tuple[Split, ...] = (),
    used: Split | None = None,
    note: Note | None = None,
    progress: Tell | None = None,
) -> Scored:
    """The splits at `data`, those `wanted` among them, of which `split` is scored, or whichever is not `used`.

    Raises DataError where that would be train for no other reason than that a held-out split cannot be read.
    """
    asked = {*wanted, *([split] if split else [])}
    splits = open_splits(data, asked, folders, progress=progress and partial(progress, READING))
    _say(note, splits.notes)
    scored = scored_split(splits, split, used)
    if scored == "train" and not wanted and split is None and splits.kind == "folders" and splits.left_out:
        raise DataError(
            f"{safe(data)} has no split but train, since {quoted(splits.left_out)} holds no class folders: "
            "--split train scores the training images"
        )
    return Scored(str(data), splits, scored)


@dataclass(frozen=True)
class Scoring:
    """How images are scored: the settings of `evaluate` that are neither model nor data."""

    ignore_unknown: bool
    batch_size: int | None
    exact: bool
    note: Note | None
    progress: Tell | None
    parts: Path | None = None  # a folder that holds the answers

    def of_split(self, model: Model, scored: Scored) -> Evaluation:
        """`model` on the split that is scored; notes are told."""
        result = self.of_samples(model, scored.samples, scored.splits.classes)
        notes = list(result.notes)
        trained_on, name = model.checkpoint.provenance.get("data"), scored.splits.root.name
        if scored.split == "train" and isinstance(trained_on, dict) and trained_on.get("name") == name:
            notes.append(f"the model was trained on data called {safe(name)}: on images it has seen, it looks better")
        _say(self.note, notes)
        return replace(result, data=scored.data, split=scored.described)

    def of_samples(self, model: Model, samples: Samples, classes: Sequence[str]) -> Evaluation:
        """`model` on all of `samples`, whose labels are indices of `classes`."""
        labels, notes = self.labels(model, samples, classes)
        wanted = np.flatnonzero(labels >= 0)
        logits, read, failed = self.answers(model, samples, wanted)
        if not read.any():
            raise DataError(f"none of the {len(wanted)} images could be read, such as {failed[0].error}")
        indices = wanted[read]
        return Evaluation(
            model=model.checkpoint.name,
            revision=model.checkpoint.revision,
            classes=model.labels,
            logits=logits if read.all() else logits[read],
            temperature=model.temperature,
            labels=labels[indices],
            indices=indices,
            names=tuple(samples.name(i) for i in indices.tolist()),
            failed=tuple(failed),
            notes=notes,
        )

    def labels(self, model: Model, samples: Samples, classes: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
        """What `model_labels` makes of the samples' labels. Raises for a model or samples that cannot be scored."""
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError("batch_size must be at least 1")
        if len(model.labels) < 2:
            raise CheckpointError(f"{safe(model.checkpoint.name)} has a single class: there is nothing to measure")
        if model.checkpoint.outputs != "classes":
            raise CheckpointError(
                f"{safe(model.checkpoint.name)}: several of its labels may hold for one image (multi-label), and these "
                "measures are for one class an image; evaluate_labels() has the others"
            )
        if samples.labels.ndim == 2:
            raise DataError(f"the data give several labels an image, and {safe(model.checkpoint.name)} knows one class")
        return model_labels(model, samples.labels, classes, ignore_unknown=self.ignore_unknown)

    def answers(
        self, model: Model, samples: Samples, wanted: Labels
    ) -> tuple[Array, npt.NDArray[np.bool_], list[Unreadable]]:
        """Logits (W, K) of the W images `wanted`, which of them could be read, (W,), and the others."""
        progress: Progress | None = self.progress and partial(self.progress, safe(model.checkpoint.name, 30))
        logits = np.empty((len(wanted), len(model.labels)), np.float32)
        read = np.zeros(len(wanted), dtype=bool)
        failed = []
        if self.parts is None:
            answers = model.answers(sources_of(samples, wanted.tolist()), batch_size=self.batch_size, exact=self.exact)
        else:
            answers = kept_answers(self.parts, model, self.exact, samples, wanted)
        for done, answer in enumerate(answers):
            if answer.values is None:
                failed.append(Unreadable(answer.name, answer.error or ""))
            else:
                logits[done], read[done] = answer.values, True
            if progress:
                progress(done + 1, len(wanted))
        return logits, read, failed


def _say(note: Note | None, lines: Sequence[str]) -> None:
    for line in lines:
        if note:
            note(line)


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
        if only_numbered(known):
            hint = f"--class-names FILE says what they are; or {hint}"
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
class Pairs:
    """What two models say of the same images."""

    first: Evaluation
    second: Evaluation
    paired: Paired
    flips: tuple[Flip, ...]  # in the order of the data

    @property
    def failed(self) -> tuple[Unreadable, ...]:
        """Each image once that either model was not shown."""
        return tuple(dict.fromkeys((*self.first.failed, *self.second.failed)))


def pair_up(first: Evaluation, second: Evaluation, labels: Sequence[int], classes: Sequence[str]) -> Pairs:
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
    return Pairs(first, second, paired(*right), flips)
