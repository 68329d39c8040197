"""Shards, tar archives or Parquet files → splits of labelled images, in the order of the shards and of what is in each.

Which split a shard is of is said by its name or its folder's (`train-000.tar`, `val/000.tar`), as for class folders;
where none says so, all is "train".
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from vitcli.data.folders import class_name
from vitcli.data.idx import class_names
from vitcli.data.index import SHOWN, Index, index_of
from vitcli.data.layout import quoted, splits_among
from vitcli.data.rows import Rows, rows_of
from vitcli.data.samples import Addresses, FileSamples, Labels, Split, Splits
from vitcli.errors import AmbiguousData, DataError
from vitcli.storage.remote import Root
from vitcli.storage.tar import is_tar
from vitcli.text import plural, safe

_NUMBERS = re.compile(r"([-_.]*(?<![^\W_])[0-9]+(-of-[0-9]+)?(-[0-9a-f]{8,})?)?$")  # of a shard among its like

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
Held = Index | Rows


def _opened(archive: Root) -> Held:
    return index_of(archive) if is_tar(archive.name) else rows_of(archive)


def read_shards(root: Root, archives: Sequence[Root]) -> Splits:
    """The images in these archives, which were found at `root`. Raises DataError; AmbiguousData for unclear splits."""
    named = splits_of(root, archives)
    indexes = {archive: _opened(archive) for archive in archives}
    _require_no_faults(indexes)
    if len({index.several for index in indexes.values() if len(index.codes)}) > 1:
        raise DataError(f"{safe(root)}: some shards give an image a label and others labels")
    several = any(index.several for index in indexes.values())
    classes, numbers = _classes(root, archives, indexes)
    notes = _left_out(named, indexes)
    splits = {
        split: _samples(root, [(archive, indexes[archive]) for archive in own], numbers, len(classes), several=several)
        for split, own in named.items()
    }
    if not any(map(len, splits.values())):
        raise DataError(f"{safe(root)} holds no images")
    return Splits(root, "shards", classes, {split: one for split, one in splits.items() if len(one)}, tuple(notes))


def _left_out(named: dict[Split, list[Root]], indexes: dict[Root, Held]) -> Iterator[str]:
    """What is said of images whose label is kept from us."""
    for split, own in named.items():
        if count := sum(indexes[archive].unlabelled for archive in own):
            yield f"left out, since their label is not told (-1): {plural(count, 'image')} of {split}"


def splits_of(root: Root, archives: Sequence[Root]) -> dict[Split, list[Root]]:
    """Which shards are of which split. Raises AmbiguousData where some say so and others do not."""
    spoken = {archive: _words(root, archive) for archive in archives}
    among = splits_among(spoken.values())
    others = [archive.name for archive, words in spoken.items() if words not in among]
    if among and others:
        raise AmbiguousData(
            f"{safe(root)} holds shards that are splits by their names, {quoted(sorted(among))}, and others, "
            f"{quoted(others)}",
            "name those that are meant, as 'shards/train-{000..099}.tar' does",
        )
    found: dict[Split, list[Root]] = {}
    for archive, words in spoken.items():
        found.setdefault(among.get(words, "train"), []).append(archive)
    return found


def _words(root: Root, archive: Root) -> str:
    """What the folders between and the shard's name say, without its number."""
    parts = PurePosixPath(str(archive)).parts
    start = PurePosixPath(str(root)).parts
    inner = parts[len(start) : -1] if parts[: len(start)] == start else ()
    return " ".join([*inner, _NUMBERS.sub("", archive.name[: -len(archive.suffix)])])


def _require_no_faults(indexes: dict[Root, Held]) -> None:
    faults = [f"{safe(archive.name)}: {fault}" for archive, index in indexes.items() for fault in index.faults]
    if faults:
        count = sum(index.faulty for index in indexes.values())
        more = f"; and {count - SHOWN} more" if count > SHOWN else ""
        first = next(archive for archive, index in indexes.items() if index.faults)
        raise DataError(f"{safe(first.parent)}: {'; '.join(faults[:SHOWN])}{more}")


def _classes(root: Root, archives: Sequence[Root], indexes: dict[Root, Held]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes, and which of them a label means. Numbers have the names that `classes.txt` gives them, or none."""
    said = {label for index in indexes.values() for labels in index.labels for label in labels}
    if not said:
        raise DataError(f"{safe(root)} gives no image a label")
    if not all(map(_NUMBER.fullmatch, said)):
        names = {label: class_name(label, root) for label in said}
        classes = tuple(sorted(set(names.values())))
        index = {name: i for i, name in enumerate(classes)}
        return classes, {label: index[name] for label, name in names.items()}
    ordered = sorted(said, key=int)
    known = next(filter(None, map(class_names, dict.fromkeys(one.parent for one in archives))), None)
    if known is None:
        return tuple(ordered), {label: i for i, label in enumerate(ordered)}
    if int(ordered[-1]) >= len(known):
        raise DataError(f"{safe(root)} has labels up to {ordered[-1]} but only {len(known)} class names")
    if len(set(known)) < len(known):
        raise DataError(f"{safe(root)}: the class names are not all different")
    return known, {label: int(label) for label in ordered}


def _samples(
    root: Root, own: Sequence[tuple[Root, Held]], numbers: dict[str, int], classes: int, *, several: bool
) -> FileSamples:
    first, *others = (index.places(archive) for archive, index in own)
    places = first.joined(*others)  # type: ignore[arg-type]  # all of one kind
    labels = np.concatenate([_labels(index, numbers, classes, several=several) for _, index in own])
    grouped = any(any(index.groups) for _, index in own)
    codes = ((index.groups, index.in_group.tolist()) for _, index in own) if grouped else ()
    groups = tuple(known[code] for known, of_images in codes for code in of_images)
    return FileSamples(root, Addresses(places), labels, groups=groups or None, places=places)


def _labels(index: Held, numbers: dict[str, int], classes: int, *, several: bool) -> Labels:
    """Class indices (N,); where an image may have `several` 0 and 1, (N, K)."""
    if not several:
        meant = np.array([numbers[label] for (label,) in index.labels], np.int64)
        return meant[index.codes] if len(meant) else np.zeros(0, np.int64)
    rows = np.zeros((max(1, len(index.labels)), classes), np.int64)
    for row, labels in zip(rows, index.labels, strict=False):
        row[[numbers[label] for label in labels]] = 1
    return rows[index.codes]
