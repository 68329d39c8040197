"""What Parquet files in Hugging Face's layout hold: an image a row, and its label in a column beside it.

The label is in the one column that the schema calls a `ClassLabel`, whose names it has, or else in `label` or `labels`:
text or numbers, a list where an image may have several. −1 means that nobody tells the label of a test image.

Legend: N rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.data.samples import Labels
from vitcli.errors import DataError
from vitcli.files import Where, signature
from vitcli.storage.parquet import Row, Table, opened, types
from vitcli.storage.remote import Root
from vitcli.text import safe, some

_HIDDEN = "-1"
SHOWN = 20


@dataclass(frozen=True, eq=False)
class RowPlaces:
    """Images in rows of Parquet files, in a fixed order."""

    archives: tuple[Where, ...]
    archive: npt.NDArray[np.int32]  # number of each image's file, (N,)
    numbers: npt.NDArray[np.int64]  # of its row in there, (N,)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int, /) -> Row:
        return Row(self.archives[self.archive[i]], int(self.numbers[i]))

    def take(self, rows: Labels) -> "RowPlaces":
        return replace(self, archive=self.archive[rows], numbers=self.numbers[rows])

    def joined(self, *others: "RowPlaces") -> "RowPlaces":
        parts = (self, *others)
        before = np.cumsum([0, *(len(one.archives) for one in parts[:-1])])
        return RowPlaces(
            tuple(archive for one in parts for archive in one.archives),
            np.concatenate([one.archive + np.int32(start) for one, start in zip(parts, before, strict=True)]),
            np.concatenate([one.numbers for one in parts]),
        )

    def hashes(self) -> None:
        return None

    def digest(self) -> bytes:
        """Of the files' own names and sizes, and of the numbers of the rows."""
        digest = hashlib.sha256()
        for one in self.archives:
            known = signature(one)
            digest.update(f"{PurePosixPath(str(one)).name}\0{known.size if known else -1}\0".encode("utf-8", "replace"))
        digest.update(self.archive.astype("<i4").tobytes() + self.numbers.astype("<i8").tobytes())
        return digest.digest()


@dataclass(frozen=True, eq=False)
class Rows:
    """The images of one file."""

    numbers: npt.NDArray[np.int64]  # of the rows that have a label, (N,)
    labels: tuple[tuple[str, ...], ...]  # those that differ
    codes: npt.NDArray[np.int32]  # which of them an image has, (N,)
    groups: tuple[str, ...]
    in_group: npt.NDArray[np.int32]  # (N,)
    several: bool
    faults: tuple[str, ...] = ()  # the first of them
    faulty: int = 0  # how many there are
    unlabelled: int = 0  # rows whose label is kept from us

    def places(self, archive: Root) -> RowPlaces:
        """Where they lie in the file."""
        return RowPlaces((archive,), np.zeros(len(self.numbers), np.int32), self.numbers)


def rows_of(archive: Root) -> Rows:
    """The rows of a Parquet file with their labels. Raises DataError."""
    table = opened(archive)
    column = _label_column(table)
    names = _class_names(table, column)
    labels, codes, several = _coded(table, column)
    texts = [_texts(value, names, several=several) for value in labels]
    faults = [
        f"row {int(np.flatnonzero(codes == code)[0])}: {text}"
        for code, text in enumerate(texts)
        if isinstance(text, str)
    ]
    hidden = np.array([text == (_HIDDEN,) for text in texts] or [False])[codes] if len(codes) else np.zeros(0, bool)
    groups, in_group = _groups(table)
    kept = np.flatnonzero(~hidden)
    return Rows(
        kept, tuple(text if isinstance(text, tuple) else () for text in texts), codes[kept], groups, in_group[kept],
        several, tuple(faults[:SHOWN]), len(faults), int(hidden.sum()),
    )  # fmt: skip


def _label_column(table: Table) -> str:
    names = list(map(str, table.schema.names))
    classes = [name for name, kind in table.features.items() if name in names and _of_classes(kind) is not None]
    plain = [name for name in names if name in ("label", "labels")]
    found = plain if len(plain) == 1 else classes
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{safe(table.archive)} has no column `label`: {some(names, 8, quote=chr(39))}")
    raise DataError(
        f"{safe(table.archive)} has {len(found)} columns of labels, {some(found, 8)}: call one of them label"
    )


def _of_classes(kind: Any) -> list[Any] | None:
    """The names of a `ClassLabel`, or of a list of them."""
    for _ in range(3):
        if isinstance(kind, list) and len(kind) == 1:
            kind = kind[0]
        elif isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
            return kind["names"] if isinstance(kind.get("names"), list) else None
        elif isinstance(kind, dict) and "feature" in kind:
            kind = kind["feature"]
        else:
            return None
    return None


def _class_names(table: Table, column: str) -> list[str] | None:
    names = _of_classes(table.features.get(column))
    if names is None:
        return None
    if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise DataError(f"{safe(table.archive)}: the names of its classes are not all different texts")
    return names


def _coded(table: Table, column: str) -> tuple[list[Any], npt.NDArray[np.int32], bool]:
    """The labels that differ, and which of them each row has, (N,)."""
    known: dict[Any, int] = {}
    codes: list[npt.NDArray[np.int32]] = []
    kind = table.schema.field(column).type
    several = bool(types().is_list(kind) or types().is_large_list(kind) or types().is_fixed_size_list(kind))
    for part in table.read(column):
        if several:
            values = [None if row is None else tuple(row) for row in part.to_pylist()]
            codes.append(np.array([known.setdefault(value, len(known)) for value in values], np.int32))
        else:
            for chunk in part.chunks:
                coded = chunk if types().is_dictionary(chunk.type) else chunk.dictionary_encode(null_encoding="encode")
                own = [known.setdefault(value, len(known)) for value in coded.dictionary.to_pylist()]
                none = coded.indices.null_count and known.setdefault(None, len(known))
                numbers = coded.indices.fill_null(len(own)).to_numpy(zero_copy_only=False)
                codes.append(np.array([*own, none], np.int32)[numbers])
    return list(known), np.concatenate([np.zeros(0, np.int32), *codes]), several


def _texts(value: Any, names: Sequence[str] | None, *, several: bool) -> tuple[str, ...] | str:
    """The labels as texts; or what is wrong with them."""
    if value is None:
        return () if several else "no label"
    found = tuple(_text(one, names) for one in (value if several else (value,)))
    wrong = next((one for one in found if one is None), "")
    if wrong is None:
        return f"label {safe(value, 60)} is neither text nor the number of a class"
    if len(set(found)) < len(found):
        return f"a label twice in {safe(value, 60)}"
    return tuple(one for one in found if one is not None)


def _text(value: Any, names: Sequence[str] | None) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        if names is None or value == -1:
            return str(value)
        return names[value].strip() if 0 <= value < len(names) else None
    return value.strip() or None if isinstance(value, str) else None


def _groups(table: Table) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """What rows belong to, by a column `group`; nothing where there is none."""
    if "group" not in table.schema.names:
        return ("",), np.zeros(table.n, np.int32)
    values, codes, _ = _coded(table, "group")
    return tuple("" if value is None else str(value) for value in values), codes
