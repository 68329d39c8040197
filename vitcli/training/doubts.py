"""Which labels of a data set are probably wrong. Nothing is changed, and nothing is printed.

    for one in doubts(resolve("photo-vit"), read_splits("photos/")).doubted:
        print(one.name, one.label, one.suggested)

A model's features of all images, of all splits together; a linear head on the features of four fifths says how
probable each class is for the others (`held_out_logits`), five times; what is confidently of another class than its
label is doubted (`data.confident`). The less probable an image's own label, the further in front it stands.

Legend: K classes, N images, D features.
"""

import csv
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from vitcli.checkpoint.config import Checkpoint
from vitcli.data.confident import probably_wrong
from vitcli.data.samples import FileSamples, Labels, Progress, Split, Splits, require_one_label
from vitcli.data.split import folds, in_one_fold, together
from vitcli.errors import DataError
from vitcli.files import write_file
from vitcli.inference.evaluate import Unreadable
from vitcli.inference.few_shot import read_features
from vitcli.inference.stream import Stream
from vitcli.storage.named import is_address
from vitcli.storage.remote import Root
from vitcli.text import safe
from vitcli.training.logistic import held_out_logits

FOLDS = 5
COLUMNS = ("file_name", "label", "split", "group", "doubted", "suggested", "suggested_probability", "label_probability")


@dataclass(frozen=True)
class Judged:
    """The label of an image, and what the other images say of it."""

    name: str  # of the image: its path, where it has one
    split: Split
    index: int  # in its split
    group: str
    label: str
    suggested: str | None  # the most probable class, which may be the label; None: not judged
    probability: float | None  # of the suggested class
    own: float | None  # probability of the label
    doubted: bool = False  # whether the label is probably wrong


@dataclass(frozen=True)
class Doubts:
    """All labels of a data set, the least probable first, those that could not be judged last."""

    root: Root
    kind: str  # "folders", "manifest", "idx"
    model: str
    labels: tuple[Judged, ...]
    alone: tuple[str, ...]  # classes whose labels are not judged: there was nothing else to learn them from
    failed: tuple[Unreadable, ...]

    @property
    def doubted(self) -> tuple[Judged, ...]:
        """The labels that are probably wrong."""
        return tuple(one for one in self.labels if one.doubted)


def doubts(
    checkpoint: Checkpoint,
    found: Splits,
    *,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Doubts:
    """Judge the labels of all splits in `found` by the features of `checkpoint`; `progress` is told of images read.

    Exact copies and the images of a group do not judge each other. Raises DataError for a single class and where every
    class has too few images.
    """
    require_one_label(found, "--labels")
    if len(found.classes) < 2:
        raise DataError(f"{safe(found.root)} has only one class: no label of it can be told from another")
    images = read_images(Stream(checkpoint, precision="fp32", device=device, output="features"), found, progress)
    opinion = judge(images, len(found.classes), seed)
    if not opinion.judged.any():
        raise DataError(f"{safe(found.root)} has too few images of each class to judge one by the others")
    rows = []
    for i in opinion.order.tolist():
        (split, index, group), label = images.about[i], images.labels[i]
        about = (found.named[split].name(index), split, index, group, found.classes[label])
        shares = opinion.probabilities[i]
        best = int(shares.argmax())
        said = (found.classes[best], float(shares[best]), float(shares[label]), bool(opinion.wrong[i]))
        rows.append(Judged(*about, *(said if opinion.judged[i] else (None, None, None))))
    alone = tuple(found.classes[label] for label in np.unique(images.labels[~opinion.judged]))
    return Doubts(found.root, found.kind, checkpoint.public_name, tuple(rows), alone, images.failed)


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a data set that could be read, of all splits."""

    x: npt.NDArray[np.float32]  # features, (N, D)
    labels: Labels  # (N,)
    keys: list[bytes]  # the same where images belong together, (N,)
    about: list[tuple[Split, int, str]]  # split, index in it, and group, (N,)
    failed: tuple[Unreadable, ...]


@dataclass(frozen=True, eq=False)
class Opinion:
    """What images say of each other's labels."""

    probabilities: npt.NDArray[np.float64]  # of each class, by a head that has not seen the image, (N, K)
    judged: npt.NDArray[np.bool_]  # (N,); False where nothing else could teach the class
    wrong: npt.NDArray[np.bool_]  # whether the label is probably wrong, (N,)
    order: Labels  # the images, the least probable label first, those not judged last, (N,)


def judge(images: Images, classes: int, seed: int = 0) -> Opinion:
    """The labels of `images`, which are of so many classes, each judged by heads fitted to the other folds."""
    labels = images.labels
    dealt = folds(images.keys, labels, FOLDS, seed)
    judged = ~np.isin(labels, in_one_fold(dealt, labels))
    x, targets = torch.from_numpy(images.x), torch.from_numpy(labels)
    logits = held_out_logits(x, targets, classes, dealt, seed, images.keys)
    probabilities = logits.double().softmax(dim=1).numpy()
    wrong = np.zeros(len(labels), bool)
    wrong[judged] = probably_wrong(probabilities[judged], labels[judged])
    own = probabilities[np.arange(len(labels)), labels]
    return Opinion(probabilities, judged, wrong, np.lexsort((own, ~judged)))


def read_images(stream: Stream, found: Splits, progress: Progress | None = None) -> Images:
    """The features that `stream` gives of all images in `found`, each read once. Raises DataError where none can be."""
    total, before = sum(map(len, found.named.values())), 0
    x, labels = [], []
    failed: list[Unreadable] = []
    contents: list[bytes] = []
    about: list[tuple[Split, int, str]] = []
    for split in get_args(Split):
        samples = found.named.get(split)
        if samples is None or not len(samples):
            continue
        tell = progress and partial(_tell, progress, before, total)
        features = read_features(stream, samples, range(len(samples)), progress=tell)
        before += len(samples)
        hashed = samples.hashed() if isinstance(samples, FileSamples) else samples
        x.append(features.x)
        labels.append(features.labels)
        failed += features.failed
        for i in features.indices.tolist():
            contents.append((hashed.contents or ())[i])
            about.append((split, i, samples.groups[i] if samples.groups else ""))
    if not x:
        raise DataError(f"{safe(found.root)} holds no images")
    keys = together(contents, [group for _, _, group in about])
    return Images(np.concatenate(x), np.concatenate(labels), keys, about, tuple(failed))


def _tell(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def write_manifest(found: Doubts, path: Path) -> int:
    """All images as a CSV that `--data` takes, in the order of `found`; how many were left out, unreadable ones apart.

    `label` is what it was: whoever reviews the list writes another one where the suggestion is right, or deletes the
    line. A name that is not UTF-8, which no manifest can hold, is left out.
    """
    text, left_out = io.StringIO(), 0
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found.labels:
        numbers = ["" if value is None else f"{value:.4f}" for value in (one.probability, one.own)]
        row = [_place(one.name, path.parent), one.label, one.split, one.group, "yes" * one.doubted, one.suggested or ""]
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            left_out += 1
            continue
        writer.writerow([*row, *numbers])
    write_file(path, [text.getvalue().encode()])
    return left_out


def _place(name: str, folder: Path) -> str:
    """The path of an image for a manifest in `folder`: relative below it, absolute elsewhere, an address as it is."""
    if is_address(name):
        return name
    full, start = os.path.abspath(name), os.path.abspath(folder)
    return f"./{os.path.relpath(full, start)}" if full.startswith(os.path.join(start, "")) else full
