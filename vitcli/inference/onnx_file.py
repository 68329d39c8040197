"""An ONNX model as bytes: the few protobuf messages that it needs, written by hand.

Importing the `onnx` package costs more than an eighth of a second and its helpers as much again for one ViT, which is
most of what predicting one image takes. Field numbers are those of onnx.proto (IR version 10); the tests let `onnx`
check and read what is written here. Knows no model.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcli import __version__

IR_VERSION = 10
OPSET = 20  # the first with Gelu
INLINE_BYTES = 1024  # smaller constants are part of the graph: shapes must be, and few are larger

Array = np.ndarray[Any, np.dtype[Any]]
Attribute = int | float | str | Sequence[int]
Shape = Sequence[int | str]  # a name stands for a size that is known when the model runs

_FLOAT, _STRING, _INT, _INTS = 1, 3, 2, 7  # AttributeProto.AttributeType
_DATA_TYPES = {"float32": 1, "int8": 3, "int64": 7}  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class OnnxModel:
    """`graph` is a ModelProto; `weights` are its large constants, by name, which it only refers to.

    Kept apart they are never copied, and a model may be larger than protobuf's 2 GB.
    """

    graph: bytes
    weights: Mapping[str, Array]


class GraphWriter:
    """Collects nodes and constants; a value is known by its name."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._weights: dict[str, Array] = {}
        self._known: set[str] = set()

    def constant(self, array: Array, name: str) -> str:
        """`array` as a value of this name; it is not copied when it is large and contiguous."""
        array = np.asarray(array, order="C")
        dims = b"".join(_field(1, size) for size in array.shape)
        tensor = dims + _field(2, _DATA_TYPES[array.dtype.name]) + _field(8, name)
        if array.nbytes > INLINE_BYTES:
            self._weights[name] = array
            location = _field(1, "location") + _field(2, "weights")
            tensor += _field(13, location) + _field(14, _EXTERNAL)
        else:
            tensor += _field(9, array.tobytes())
        self._constants.append(_field(5, tensor))
        return name

    def ints(self, *values: int) -> str:
        """A shape, or a list of indices: int64, one constant for all that are equal."""
        name = "ints_" + "_".join(map(str, values)).replace("-", "m")
        if name not in self._known:
            self._known.add(self.constant(np.array(values, np.int64), name))
        return name

    def scalar(self, value: int | float) -> str:
        """A single number, int64 or float32."""
        name = f"{type(value).__name__}_{value}"
        if name not in self._known:
            self._known.add(self.constant(np.array(value, np.int64 if isinstance(value, int) else np.float32), name))
        return name

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
        graph = b"".join(self._nodes) + _field(2, name) + b"".join(self._constants)
        graph += b"".join(_field(11, _value(*item)) for item in inputs.items())
        graph += b"".join(_field(12, _value(*item)) for item in outputs.items())
        opset = _field(1, "") + _field(2, OPSET)
        producer = _field(2, "vitcli") + _field(3, __version__)
        return OnnxModel(_field(1, IR_VERSION) + producer + _field(7, graph) + _field(8, opset), self._weights)


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
    tensor = _field(1, _DATA_TYPES["float32"]) + _field(2, dims)
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """One field on the wire: varint, 32-bit or length-delimited by the type of `value`."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
