"""Whatever a user names with `--data` → splits of labelled images. Decides what a path is, and which splits are meant.

The readers (`idx`, `folders`, `manifest`) say what is there, and `read_splits` is theirs together. Training asks more
of it (`open_data`: images of every class, a validation split); scoring asks for a split by its name (`open_splits`,
`scored_split`).
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vitcli.data import idx, manifest
from vitcli.data.archives import archives_in, named_archives, read_archives
from vitcli.data.folders import alike, like_empty_cells, read_folders
from vitcli.data.layout import holds_images, listing, quoted
from vitcli.data.packed import require_all
from vitcli.data.samples import DataSet, FileSamples, Progress, Split, Splits, Stored, label_counts
from vitcli.data.split import content_split, together
from vitcli.errors import DataError, UsageError
from vitcli.files import Where
from vitcli.images.find import ARCHIVES, walk
from vitcli.storage.named import folder_of, is_pattern
from vitcli.storage.remote import Root, place
from vitcli.text import plural, safe

READING = "reading the data"  # what `open_data` and `open_splits` do, for whoever tells of their progress


def read_splits(path: str | Path, *, folders: str | None = None) -> Splits:
    """The splits and classes at `path`: class folders, a manifest, shards, or MNIST-style IDX files. Raises DataError.

    A path may be an address (`s3://…`); shards are tar archives or Parquet files, in a folder or as a pattern.

    Without split folders or columns everything is "train". `folders` says what class folders cannot say by their names,
    as `--folders` does; without it, those that can be read in two ways are an AmbiguousData.
    """
    if isinstance(path, str) and not os.path.lexists(path) and is_pattern(path):
        root = place(folder_of(path))
        _require_no_folders(folders, root, "archives")
        return read_archives(root, named_archives(path))
    root = place(path)
    if root.name.casefold().endswith(ARCHIVES) and not root.is_dir():
        _require_no_folders(folders, root, "an archive")
        return read_archives(root, [root])
    if root.suffix.casefold() in manifest.SUFFIXES and not root.is_dir():
        _require_no_folders(folders, root, "a manifest")
        return manifest.read_manifest(root)
    if root.is_dir():
        return _in_folder(root, folders)
    if not root.exists():
        raise DataError(f"{safe(root)} does not exist")
    raise DataError(
        f"{safe(root)} is neither a folder nor a manifest ({', '.join(manifest.SUFFIXES)}), nor shards "
        f"({', '.join(ARCHIVES)}); unpack other archives first"
    )


def _in_folder(root: Root, folders: str | None) -> Splits:
    files = idx.find_idx(root) if isinstance(root, Path) else {}
    if files:
        _require_no_folders(folders, root, "IDX files")
        return _with_unlisted(idx.read_idx_folder(Path(str(root)), files), root)
    listed = manifest.manifest_in(root)
    if listed is None:
        if folders or holds_images(root):
            return read_folders(root, folders)
        archives = archives_in(root)
        require_all(root, archives)
        return read_archives(root, archives) if archives else read_folders(root, folders)
    if not manifest.says_labels(listed) and listing(root)[0]:
        found = read_folders(root, folders)
        note = f"{safe(listed.name)} has no columns for files and labels: the folders say the classes"
        return replace(found, notes=(note, *found.notes))
    _require_no_folders(folders, root, f"{safe(listed.name)}, a manifest")
    return _with_unlisted(manifest.read_manifest(listed), root)


def open_data(
    path: str | Path,
    *,
    val_fraction: float = 0.1,
    folders: str | None = None,
    pooled: bool = False,
    progress: Progress | None = None,
    arrange: Callable[[Splits], Splits] | None = None,
) -> DataSet:
    """The data set at `path`, ready to train on: at least two classes, training images in each. Raises DataError.

    Where it has no validation split, about `val_fraction` of the training images become one, chosen by their content,
    those of a group together; `progress` is told how many files have been read for that. `folders` is as in
    `read_splits`. `pooled`: a validation split is among the training images, and none is drawn. `arrange` changes what
    was read before anything is asked of it.
    """
    found = read_splits(path, folders=folders)
    if pooled:
        found, val_fraction = _pooled(found), 0.0
    if arrange:
        found = arrange(found)
    train = found.named.get("train")
    if train is None:
        raise DataError(f"{safe(path)} has no training split, only {', '.join(found.named)}")
    if not len(train):
        raise DataError(f"{safe(path)} holds no training images; expected {safe(path)}/<class>/<image>")
    _check_classes(found, train)
    notes = list(found.notes)
    notes += [f"classes that are written almost alike: {quoted(group)}" for group in alike(found.classes)]
    if empty := like_empty_cells(found.classes):
        notes.append(f"taken as a class, though it may be an empty cell: {quoted(empty)}; leave such images out")
    if "val" in found.named:
        val = found.named["val"]
    else:
        if isinstance(train, FileSamples):
            train = train.hashed(progress)
        contents = train.contents or []
        mask = content_split(together(contents, train.groups), train.labels, val_fraction)
        if train.groups and val_fraction and not mask.any():
            raise DataError(
                f"{safe(path)}: no validation images can be drawn, since without any one of its groups a class would "
                "have no training images: add a split column, or train on all with --val-fraction 0"
            )
        notes += _copies(train, contents, found.classes)
        how = "group by group" if train.groups else "chosen by content"
        if not pooled:
            notes.append(f"{mask.sum()} of {len(mask)} training images validate, {how}")
        train, val = train.keep(~mask), train.keep(mask)
    notes += _torn_groups({**found.named, "train": train, "val": val})
    seen = label_counts(val.labels, len(found.classes)) > 0
    unseen = [label for label in range(found.known, len(found.classes)) if not seen[label]]
    if len(val) and unseen:
        notes.append(f"no validation images of {quoted([found.classes[label] for label in unseen])}")
    return DataSet(
        found.root, found.kind, found.classes, train, val, found.named.get("test"), tuple(notes), found.known
    )


def open_splits(
    path: str | Path, wanted: Collection[Split] = (), folders: str | None = None, *, progress: Progress | None = None
) -> Splits:
    """The splits at `path`, those `wanted` among them. `folders` is as in `read_splits`. Raises DataError.

    A validation split that is asked for and not there is drawn from train, as `vit train` draws it by default: the
    same images, and train is what remains. `progress` is told of the reading that this takes.
    """
    found = read_splits(path, folders=folders)
    if "val" in wanted and "val" not in found.named and "train" in found.named:
        data = open_data(path, folders=folders, progress=progress)
        named: dict[Split, Stored] = {"train": data.train, "val": data.val}
        if data.test is not None:
            named["test"] = data.test
        note = f"val: {len(data.val)} of {len(data.train) + len(data.val)} training images, those of `vit train`"
        found = replace(found, named=named, notes=(*found.notes, f"{note} with its defaults"))
    for split in wanted:
        if split not in found.named:
            raise DataError(f"{safe(path)} has no {split} split, only {', '.join(found.named)}")
    return found


def scored_split(found: Splits, asked: Split | None, used: Split | None = None) -> Split:
    """The split that is scored: the one `asked` for, else test, val or train, the first of them that there is.

    One that is `used` already, for fitting, comes last.
    """
    if asked is not None:
        return asked
    order: tuple[Split, ...] = ("test", "val", "train")
    there = [split for split in order if split in found.named]
    return next((split for split in there if split != used), there[0])


def _require_no_folders(folders: str | None, root: Root, what: str) -> None:
    if folders is not None:
        raise UsageError(f"--folders is for class folders, but {safe(root)} is or holds {what}, which says the splits")


def _with_unlisted(found: Splits, root: Root) -> Splits:
    """`found`, with the images that lie in `root` without a label in its notes and in `left_out`."""
    listed = {
        _real(samples.path(i))
        for samples in found.named.values()
        if isinstance(samples, FileSamples)
        for i in range(len(samples))
    }
    others = [path for path in walk(root) if _real(path) not in listed]
    if not others:
        return found
    note = f"left out, since no label is given: {plural(len(others), 'image')}, such as {safe(others[0])}"
    return replace(found, notes=(*found.notes, note), left_out=tuple(str(path) for path in others))


def _real(where: Where) -> str:
    return os.path.realpath(where) if isinstance(where, Path) else str(where)


def _check_classes(found: Splits, train: Stored) -> None:
    counts = label_counts(train.labels, len(found.classes))
    empty = [name for i, name in enumerate(found.classes) if i >= found.known and not counts[i]]
    if empty:
        raise DataError(
            f"{safe(found.root)} has no training images of {quoted(empty)}: "
            "add some, or remove the class from every split (is it written alike in all of them?)"
        )
    if len(found.classes) < 2:
        hint = f" (or is the data set {safe(found.root / found.classes[0])}?)" if found.kind == "folders" else ""
        raise DataError(
            f"{safe(found.root)} has only one class, {quoted(list(found.classes))}: training needs two{hint}"
        )


def _named(label: Any, classes: Sequence[str]) -> str:
    """The class, or the classes, of an image."""
    return quoted([classes[k] for k in np.flatnonzero(label).tolist()]) if np.ndim(label) else safe(classes[label])


def _pooled(found: Splits) -> Splits:
    """`found` with its validation images in train."""
    train, val = found.named.get("train"), found.named.get("val")
    if train is None or val is None:
        return found
    assert isinstance(train, FileSamples)  # IDX files have no validation split
    assert isinstance(val, FileSamples)
    named: dict[Split, Stored] = {split: part for split, part in found.named.items() if split != "val"}
    note = f"the {len(val)} validation images are among the others"
    return replace(found, named={**named, "train": train.joined(val)}, notes=(*found.notes, note))


def torn_groups(named: Mapping[Split, Stored]) -> dict[str, list[Split]]:
    """The groups that have images in more than one split, with those."""
    found: defaultdict[str, list[Split]] = defaultdict(list)
    for split in [split for split in get_args(Split) if split in named]:
        for group in sorted(set(named[split].groups or ()) - {""}):
            found[group].append(split)
    return {group: splits for group, splits in found.items() if len(splits) > 1}


def _torn_groups(named: Mapping[Split, Stored]) -> list[str]:
    torn = torn_groups(named)
    where = ", ".join(f"'{safe(group, 60)}' in {' and '.join(splits)}" for group, splits in list(torn.items())[:1])
    return [f"{plural(len(torn), 'group')} in more than one split of the data's own: {where}"] if torn else []


def _copies(samples: Stored, contents: Sequence[bytes], classes: Sequence[str]) -> list[str]:
    """Notes on identical images: harmless within a class, a contradiction across classes."""
    first: dict[bytes, int] = {}
    copies, contradictions = 0, []
    for i, content in enumerate(contents):
        original = first.setdefault(content, i)
        copies += original != i
        if not np.array_equal(samples.labels[original], samples.labels[i]):
            contradictions.append((original, i))
    notes = [f"{copies} training images are exact copies of others"] if copies else []
    if contradictions:
        pair = " and ".join(
            f"{safe(samples.name(i))} ({_named(samples.labels[i], classes)})" for i in contradictions[0]
        )
        notes.append(f"{len(contradictions)} images stand under two classes, such as {pair}")
    return notes
