"""Exported ONNX files, damaged or made to deceive, from a seed. `python tests/onnx_damage.py 2000` counts by hand what
`vit predict` makes of so many, each in a process of its own."""

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from vitcli.checkpoint.resolve import CHECKSUM_KEY, CONFIG_KEY, PIXELS_KEY, PRECISION_KEY, SHARES_KEY, SIZES_KEY
from vitcli.onnx.protobuf import metadata_entry

CONTROL = "\x1b[31mred\x1b]0;title\x07\u202e"
KEYS = (CONFIG_KEY, PIXELS_KEY, SHARES_KEY, PRECISION_KEY, SIZES_KEY)
ANYTHING: list[Any] = [None, True, -1, 0, 1, 7, 2**31, 10**30, 1e308, 0.5, "", CONTROL, "token", "none", [], [1, 2], {}]


def sealed(data: bytes) -> bytes:
    """With a checksum that fits: what somebody makes who knows how."""
    return data + metadata_entry(CHECKSUM_KEY, f"{zlib.crc32(data):08x}")


def seal_of(data: bytes) -> int:
    """Length of the checksum's entry."""
    return len(metadata_entry(CHECKSUM_KEY, "0" * 8))


# ---- bytes


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice([1, 8, 1000])) + data[at:]


def flip_sealed(data: bytes, rng: random.Random) -> bytes:
    """Of the graph's own bytes rather than of weights, which are most."""
    whole = bytearray(data[: -seal_of(data)])
    whole[rng.choice([rng.randrange(len(whole)), rng.randrange(2000), len(whole) - 1 - rng.randrange(2000)])] ^= (
        1 << rng.randrange(8)
    )
    return sealed(bytes(whole))


def cut_sealed(data: bytes, rng: random.Random) -> bytes:
    return sealed(data[: rng.randrange(len(data))])


# ---- structure

Mutation = Callable[[Any, random.Random], None]


def drop_node(model: Any, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def other_operator(model: Any, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    node.op_type = rng.choice(["Relu", "Loop", "If", "Scan", "Expand", "Tile", "NonZero", "Einsum", CONTROL])


def other_domain(model: Any, rng: random.Random) -> None:
    rng.choice(model.graph.node).domain = rng.choice(["com.microsoft", "ai.onnx.ml", CONTROL])


def rewire(model: Any, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.input])
    node.input[rng.randrange(len(node.input))] = rng.choice(
        ["images", "logits", "", "nowhere", node.output[0], CONTROL]
    )


def other_attribute(model: Any, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute])
    attribute = rng.choice(node.attribute)
    attribute.i = rng.choice([-(2**63), -1, 2**40])
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice([-1, 0, 2**40])


def other_dims(model: Any, rng: random.Random) -> None:
    tensor = rng.choice([tensor for tensor in model.graph.initializer if tensor.dims])
    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, -1, 1, 2**40])


def other_type(model: Any, rng: random.Random) -> None:
    rng.choice(model.graph.initializer).data_type = rng.randrange(25)


def drop_constant(model: Any, rng: random.Random) -> None:
    del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def no_data(model: Any, rng: random.Random) -> None:
    rng.choice(model.graph.initializer).ClearField("raw_data")


def external(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=rng.choice(["/etc/passwd", "../../secret", "weights", CONTROL]))


def large_shape(model: Any, rng: random.Random) -> None:
    tensor = rng.choice([tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64])
    size = len(tensor.raw_data)
    tensor.raw_data = (rng.choice([2**40, 2**62, -5]) & (1 << 64) - 1).to_bytes(8, "little") * (size // 8)


def not_finite(model: Any, rng: random.Random) -> None:
    tensor = rng.choice([tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT])
    tensor.raw_data = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f"]) * (len(tensor.raw_data) // 4)


def other_weights(model: Any, rng: random.Random) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.raw_data = rng.randbytes(len(tensor.raw_data))


def endless_loop(model: Any, rng: random.Random) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
        [value("on", TensorProto.BOOL, [])],
    )
    model.graph.initializer.append(helper.make_tensor("go0", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["", "go0"], [], body=body))


def doubling(model: Any, rng: random.Random) -> None:
    last = model.graph.node[-1]
    name, last.output[0] = last.output[0], "double_0"
    for i in range(60):
        model.graph.node.append(helper.make_node("Concat", [f"double_{i}"] * 2, [f"double_{i + 1}"], axis=1))
    model.graph.node.append(helper.make_node("Identity", ["double_60"], [name]))


def other_input(model: Any, rng: random.Random) -> None:
    tensor = rng.choice([model.graph.input[0], model.graph.output[0]])
    kind = rng.randrange(4)
    if kind == 0:
        tensor.name = rng.choice(["", "other", CONTROL])
    elif kind == 1:
        tensor.type.tensor_type.elem_type = rng.choice([7, 8, 10, 11])
    elif kind == 2:
        del tensor.type.tensor_type.shape.dim[-1]
    else:
        tensor.type.tensor_type.shape.dim[rng.randrange(len(tensor.type.tensor_type.shape.dim))].dim_value = 5


def more_inputs(model: Any, rng: random.Random) -> None:
    where = rng.choice([model.graph.input, model.graph.output])
    where.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def no_inputs(model: Any, rng: random.Random) -> None:
    del rng.choice([model.graph.input, model.graph.output])[:]


def other_fields(model: Any, rng: random.Random) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        model.opset_import[0].version = rng.choice([1, 0, 10**6])
    elif kind == 1:
        model.opset_import.append(helper.make_opsetid(CONTROL, 1))
    elif kind == 2:
        model.ir_version = rng.choice([0, 1, 10**6])
    elif kind == 3:
        model.doc_string = model.graph.doc_string = CONTROL
    else:
        model.training_info.add()


# ---- metadata


def entry(model: Any, key: str) -> Any:
    return next(entry for entry in model.metadata_props if entry.key == key)


def other_metadata(model: Any, rng: random.Random) -> None:
    key = rng.choice(KEYS)
    entry(model, key).value = rng.choice(["", "0", "1", "2", CONTROL, "fp32", "9999x9999", "64x64,64x64", "[]", "{}"])


def drop_metadata(model: Any, rng: random.Random) -> None:
    del model.metadata_props[rng.randrange(len(model.metadata_props))]


def more_metadata(model: Any, rng: random.Random) -> None:
    model.metadata_props.add(key=rng.choice([*KEYS, "vit.more", CONTROL]), value=CONTROL)


def other_config(model: Any, rng: random.Random) -> None:
    """A value somewhere in the config becomes another."""
    place = entry(model, CONFIG_KEY)
    config = json.loads(place.value)
    level, key = config, rng.choice(list(config))
    while isinstance(level[key], dict | list) and level[key] and rng.random() < 0.8:
        level = level[key]
        key = rng.choice(list(level)) if isinstance(level, dict) else rng.randrange(len(level))
    level[key] = rng.choice(ANYTHING)
    place.value = json.dumps(config)


def no_selftest(model: Any, rng: random.Random) -> None:
    place = entry(model, CONFIG_KEY)
    config = json.loads(place.value)
    del config["vit"]["selftest"]
    place.value = json.dumps(config)


def larger_images(model: Any, rng: random.Random) -> None:
    """Consistent in the metadata: only the graph says otherwise."""
    place, side = entry(model, CONFIG_KEY), rng.choice([128, 4096, 8192])
    config = json.loads(place.value)
    config["model_args"]["img_size"], config["model_args"]["pos_embed"] = [side, side], "none"
    config["pretrained_cfg"]["input_size"] = [3, side, side]
    place.value = json.dumps(config)
    entry(model, SIZES_KEY).value = f"{side}x{side}"


BYTES = (flip, cut, insert, flip_sealed, cut_sealed)
STRUCTURE: tuple[Mutation, ...] = (
    drop_node, other_operator, other_domain, rewire, other_attribute, other_dims, other_type, drop_constant, no_data,
    external, large_shape, not_finite, other_weights, endless_loop, doubling, other_input, more_inputs, no_inputs,
    other_fields, drop_metadata, more_metadata, no_selftest, larger_images,
)  # fmt: skip
MAY_PASS: tuple[Mutation, ...] = (other_metadata, other_config)  # a label, say, or the value that was there


def mutated(data: bytes, mutation: Mutation, rng: random.Random) -> bytes:
    """Through the onnx package, as somebody would, and sealed again."""
    model = onnx.load_from_string(data)
    del model.metadata_props[-1]
    mutation(model, rng)
    return sealed(model.SerializeToString())


def damaged(data: bytes, seed: int) -> tuple[str, bytes]:
    """The name of what was done, and the file."""
    rng = random.Random(seed)
    chosen = rng.choice([*BYTES, *STRUCTURE, *MAY_PASS])
    made = chosen(data, rng) if chosen in BYTES else mutated(data, chosen, rng)
    return chosen.__name__, made


def main() -> None:
    import os
    import sys
    import tempfile
    from collections import Counter

    from tests.helpers.checkpoints import TINY, write_tiny
    from tests.helpers.process import python
    from vitcli.checkpoint.resolve import resolve
    from vitcli.inference.export import Options, export

    counts: Counter[Any] = Counter()
    slowest, start = 0.0, int(sys.argv[2]) if len(sys.argv) > 2 else 0
    image = Path(__file__).parents[2] / "docs" / "images" / "sneaker.png"
    with tempfile.TemporaryDirectory() as place:
        base = resolve(str(write_tiny(Path(place) / "base", TINY)))
        wholes = []
        for options in (Options(), Options("fp16", pixels=True), Options("int8", softmax=True)):
            made = export(base, Path(place) / "m.onnx", options=options)
            wholes.append(made.path.read_bytes())
        for seed in range(start, start + int(sys.argv[1])):
            name, data = damaged(wholes[seed % len(wholes)], seed)
            (Path(place) / "d.onnx").write_bytes(data)
            began = os.times()
            done = python("-m", "vitcli", "predict", "-m", f"{place}/d.onnx", image)
            ended = os.times()  # of a busy machine the clock says little
            slowest = max(slowest, sum(ended[2:4]) - sum(began[2:4]))
            shown = done.stdout + done.stderr
            counts["exit", done.returncode] += 1
            if "Traceback" in shown or done.returncode not in (0, 1, 2, 3):
                print(seed, name, done.returncode, shown[-500:])
                counts["traceback"] += 1
            if (
                any(character < " " and character != "\n" for character in shown)
                or "\x7f" in shown
                or "\u202e" in shown
            ):
                print(seed, name, ascii(shown[-300:]))
                counts["control"] += 1
            if done.returncode == 0:
                counts["passed", name] += 1
    print(dict(counts), f"slowest {slowest:.1f} s of processor time")


if __name__ == "__main__":
    main()
