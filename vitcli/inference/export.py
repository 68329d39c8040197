"""A checkpoint as one .onnx file for ONNX Runtime, and the measured proof that it computes what the model does.

The graph is `onnx_graph`'s, the one that predicts; here its weights go into the file, with labels and preprocessing in
the metadata. The reference is the torch model. A file that is not its equal does not stay.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitcli.checkpoint.config import Checkpoint, build_config
from vitcli.checkpoint.onnx_metadata import CONFIG_KEY, PIXELS_KEY, SHARES_KEY
from vitcli.errors import CheckpointError, VitError
from vitcli.inference.engines import Array, probabilities, temperature_of
from vitcli.inference.onnx_file import OnnxModel
from vitcli.inference.onnx_graph import INPUT, OUTPUT, build
from vitcli.model.config import Size
from vitcli.text import safe

ExportPrecision = Literal["fp32", "fp16", "int8"]
BATCHES = (1, 2, 7)  # one, even, odd
# How far probabilities may be off. fp32: sums in another order. fp16: rounding of weights and sums. int8 is a choice of
# speed over precision: reported, and refused only when it gives something else altogether.
LIMITS: dict[ExportPrecision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}


@dataclass(frozen=True)
class Parity:
    """The file beside the torch model, on one batch of random images."""

    batch: int
    difference: float  # largest, of a probability
    agreement: float  # share of images with the same most probable class


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    precision: ExportPrecision
    input: str  # "pixels from 0 to 255" or "normalised pixels"
    output: str  # "probabilities" or "logits"
    size: Size
    parity: tuple[Parity, ...]


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: ExportPrecision = "fp32",
    img_size: Size | None = None,
    pixels: bool = False,
    softmax: bool = False,
) -> Exported:
    """Write the ViT `checkpoint` to `path`, and measure it with ONNX Runtime.

    `img_size` bakes the position embedding for another size. `pixels` puts the normalisation (not the resize) into the
    graph, `softmax` the temperature and the softmax. Raises CheckpointError for what is not a plain ViT, and VitError,
    with nothing left at `path`, when the file's answers are not the model's.
    """
    from vitcli.checkpoint.load import load_model

    model = load_model(checkpoint, img_size=img_size)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    preprocess = replace(checkpoint.preprocess, size=model.config.img_size)
    temperature = temperature_of(checkpoint)
    graph = build(
        model.config,
        tensors,
        precision="int8" if precision == "int8" else "fp32",
        pixels_of=preprocess if pixels else None,
    )
    proto = _whole(graph)
    if softmax:
        _add_softmax(proto, temperature)
    if precision == "fp16":
        proto = _halved(proto)
    extra = {key: value for key, value in checkpoint.extra.items() if key in ("provenance", "base_model")}
    if not softmax and temperature != 1:
        extra["temperature"] = temperature
    config = build_config(
        architecture=checkpoint.architecture,
        vit=model.config,
        labels=checkpoint.labels,
        preprocess=preprocess,
        label_descriptions=checkpoint.label_descriptions,
        extra=extra,
    )
    for key, value in (
        (CONFIG_KEY, json.dumps(config)),
        (PIXELS_KEY, str(int(pixels))),
        (SHARES_KEY, str(int(softmax))),
    ):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    new = path.with_name(f".{path.name}.tmp")
    try:
        new.write_bytes(proto.SerializeToString())
        parity = tuple(_parity(new, model, preprocess, batch, pixels, softmax, temperature) for batch in BATCHES)
        worst = max(one.difference for one in parity)
        if not worst <= LIMITS[precision]:  # NaN is not either
            raise VitError(
                f"the {precision} export's probabilities differ by {worst:.2g} from the model's; nothing was written"
            )
        new.replace(path)
    except ValueError as error:  # protobuf's limit of 2 GB
        raise CheckpointError(f"{safe(checkpoint.name)} does not fit into one ONNX file: {safe(error)}") from error
    finally:
        new.unlink(missing_ok=True)
    return Exported(
        path,
        path.stat().st_size,
        precision,
        "pixels from 0 to 255" if pixels else "normalised pixels",
        "probabilities" if softmax else "logits",
        model.config.img_size,
        parity,
    )


def _whole(model: OnnxModel) -> Any:
    """The ModelProto with its weights inside."""
    import onnx

    proto = onnx.load_from_string(model.graph)
    for tensor in proto.graph.initializer:
        if tensor.name in model.weights:
            tensor.raw_data = model.weights[tensor.name].tobytes()
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
    onnx.checker.check_model(proto)
    return proto


def _add_softmax(proto: Any, temperature: float) -> None:
    """logits → probabilities, in place."""
    from onnx import helper, numpy_helper

    graph, logits = proto.graph, OUTPUT
    if temperature != 1:
        graph.initializer.append(numpy_helper.from_array(np.float32(temperature).reshape(()), "temperature"))
        graph.node.append(helper.make_node("Div", [OUTPUT, "temperature"], ["scaled"]))
        logits = "scaled"
    graph.node.append(helper.make_node("Softmax", [logits], ["probabilities"], axis=-1))
    graph.output[0].name = "probabilities"


def _halved(proto: Any) -> Any:
    """Weights and arithmetic in float16, input and output in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


def _parity(
    path: Path, model: Any, preprocess: Any, batch: int, pixels: bool, softmax: bool, temperature: float
) -> Parity:
    """`path` beside `model` on `batch` random images."""
    import onnxruntime
    import torch

    rng = np.random.default_rng(batch)
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    raw = rng.integers(0, 256, (batch, preprocess.in_chans, *preprocess.size)).astype(np.float32)
    normalised: Array = (raw / np.float32(255) - mean) / std
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {INPUT: raw if pixels else normalised})[0]
    with torch.inference_mode():
        expected = probabilities(model(torch.from_numpy(normalised)).numpy(), temperature)
    shares = found if softmax else probabilities(found, temperature)
    same = shares.argmax(axis=1) == expected.argmax(axis=1)
    return Parity(batch, float(np.abs(shares - expected).max()), float(same.mean()))
