"""Class folders: `root/<class>/…/image` or `root/{train,val,test}/<class>/…/image`. Knows names only, opens no image.

The first folder below the split is the class, whatever lies deeper belongs to it. Classes are ordered by name as
Python's `sorted` orders them, which is torchvision's order.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitcli.data.samples import SPLIT_NAMES, FileSamples, Split, Splits
from vitcli.errors import DataError
from vitcli.images.find import IMAGE_SUFFIXES, is_system_name, natural_key, walk
from vitcli.text import safe

SHOWN = 20  # of a long list of culprits


def read_folders(root: Path) -> Splits:
    """Every image below `root`, under its class. Raises DataError."""
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    splits = _split_folders(root)
    if splits:
        used = {folder.name for folder in splits.values()}
        others = [name for name in _listing(root, skipped)[0] if name not in used]
        if others:
            notes.append(f"left out, since it holds no class folders of a split: {quoted(others)}")
    else:
        splits = {"train": root}

    found: dict[Split, dict[str, list[str]]] = {}
    for split, folder in splits.items():
        found[split] = {}
        for directory in _class_folders(folder, skipped):
            name = class_name(directory, folder)
            if name in found[split]:
                raise DataError(f"{safe(folder)} has two folders for the class {quoted([name])}")
            paths = walk(folder / directory, skipped)
            found[split][name] = [path.relative_to(root).as_posix() for path in paths]
    classes = tuple(sorted({name for by_class in found.values() for name in by_class}))
    if skipped:
        notes.append("left out: " + ", ".join(f"{count} × {reason}" for reason, count in sorted(skipped.items())))
    named = {split: _samples(root, by_class, classes) for split, by_class in found.items()}
    return Splits(root, "folders", classes, named, tuple(notes))


def class_name(name: str, where: Path) -> str:
    """A class's name as it is stored: NFC, since file systems differ in how they write an é. Raises DataError."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{safe(where)} has a class whose name is not UTF-8, {quoted([name])}: rename it") from error
    return unicodedata.normalize("NFC", name)


def quoted(names: list[str]) -> str:
    """The first of `names` in a message."""
    return ", ".join(f"'{safe(name, 60)}'" for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _samples(root: Path, by_class: Mapping[str, list[str]], classes: tuple[str, ...]) -> FileSamples:
    pairs = [(name, label) for label, name in enumerate(classes) for name in by_class.get(name, ())]
    return FileSamples(root, tuple(name for name, _ in pairs), np.array([label for _, label in pairs], np.int64))


def _split_folders(root: Path) -> dict[Split, Path]:
    """The split folders of `root`; none when it holds class folders itself.

    "train" may be a class (beside "car" and "bus"), so a split must hold folders of its own; and without a training
    split, "test" is one only when every folder here is a split. Raises DataError for split folders without classes.
    """
    folders = _listing(root, Counter())[0]
    splits: dict[Split, Path] = {}
    for name in folders:
        split = SPLIT_NAMES.get(name.casefold())
        if split is None or not _listing(root / name, Counter())[0]:
            continue
        if split in splits:
            raise DataError(f"{safe(root)} has two folders for one split: {quoted([splits[split].name, name])}")
        splits[split] = root / name
    if "train" in splits or len(splits) == len(folders):
        return splits
    if all(name.casefold() in SPLIT_NAMES for name in folders):
        raise DataError(f"{safe(root)}: {quoted(folders)} must hold one folder per class, with its images inside")
    return {}


def _class_folders(folder: Path, skipped: Counter[str]) -> list[str]:
    names, images = _listing(folder, skipped)
    if images:
        raise DataError(
            f"{safe(folder)} holds {len(images)} images outside class folders: {quoted(images[:3])}. "
            "Each image must lie in the folder of its class"
        )
    return names


def _listing(folder: Path, skipped: Counter[str]) -> tuple[list[str], list[str]]:
    """(folders, images) directly in `folder`, by name; the rest is counted in `skipped`."""
    folders: list[str] = []
    images: list[str] = []
    try:
        entries = sorted(os.listdir(folder), key=natural_key)
    except OSError as error:
        raise DataError(f"{safe(folder)} cannot be listed: {error.strerror}") from error
    for name in entries:
        if is_system_name(name):
            skipped["hidden or system file"] += 1
        elif os.path.isdir(folder / name):
            folders.append(name)
        elif name.casefold().endswith(IMAGE_SUFFIXES):
            images.append(name)
        else:
            skipped["file not called like an image"] += 1
    return folders, images
