"""Files of weights: what a .safetensors file says that it holds, and its tensors as NumPy arrays.

The format: 8 bytes little-endian header length n, n bytes of JSON `{name: {dtype, shape, data_offsets}}` with string
metadata under `__metadata__`, then the tensors' bytes without gap or overlap to the end of the file
(https://github.com/huggingface/safetensors#format). A large model lies in several such files, and an index,
`model.safetensors.index.json`, says which of them holds which tensor.

The header is checked in pure Python before any library or allocation sees it. Tensors are copied out of the file with
read(2), never mmap: a file that another process truncates then gives an error instead of a SIGBUS nobody can catch.
Computation is always in float32, whatever the file stores. Knows nothing of models. NumPy is imported by whoever asks
for arrays: listing models does without it.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from vitcli.errors import CheckpointError
from vitcli.files import open_regular, parse_object, read_config, write_file
from vitcli.text import safe

if TYPE_CHECKING:
    import numpy as np

    from vitcli.model.shapes import Array

StoredType = Literal["float32", "float16", "bfloat16"]

# I64: scalars, the batches BatchNorm counted; others' checkpoints have position indices, too
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}

_RANK = ("F16", "BF16", "F32", "F64", "I64")  # by which the library lays tensors out, from the last

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 10_000  # timm's largest ViTs have fewer than 1 000
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
MAX_FILES = 256  # that one index may name; all are open at once
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_HINT = "pickles can run code and are not read; `vit convert FILE --allow-pickle` makes a safe copy"
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}\Z")


@dataclass(frozen=True)
class TensorInfo:
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # byte in the data section
    stop: int


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_bytes: int

    @property
    def parameters(self) -> int:
        """Numbers that are learnt; what BatchNorm only counts and averages is none."""
        return sum(prod(info.shape) for name, info in self.tensors.items() if not name.endswith(BUFFERS))


@dataclass(frozen=True)
class Part:
    """One file of a model's weights, open at the first byte of its data section."""

    file: BinaryIO
    path: Path
    header: Header


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file `path`, or of all files that the index `path` names, as one.

    Raises CheckpointError with what the file really is.
    """
    with opened(path) as parts:
        tensors = {name: info for part in parts for name, info in part.header.tensors.items()}
        return Header(tensors, parts[0].header.metadata, sum(part.header.data_bytes for part in parts))


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files of weights that `path` means: itself, or those that an index names, which lie beside it.

    Raises CheckpointError for an index that is none.
    """
    return tuple(path.with_name(name) for name in dict.fromkeys(_weight_map(path).values())) or (path,)


@contextmanager
def opened(path: Path, *, indices: bool = False) -> Iterator[list[Part]]:
    """All files of weights that `path` means, with their headers checked.

    `indices` as in `parse_header`. Raises CheckpointError for whatever `parse_header` refuses, for a tensor that is in
    two files, and for an index that says other than what the files hold.
    """
    with ExitStack() as stack:
        parts = []
        for one in weight_files(path):
            file = stack.enter_context(open_regular(one))
            parts.append(Part(file, one, parse_header(file, one, indices=indices)))
        check_index(path, {part.path: part.header.tensors for part in parts})
        yield parts


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor → name of its file, sorted by file; empty for a file of weights, which is no index."""
    if not path.name.endswith(".index.json"):
        return {}
    names = read_config(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{safe(path)}: weight_map must say for each tensor which file it is in")
    for name in set(names.values()):
        if name != os.path.basename(name) or name in ("", ".", "..") or name.endswith(".index.json") or "\0" in name:
            raise CheckpointError(f"{safe(path)}: weight_map must name files beside it, not '{safe(name, 80)}'")
    if len(set(names.values())) > MAX_FILES:
        raise CheckpointError(f"{safe(path)}: more than {MAX_FILES} files")
    return dict(sorted(names.items(), key=lambda item: item[1]))


def check_index(path: Path, held: Mapping[Path, Iterable[str]]) -> None:
    """Compare the index `path` with the names of the tensors that each of its files holds.

    Raises CheckpointError where they differ: a file is of another model, or a tensor would be left out or read twice.
    Nothing to compare where `path` is no index.
    """
    said = _weight_map(path)
    found: dict[str, str] = {}
    for file, names in held.items():
        for name in names:
            if name in found:
                raise CheckpointError(
                    f"{safe(path)}: {safe(name, 80)} is in two files, {safe(found[name])} and {safe(file.name)}"
                )
            found[name] = file.name
    for name in [*said, *found] if said else ():
        if said.get(name) != found.get(name):
            says, lies = (safe(place) if place else "nowhere" for place in (said.get(name), found.get(name)))
            raise CheckpointError(
                f"{safe(path)}: says {safe(name, 80)} is in {says}, and it is in {lies}: they are not of one model"
            )


def parse_header(file: BinaryIO, path: Path, *, indices: bool = False) -> Header:
    """The header at the start of the open `file`, which is left at the first byte of the data section.

    `indices` lets arrays of whole numbers pass, which no weight of ours is.
    """
    where = safe(path)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise CheckpointError(f"{where}: empty file")
    start = file.read(512)
    if real := sniff(start):
        raise CheckpointError(f"{where}: not safetensors but {real}")
    length = int.from_bytes(start[:8], "little")
    if size < 10 or length > size - 8:
        raise CheckpointError(f"{where}: truncated, or not a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{where}: a header of {length >> 20} MiB; {MAX_HEADER_BYTES >> 20} MiB is the limit")
    file.seek(8)
    entries = parse_object(file.read(length), f"{where}: header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{where}: header: __metadata__ must map strings to strings")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{where}: too many tensors ({len(entries)}; {MAX_TENSORS} is the limit)")
    tensors = {name: _tensor_info(name, entry, where, indices) for name, entry in entries.items()}
    _check_layout(tensors, size - 8 - length, where)
    return Header(tensors, metadata, data_bytes=size - 8 - length)


_MAGIC = {
    b"GGUF": "GGUF, quantised weights for other programs; take the model that they were made from",
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes it; save the model's weights from PyTorch, or take the authors' .npz",
    b"\x93NUMPY": "a single NumPy array",
    b"\xfd7zXZ\0": "compressed; unpack it with unxz",
    b"BZh": "compressed; unpack it with bunzip2",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


def sniff(start: bytes) -> str | None:
    """What a file that begins with `start` is, when it is one of the things found under a weights file's name."""
    head = start.lstrip()[:64].lower()
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer: the weights themselves were not fetched; run `git lfs pull` there"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page, perhaps the login or error page of a proxy; download it again"
    if start.startswith(b"PK\x03\x04"):
        if b".npy" in start[:64]:
            return "a NumPy .npz archive; `vit convert` reads those"
        return f"a zip archive, probably a PyTorch pickle; {PICKLE_HINT}"
    if start.startswith(b"\x1f\x8b"):
        return "gzip-compressed; unpack it with gunzip"
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it with tar -xf"
    # A safetensors header may have a length of these bytes too, but then begins with a brace.
    if len(start) >= 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[8:9] != b"{":
        return f"a Python pickle; {PICKLE_HINT}"
    return None


def _tensor_info(name: str, entry: Any, where: str, indices: bool) -> TensorInfo:
    shown = safe(name, 80)
    if not _NAME.match(name):
        raise CheckpointError(f"{where}: header: '{shown}' is not a tensor name")
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{where}: header: {shown} lacks dtype, shape or data_offsets") from None
    if not (isinstance(shape, list) and len(shape) <= 8 and all(map(_is_count, [*shape, start, stop]))):
        raise CheckpointError(f"{where}: header: {shown} has a bad shape or bad offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES or (dtype == "I64" and shape and not indices):
        raise CheckpointError(f"{where}: {shown} is stored as {safe(dtype, 20)}; only F32, F16, BF16 and F64 are read")
    if stop - start != prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{where}: header: {shown} has {stop - start} bytes, not those of its shape {shape}")
    return TensorInfo(dtype, tuple(shape), start, stop)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _check_layout(tensors: Mapping[str, TensorInfo], data_bytes: int, where: str) -> None:
    """The tensors must tile the data section: a gap could hide another file, and no honest tool writes an overlap."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            kind = "overlaps its neighbour" if info.start < position else "leaves a gap before it"
            raise CheckpointError(f"{where}: header: {safe(name, 80)} {kind}")
        position = info.stop
    if position > data_bytes:
        raise CheckpointError(f"{where}: truncated: {data_bytes} of {position} bytes of weights are there")
    if position < data_bytes:
        raise CheckpointError(f"{where}: {data_bytes - position} bytes follow the last tensor")


def read_tensors(path: Path, *, allow_nonfinite: bool = False, indices: bool = False) -> "dict[str, Array]":
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


def read_parts(parts: Sequence[Part]) -> "dict[str, Array]":
    """The tensors of all `parts` of a model as float32 arrays by name, one file after the other."""
    return {name: array for part in parts for name, array in read_data(part.file, part.header, part.path).items()}


def read_data(file: BinaryIO, header: Header, path: Path) -> "dict[str, Array]":
    """The data section at the position of `file`, as float32 arrays by name."""
    data = bytearray(header.data_bytes)
    view, position = memoryview(data), 0
    while position < len(data):
        count = file.readinto(view[position:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{safe(path)}: the file was cut short while it was read")
        position += count
    return {name: _float32(data, info) for name, info in header.tensors.items()}


def check_finite(tensors: "Mapping[str, Array]", path: Path) -> None:
    """Raises CheckpointError naming the first tensors that hold NaN or infinity."""
    import numpy as np

    # NaN and infinities survive min and max, which need no temporary array.
    bad = [n for n, a in tensors.items() if a.size and not (np.isfinite(a.min()) and np.isfinite(a.max()))]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointError(f"{safe(path)}: NaN or infinity in {', '.join(bad[:5])}{more}; the weights are damaged")


def write_tensors(path: Path, tensors: "Mapping[str, np.ndarray[Any, Any]]", metadata: Mapping[str, str]) -> None:
    """Write arrays atomically and durably. Raises OSError, and then the old file is as it was."""
    write_file(path, _content(tensors, metadata))


def tensor_bytes(tensors: "Mapping[str, np.ndarray[Any, Any]]", metadata: Mapping[str, str]) -> bytes:
    """Arrays as the bytes of a .safetensors file."""
    return b"".join(_content(tensors, metadata))


def _content(
    tensors: "Mapping[str, np.ndarray[Any, Any]]", metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a file, an array at a time: nobody needs them all twice."""
    import numpy as np

    kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    known = {name: kinds[array.dtype.name] for name, array in tensors.items()}
    order = laid_out(known)
    yield header_bytes({name: (known[name], tensors[name].shape) for name in order}, metadata)
    for name in order:
        yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def laid_out(kinds: Mapping[str, str]) -> list[str]:
    """The names of tensors as the safetensors library lays them out: those of long numbers first, then by name.

    `kinds`: a header's names of their types.
    """
    return sorted(kinds, key=lambda name: (-_RANK.index(kinds[name]), name.encode()))


def header_bytes(infos: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The head of a .safetensors file, before the tensors' bytes: `infos` are type and shape by name, in order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (kind, shape) in infos.items():
        end = start + prod(shape) * ITEM_BYTES[kind]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def stored_as(kinds: Iterable[str]) -> StoredType:
    """The type that weights of these `kinds` (a header's names of types) are kept in: a half where all are of it."""
    weights = set(kinds) - {"I64"}
    return "float16" if weights == {"F16"} else "bfloat16" if weights == {"BF16"} else "float32"


def as_stored(tensors: "Mapping[str, Array]", dtype: StoredType) -> "dict[str, np.ndarray[Any, Any]]":
    """The arrays as a file of `dtype` holds them; counters stay whole numbers.

    Raises CheckpointError when a value does not fit into float16.
    """
    import numpy as np

    result: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in tensors.items():
        kept = np.issubdtype(array.dtype, np.integer)
        if not kept and dtype == "float16" and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise CheckpointError(f"{name} has values beyond float16; store this model as float32")
        result[name] = array if kept else array.astype(_dtype(dtype), copy=False)
    return result


def _dtype(stored: StoredType) -> "np.dtype[Any]":
    import numpy as np

    if stored != "bfloat16":
        return np.dtype(stored)
    import ml_dtypes  # NumPy has no such type of its own

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _float32(data: bytearray, info: TensorInfo) -> "Array":
    import numpy as np

    count = prod(info.shape)
    if not count:
        return np.zeros(info.shape, np.float32)
    array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(data, _NUMPY[info.dtype], count, info.start)
    if info.dtype == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which `check_finite` names
        return array.astype(np.float32, copy=not array.flags.aligned).reshape(info.shape)
