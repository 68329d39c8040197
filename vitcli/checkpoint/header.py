"""What a .safetensors file says it holds, checked in pure Python before any library or allocation sees it.

The format: 8 bytes little-endian header length n, n bytes of JSON `{name: {dtype, shape, data_offsets}}` with string
metadata under `__metadata__`, then the tensors' bytes without gap or overlap to the end of the file
(https://github.com/huggingface/safetensors#format). Knows nothing of models or values.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from vitcli.checkpoint.untrusted import open_regular, parse_object
from vitcli.errors import CheckpointError
from vitcli.text import safe

# I64: scalars, the batches BatchNorm counted; others' checkpoints have position indices, too
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 10_000  # timm's largest ViTs have fewer than 1 000
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
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


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file `path`. Raises CheckpointError with what the file really is."""
    with open_regular(path) as file:
        return parse_header(file, path)


def parse_header(file: BinaryIO, path: Path, *, indices: bool = False) -> Header:
    """The header at the start of the open `file`, which is left at the first byte of the data section.

    `indices` lets arrays of whole numbers pass, which no weight of ours is.
    """
    where = safe(path)
    size = os.fstat(file.fileno()).st_size
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
    # A safetensors header may have a length of these bytes too, but then begins with a brace.
    if len(start) >= 2 and start[0] == 0x80 and start[1] in range(2, 6) and start[8:9] != b"{":
        return f"a Python pickle; {PICKLE_HINT}"
    return None


PICKLE_HINT = "pickles can run code and are not read; `vit convert FILE --allow-pickle` makes a safe copy"


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
