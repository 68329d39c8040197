"""`--keep-classes`: a checkpoint's classes stay, the data's new ones come after them; what is forgotten of the old.

A network that learns from images of new classes alone soon calls everything by their names (McCloskey and Cohen 1989,
"Catastrophic interference"). Nothing here prevents that: it is measured where the data hold images of the old classes,
and said where they do not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.naming import only_numbered
from vitcli.data.samples import DataSet, Splits, require_one_label, with_many_labels
from vitcli.errors import UsageError
from vitcli.inference.class_names import map_classes
from vitcli.text import plural, safe, some

if TYPE_CHECKING:
    from vitcli.inference.evaluate import Evaluation


@dataclass(frozen=True)
class Forgotten:
    """Accuracy on the scored images of old classes, by the checkpoint of the beginning and by that of the end."""

    n: int  # images
    classes: int  # old classes that they are of
    before: float  # among the old classes, which are all it knows
    after: float  # among old and new ones


def require_keepable(checkpoint: Checkpoint) -> None:
    """Raises UsageError where `checkpoint` has no rows of a head, or no names for them, that could be kept."""
    name = safe(checkpoint.name)
    if why := checkpoint.why_no_classes:
        raise UsageError(f"--keep-classes: {name}: {why}")
    if checkpoint.outputs != "classes":
        raise UsageError(f"--keep-classes: each label of {name} holds by itself (multi-label), and these are classes")
    if only_numbered(checkpoint.labels):
        raise UsageError(
            f"--keep-classes: the classes of {name} have no names, so nobody knows which of the data's are new; "
            "vit convert --class-names gives it names"
        )
    if checkpoint.vit and checkpoint.vit.head_hidden is not None:
        raise UsageError(f"--keep-classes: the classifier of {name} has a hidden layer, which fine-tuning drops")


def kept_classes(checkpoint: Checkpoint | None, *, multi_label: bool = False) -> Callable[[Splits], Splits] | None:
    """`arrangement` where the classes of `checkpoint` are kept. Raises UsageError where none can be."""
    if checkpoint is None:
        raise UsageError("--keep-classes: name the model whose classes are kept, with --model")
    require_keepable(checkpoint)
    return arrangement(checkpoint.labels, checkpoint.label_ids, multi_label=multi_label)


def arrangement(
    old: Sequence[str] = (), ids: Sequence[str] = (), *, multi_label: bool = False
) -> Callable[[Splits], Splits] | None:
    """What `open_data` does to the splits where the classes `old` are kept, or images have several labels.

    None where there is nothing to do. Raises UsageError for both at once.
    """
    if old and multi_label:
        raise UsageError("--keep-classes and --multi-label: classes are kept where one holds for an image")
    return partial(with_old_classes, old=old, ids=ids) if old else with_many_labels if multi_label else None


def with_old_classes(found: Splits, old: Sequence[str], ids: Sequence[str] = ()) -> Splits:
    """`found` with the classes `old`, whose WordNet ids are `ids` or nothing, in their order, then its new ones."""
    require_one_label(found, "--keep-classes")
    mapped = map_classes(found.classes, old, ids)
    new = [name for name, label in zip(found.classes, mapped.labels, strict=True) if label is None]
    numbers = {name: len(old) + i for i, name in enumerate(new)}
    table = np.array(
        [numbers[name] if label is None else label for name, label in zip(found.classes, mapped.labels, strict=True)],
        np.int64,
    )
    named = {split: replace(samples, labels=table[samples.labels]) for split, samples in found.named.items()}
    said = f"new: {some(new, 8)}" if new else "no class is new"
    kept = f"{len(old)} old classes are kept" if len(old) > 1 else "the old class is kept"
    notes = (*found.notes, *mapped.notes, f"{kept}, {said}")
    return replace(found, classes=(*old, *new), named=named, notes=notes, known=len(old))


def warning(data: DataSet) -> str | None:
    """What should be known before training on images of new classes alone; None where there are some of old ones."""
    if not data.known or (data.train.labels < data.known).any():
        return None
    return (
        f"no training images of the {data.known} old classes: a model that sees new ones alone comes to call "
        "everything by their names; put some images of old classes into the data"
    )


def forgotten(start: str, evaluation: "Evaluation", data: DataSet) -> Forgotten | None:
    """What the run that began with the checkpoint `start` forgot; None without scored images of old classes.

    The old checkpoint sees the very images of old classes that `evaluation` scored.
    """
    from vitcli.inference.evaluate import evaluate

    old = evaluation.labels < data.known
    if not old.any():
        return None
    samples = data.test if evaluation.split == "test" else data.val
    assert samples is not None
    mask = np.zeros(len(samples), bool)
    mask[evaluation.indices[old]] = True
    before = evaluate(start, samples.keep(mask), data.classes[: data.known])
    labels = evaluation.labels[old]
    return Forgotten(
        int(old.sum()), len(np.unique(labels)), float(before.correct.mean()), float(evaluation.correct[old].mean())
    )


def in_words(found: Forgotten | None, data: DataSet) -> str:
    """One line on what was forgotten of the old classes."""
    if found is None:
        return f"what was forgotten of the {data.known} old classes is not known: no images of them were scored"
    return (
        f"on {plural(found.n, 'image')} of {found.classes} of the {data.known} old classes: accuracy "
        f"{found.before:.4f} before, {found.after:.4f} now"
    )
