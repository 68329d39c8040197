"""Files of vectors, as `vit embed` writes them, read block by block. A file may be damaged, or somebody else's.

Legend: b rows of a block, D width.
"""

import csv
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vitcli.errors import UsageError, VitError
from vitcli.files import parse_object
from vitcli.inference.vectors import SUFFIXES, pyarrow_or_refusal
from vitcli.text import safe

ROWS = 4096  # at a time
MOST_WIDTH = 1 << 16
MOST_NAME = 1 << 16  # bytes of a path, in four a character
MOST_ABOUT = 4 << 20  # bytes of what a file says of itself


@dataclass(frozen=True, eq=False)
class Block:
    """Images that have a vector."""

    paths: Sequence[str]
    vectors: npt.NDArray[np.float32]  # (b, D)


@dataclass(frozen=True, eq=False)
class Stored:
    """A file of vectors: one row an image, read as often as `blocks` is asked for."""

    path: Path
    about: Mapping[str, Any]  # what it was made with
    n: int  # rows, those without a vector included

    @property
    def width(self) -> int:
        return int(self.about["dimension"])

    def blocks(self) -> Iterator[Block]:
        """In the order of the file. Raises VitError for one that is not what it says."""
        with _reading(self.path):
            for paths, vectors in _READERS[self.path.suffix.lower()](self.path, self.about):
                finite = np.isfinite(vectors).all(axis=1)
                if finite.all():
                    yield Block(paths, vectors.astype(np.float32, copy=False))
                    continue
                if not np.isnan(vectors[~finite]).all():
                    raise ValueError("values that are not finite")
                kept = [path for path, there in zip(paths, finite.tolist(), strict=True) if there]
                yield Block(kept, vectors[finite].astype(np.float32, copy=False))


def open_vectors(path: Path) -> Stored:
    """Raises UsageError where the name says no form, VitError for a file that `vit embed` has not written."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{safe(path)}: no folder, and no file of vectors: {', '.join(SUFFIXES)}")
    with _reading(path):
        text, n = _HEADS[path.suffix.lower()](path)
        about = parse_object(text.encode(), "its description")
        shape, kinds = about.get("shape"), (about.get("model"), about.get("sha256"), about.get("what"))
        if not isinstance(shape, list) or not all(type(side) is int and 0 < side <= MOST_WIDTH for side in shape):
            raise ValueError("its description has no shape")
        if not all(isinstance(one, str) for one in kinds) or about.get("dtype") not in ("float32", "float16"):
            raise ValueError("its description does not say the model")
    if len(shape) != 1:
        raise VitError(
            f"{safe(path)}: it holds {len(shape)}-dimensional tokens; neighbours are found by one vector each"
        )
    return Stored(path, {**about, "dimension": shape[0]}, n)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a reader says of a damaged file becomes one line."""
    try:
        yield
    except FileNotFoundError:
        raise VitError(f"{safe(path)}: no such file") from None
    except VitError as error:
        if str(error).startswith(safe(path)) or "extra" in str(error):
            raise
        raise VitError(f"{safe(path)}: not a file of `vit embed`: {error}") from None
    except Exception as error:  # what zipfile, zlib, NumPy, csv and pyarrow say of damage has no common base but this
        raise VitError(f"{safe(path)}: not a file of `vit embed`, or damaged: {safe(error, 120)}") from None


# ---- each form: its description and number of rows, then its rows


def _parquet_head(path: Path) -> tuple[str, int]:
    pa = pyarrow_or_refusal()
    with pa.parquet.ParquetFile(path) as file:
        return (file.schema_arrow.metadata or {})[b"vit"].decode(), file.metadata.num_rows


def _parquet(path: Path, about: Mapping[str, Any]) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
    pa, width = pyarrow_or_refusal(), about["dimension"]
    with pa.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=["path", "vector"]):
            column = batch["vector"]
            if column.type.list_size != width:
                raise ValueError("vectors of another width than it says")
            vectors = np.full((len(column), width), np.nan, np.float32)
            flat = column.flatten().to_numpy(zero_copy_only=False)  # of the rows that have one
            vectors[np.asarray(column.is_valid())] = flat.reshape(-1, width)
            yield batch["path"].to_pylist(), vectors


def _npz_head(path: Path) -> tuple[str, int]:
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo("vit.npy").file_size > MOST_ABOUT:
            raise ValueError("its description is too long")
        with archive.open("vit.npy") as file:
            _, letters = _array_head(file)
            about = np.frombuffer(file.read(), letters)[0]
        with archive.open("vector.npy") as file:
            return str(about), _array_head(file)[0][0]


def _npz(path: Path, about: Mapping[str, Any]) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
    width = about["dimension"]
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        values, names = (stack.enter_context(archive.open(f"{name}.npy")) for name in ("vector", "path"))
        (n, *shape), dtype = _array_head(values)
        (count,), letters = _array_head(names)
        if shape != [width] or count != n or letters.kind != "U" or letters.itemsize > MOST_NAME:
            raise ValueError("arrays of other shapes than it says")
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            vectors = np.frombuffer(_exactly(values, rows * width * dtype.itemsize), dtype).reshape(rows, width)
            yield np.frombuffer(_exactly(names, rows * letters.itemsize), letters).tolist(), vectors


def _array_head(file: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Shape and type of an array in a file, which stands behind them."""
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.kind not in "fU":
        raise ValueError("arrays of an unknown type")
    return tuple(shape), dtype


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def _csv_head(path: Path) -> tuple[str, int]:
    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
        return first["vit"], 1 + sum(1 for _ in csv.reader(file))


_FORMULA = re.compile(r"^'(?=[=+\-@])")  # what `csv_cell` puts before a name that looks like one


def _csv(path: Path, about: Mapping[str, Any]) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        head = next(rows)
        name, first = head.index("path"), head.index("v0")
        while part := list(islice(rows, ROWS)):
            cells = [[cell or "nan" for cell in row[first : first + about["dimension"]]] for row in part]
            yield [_FORMULA.sub("", row[name]) for row in part], np.array(cells).astype(about["dtype"])


_HEADS = {".parquet": _parquet_head, ".npz": _npz_head, ".csv": _csv_head}
_READERS = {".parquet": _parquet, ".npz": _npz, ".csv": _csv}
