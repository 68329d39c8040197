"""`--folds`: an answer to every image by a model that was trained without it, next to the one trained on all of them.

A linear head is solved once for each fold, on features that the run has computed once. Whatever else is trained is
trained again without each fold, in a run folder of its own, `folds/1`, `folds/2`, …; one that is done keeps its answers
there, and one that was interrupted goes on.

Legend: K classes, N images.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_tensors, write_tensors
from vitcli.checkpoint.write import store_provenance, store_thresholds
from vitcli.data.samples import DataSet, Labels
from vitcli.data.split import together
from vitcli.errors import CheckpointError
from vitcli.inference.engines import probabilities
from vitcli.inference.evaluate import Evaluation, Unreadable, evaluate
from vitcli.inference.multilabel import LabelEvaluation, best_thresholds, evaluate_labels, measure_labels
from vitcli.metrics import mistakes
from vitcli.model.shapes import Array
from vitcli.text import command
from vitcli.training.events import Event, FoldScored
from vitcli.training.folds import dealt
from vitcli.training.head import group_keys, store_features, stored_features
from vitcli.training.logistic import held_out_logits
from vitcli.training.report import Outcome, write_report
from vitcli.training.settings import Settings
from vitcli.training.task import Task
from vitcli.training.train import begin, extend, train

ANSWERS = "answers.safetensors"  # of a fold's model to that fold's images
Mask = npt.NDArray[np.bool_]


def scored_by_folds(
    task: Task, settings: Settings, folder: Path, device: str, workers: int, on_event: Callable[[Event], None] | None
) -> Outcome:
    """What the models of all folds say, for the run in `folder`, which is trained itself; with its report.

    `task` is that run's. Its checkpoint, which none of those models is, says in its provenance whose number it is.
    Raises Stopped after a signal, with the command that goes on.
    """
    data, logits = task.data, np.full((len(task.data.train), task.classes), np.nan, np.float32)
    for one in _answers(task, settings, folder, device, workers, logits):
        if on_event:
            on_event(one)
    note = f"the checkpoint is none of them: it is trained on all {len(data.train)} images, and no image is left for it"
    if data.train.groups:
        note += "; groups were kept together"
    said: dict[str, object]
    if data.multi_label:
        found = _label_evaluation(folder, data, logits)
        store_thresholds(folder / "best", found.thresholds)
        note += "; its thresholds were chosen on the same answers"
        outcome = Outcome("folds", found, (), folder / "report.html", note, settings.folds)
        said = {"images": found.measures.n, "mean_average_precision": found.measures.mean_average_precision}
    else:
        evaluation = _evaluation(folder, data, logits)
        if evaluation.groups is not None:
            note += ", and the interval allows for their images being alike"
        wrong = tuple(mistakes(evaluation.probabilities, evaluation.labels, evaluation.classes, evaluation.names))
        outcome = Outcome("folds", evaluation, wrong, folder / "report.html", note, settings.folds)
        measures = evaluation.measures
        said = {"images": measures.n, "accuracy": measures.top1}
        said["interval"] = [measures.top1_interval.low, measures.top1_interval.high]
    said = {"folds": settings.folds, **said, "of": outcome.whose, "seed": settings.recipe.seed}
    store_provenance(resolve(str(folder / "best")), {"cross_validation": said})
    write_report(folder, data, outcome)
    return outcome


def _answers(task: Task, settings: Settings, folder: Path, device: str, workers: int, logits: Array) -> Iterator[Event]:
    """Fill `logits` (N, K), NaN for images that cannot be read; train and ask what is left to do for that."""
    data = task.data
    fold = dealt(data.train, settings, data.classes)
    if settings.tune == "head":
        x, labels = stored_features(task, folder), torch.from_numpy(data.train.labels)
        keys = group_keys(data.train)
        logits[:] = held_out_logits(x, labels, task.classes, fold, settings.recipe.seed, keys).numpy()
        for number in range(1, settings.folds + 1):
            own = fold == number
            yield _scored(number, settings.folds, logits[own], data.train.labels[own], data.classes)
    else:
        for number in range(1, settings.folds + 1):
            own, place = fold == number, folder / "folds" / str(number)
            found = _read(place / ANSWERS, (int(own.sum()), task.classes))
            if found is None:
                yield from _train(replace(settings, fold=number), task, own, place, folder, device, workers)
                found = _ask(place, data, own)
            logits[own] = found
            yield _scored(number, settings.folds, found, data.train.labels[own], data.classes)


def _train(
    settings: Settings, task: Task, own: Mask, place: Path, whole: Path,
    device: str, workers: int,
) -> Iterator[Event]:  # fmt: skip
    """The run without the images that are its `own` to answer, (N,), begun or gone on with."""
    data = replace(task.data, train=task.data.train.keep(~own), test=None)
    if (place / "run.json").exists():
        extend(settings, place, device)
    else:
        begin(settings, data, place, resume=command("vit", "finetune", "--resume", whole), device=device)
        if "head" in settings.tune:  # its trunk is the same one
            store_features(stored_features(task, whole)[torch.from_numpy(~own)], place)
    yield from train(settings, data, place, device=device, workers=workers)


def _ask(place: Path, data: DataSet, own: Mask) -> Array:
    """Logits (n, K) of the model in `place` for the images of its fold, kept there; NaN for those not to be read."""
    ask = evaluate_labels if data.multi_label else evaluate
    found = ask(place / "best", data.train.keep(own), data.classes)
    logits = np.full((int(own.sum()), len(data.classes)), np.nan, np.float32)
    logits[found.indices] = found.logits
    write_tensors(place / ANSWERS, {"logits": logits}, {"format": "pt"})
    return logits


def _read(path: Path, shape: tuple[int, int]) -> Array | None:
    """What `_ask` has kept; None where there is nothing, or something else."""
    try:
        logits = read_tensors(path, allow_nonfinite=True)["logits"] if path.exists() else None
    except (CheckpointError, KeyError):
        return None
    return logits if logits is not None and logits.shape == shape else None


def _scored(number: int, folds: int, logits: Array, labels: Labels, classes: tuple[str, ...]) -> FoldScored:
    read = _read_rows(logits)
    n, logits, labels = int(read.sum()), logits[read], labels[read]
    if labels.ndim == 1:
        return FoldScored(number, folds, n, int((logits.argmax(axis=1) == labels).sum()) / max(n, 1))
    measures = measure_labels(probabilities(logits, 1.0, "labels"), labels, classes) if labels.any() else None
    return FoldScored(number, folds, n, measures.mean_average_precision if measures else 0.0, "mAP")


def _read_rows(logits: Array) -> Mask:
    return np.asarray(np.isfinite(logits).all(axis=1))


def _label_evaluation(folder: Path, data: DataSet, logits: Array) -> LabelEvaluation:
    """The answers to all images as those of one model whose labels each hold by themselves."""
    read = _read_rows(logits)
    indices, labels = np.flatnonzero(read), data.train.labels[read]
    return LabelEvaluation(
        model=str(folder),
        revision=None,
        classes=data.classes,
        logits=logits[read],
        temperature=1.0,
        thresholds=best_thresholds(probabilities(logits[read], 1.0, "labels"), labels),
        labels=labels,
        indices=indices,
        names=tuple(data.train.name(i) for i in indices.tolist()),
        failed=_unreadable(data, read),
        notes=(),
    )


def _unreadable(data: DataSet, read: Mask) -> tuple[Unreadable, ...]:
    return tuple(Unreadable(data.train.name(i), "could not be read") for i in np.flatnonzero(~read).tolist())


def _evaluation(folder: Path, data: DataSet, logits: Array) -> Evaluation:
    """The answers to all images as those of one model."""
    read = _read_rows(logits)
    indices = np.flatnonzero(read)
    groups = None
    if data.train.groups:
        numbers: dict[bytes, int] = {}
        keys = together(data.train.contents or [], data.train.groups)
        groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)[read]
    return Evaluation(
        model=str(folder),
        revision=None,
        classes=data.classes,
        logits=logits[read],
        temperature=1.0,
        labels=data.train.labels[read],
        indices=indices,
        names=tuple(data.train.name(i) for i in indices.tolist()),
        failed=_unreadable(data, read),
        notes=(),
        groups=groups,
    )
