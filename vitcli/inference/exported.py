"""The file of `vit export --to onnx`: what is chosen for it, how it is written, and whether one is such a file.

A file from somewhere is believed nothing. Its metadata say which model it holds and how; from these alone follows
every byte that is not a weight: nodes, attributes, names, types, shapes. A file with other bytes is refused before ONNX
Runtime sees it, so what is run is what our own writer wrote, within the bounds that every config has to keep. Damaged
weights are seen by the checksum, and weights of another model by the self-test.
"""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import KEY as FAMILIARITY_KEY
from vitcli.checkpoint.resolve import CHECKSUM_KEY, CONFIG_KEY, PIXELS_KEY, PRECISION_KEY, SHARES_KEY, SIZES_KEY
from vitcli.errors import CheckpointError
from vitcli.files import open_regular, replacing
from vitcli.images.preprocess import MAX_SIDE
from vitcli.model.config import Size, ViTConfig
from vitcli.model.shapes import weight_shapes
from vitcli.onnx.graph import build
from vitcli.onnx.protobuf import OnnxModel, Outline, metadata_entry, read_metadata, size_of
from vitcli.text import safe

ExportPrecision = Literal["fp32", "fp16", "int8"]

MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's
MAX_SIZES = 64
MAX_VALUES = 1 << 31  # of one layer for one image: 8 GiB in float32
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Options:
    """What goes into the file."""

    precision: ExportPrecision = "fp32"
    sizes: tuple[Size, ...] = ()  # (H, W) of images; several: the file takes each of them; none: the checkpoint's own
    pixels: bool = False  # take pixels from 0 to 255: the normalisation (not the resize) is in the file
    softmax: bool = False  # give probabilities (of labels that hold each by itself: sigmoid), with the temperature

    def metadata(self, size: Size) -> dict[str, str]:
        """As the file says it; `size` is the checkpoint's."""
        sizes = ",".join(f"{height}x{width}" for height, width in self.sizes or (size,))
        return {
            PIXELS_KEY: str(int(self.pixels)),
            SHARES_KEY: str(int(self.softmax)),
            PRECISION_KEY: self.precision,
            SIZES_KEY: sizes,
        }


def write_file(path: Path, model: OnnxModel, metadata: Mapping[str, str]) -> None:
    """`model` as one ONNX file. Raises CheckpointError when it would be larger than such a file can be."""
    parts, crc = model.file(metadata), 0
    check_size(sum(map(size_of, parts)), path.name)
    with replacing(path) as file:
        for part in parts:
            data = part if isinstance(part, bytes) else part.reshape(-1).data
            crc = zlib.crc32(data, crc)
            file.write(data)
        file.write(metadata_entry(CHECKSUM_KEY, f"{crc:08x}"))


def check_size(size: int, name: str) -> None:
    """Raises CheckpointError when `size` bytes do not fit into one ONNX file."""
    if size > MAX_FILE_BYTES - (1 << 10):  # the checksum follows
        raise CheckpointError(
            f"{safe(name)} would take {size / 2**30:.1f} GiB, and one ONNX file holds 2 GiB at most; "
            "--precision fp16 is half as large, int8 a quarter, and --to torch has no such limit"
        )


def check_file(checkpoint: Checkpoint) -> Options:
    """What the exported file of `checkpoint` holds, every byte that is no weight compared with what we would write.

    Raises CheckpointError for a damaged file, one that another program wrote or changed, and one that asks for absurd
    amounts of memory.
    """
    path, vit = checkpoint.weights_path, checkpoint.vit
    metadata = read_metadata(path)
    with open_regular(path) as file:
        _check_sum(file, metadata.get(CHECKSUM_KEY, ""), path)
    del metadata[CHECKSUM_KEY]
    options = _options(metadata, checkpoint)
    if options is None or vit is None or checkpoint.selftest is None:
        raise _foreign(path)
    sizes = options.sizes or (vit.img_size,)
    _check_bounds(vit, sizes, path)
    if _values_in_weights(vit, sizes) > 4 * os.path.getsize(path):  # the outline takes time with them
        raise _foreign(path)
    outline = outline_of(checkpoint, vit, options, signature=FAMILIARITY_KEY in metadata)
    with open_regular(path) as file:
        for part in outline.file(metadata):
            if not isinstance(part, bytes):
                file.seek(part.nbytes, os.SEEK_CUR)
            elif file.read(len(part)) != part:
                raise _foreign(path)
        if file.read() != metadata_entry(CHECKSUM_KEY, read_metadata(path)[CHECKSUM_KEY]):
            raise _foreign(path)
    return options


def outline_of(checkpoint: Checkpoint, vit: ViTConfig, options: Options, *, signature: bool = False) -> OnnxModel:
    """The file's graph without its weights; `vit` at the first of the exported sizes.

    `signature`: it gives that of each image, too, as a file with statistics of held-out images does.
    """
    zero = np.zeros((), np.float32)
    positions = {
        one.grid: np.broadcast_to(zero, (1, one.num_tokens, one.embed_dim)) for one in _at_sizes(vit, options.sizes)
    }
    return build(
        vit,
        {name: np.broadcast_to(zero, shape) for name, shape in weight_shapes(vit).items()},
        precision=options.precision,
        pixels_of=checkpoint.preprocess if options.pixels else None,
        positions=positions if len(options.sizes) > 1 else None,
        softmax=1.0 if options.softmax else None,
        sigmoid=checkpoint.outputs == "labels",
        signature=signature,
        graph=Outline(),
    )


def _check_sum(file: BinaryIO, expected: str, path: Path) -> None:
    entry = metadata_entry(CHECKSUM_KEY, expected)
    left = os.fstat(file.fileno()).st_size - len(entry)
    crc = 0
    while left > 0 and (data := file.read(min(left, _CHUNK))):
        crc = zlib.crc32(data, crc)
        left -= len(data)
    if f"{crc:08x}" != expected or file.read() != entry:
        raise CheckpointError(
            f"{safe(path)}: damaged, changed after its export, or exported by an early version of vit (its checksum is "
            "not that of its bytes); export the checkpoint again"
        )


def _options(metadata: Mapping[str, str], checkpoint: Checkpoint) -> Options | None:
    """What the metadata say; None unless they are exactly what we would write."""
    sizes = metadata.get(SIZES_KEY, "")
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}(,[1-9]\d{0,4}x[1-9]\d{0,4})*", sizes, re.ASCII):
        return None
    pairs = [tuple(map(int, pair.split("x"))) for pair in sizes.split(",")]
    precision: Any = metadata.get(PRECISION_KEY)
    if precision not in get_args(ExportPrecision):
        return None
    options = Options(
        precision,
        tuple((height, width) for height, width in pairs),
        metadata.get(PIXELS_KEY) == "1",
        metadata.get(SHARES_KEY) == "1",
    )
    size = checkpoint.preprocess.size
    wanted = {CONFIG_KEY: metadata.get(CONFIG_KEY), **options.metadata(size)}
    if FAMILIARITY_KEY in metadata:
        wanted[FAMILIARITY_KEY] = metadata[FAMILIARITY_KEY]
    same = metadata == wanted and list(metadata) == list(wanted)
    fits = options.sizes[0] == size and 0 < len(set(options.sizes)) == len(options.sizes) <= MAX_SIZES
    return options if same and fits else None


def _check_bounds(vit: ViTConfig, sizes: tuple[Size, ...], path: Path) -> None:
    """No layer may ask for more memory than any model of ours does."""
    for one in _at_sizes(vit, sizes):
        height, width = one.img_size
        if min(one.grid) < 1 or max(height, width) > MAX_SIDE:
            raise _foreign(path)
        cells = height * width // 4 * one.stem.width if one.stem else 0
        largest = max(one.num_heads * one.num_tokens**2, one.num_tokens * one.mlp_dim, cells)
        if largest > MAX_VALUES:
            raise CheckpointError(
                f"{safe(path)}: an image of {height}×{width} pixels would take {4 * largest / 2**30:.0f} GiB in one "
                f"layer; {4 * MAX_VALUES >> 30} GiB is the limit"
            )


def _values_in_weights(vit: ViTConfig, sizes: tuple[Size, ...]) -> int:
    positions = sum(one.num_tokens for one in _at_sizes(vit, sizes))
    return sum(map(prod, weight_shapes(vit).values())) + positions * vit.embed_dim


def _at_sizes(vit: ViTConfig, sizes: tuple[Size, ...]) -> list[ViTConfig]:
    return [replace(vit, img_size=size) for size in sizes]


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{safe(path)}: not as this version of vit exports the model that it names, so it is not run; export the "
        "checkpoint again, or run the file with ONNX Runtime itself"
    )
