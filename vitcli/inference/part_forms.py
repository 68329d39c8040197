"""The files that parts are: predictions as JSON lines, vectors as `vit embed` writes them. See `parts`."""

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vitcli.errors import CheckpointError, VitError
from vitcli.files import open_regular, parse_object, replacing, write_file
from vitcli.inference.embed import Embedding
from vitcli.inference.predict import Prediction, Score, as_dict
from vitcli.inference.vectors import pyarrow_or_refusal, write_rows
from vitcli.text import as_json, safe

MOST_HEAD = 4 << 20  # bytes


class PredictionLines:
    """JSON lines: what the part says of itself, then its rows as `vit predict --jsonl` writes them."""

    ending = ".jsonl"

    def write(self, path: Path, head: Mapping[str, Any], rows: Sequence[Prediction]) -> None:
        lines = [f"{as_json(as_dict(row))}\n".encode() for row in rows]
        first = {"vit": head, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
        write_file(path, [f"{as_json(first)}\n".encode(), *lines])

    def head(self, path: Path) -> Mapping[str, Any]:
        with open_regular(path) as file:
            return _object(file.readline(MOST_HEAD), "vit")

    def rows(self, path: Path) -> list[Prediction]:
        with open_regular(path) as file:
            told, lines = parse_object(file.readline(MOST_HEAD), "line 1").get("sha256"), list(file)
        if hashlib.sha256(b"".join(lines)).hexdigest() != told:
            raise CheckpointError("its SHA-256 is not what its first line says")
        return [_prediction(parse_object(line, f"line {number}")) for number, line in enumerate(lines, 2)]

    def name(self, row: Prediction) -> str:
        return row.path

    def failed(self, row: Prediction) -> bool:
        return row.error is not None


def _object(line: bytes, key: str) -> Mapping[str, Any]:
    found = parse_object(line, "line 1").get(key)
    if not isinstance(found, dict):
        raise CheckpointError("it does not say what it was made with")
    return found


def _prediction(row: Mapping[str, Any]) -> Prediction:
    """A line of `--jsonl`; of a set of classes the names alone. Raises ValueError for one that is none."""
    try:
        if "error" in row:
            return Prediction(row["path"], error=row["error"])
        scores = tuple(Score(one["label"], one["probability"], one["index"]) for one in row["labels"])
        names = row.get("set")
        within = None if names is None else tuple(Score(name, float("nan"), -1) for name in names)
        return Prediction(row["path"], scores, None, row.get("familiarity"), row.get("unknown"), within)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no line of predictions: {safe(error)}") from None


class VectorFiles:
    """Parquet where pyarrow is installed or the parts are that already, npz elsewhere; each part a file by itself."""

    def __init__(self, shape: tuple[int, ...] | None, *, labelled: bool = False, ending: str = ".parquet") -> None:
        """`shape` of a vector, if it is known before the first; `labelled`: rows have label and split."""
        self.ending, self._shape, self._labelled = ending, shape, labelled

    def write(self, path: Path, head: Mapping[str, Any], rows: Sequence[Embedding]) -> None:
        found = (one.vector.shape for one in rows if one.vector is not None)
        shape = self._shape or next(found, (1,))
        # A table has UTF-8 alone; whatever else is in a name must come back as it was.
        texts = {str(i): [one.path, one.error, one.label] for i, one in enumerate(rows) if not _plain(one)}
        about = {**head, "shape": list(shape), "dimension": shape[-1], "texts": texts}
        with replacing(path) as file:
            write_rows(file, path, rows, about, self._labelled)

    def head(self, path: Path) -> Mapping[str, Any]:
        about = dict(self._about(path))
        for name in ("texts", "shape", "dimension"):
            about.pop(name, None)
        return about

    def rows(self, path: Path) -> list[Embedding]:
        about, columns = self._about(path), self._columns(path)
        shape, texts = tuple(about["shape"]), about["texts"]
        try:
            vectors = columns["vector"].reshape(-1, *shape)
            found = []
            for i, (name, vector) in enumerate(zip(columns["path"], vectors, strict=True)):
                error = columns["error"][i] or None
                label, split = ((columns[key][i] or None) if key in columns else None for key in ("label", "split"))
                if str(i) in texts:
                    name, error, label = texts[str(i)]
                found.append(Embedding(name, None if error else vector, error, label, split))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no rows of vectors: {safe(error)}") from None
        return found

    def name(self, row: Embedding) -> str:
        return row.path

    def failed(self, row: Embedding) -> bool:
        return row.vector is None

    def _about(self, path: Path) -> dict[str, Any]:
        try:
            if self.ending == ".npz":
                with open_regular(path) as file, np.load(file, allow_pickle=False) as found:
                    text = str(found["vit"])
            else:
                with pyarrow_or_refusal().parquet.ParquetFile(path) as table:
                    text = (table.schema_arrow.metadata or {})[b"vit"].decode()
        except (VitError, FileNotFoundError):
            raise
        except Exception as error:  # what zipfile, NumPy and pyarrow say of damage has no common base
            raise CheckpointError(f"{safe(error, 120)}") from None
        return parse_object(text.encode(), "its description")

    def _columns(self, path: Path) -> dict[str, Any]:
        try:
            if self.ending == ".npz":
                with open_regular(path) as file, np.load(file, allow_pickle=False) as found:
                    return {name: found[name] if name == "vector" else found[name].tolist() for name in found}
            table = pyarrow_or_refusal().parquet.read_table(path, page_checksum_verification=True)
            columns = {name: table[name].to_pylist() for name in table.column_names if name != "vector"}
            vectors = table["vector"].combine_chunks()
            width, kind = vectors.type.list_size, vectors.type.value_type.to_pandas_dtype()
            values = np.full((len(vectors), width), np.nan, kind)
            there = np.asarray(vectors.is_valid())
            values[there] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            return {**columns, "vector": values}
        except VitError:
            raise
        except Exception as error:
            raise CheckpointError(f"{safe(error, 120)}") from None


def _plain(row: Embedding) -> bool:
    try:
        for text in (row.path, row.error, row.label):
            (text or "").encode()
    except UnicodeEncodeError:
        return False
    return True


def vectors_ending(folder: Path) -> str:
    """How parts of vectors end in `folder`: as those that are there, else Parquet if it can be written here."""
    if folder.is_dir() and any(path.suffix == ".npz" for path in folder.glob("shard-*")):
        return ".npz"
    try:
        pyarrow_or_refusal()
    except VitError:
        there = folder.is_dir() and any(path.suffix == ".parquet" for path in folder.glob("shard-*"))
        return ".parquet" if there else ".npz"
    return ".parquet"


def part_bytes(shape: tuple[int, ...] | None, most: int) -> int:
    """How many images a part has: `most`, or as many as stay below 64 MiB of vectors of `shape`."""
    return max(1, min(most, (64 << 20) // (4 * prod(shape or (1,)))))
