"""The folds of `--folds`: parts of the images, each of which one run leaves out.

Every part has about the same share of each class; exact copies and the images of a group stay together.
"""

from dataclasses import replace

from vitcli.data.layout import quoted
from vitcli.data.samples import DataSet, Labels, Stored
from vitcli.data.split import folds, in_one_fold, together
from vitcli.errors import DataError, UsageError
from vitcli.text import plural, safe
from vitcli.training.settings import Settings


def dealt(samples: Stored, settings: Settings, classes: tuple[str, ...]) -> Labels:
    """The fold of each image, from 1 to `settings.folds`, (N,). Raises DataError where a class, or a fold, has too few.

    A class that one fold holds whole could never be scored by a model that knows it.
    """
    keys = together(samples.contents or [], samples.groups)
    found = folds(keys, samples.labels, settings.folds, settings.recipe.seed)
    what = "group" if samples.groups else "different image"
    if len(set(keys)) < settings.folds:
        raise DataError(f"--folds {settings.folds}: there are only {plural(len(set(keys)), what)} to deal")
    if whole := in_one_fold(found, samples.labels):
        names = quoted([classes[label] for label in whole])
        raise DataError(
            f"--folds {settings.folds}: all images of {names} fall into one fold, so no model that has not seen them "
            f"knows the class: it takes images of two {what}s or more, or leave the class out"
        )
    return found + 1


def without_fold(data: DataSet, settings: Settings) -> DataSet:
    """`data`, all of whose images are in train, without the fold that `settings` leave out."""
    found = dealt(data.train, settings, data.classes)
    return replace(data, train=data.train.keep(found != settings.fold), test=None)


def require_scorable(settings: Settings, data: DataSet, score: str) -> None:
    """Raises UsageError before the work when what was asked for cannot be scored after it; DataError for folds."""
    if settings.folds and data.known:
        raise UsageError("--folds deals images of every class, and with --keep-classes old ones may have none")
    if settings.folds and not settings.fold:
        dealt(data.train, settings, data.classes)
    if settings.folds and score != "auto":
        raise UsageError(f"--score {score}: with --folds every image is scored, by a model trained without it")
    if (score == "test" and data.test is None) or (score == "val" and not len(data.val)):
        raise UsageError(f"--score {score}: {safe(settings.data)} has no such split")
