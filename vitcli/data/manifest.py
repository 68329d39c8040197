"""CSV, TSV and JSONL manifests: one image a line, with columns `file_name` (or `path`), `label` and perhaps `split`.

Paths are relative to the manifest; absolute ones and `..` are taken too, since the list is the user's own. Labels are
strings: "001" and "1" are two classes. Every line is checked before anything is raised, so that one error lists what
to mend.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vitcli.data.folders import SHOWN, class_name
from vitcli.data.samples import SPLIT_NAMES, FileSamples, Split, Splits
from vitcli.errors import DataError
from vitcli.text import safe

SUFFIXES = (".csv", ".tsv", ".jsonl")
_FILE_COLUMNS = ("file_name", "path")
_MAX_LINE = 1 << 20  # characters
_Row = tuple[int, str, str, Split]  # line, file, label, split


class _LineError(Exception):
    """What is wrong with one line."""


def read_manifest(path: Path) -> Splits:
    """Every image that a manifest lists. Raises DataError, naming lines."""
    rows: list[_Row] = []
    errors: list[str] = []
    first_line: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, fields in _records(file, path):
                try:
                    if isinstance(fields, _LineError):
                        raise fields
                    row = _row(line, fields, path.parent)
                    earlier = first_line.setdefault(os.path.normpath(row[1]), line)
                    if earlier != line:
                        raise _LineError(f"{safe(row[1])} stands on line {earlier} already")
                    rows.append(row)
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
    classes = tuple(sorted({label for _, _, label, _ in rows}))
    index = {name: label for label, name in enumerate(classes)}
    named = {
        split: FileSamples(
            path.parent,
            tuple(file for _, file, _, of in rows if of == split),
            np.array([index[label] for _, _, label, of in rows if of == split], np.int64),
        )
        for split in dict.fromkeys(of for *_, of in rows)
    }
    return Splits(path, "manifest", classes, named)


def _records(file: TextIO, path: Path) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
    """(line number, fields) of every record."""
    lines = _bounded(file, path)
    if path.suffix.casefold() == ".jsonl":
        for number, text in enumerate(lines, 1):
            if text.strip():
                yield number, _json_object(text)
        return
    header = next(lines, "")
    delimiters = "\t" if path.suffix.casefold() == ".tsv" else ",;\t"
    columns = next((row for row in (_cells(header, mark) for mark in delimiters) if set(row) & set(_FILE_COLUMNS)), [])
    if "label" not in columns:
        raise DataError(
            f"{safe(path)}: line 1 must name the columns {' or '.join(_FILE_COLUMNS)}, label and, if wanted, split; "
            f"it reads '{safe(header.strip(), 80)}'"
        )
    delimiter = next(mark for mark in delimiters if _cells(header, mark) == columns)
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


def _bounded(file: TextIO, path: Path) -> Iterator[str]:
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


def _json_object(text: str) -> dict[str, Any] | _LineError:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _LineError("not JSON")
    return value if isinstance(value, dict) else _LineError("not a JSON object")


def _row(line: int, fields: dict[str, Any], folder: Path) -> _Row:
    file = next((fields[column] for column in _FILE_COLUMNS if fields.get(column)), None)
    if not isinstance(file, str):
        raise _LineError(f"no {' or '.join(_FILE_COLUMNS)}")
    if "://" in file:
        raise _LineError(f"{safe(file)} is an address, not a file: download it first")
    if not os.path.isfile(folder / file):
        raise _LineError(
            f"{safe(file)} does not exist" if not os.path.exists(folder / file) else f"{safe(file)} is no file"
        )
    label = fields.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise _LineError("no label" if label in (None, "") else f"label {safe(label, 60)} is not text")
    split = SPLIT_NAMES.get(str(fields.get("split") or "train").strip().casefold())
    if split is None:
        raise _LineError(f"split {safe(fields['split'], 60)} is none of train, val, test")
    return line, file, class_name(label.strip(), folder), split


def manifest_in(folder: Path) -> Path | None:
    """The manifest that a folder of images keeps beside them (`metadata.csv`, as on the Hugging Face Hub)."""
    names: Iterable[Path] = (folder / f"metadata{suffix}" for suffix in SUFFIXES)
    return next((path for path in names if path.is_file()), None)
