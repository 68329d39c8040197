"""CSV, TSV and JSONL manifests: one image a line, with columns `file_name` (or `path`) and `label`, and perhaps `split`
and `group`: what an image belongs to, such as a patient, whose images stay together when they are split.

`labels` instead of `label` gives an image several: `a;b`, a JSON list, in JSONL a list.

Paths are relative to the manifest; absolute ones and `..` are taken too, since the list is the user's own, and so are
addresses (`s3://…`) and members of archives (`photos.tar#cat/1.jpg`). Labels are
strings: "001" and "1" are two classes. Every line is checked before anything is raised, so that one error lists what
to mend.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from vitcli.data.folders import class_name
from vitcli.data.layout import SHOWN, quoted, split_of
from vitcli.data.listed import Stored
from vitcli.data.samples import FileSamples, Labels, Split, Splits
from vitcli.errors import DataError
from vitcli.files import open_file
from vitcli.storage.remote import Root
from vitcli.text import safe

SUFFIXES = (".csv", ".tsv", ".jsonl")
_FILE_COLUMNS = ("file_name", "path")
_MAX_LINE = 1 << 20  # characters
_COLUMNS = (*_FILE_COLUMNS, "label", "labels", "split", "group")
_Row = tuple[int, str, tuple[str, ...], Split, str]  # line, file, labels, split, group
_Fields = dict[str, Any]


class _LineError(Exception):
    """What is wrong with one line."""


def read_manifest(path: Root) -> Splits:
    """Every image that a manifest lists. Raises DataError, naming lines."""
    rows: list[_Row] = []
    errors: list[str] = []
    first_line: dict[str, int] = {}
    others = _SplitLike()
    files = Stored(path.parent)
    several = _Several()
    try:
        with io.TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:
            for line, fields in _records(file, path):
                try:
                    if isinstance(fields, _LineError):
                        raise fields
                    several.see(fields)
                    row = _row(line, fields, files)
                    earlier = first_line.setdefault(files.key(row[1]), line)
                    if earlier != line:
                        raise _LineError(f"{safe(row[1])} is on line {earlier} already")
                    rows.append(row)
                    others.see(fields)
                except _LineError as error:
                    errors.append(f"line {line}: {error}")
    except UnicodeDecodeError as error:
        raise DataError(f"{safe(path)} is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{safe(path)} cannot be read: {error.strerror}") from error
    if errors:
        more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DataError(f"{safe(path)}: {'; '.join(errors[:SHOWN])}{more}")
    if not rows:
        raise DataError(f"{safe(path)} lists no images")
    others.require_none(path)
    classes = tuple(sorted({label for _, _, labels, *_ in rows for label in labels}))
    if not classes:
        raise DataError(f"{safe(path)} gives no image a label")
    grouped = any(group for *_, group in rows)
    named = {}
    for split in dict.fromkeys(of for *_, of, _ in rows):
        own = [row for row in rows if row[3] == split]
        named[split] = FileSamples(
            path.parent,
            tuple(file for _, file, *_ in own),
            _as_numbers([labels for _, _, labels, *_ in own], classes, several=several.said is True),
            groups=tuple(group for *_, group in own) if grouped else None,
            places=files.places([file for _, file, *_ in own]),
        )
    return Splits(path, "manifest", classes, named)


class _Several:
    """Whether a manifest gives its images several labels each; which is said alike on all lines."""

    said: bool | None = None

    def see(self, fields: _Fields) -> None:
        if "label" in fields and "labels" in fields:
            raise _LineError("both label and labels: one of them is enough")
        here = "labels" in fields
        if self.said not in (None, here):
            raise _LineError(f"{'labels' if here else 'label'} here, {'label' if here else 'labels'} on lines before")
        self.said = here


def _as_numbers(labels: list[tuple[str, ...]], classes: tuple[str, ...], *, several: bool) -> Labels:
    """Indices of `classes` (N,); where an image may have `several` 0 and 1, (N, K)."""
    index = {name: label for label, name in enumerate(classes)}
    if not several:
        return np.array([index[label] for (label,) in labels], np.int64)
    found = np.zeros((len(labels), len(classes)), np.int64)
    for row, names in zip(found, labels, strict=True):
        row[[index[name] for name in names]] = 1
    return found


class _SplitLike:
    """Columns not called split whose cells all say train, val or test: passed over, they would mix the splits."""

    def __init__(self) -> None:
        self.columns: dict[str, set[Split]] | None = None
        self.named = False  # a column is called split

    def see(self, fields: _Fields) -> None:
        self.named = self.named or bool(fields.get("split"))
        cells = {name: cell for name, cell in fields.items() if name not in _COLUMNS and isinstance(cell, str)}
        read = {name: split_of(cell) if cell.strip() else "train" for name, cell in cells.items()}
        known = {name: set[Split]() for name in read} if self.columns is None else self.columns
        self.columns = {name: seen | {split} for name, seen in known.items() if (split := read.get(name))}

    def require_none(self, path: Root) -> None:
        names = [name for name, seen in (self.columns or {}).items() if seen != {"train"}]
        if names and not self.named:
            raise DataError(f"{safe(path)}: {quoted(names)} says train, val or test on every line; call it 'split'")


def _records(file: TextIO, path: Root) -> Iterator[tuple[int, _Fields | _LineError]]:
    """(line number, fields) of every record."""
    lines = _bounded(file, path)
    if path.suffix.casefold() == ".jsonl":
        for number, text in enumerate(lines, 1):
            if text.strip():
                yield number, _json_object(text)
        return
    header = next(lines, "")
    delimiter, columns = _header(header, path)
    if not {"label", "labels"} & set(columns):
        raise DataError(
            f"{safe(path)}: line 1 must name the columns {' or '.join(_FILE_COLUMNS)}, label (or labels, as a;b) and, "
            "if wanted, split and group; "
            f"it reads '{safe(header.strip(), 80)}'"
        )
    if twice := [name for name in _COLUMNS if columns.count(name) > 1]:
        raise DataError(f"{safe(path)}: line 1 names {quoted(twice)} twice")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 2
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield line, _LineError(safe(error))
            continue
        if row is None:
            return
        if row and len(row) != len(columns):
            yield line, _LineError(f"{len(row)} cells for {len(columns)} columns")
        elif row:
            yield line, dict(zip(columns, row, strict=True))


def _header(line: str, path: Root) -> tuple[str, list[str]]:
    """Delimiter and column names, of which there are none where no column is that of the files."""
    for mark in "\t" if path.suffix.casefold() == ".tsv" else ",;\t":
        columns = _cells(line, mark)
        if not set(columns).isdisjoint(_FILE_COLUMNS):
            return mark, columns
    return ",", []


def _bounded(file: TextIO, path: Root) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise DataError(f"{safe(path)}: line {number} is longer than {_MAX_LINE} characters")
        yield line


def _cells(header: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().casefold() for cell in next(csv.reader([header], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _json_object(text: str) -> _Fields | _LineError:
    try:
        value = json.loads(text, object_pairs_hook=_once_each)
    except _LineError as error:
        return error
    except (ValueError, RecursionError):
        return _LineError("not JSON")
    return value if isinstance(value, dict) else _LineError("not a JSON object")


def _once_each(pairs: list[tuple[str, Any]]) -> _Fields:
    """Keys are read as a header is, in any case."""
    fields: _Fields = {}
    for name, value in pairs:
        key = name.strip().casefold()
        if key in fields and key in _COLUMNS:
            raise _LineError(f"'{key}' is given twice")
        fields[key] = value
    return fields


def _row(line: int, fields: _Fields, files: Stored) -> _Row:
    file = next((fields[column] for column in _FILE_COLUMNS if fields.get(column)), None)
    if not isinstance(file, str):
        raise _LineError(f"no {' or '.join(_FILE_COLUMNS)}")
    file = files.name(file)
    if wrong := files.fault(file):
        raise _LineError(wrong)
    labels = _several(fields["labels"]) if "labels" in fields else (_text(fields.get("label")),)
    split = split_of(str(fields.get("split") or "train"))
    if split is None:
        raise _LineError(f"split {safe(fields['split'], 60)} is none of train, val, test")
    names = tuple(class_name(label, files.folder) for label in labels)
    if len(set(names)) < len(names):
        raise _LineError(f"a label twice in {quoted(names)}")
    return line, file, names, split, _group(fields.get("group"))


def _text(label: Any) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise _LineError("no label" if label in (None, "") else f"label {safe(label, 60)} is not text")
    return label.strip()


def _several(cell: Any) -> tuple[str, ...]:
    """The labels in `a;b`, in a JSON list or in the text of one; none in an empty cell."""
    if isinstance(cell, str) and cell.strip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise _LineError(f'labels {safe(cell, 60)} are no JSON list; write a;b or ["a", "b"]') from None
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return ()
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)
    if not isinstance(cell, str | list):
        raise _LineError(f"labels {safe(cell, 60)} are neither text nor a list")
    return tuple(_text(label) for label in (cell.split(";") if isinstance(cell, str) else cell))


def _group(cell: Any) -> str:
    """What an image belongs to, "" for nothing; a number counts as it is written."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)
    if not isinstance(cell, str | None):
        raise _LineError(f"group {safe(cell, 60)} is not text")
    return unicodedata.normalize("NFC", (cell or "").strip())


def manifest_in(folder: Root) -> Root | None:
    """The manifest that a folder of images keeps beside them (`metadata.csv`, as on the Hugging Face Hub).

    Raises DataError where there are two.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"metadata{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{safe(folder)} holds {quoted([path.name for path in found])}: name the one that is meant")
    return found[0] if found else None


def says_labels(path: Root) -> bool:
    """Whether a file called like a manifest is one: whether it names files and labels. Raises DataError."""
    try:
        with io.TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:
            first = next(_bounded(file, path), "")
    except UnicodeDecodeError as error:
        raise DataError(f"{safe(path)} is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{safe(path)} cannot be read: {error.strerror}") from error
    columns: Iterable[str] = _header(first, path)[1]
    if path.suffix.casefold() == ".jsonl":
        fields = _json_object(first)
        columns = () if isinstance(fields, _LineError) else fields
    return not {"label", "labels"}.isdisjoint(columns) and not set(_FILE_COLUMNS).isdisjoint(columns)
