"""Arrays out of a NumPy .npz archive, which is a zip and may be a bomb. Knows nothing of models.

Every size is compared with the archive's directory before an array is made; Python objects (pickles) are never read.
"""

import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from vitcli.checkpoint.convert.names import Weights
from vitcli.checkpoint.tensor_file import MAX_TENSORS, StoredType, stored_as
from vitcli.errors import CheckpointError
from vitcli.files import open_regular
from vitcli.model.shapes import Array
from vitcli.text import safe

MAX_RATIO = 20  # weights hardly shrink; a compressed archive that grows more than this is no checkpoint

_KINDS = {"f2": "F16", "V2": "BF16", "i8": "I64"}  # in a safetensors header's words

_UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


def read_archive(path: Path) -> tuple[Weights, StoredType]:
    """Every array of the .npz file `path` as float32, by its name without ".npy", and the type they are stored in.

    Raises CheckpointError for damage, for arrays of Python objects or text, and for an archive that would not fit what
    it claims.
    """
    where = safe(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) > MAX_TENSORS:
                raise CheckpointError(f"{where}: too many arrays ({len(members)}; {MAX_TENSORS} is the limit)")
            if sum(info.file_size for info in members) > MAX_RATIO * max(path.stat().st_size, 1 << 20):
                raise CheckpointError(f"{where}: would unpack to more than {MAX_RATIO} times its size")
            arrays: Weights = {}
            kinds = set()
            for info in members:
                name = info.filename.removesuffix(".npy")
                if name == info.filename or name in arrays:
                    raise CheckpointError(f"{where}: {safe(info.filename, 80)} is no array, or is there twice")
                with archive.open(info) as member:
                    arrays[name], kind = _read_array(member, info.file_size, f"{where}: {safe(name, 80)}")
                if arrays[name].ndim:
                    kinds.add(_KINDS.get(kind, "F32"))
            return arrays, stored_as(kinds)
    except _UNREADABLE as error:
        raise CheckpointError(f"{where}: not a readable .npz archive: {safe(error, 120)}") from None


def _read_array(member: IO[bytes], size: int, where: str) -> tuple[Array, str]:
    """The array, and its type in NumPy's letters."""
    version = npy.read_magic(member)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, dtype = read_header(member)
    if dtype.kind not in "fiuV" or (dtype.kind == "V" and dtype != np.dtype("V2")):
        raise CheckpointError(f"{where}: {safe(dtype, 40)} is not a type of weights")
    if len(shape) > 8 or prod(shape) * dtype.itemsize != size - member.tell():
        raise CheckpointError(f"{where}: its shape is not that of its bytes")
    array: np.ndarray[Any, Any] = np.frombuffer(member.read(), dtype)
    if dtype.kind == "V":  # bfloat16, as JAX writes it: the upper half of a float32
        array = (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return array.reshape(shape, order="F" if columns_first else "C").astype(np.float32), dtype.kind + str(
        dtype.itemsize
    )
