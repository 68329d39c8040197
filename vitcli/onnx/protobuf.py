"""An ONNX model as bytes: the few protobuf messages that it needs, written by hand, and its metadata read back.

Importing the `onnx` package costs more than an eighth of a second and its helpers as much again for one ViT, which is
most of what predicting one image takes. Field numbers are those of onnx.proto (IR version 10); the tests let `onnx`
check and read what is written here. The reader takes the top level of a file only and skips over the graph. Knows no
model.
"""

import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitcli.errors import CheckpointError
from vitcli.files import MAX_CONFIG_BYTES, open_regular
from vitcli.text import safe

IR_VERSION = 10
OPSET = 20  # the first with Gelu
INLINE_BYTES = 1024  # smaller constants are part of the graph: shapes must be, and few are larger

Array = np.ndarray[Any, np.dtype[Any]]
Attribute = int | float | str | Sequence[int]
Shape = Sequence[int | str]  # a name stands for a size that is known when the model runs

_FLOAT, _STRING, _INT, _INTS = 1, 3, 2, 7  # AttributeProto.AttributeType
FLOAT32, FLOAT16 = 1, 10  # TensorProto.DataType
_DATA_TYPES = {"float32": FLOAT32, "int8": 3, "int64": 7, "float16": FLOAT16}
_EXTERNAL = 1  # TensorProto.DataLocation
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_METADATA = 14  # of a ModelProto; its entries are StringStringEntryProtos
_KEY, _VALUE = 1, 2
_MAX_FIELDS = 1000  # of a ModelProto: a dozen are usual


@dataclass(frozen=True)
class OnnxModel:
    """A graph and its constants: for a session in this process, where large ones stay apart, or as one file."""

    nodes: bytes  # fields of GraphProto: the nodes and the graph's name
    constants: Mapping[str, Array]
    values: bytes  # fields of GraphProto: inputs and outputs

    @cached_property
    def weights(self) -> Mapping[str, Array]:
        """The large constants, to which `graph` only refers: never copied, and they may pass protobuf's 2 GB."""
        return {name: array for name, array in self.constants.items() if array.nbytes > INLINE_BYTES}

    @property
    def graph(self) -> bytes:
        """A ModelProto without `weights`."""
        location = _field(1, "location") + _field(2, "weights")
        elsewhere = _field(13, location) + _field(14, _EXTERNAL)
        tensors = [
            _field(5, _tensor(name, array) + (elsewhere if name in self.weights else _field(9, array.tobytes())))
            for name, array in self.constants.items()
        ]
        graph = self.nodes + b"".join(tensors) + self.values
        before, after = _around(len(graph))
        return before + graph + after

    def file(self, metadata: Mapping[str, str]) -> list[bytes | Array]:
        """A ModelProto as it lies in one file, in parts: bytes as they are, arrays for the bytes of weights.

        Which bytes come, and how many weights between them, follows from the shapes of the constants alone.
        """
        parts: list[bytes | Array] = [self.nodes]
        for name, array in self.constants.items():
            header = _tensor(name, array) + _tag(9, _BYTES) + _varint(array.nbytes)
            parts.append(_tag(5, _BYTES) + _varint(len(header) + array.nbytes) + header)
            parts.append(array.tobytes() if array.dtype == np.int64 else array)  # those are shapes, not weights
        parts.append(self.values)
        before, after = _around(sum(map(size_of, parts)))
        return [before, *parts, after, *(metadata_entry(*item) for item in metadata.items())]


def size_of(part: bytes | Array) -> int:
    """Bytes of a part of a file."""
    return len(part) if isinstance(part, bytes) else part.nbytes


def metadata_entry(key: str, value: str) -> bytes:
    """One text of a ModelProto's metadata."""
    return _field(_METADATA, _field(_KEY, key) + _field(_VALUE, value))


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of the ONNX file `path`, in the file's order. Raises CheckpointError for a file that is none."""
    with open_regular(path) as file:
        try:
            entries = [_entry(data) for data in _entries(file, os.fstat(file.fileno()).st_size)]
            if len(found := dict(entries)) < len(entries):
                raise ValueError("a key appears twice")
            return found
        except ValueError:
            raise CheckpointError(f"{safe(path)}: not an ONNX file, or a damaged one") from None


class GraphWriter:
    """Collects nodes and constants; a value is known by its name."""

    def __init__(self) -> None:
        self.half = False  # float constants from here on are float16
        self._nodes: list[bytes] = []
        self._constants: dict[str, Array] = {}

    def constant(self, array: Array, name: str) -> str:
        """`array` as a value of this name; it is not copied when it is large and contiguous."""
        if self.half and array.dtype == np.float32:
            largest = np.finfo(np.float16).max
            array = array.clip(-largest, largest).astype(np.float16)
        self._constants[name] = np.asarray(array, order="C")
        return name

    def ints(self, *values: int) -> str:
        """A shape, or a list of indices: int64, one constant for all that are equal."""
        return self.constant(np.array(values, np.int64), "ints_" + "_".join(map(str, values)).replace("-", "m"))

    def scalar(self, value: int | float) -> str:
        """A single number, int64 or float."""
        dtype = np.int64 if isinstance(value, int) else np.float32
        return self.constant(np.array(value, dtype), f"{type(value).__name__}_{value}")

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Attribute) -> str:
        """The output of one operator; an empty input is one that is left out."""
        return self.nodes(operator, *inputs, outputs=(output or f"{operator}_{len(self._nodes)}",), **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: Sequence[str], **attributes: Attribute) -> Sequence[str]:
        """The named outputs of an operator that has several."""
        node = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
        node += _field(3, f"{operator}_{len(self._nodes)}") + _field(4, operator)
        node += b"".join(_field(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(_field(1, node))
        return outputs

    def model(self, *, name: str, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> OnnxModel:
        """All of it; `inputs` and `outputs` are float32."""
        values = b"".join(_field(11, _value(*item)) for item in inputs.items())
        values += b"".join(_field(12, _value(*item)) for item in outputs.items())
        return OnnxModel(b"".join(self._nodes) + _field(2, name), self._constants, values)


class Outline(GraphWriter):
    """Of floats and 8-bit integers keeps only shape and type: what a file must look like, whatever its weights are."""

    def constant(self, array: Array, name: str) -> str:
        dtype = np.dtype(np.float16) if self.half and array.dtype == np.float32 else array.dtype
        if dtype == np.int64:
            return super().constant(array, name)
        self._constants[name] = np.broadcast_to(np.zeros((), dtype), array.shape)
        return name


def _around(length: int) -> tuple[bytes, bytes]:
    """What of a ModelProto stands before and behind a GraphProto of that length."""
    before = _field(1, IR_VERSION) + _field(2, "vitcli") + _tag(7, _BYTES) + _varint(length)
    return before, _field(8, _field(1, "") + _field(2, OPSET))


def _tensor(name: str, array: Array) -> bytes:
    """A TensorProto but for its data."""
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, _DATA_TYPES[array.dtype.name]) + _field(8, name)


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        return _field(1, name) + _field(2, value) + _field(20, _FLOAT)
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, _INT)
    if isinstance(value, str):
        return _field(1, name) + _field(4, value) + _field(20, _STRING)
    return _field(1, name) + b"".join(_field(8, item) for item in value) + _field(20, _INTS)


def _value(name: str, shape: Shape) -> bytes:
    """ValueInfoProto of a float32 tensor."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    tensor = _field(1, FLOAT32) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """One field on the wire: varint, 32-bit or length-delimited by the type of `value`."""
    if isinstance(value, int):
        return _tag(number, _VARINT) + _varint(value & (1 << 64) - 1)
    if isinstance(value, float):
        return _tag(number, _FOUR) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _tag(number, _BYTES) + _varint(len(data)) + data


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


# ---- reading, where nothing is believed: ValueError for whatever is no such message


def _entries(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The bytes of each metadata entry of a ModelProto; all other fields are skipped."""
    for _ in range(_MAX_FIELDS):
        if file.tell() >= size:
            return
        number, wire_type = _read_tag(file)
        if wire_type == _BYTES:
            length = _read_varint(file)
            if length > size - file.tell():
                raise ValueError("a field is longer than the file")
            if number == _METADATA:
                if length > MAX_CONFIG_BYTES:
                    raise ValueError("metadata of an absurd size")
                yield file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        elif wire_type == _VARINT:
            _read_varint(file)
        elif wire_type in (_EIGHT, _FOUR):
            file.seek(8 if wire_type == _EIGHT else 4, os.SEEK_CUR)
        else:
            raise ValueError("no such wire type")
    raise ValueError("too many fields")


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of one StringStringEntryProto."""
    file, found = io.BytesIO(data), {_KEY: "", _VALUE: ""}
    while file.tell() < len(data):
        number, wire_type = _read_tag(file)
        if wire_type != _BYTES or number not in found:
            raise ValueError("not a text entry")
        if (length := _read_varint(file)) > len(data):
            raise ValueError("a text is longer than its entry")
        found[number] = file.read(length).decode("utf-8")
    return found[_KEY], found[_VALUE]


def _read_tag(file: BinaryIO) -> tuple[int, int]:
    """Number and wire type of the field that begins here."""
    tag = _read_varint(file)
    return tag >> 3, tag & 7


def _read_varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("cut off")
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value
