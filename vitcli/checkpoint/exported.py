"""What an exported .onnx file says of itself: the metadata of its ModelProto, without loading the model.

`vit export` puts a checkpoint's config.json there, so that the file alone is a model with labels and preprocessing.
Reads the top level of the protobuf only and skips over the graph. Knows no engine.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitcli.errors import CheckpointError
from vitcli.files import MAX_CONFIG_BYTES, open_regular, parse_object
from vitcli.text import safe

CONFIG_KEY = "vit.config"  # config.json of the checkpoint that was exported, at the exported size
PIXELS_KEY = "vit.pixels"  # "1": the input is pixels from 0 to 255, the normalisation is in the graph
SHARES_KEY = "vit.probabilities"  # "1": the output is probabilities, temperature included
PRECISION_KEY = "vit.precision"  # fp32, fp16 or int8
SIZES_KEY = "vit.sizes"  # of the images it takes, 224x224 or 224x224,384x384; the first is the config's
CHECKSUM_KEY = "vit.crc32"  # of all bytes before this entry, which is the last; eight hexadecimal digits

_METADATA, _KEY, _VALUE = 14, 1, 2  # fields of ModelProto and StringStringEntryProto (onnx.proto)
_MAX_FIELDS = 1000  # of a ModelProto: a dozen are usual
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of the ONNX file `path`. Raises CheckpointError for a file that is none."""
    with open_regular(path) as file:
        try:
            entries = [_entry(data) for data in _messages(file, os.fstat(file.fileno()).st_size)]
            if len(found := dict(entries)) < len(entries):
                raise ValueError("a key appears twice")
            return found
        except (ValueError, KeyError, UnicodeDecodeError):
            raise CheckpointError(f"{safe(path)}: not an ONNX file, or a damaged one") from None


def config_in(path: Path) -> dict[str, Any]:
    """The config of the checkpoint that was exported to `path`. Raises CheckpointError for other ONNX files."""
    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        raise CheckpointError(f"{safe(path)}: an ONNX file without labels and preprocessing; `vit export` writes them")
    return parse_object(text.encode("utf-8"), safe(path))


def _messages(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The bytes of each metadata entry; everything else is skipped."""
    for _ in range(_MAX_FIELDS):
        if file.tell() >= size:
            return
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length = _varint(file)
            if length > size - file.tell():
                raise ValueError("a field is longer than the file")
            if number == _METADATA:
                if length > MAX_CONFIG_BYTES:
                    raise ValueError("metadata of an absurd size")
                yield file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        elif kind == _VARINT:
            _varint(file)
        elif kind in (_EIGHT, _FOUR):
            file.seek(8 if kind == _EIGHT else 4, os.SEEK_CUR)
        else:
            raise ValueError("no such wire type")
    raise ValueError("too many fields")


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of one StringStringEntryProto."""

    file, found = io.BytesIO(data), {_KEY: "", _VALUE: ""}
    while file.tell() < len(data):
        tag = _varint(file)
        if tag & 7 != _BYTES or tag >> 3 not in found:
            raise ValueError("not a text entry")
        found[tag >> 3] = file.read(_varint(file)).decode("utf-8")
    return found[_KEY], found[_VALUE]


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("cut off")
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value
