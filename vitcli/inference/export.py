"""A checkpoint as a file for other programs, and the measured proof that it computes what the model does.

ONNX is `onnx_graph`'s, the graph that predicts, with its weights, labels and preprocessing in the file; OpenVINO's is
made from it; torch's is `torch.export`'s. The reference is the torch model. A file that is not its equal does not stay.

Legend: B batch, C channels, H W pixels, K classes.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitcli.checkpoint.config import Checkpoint, build_config
from vitcli.checkpoint.onnx_metadata import CONFIG_KEY, PIXELS_KEY, SHARES_KEY
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.images.preprocess import Preprocess
from vitcli.inference.engines import Array, probabilities, temperature_of
from vitcli.inference.onnx_file import OnnxModel
from vitcli.inference.onnx_graph import INPUT, OUTPUT, build
from vitcli.model.config import Size
from vitcli.text import safe

Format = Literal["onnx", "openvino", "torch"]
ExportPrecision = Literal["fp32", "fp16", "int8"]
Run = Callable[[Array], Array]  # images (B, C, H, W) → what the file gives for them, (B, K)

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
BATCHES = (1, 2, 7)  # one, even, odd
# How far probabilities may be off. fp32: sums in another order. fp16: rounding of weights and sums. int8 is a choice of
# speed over precision: reported, and refused only when it gives something else altogether.
LIMITS: dict[ExportPrecision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}


@dataclass(frozen=True)
class Options:
    """What goes into the file."""

    precision: ExportPrecision = "fp32"
    sizes: tuple[Size, ...] = ()  # (H, W) of images; several: the file takes each of them; none: the checkpoint's own
    pixels: bool = False  # take pixels from 0 to 255: the normalisation (not the resize) is in the file
    softmax: bool = False  # give probabilities (of labels that hold each by itself: sigmoid), with the temperature


@dataclass(frozen=True)
class Parity:
    """The file beside the torch model, on one batch of random images."""

    size: Size
    batch: int
    difference: float  # largest, of a probability; without classes of an output, relative to the largest output
    agreement: float  # share of images with the same most probable class


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    options: Options
    parity: tuple[Parity, ...]


def export(checkpoint: Checkpoint, path: Path, to: Format = "onnx", options: Options | None = None) -> Exported:
    """Write the ViT `checkpoint` to `path` as `to`, and measure it there with its own runtime.

    Raises UsageError for options that the format does not have, CheckpointError for what is not a plain ViT, and
    VitError when the file's answers are not the model's or its runtime is not installed; `path` is then as it was.
    """
    from vitcli.checkpoint.load import load_model

    options = options or Options()
    _check(to, options, checkpoint)
    sizes = options.sizes or (checkpoint.preprocess.size,)
    models = {size: load_model(checkpoint, img_size=size) for size in sizes}
    write: dict[Format, Callable[..., Run]] = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".vit-export-") as staging:
        made = Path(staging) / path.name
        run = write[to](made, checkpoint, models, options)
        parity = tuple(
            _parity(run, models[size], checkpoint, size, batch, options) for size in sizes for batch in BATCHES
        )
        worst = max(one.difference for one in parity)
        if not worst <= LIMITS[options.precision]:  # NaN is not either
            answers = "outputs" if checkpoint.why_no_classes else "probabilities"
            raise VitError(
                f"the {options.precision} export's {answers} differ by {worst:.2g} from the model's; "
                "nothing was written"
            )
        del run  # and with it the hold on the files
        files = sorted(Path(staging).iterdir(), key=lambda file: file == made)  # the one that refers to others last
        total = sum(file.stat().st_size for file in files)
        for file in files:
            shutil.move(file, path.parent / file.name)
    return Exported(path, total, options, parity)


def _check(to: Format, options: Options, checkpoint: Checkpoint) -> None:
    vit = checkpoint.vit
    if options.softmax and (why := checkpoint.why_no_classes):
        raise UsageError(f"--softmax: {safe(checkpoint.name)} has no classes to give probabilities of: {why}")
    if to == "torch" and (options.precision != "fp32" or options.pixels or options.softmax):
        raise UsageError("--to torch writes the model as it is: no --precision, --pixels or --softmax")
    if to == "openvino" and options.precision == "int8":
        raise UsageError("--to openvino writes fp32 or fp16; int8 is for --to onnx")
    if len(options.sizes) > 1:
        if to == "torch":
            raise UsageError("--to torch writes one image size")
        if vit and vit.stem:
            raise UsageError("a hybrid's file takes one image size: the padding of its CNN depends on it")


def _onnx(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Run:
    proto = _proto(checkpoint, models, options)
    try:
        path.write_bytes(proto.SerializeToString())
    except ValueError as error:  # protobuf's limit of 2 GB
        raise CheckpointError(f"{safe(checkpoint.name)} does not fit into one ONNX file: {safe(error)}") from error
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def _openvino(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Run:
    try:
        import openvino
    except ImportError:
        raise VitError("--to openvino needs OpenVINO: pip install 'vitcli[openvino]'") from None
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "model.onnx"
        source.write_bytes(_proto(checkpoint, models, replace(options, precision="fp32")).SerializeToString())
        model = openvino.convert_model(source)
        for entry in _metadata(checkpoint, models, options):
            model.set_rt_info(entry[1], entry[0].split("."))
        openvino.save_model(model, path, compress_to_fp16=options.precision == "fp16")
    # As exact as it gets: on a CPU with bfloat16 it would use that.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled([images])[0]


def _torch(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Run:
    import torch

    (model,) = models.values()
    example = torch.zeros(2, model.config.in_chans, *model.config.img_size)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=1 << 16)},))
    torch.export.save(program, path, extra_files={"config.json": _metadata(checkpoint, models, options)[0][1]})
    module = torch.export.load(path).module()

    def run(images: Array) -> Array:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return run


def _proto(checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Any:
    """The whole ModelProto, metadata included."""
    model = next(iter(models.values()))
    preprocess = replace(checkpoint.preprocess, size=model.config.img_size)
    positions = {m.config.grid: _positions(m) for m in models.values()} if len(models) > 1 else None
    graph = build(
        model.config,
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        precision="int8" if options.precision == "int8" else "fp32",
        pixels_of=preprocess if options.pixels else None,
        positions=positions,
    )
    proto = _whole(graph)
    if options.softmax:
        _add_probabilities(
            proto, temperature_of(checkpoint), "Sigmoid" if checkpoint.outputs == "labels" else "Softmax"
        )
    if options.precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    for key, value in _metadata(checkpoint, models, options):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def _positions(model: Any) -> Array:
    """The position embedding (1, prefix + h·w, D); zeros for a model without one."""
    if model.pos_embed is not None:
        return model.pos_embed.detach().numpy()  # type: ignore[no-any-return]
    return np.zeros((1, model.config.num_tokens, model.config.embed_dim), np.float32)


def _whole(model: OnnxModel) -> Any:
    """The ModelProto with its weights inside, checked."""
    import onnx

    proto = onnx.load_from_string(model.graph)
    for tensor in proto.graph.initializer:
        if tensor.name in model.weights:
            tensor.raw_data = model.weights[tensor.name].tobytes()
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
    onnx.checker.check_model(proto)
    return proto


def _add_probabilities(proto: Any, temperature: float, kind: Literal["Softmax", "Sigmoid"]) -> None:
    """logits → probabilities, in place."""
    from onnx import helper, numpy_helper

    graph, logits = proto.graph, OUTPUT
    if temperature != 1:
        graph.initializer.append(numpy_helper.from_array(np.float32(temperature).reshape(()), "temperature"))
        graph.node.append(helper.make_node("Div", [OUTPUT, "temperature"], ["scaled"]))
        logits = "scaled"
    axis = {"axis": -1} if kind == "Softmax" else {}
    graph.node.append(helper.make_node(kind, [logits], ["probabilities"], **axis))
    graph.output[0].name = "probabilities"


def _metadata(checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Sequence[tuple[str, str]]:
    """The checkpoint's config at the (first) exported size, and what of its work is in the file."""
    model = next(iter(models.values()))
    extra = {key: value for key, value in checkpoint.extra.items() if key in ("provenance", "base_model")}
    if not options.softmax and (temperature := temperature_of(checkpoint)) != 1:
        extra["temperature"] = temperature
    config = build_config(
        architecture=checkpoint.architecture,
        vit=model.config,
        labels=checkpoint.labels,
        preprocess=replace(checkpoint.preprocess, size=model.config.img_size),
        label_descriptions=checkpoint.label_descriptions,
        extra=extra,
        outputs=checkpoint.outputs,
    )
    flags = (PIXELS_KEY, str(int(options.pixels))), (SHARES_KEY, str(int(options.softmax)))
    return (CONFIG_KEY, json.dumps(config)), *flags


def _parity(run: Run, model: Any, checkpoint: Checkpoint, size: Size, batch: int, options: Options) -> Parity:
    """What the file gives beside `model` on `batch` random images of `size`."""
    import torch

    preprocess: Preprocess = checkpoint.preprocess
    rng = np.random.default_rng(batch)
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = rng.integers(0, 256, (batch, preprocess.in_chans, *size)).astype(np.float32)
    images: Array = (pixels / np.float32(255) - mean) / std
    found = run(pixels if options.pixels else images)
    with torch.inference_mode():
        outputs = model(torch.from_numpy(images)).numpy()
    given: np.ndarray[Any, Any] = found
    expected: np.ndarray[Any, Any] = outputs
    scale = 1.0
    if not checkpoint.why_no_classes:
        temperature = temperature_of(checkpoint)
        expected = probabilities(outputs, temperature, checkpoint.outputs)
        given = found if options.softmax else probabilities(found, temperature, checkpoint.outputs)
    else:  # a softmax of features would hide what all of them are off by
        scale = max(float(np.abs(outputs).max()), 1e-12)
    same = given.argmax(axis=1) == expected.argmax(axis=1)
    return Parity(size, batch, float(np.abs(given - expected).max()) / scale, float(same.mean()))
