"""Tensors as NumPy arrays, out of and into .safetensors files. Knows nothing of models.

Reading copies out of the file with read(2), never mmap: a file that another process truncates then gives an error
instead of a SIGBUS nobody can catch. Computation is always in float32, whatever the file stores.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from vitcli.checkpoint.durable import write_file
from vitcli.checkpoint.header import Header, Part, TensorInfo, opened
from vitcli.errors import CheckpointError
from vitcli.text import safe

Array = np.ndarray[Any, np.dtype[np.float32]]
StoredType = Literal["float32", "float16", "bfloat16"]

_STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}


def read_tensors(path: Path, *, allow_nonfinite: bool = False, indices: bool = False) -> dict[str, Array]:
    """Every tensor of the safetensors file `path`, upcast to float32 (with `indices` arrays of whole numbers, too).

    `path` may be the index of several files. Raises CheckpointError for whatever `read_header` refuses, for a file that
    shrinks while it is read, and for NaN or infinity in a weight (not with `allow_nonfinite`, for those who look into
    damage).
    """
    with opened(path, indices=indices) as parts:
        tensors = read_parts(parts)
    if not allow_nonfinite:
        check_finite(tensors, path)
    return tensors


def read_parts(parts: Sequence[Part]) -> dict[str, Array]:
    """The tensors of all `parts` of a model as float32 arrays by name, one file after the other."""
    return {name: array for part in parts for name, array in read_data(part.file, part.header, part.path).items()}


def read_data(file: BinaryIO, header: Header, path: Path) -> dict[str, Array]:
    """The data section at the position of `file`, as float32 arrays by name."""
    data = bytearray(header.data_bytes)
    view, position = memoryview(data), 0
    while position < len(data):
        count = file.readinto(view[position:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{safe(path)}: the file was cut short while it was read")
        position += count
    return {name: _float32(data, info) for name, info in header.tensors.items()}


def check_finite(tensors: Mapping[str, Array], path: Path) -> None:
    """Raises CheckpointError naming the first tensors that hold NaN or infinity."""
    # NaN and infinities survive min and max, which need no temporary array.
    bad = [n for n, a in tensors.items() if a.size and not (np.isfinite(a.min()) and np.isfinite(a.max()))]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointError(f"{safe(path)}: NaN or infinity in {', '.join(bad[:5])}{more}; the weights are damaged")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays atomically and durably. Raises OSError, and then the old file is as it was."""
    from safetensors.numpy import save  # reading does without the library, so the fast path does not pay for it

    write_file(path, [save({name: np.asarray(a, order="C") for name, a in tensors.items()}, dict(metadata))])


def stored_as(kinds: Iterable[str]) -> StoredType:
    """The type that weights of these `kinds` (a header's names of types) are kept in: a half where all are of it."""
    weights = set(kinds) - {"I64"}
    return "float16" if weights == {"F16"} else "bfloat16" if weights == {"BF16"} else "float32"


def as_stored(tensors: Mapping[str, Array], dtype: StoredType) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays as a file of `dtype` holds them; counters stay whole numbers.

    Raises CheckpointError when a value does not fit into float16.
    """
    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in tensors.items():
        kept = np.issubdtype(array.dtype, np.integer)
        if not kept and dtype == "float16" and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise CheckpointError(f"{name} has values beyond float16; store this model as float32")
        result[name] = array if kept else array.astype(_dtype(dtype))
    return result


def _dtype(stored: StoredType) -> np.dtype[Any]:
    if stored != "bfloat16":
        return np.dtype(stored)
    import ml_dtypes  # NumPy has no such type of its own

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _float32(data: bytearray, info: TensorInfo) -> Array:
    count = prod(info.shape)
    if not count:
        return np.zeros(info.shape, np.float32)
    array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(data, _STORED[info.dtype], count, info.start)
    if info.dtype == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which `check_finite` names
        return array.astype(np.float32, copy=not array.flags.aligned).reshape(info.shape)
