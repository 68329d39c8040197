"""Embeddings ↔ files of them: Parquet, npz, CSV, JSON lines; one row an image, written and read in constant memory.

Columns: `path`, `vector`, `error`, and of a data set `label` and `split`. What the vectors are made with (model,
SHA-256, preprocessing, shape) is JSON under the name `vit`: in Parquet's metadata, as an array of the npz, in the first
row of a CSV, and as the first line of JSON lines. An image that could not be read has an error and no vector: null in
Parquet, NaN in an npz, empty cells in a CSV.

Legend: N images, D values of a vector, whatever its shape.
"""

import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

import numpy as np

from vitcli.errors import UsageError, VitError
from vitcli.files import replacing
from vitcli.inference.embed import Embedding
from vitcli.model.shapes import Array
from vitcli.text import as_json, csv_cell, safe

SUFFIXES = (".parquet", ".npz", ".csv")
BLOCK = 8 << 20  # bytes of vectors that are held at a time
MOST_ROWS = 4096
EXTRA = "pip install 'vitcli[data]'"


@dataclass(frozen=True)
class Written:
    n: int
    failed: int
    shape: tuple[int, ...]


def check_path(path: Path) -> None:
    """Raises UsageError for a name whose ending says no form, and VitError where that form cannot be written here."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{safe(path)}: the name must end in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        pyarrow_or_refusal()


def write_vectors(
    path: Path | TextIO,
    embeddings: Iterable[Embedding],
    about: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    *,
    labelled: bool = False,
) -> Written:
    """Write a file in the form that its name says, whole or not at all; to a stream, JSON lines as they come.

    `shape` is that of a vector; None: it is the first one's. `labelled`: with the columns `label` and `split`. Raises
    VitError for no images and where the shape stays unknown, UsageError for tokens in a CSV.
    """
    first, rest = _known(iter(embeddings), shape)
    shape = shape or next(one.vector.shape for one in first if one.vector is not None)
    count = _Counting(chain(first, rest))
    head = {**about, "shape": list(shape), "dimension": shape[-1]}
    if not isinstance(path, Path):
        _write_lines(path, count, head, labelled)
    else:
        check_shape(path, shape)
        with replacing(path) as file:
            write_rows(file, path, count, head, labelled)
    return Written(count.n, count.failed, shape)


def check_shape(path: Path, shape: tuple[int, ...] | None) -> None:
    """Raises UsageError for a form that cannot hold vectors of `shape`."""
    if path.suffix.lower() == ".csv" and shape is not None and len(shape) > 1:
        raise UsageError(f"{safe(path)}: tokens are matrices: .npz and .parquet hold them")


def write_rows(file: BinaryIO, path: Path, rows: Iterable[Embedding], head: Mapping[str, Any], labelled: bool) -> None:
    """Write `rows`, maybe none, into `file`, which will be `path`, in the form of that name.

    `head` is `about` with the `shape` of a vector.
    """
    writers: dict[str, Callable[..., None]] = {".parquet": _write_parquet, ".csv": _write_csv}
    write = writers.get(path.suffix.lower()) or partial(_write_npz, path.parent)
    write(file, _blocks(rows, tuple(head["shape"]), np.dtype(head["dtype"])), head, labelled)


def _known(rows: Iterator[Embedding], shape: tuple[int, ...] | None) -> tuple[list[Embedding], Iterator[Embedding]]:
    """The first row, or those up to the first vector where nobody knows the shape otherwise, and the rows behind."""
    first = list(islice(rows, 1))
    if not first:
        raise VitError("there are no images")
    while shape is None and first[-1].vector is None:
        if (one := next(rows, None)) is None:
            raise VitError(f"none of the images could be read, such as {first[0].error}")
        first.append(one)
    return first, rows


class _Counting:
    def __init__(self, rows: Iterator[Embedding]) -> None:
        self._rows, self.n, self.failed = rows, 0, 0

    def __iter__(self) -> Iterator[Embedding]:
        for one in self._rows:
            self.n, self.failed = self.n + 1, self.failed + (one.vector is None)
            yield one


@dataclass(frozen=True, eq=False)
class _Block:
    rows: Sequence[Embedding]
    vectors: Array  # (rows, *shape), NaN where there is none

    @property
    def missing(self) -> Array:
        return np.array([one.vector is None for one in self.rows])


def _blocks(rows: Iterable[Embedding], shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Iterator[_Block]:
    size = max(1, min(MOST_ROWS, BLOCK // (prod(shape) * dtype.itemsize)))
    waiting = iter(rows)
    while part := list(islice(waiting, size)):
        vectors = np.full((len(part), *shape), np.nan, dtype)
        for row, one in zip(vectors, part, strict=True):
            if one.vector is not None:
                row[...] = one.vector
        yield _Block(part, vectors)


def _texts(one: Embedding, labelled: bool) -> tuple[str | None, ...]:
    """`path`, `error`, and of a data set `label` and `split`."""
    return (one.path, one.error, one.label, one.split) if labelled else (one.path, one.error)


def _columns(labelled: bool) -> tuple[str, ...]:
    return ("path", "error", "label", "split") if labelled else ("path", "error")


def _encodable(text: str | None) -> str | None:
    """A file name that is not UTF-8 with its bytes as escapes."""
    return text if text is None or text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# ---- JSON lines and CSV


def _write_lines(file: TextIO, rows: Iterable[Embedding], head: Mapping[str, Any], labelled: bool) -> None:
    print(as_json({"vit": head}), file=file)
    for one in rows:
        texts = dict(zip(_columns(labelled), _texts(one, labelled), strict=True))
        error = texts.pop("error")
        outcome = {"error": error} if one.vector is None else {"vector": one.vector.tolist()}
        print(as_json(texts | outcome), file=file, flush=True)


def _write_csv(file: BinaryIO, blocks: Iterator[_Block], head: Mapping[str, Any], labelled: bool) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    table = csv.writer(text, lineterminator="\n")
    width, digits = head["shape"][0], 9 if head["dtype"] == "float32" else 5  # so many give the same bits again
    table.writerow([*_columns(labelled), *(f"v{i}" for i in range(width)), "vit"])
    about = as_json(head)
    for block in blocks:
        for one in block.rows:
            values = [""] * width if one.vector is None else [f"{value:.{digits}g}" for value in one.vector.tolist()]
            cells = ("" if cell is None else csv_cell(cell, None) for cell in _texts(one, labelled))
            table.writerow([*cells, *values, about])
            about = ""
    text.detach()


# ---- Parquet


def pyarrow_or_refusal() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise VitError(f"Parquet needs the extra `data`: {EXTRA}; .npz needs nothing") from None
    return pyarrow


def _write_parquet(file: BinaryIO, blocks: Iterator[_Block], head: Mapping[str, Any], labelled: bool) -> None:
    pa = pyarrow_or_refusal()
    width = prod(head["shape"])
    vector = pa.list_(pa.float32() if head["dtype"] == "float32" else pa.float16(), width)
    texts = _columns(labelled)
    fields = [("path", pa.string()), ("vector", vector), *((name, pa.string()) for name in texts[1:])]
    schema = pa.schema(fields, metadata={"vit": as_json(head)})
    with pa.parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for block in blocks:
            flat = pa.array(block.vectors.reshape(-1))
            found = {"vector": pa.FixedSizeListArray.from_arrays(flat, type=vector, mask=pa.array(block.missing))}
            for name, cells in zip(
                texts, zip(*(_texts(one, labelled) for one in block.rows), strict=True), strict=True
            ):
                found[name] = pa.array(map(_encodable, cells), pa.string())
            writer.write_batch(pa.record_batch([found[field.name] for field in schema], schema=schema))


# ---- npz


def _write_npz(place: Path, file: BinaryIO, blocks: Iterator[_Block], head: Mapping[str, Any], labelled: bool) -> None:
    """As numpy.savez writes it. An array's length stands before it, so the values wait in files in `place`."""
    dtype = np.dtype(head["dtype"])
    with ExitStack() as stack:
        values = stack.enter_context(tempfile.TemporaryFile(dir=place))
        texts = [_Texts(stack.enter_context(tempfile.TemporaryFile(dir=place))) for _ in _columns(labelled)]
        for block in blocks:
            values.write(np.ascontiguousarray(block.vectors).data)
            for one in block.rows:
                for kept, text in zip(texts, _texts(one, labelled), strict=True):
                    kept.add(text or "")
        archive = stack.enter_context(zipfile.ZipFile(file, "w"))
        _store(archive, "vector", dtype, (texts[0].n, *head["shape"]), _pieces(values))
        for name, kept in zip(_columns(labelled), texts, strict=True):
            _store(archive, name, np.dtype(f"<U{kept.longest}"), (kept.n,), kept.padded(), zipfile.ZIP_DEFLATED)
        about = np.array(as_json(head))
        _store(archive, "vit", about.dtype, (), [about.tobytes()], zipfile.ZIP_DEFLATED)


def _store(
    archive: zipfile.ZipFile,
    name: str,
    dtype: "np.dtype[Any]",
    shape: tuple[int, ...],
    pieces: Iterable[bytes],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = compression
    with archive.open(entry, "w", force_zip64=True) as file:
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for piece in pieces:
            file.write(piece)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(1 << 20):
        yield piece


class _Texts:
    """Texts that wait in a file until the length of the longest is known."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.n, self.longest = file, 0, 1

    def add(self, text: str) -> None:
        text = _encodable(text) or ""
        self.n, self.longest = self.n + 1, max(self.longest, len(text))
        self._file.write(json.dumps(text).encode() + b"\n")

    def padded(self) -> Iterator[bytes]:
        """Each as NumPy keeps it in an array: four bytes a character, zeros behind."""
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line).encode("utf-32-le").ljust(4 * self.longest, b"\0")
