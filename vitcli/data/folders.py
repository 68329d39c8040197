"""Class folders: `root/<class>/…/image` or `root/{train,val,test}/<class>/…/image`. Knows names only, opens no image.

The first folder below the split is the class, whatever lies deeper belongs to it; `layout` says which folders are
splits. Classes are ordered by name as Python's `sorted` orders them, which is torchvision's order.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from vitcli.data.layout import find_layout, listing, quoted, require_no_splits_inside
from vitcli.data.samples import FileSamples, Splits
from vitcli.errors import DataError
from vitcli.images.find import walk
from vitcli.storage.remote import Root
from vitcli.text import folded, safe

_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?")


def read_folders(root: Root, asked: str | None = None) -> Splits:
    """Every image below `root`, under its class. `asked` says what the folders are, as `--folders` writes it.

    Raises DataError; AmbiguousData where nothing is asked for and the folders can be read in two ways.
    """
    layout = find_layout(root, asked)
    skipped: Counter[str] = Counter()
    if root not in layout.splits.values():
        listing(root, skipped)
    found = {split: _by_class(folder, skipped) for split, folder in layout.splits.items()}
    if layout.plain:
        require_no_splits_inside(layout.splits["train"], found["train"])
    classes = tuple(sorted({class_name(name, root) for by_class in found.values() for name in by_class}))
    notes = list(layout.notes)
    if skipped:
        notes.append("left out: " + ", ".join(f"{count} × {reason}" for reason, count in sorted(skipped.items())))
    named = {split: _samples(root, layout.splits[split], by_class, classes) for split, by_class in found.items()}
    empty = [split for split, samples in named.items() if split != "train" and not len(samples)]
    notes += [f"no images in {safe(layout.splits[split])}: there is no {split} split" for split in empty]
    kept = {split: samples for split, samples in named.items() if split not in empty}
    return Splits(root, "folders", classes, kept, tuple(notes), layout.left_out)


def class_name(name: str, where: Root) -> str:
    """A class's name as it is stored: NFC, since file systems differ in how they write an é. Raises DataError."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{safe(where)} has a class whose name is not UTF-8, {quoted([name])}: rename it") from error
    return unicodedata.normalize("NFC", name)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Those of `names` that are written in several ways and may mean one class: "Cat" and "cat", "1" and "01"."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        text = folded(unicodedata.normalize("NFKC", name))
        spellings[str(float(text)) if _NUMBER.fullmatch(text) else text].append(name)
    return [tuple(group) for group in spellings.values() if len(group) > 1]


# What pandas, R, spreadsheets and databases write for an empty cell (pandas.read_csv, na_values), and Python for none
_EMPTY = {
    "nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "NA", "N/A", "n/a", "#N/A", "#NA", "null", "NULL", "None",
    "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
}  # fmt: skip


def like_empty_cells(names: Iterable[str]) -> list[str]:
    """Those of `names` that may be no class, but what a table's empty cell became when it was exported: "nan"."""
    return [name for name in names if name in _EMPTY]


def _by_class(folder: Root, skipped: Counter[str]) -> dict[str, list[str]]:
    """The images below each folder of `folder`, as paths that begin inside it. Raises DataError."""
    names, images = listing(folder, skipped)
    if images:
        raise DataError(
            f"{safe(folder)} holds {len(images)} images outside class folders: {quoted(images[:3])}. "
            "Each image must lie in the folder of its class"
        )
    twice = [name for name, count in Counter(class_name(name, folder) for name in names).items() if count > 1]
    if twice:
        raise DataError(f"{safe(folder)} has two folders for the class {quoted(twice)}")
    real: dict[Root, str] = {}
    for name in names:
        if (known := real.setdefault((folder / name).resolve(), name)) != name:
            raise DataError(f"{safe(folder)}: the classes {quoted([known, name])} are one folder, by a link")
    return {
        name: [path.relative_to(folder / name).as_posix() for path in walk(folder / name, skipped)] for name in names
    }


def _samples(root: Root, folder: Root, by_class: Mapping[str, list[str]], classes: tuple[str, ...]) -> FileSamples:
    index = {name: label for label, name in enumerate(classes)}
    start = folder.relative_to(root)  # type: ignore[arg-type]
    pairs = sorted((index[class_name(name, folder)], name) for name in by_class)
    files = [f"{(start / name).as_posix()}/{path}" for _, name in pairs for path in by_class[name]]
    labels = [label for label, name in pairs for _ in by_class[name]]
    return FileSamples(root, tuple(files), np.array(labels, np.int64))
