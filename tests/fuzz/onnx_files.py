"""ONNX files written by `vit export`: their bytes, their metadata, and their graphs edited by the onnx package."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.fuzz import sound
from tests.fuzz.damage import CONTROL, TEXTS, damage_file, damaged_json

COMMANDS = (
    f"predict -m model.onnx {sound.IMAGE} --json",
    f"predict -m model.onnx {sound.IMAGE}",
    f"predict -m model.onnx {sound.IMAGE} data/blue/1.png data/green/2.png --jsonl",
    "evaluate model.onnx --data data --json",
)
KINDS = ("fp32", "int8", "softmax")
COUNTS = (0, 1, 2, 3, -1, 7, 64, 10**5, 2**31, 2**62)


def prepare(place: Path) -> None:
    os.chdir(place)
    sound.vit("export run/best -o fp32.onnx")
    sound.vit("export run/best -o int8.onnx --precision int8")
    sound.vit("export run/best -o softmax.onnx --softmax --pixels")


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    shutil.copy(place / f"{rng.choice(KINDS)}.onnx", folder / "model.onnx")
    sound.link(folder, place / "data")


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    path = folder / "model.onnx"
    if rng.random() < 0.25:
        damage_file(path, rng, (place / "int8.onnx").read_bytes())
        return
    model = onnx.load(path)
    for _ in range(rng.choice((1, 1, 1, 2))):
        rng.choice(_EDITS)(model, rng)
    path.write_bytes(model.SerializeToString())


def _metadata(model: Any, rng: random.Random) -> None:
    entry = rng.choice(model.metadata_props)
    kind = rng.randrange(5)
    if kind == 0:
        model.metadata_props.remove(entry)
    elif kind == 1:
        model.metadata_props.add(key=entry.key, value=_text(rng))
    elif kind == 2:
        entry.key = _text(rng)
    elif entry.value.startswith("{"):
        entry.value = damaged_json(entry.value, rng).decode("utf-8", "replace")
    else:
        entry.value = _text(rng)


def _put_type(model: Any, rng: random.Random) -> None:
    value = _put(model, rng)
    value.type.tensor_type.elem_type = rng.choice((*TensorProto.DataType.values(), 99))


def _put_shape(model: Any, rng: random.Random) -> None:
    dims = _put(model, rng).type.tensor_type.shape.dim
    kind = rng.randrange(4)
    if kind == 0:
        del dims[:]
    elif kind == 1:
        dims.add(dim_value=rng.choice(COUNTS))
    elif dims:
        rng.choice(dims).dim_value = rng.choice(COUNTS)


def _put_name(model: Any, rng: random.Random) -> None:
    """One of the names, everywhere: the graph is as sound as before."""
    old = rng.choice([*model.graph.input, *model.graph.output]).name
    new = _text(rng) or "x"
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new if name == old else name


def _puts(model: Any, rng: random.Random) -> None:
    """Inputs and outputs fewer, more or others."""
    values = rng.choice((model.graph.input, model.graph.output))
    kind = rng.randrange(4)
    if kind == 0 and values:
        del values[rng.randrange(len(values))]
    elif kind == 1:
        name = rng.choice([name for node in model.graph.node for name in node.output])
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    elif kind == 2:
        values.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    elif values:
        _put(model, rng).name = rng.choice([name for node in model.graph.node for name in node.output])


def _node(model: Any, rng: random.Random) -> None:
    nodes = model.graph.node
    node = rng.choice(nodes)
    kind = rng.randrange(7)
    if kind == 0:
        nodes.remove(node)
    elif kind == 1:
        nodes.add().CopyFrom(node)
    elif kind == 2:
        node.op_type = rng.choice(("Loop", "Softmax", "Relu", "Reshape", "Expand", "Shape", "Unknown\x1b[31m", "Add"))
    elif kind == 3:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "\x1b[31mevil", "local"))
    elif kind == 4 and len(node.input):
        node.input[rng.randrange(len(node.input))] = rng.choice((_text(rng), "", node.output[0], *node.input))
    elif kind == 5:
        node.output[0] = _text(rng)
    else:
        node.name = _text(rng)


def _attribute(model: Any, rng: random.Random) -> None:
    holders = [node for node in model.graph.node if node.attribute]
    attribute = rng.choice(rng.choice(holders).attribute)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(COUNTS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((float("nan"), float("inf"), -1.0, 1e30))
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(COUNTS)
    else:
        attribute.name = _text(rng)


def _initializer(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(7)
    if kind == 0:
        tensor.dims[:] = [*tensor.dims[:-1], rng.choice(COUNTS)]
    elif kind == 1:
        tensor.data_type = rng.choice((*TensorProto.DataType.values(), 99))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif kind == 3:
        tensor.name = _text(rng)
    elif kind == 4:
        tensor.raw_data = rng.randbytes(len(tensor.raw_data))
    elif kind == 5:
        model.graph.initializer.remove(tensor)
    else:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        tensor.external_data.add(
            key="location", value=rng.choice(("/etc/passwd", "../../x", "model.onnx", "/dev/zero"))
        )
        tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "99999999999", "x")))


def _version(model: Any, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        model.ir_version = rng.choice((0, 3, 99, 2**31 - 1))
    elif kind == 1 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 13, 99, 2**40))
    else:
        del model.opset_import[:]


def _giant(model: Any, rng: random.Random) -> None:
    """The answer comes with a tensor that is too large."""
    side = rng.choice((20_000, 60_000, 2**20))
    model.graph.initializer.append(helper.make_tensor("sides", TensorProto.INT64, [2], [side, side]))
    output = _output(model)
    last = output.name
    model.graph.node.extend([
        helper.make_node("ConstantOfShape", ["sides"], ["giant"]),
        helper.make_node("ReduceMax", ["giant"], ["most"], keepdims=0),
        helper.make_node("Add", [last, "most"], ["far"]),
    ])  # fmt: skip
    output.name = "far"


def _endless(model: Any, rng: random.Random) -> None:
    """The answer comes after a loop that takes hours."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, [], [2**40]))
    model.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    output = _output(model)
    model.graph.node.append(helper.make_node("Loop", ["turns", "true", output.name], ["end"], body=body))
    output.name = "end"


def _output(model: Any) -> Any:
    return model.graph.output[0] if model.graph.output else model.graph.output.add()


def _put(model: Any, rng: random.Random) -> Any:
    puts = [*model.graph.input, *model.graph.output]
    return rng.choice(puts) if puts else model.graph.output.add()


def _text(rng: random.Random) -> str:
    return rng.choice((*CONTROL, *(text for text in TEXTS if text != "\ud800")))


_EDITS: tuple[Callable[[Any, random.Random], None], ...] = (
    _metadata, _metadata, _metadata, _put_type, _put_shape, _put_name, _puts, _node, _node, _attribute, _initializer,
    _version, _giant, _endless,
)  # fmt: skip
