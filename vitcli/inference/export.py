"""A checkpoint as a file for other programs, and the measured proof that it computes what the model does.

An ONNX file holds the graph that predicts (`vitcli.onnx.graph`), its weights, labels and preprocessing; OpenVINO's is
made from it; torch's is that of `torch.export`. The reference is the torch model. A file that is not its equal does not
stay.

Legend: B batch, C channels, H W pixels, K classes.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitcli.checkpoint.config import Checkpoint, build_config
from vitcli.checkpoint.familiarity import KEY as FAMILIARITY_KEY
from vitcli.checkpoint.familiarity import as_text, read_familiarity
from vitcli.checkpoint.resolve import CONFIG_KEY
from vitcli.checkpoint.selftest import selftest_entry, selftest_input
from vitcli.errors import ImageError, UsageError, VitError
from vitcli.files import sync_folder
from vitcli.images.preprocess import Preprocess
from vitcli.inference.engines import (
    ExportedEngine,
    probabilities,
    session_of,
    temperature_of,
)
from vitcli.inference.exported import ExportPrecision, Options, check_file, check_size, write_file
from vitcli.metrics import Interval, wilson
from vitcli.model.config import Size
from vitcli.model.shapes import Array, weight_shapes
from vitcli.onnx.graph import build
from vitcli.onnx.layers import INPUT
from vitcli.onnx.protobuf import OnnxModel
from vitcli.text import safe

Format = Literal["onnx", "openvino", "torch"]
Run = Callable[[Array], Array]  # images (B, C, H, W) → what the file gives for them, (B, K)
Load = Callable[[Preprocess], Array]  # an image as a model sees it, float32 (C, H, W); raises ImageError

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
BATCHES = (1, 2, 7)  # one, even, odd
FEW = 14  # images for the batches after the first: they only show that a batch is its images
OPENVINO_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
# How far probabilities may be off. fp32: sums in another order. fp16: rounding of weights and sums. int8 is a choice of
# speed over precision: reported, and refused only when it gives something else altogether.
LIMITS: dict[ExportPrecision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}
_BYTES: dict[ExportPrecision, int] = {"fp32": 4, "fp16": 2, "int8": 1}  # of a weight, at least


@dataclass(frozen=True)
class Parity:
    """The file beside the torch model, on `images` images in batches of `batch`."""

    size: Size
    batch: int
    images: int
    difference: float  # largest, of a probability; without classes of an output, relative to the largest output
    agreement: float | None  # share of images with the same most probable class; None without classes
    interval: Interval | None  # 95 % for `agreement` on more such images
    how: str  # the precision that the runtime computed in, where it has several: "float32", or "default, bf16"


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    options: Options
    parity: tuple[Parity, ...]
    failed: tuple[str, ...]  # images that could not be read, and why


def export(
    checkpoint: Checkpoint,
    path: Path,
    to: Format = "onnx",
    options: Options | None = None,
    pictures: Sequence[Load] = (),
) -> Exported:
    """Write the ViT `checkpoint` to `path` as `to`, and measure it there with its own runtime on `pictures`.

    Without pictures noise is fed, which shows whether the file computes the model and understates what fp16 and int8
    change. Raises UsageError for options that the format does not have, CheckpointError for what is not a plain ViT or
    too large, and VitError when the file's answers are not the model's, its runtime is not installed or no picture can
    be read; `path` is then as it was.
    """
    from vitcli.checkpoint.load import load_model

    options = options or Options()
    _check(to, options, checkpoint)
    sizes = options.sizes or (checkpoint.preprocess.size,)
    models = {size: load_model(checkpoint, img_size=size) for size in sizes}
    write: dict[Format, Callable[..., Mapping[str, Run]]] = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".vit-export-") as staging:
        made = Path(staging) / path.name
        runs = write[to](made, checkpoint, models, options)
        failed: list[str] = []
        parity: list[Parity] = []
        for size in sizes:
            failed = []
            images = _images(pictures, replace(checkpoint.preprocess, size=size), failed)
            parity += _parity(runs, models[size], checkpoint, size, images, options)
        # The first run is as exact as it gets; what others give is told, and must be a number.
        worst = max(one.difference for one in parity if one.how == next(iter(runs)))
        if worst > LIMITS[options.precision] or not np.isfinite([one.difference for one in parity]).all():
            answers = "outputs" if checkpoint.why_no_classes else "probabilities"
            raise VitError(
                f"the {options.precision} export's {answers} differ by {worst:.2g} from the model's; "
                "nothing was written"
            )
        del runs  # and with them the hold on the files
        files = sorted(Path(staging).iterdir(), key=lambda file: file == made)  # the one that refers to others last
        total = sum(file.stat().st_size for file in files)
        for file in files:
            os.replace(file, path.parent / file.name)
        sync_folder(path.parent)
    return Exported(path, total, options, tuple(parity), tuple(failed))


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
        if vit and vit.rel_pos_bias:
            raise UsageError("a BEiT's file takes one image size: its addends by distance are other ones for another")
    if vit and to != "torch":  # before anything of that size is read
        width = _BYTES["fp32" if to == "openvino" else options.precision]
        check_size(width * sum(map(prod, weight_shapes(vit).values())), checkpoint.name)


def _onnx(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Mapping[str, Run]:
    # Statistics are of the checkpoint's own size of images.
    familiarity = read_familiarity(checkpoint) if [*models] == [checkpoint.preprocess.size] else None
    graph = _graph(checkpoint, models, options, signature=familiarity is not None)
    preprocess = replace(checkpoint.preprocess, size=next(iter(models)))
    engine = ExportedEngine(session_of(graph), options, replace(checkpoint, preprocess=preprocess))
    answer = engine.logits(selftest_input(preprocess))
    metadata = _metadata(checkpoint, models, options, selftest_entry(answer[:, -checkpoint.num_classes :]))
    if familiarity:
        facts = replace(familiarity.facts, temperature=1.0) if options.softmax else familiarity.facts
        own = replace(familiarity, facts=facts, known=answer[0, : -checkpoint.num_classes])
        metadata[FAMILIARITY_KEY] = as_text(own)
    write_file(path, graph, metadata)
    from vitcli.checkpoint.resolve import resolve

    check_file(resolve(str(path)))  # what nobody could predict with is not written
    session = session_of(path)
    return {"": lambda images: session.run(None, {INPUT: images})[0]}


def _openvino(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Mapping[str, Run]:
    try:
        import openvino
    except ImportError:
        raise VitError("--to openvino needs OpenVINO: pip install 'vitcli[openvino]'") from None
    core = openvino.Core()
    metadata = _metadata(checkpoint, models, options)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        source = Path(place) / "model.onnx"
        write_file(source, _graph(checkpoint, models, replace(options, precision="fp32")), metadata)
        model = core.read_model(source)  # its convert_model would report to its maker
        for key, value in metadata.items():
            model.set_rt_info(value, key.split("."))
        openvino.save_model(model, path, compress_to_fp16=options.precision == "fp16")
        del model
    # On a CPU with bfloat16 it would use that, and the format has no place to say otherwise.
    usual = core.compile_model(path, "CPU")
    how = f"default, {usual.get_property('INFERENCE_PRECISION_HINT').get_type_name()}"
    found = {"float32": core.compile_model(path, "CPU", OPENVINO_EXACT), how: usual}
    return {how: lambda images, compiled=compiled: compiled([images])[0] for how, compiled in found.items()}  # type: ignore[misc]


def _torch(path: Path, checkpoint: Checkpoint, models: dict[Size, Any], options: Options) -> Mapping[str, Run]:
    import torch

    (model,) = models.values()
    example = torch.zeros(2, model.config.in_chans, *model.config.img_size)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=1 << 16)},))
    torch.export.save(program, path, extra_files={"config.json": _metadata(checkpoint, models, options)[CONFIG_KEY]})
    module = torch.export.load(path).module()

    def run(images: Array) -> Array:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return {"": run}


def _graph(checkpoint: Checkpoint, models: dict[Size, Any], options: Options, *, signature: bool = False) -> OnnxModel:
    model = next(iter(models.values()))
    return build(
        model.config,
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        precision=options.precision,
        pixels_of=replace(checkpoint.preprocess, size=model.config.img_size) if options.pixels else None,
        positions={m.config.grid: _positions(m) for m in models.values()} if len(models) > 1 else None,
        softmax=temperature_of(checkpoint) if options.softmax else None,
        sigmoid=checkpoint.outputs == "labels",
        signature=signature,
    )


def _positions(model: Any) -> Array:
    """The position embedding (1, prefix + h·w, D); zeros for a model without one."""
    if model.pos_embed is not None:
        return model.pos_embed.detach().numpy()  # type: ignore[no-any-return]
    return np.zeros((1, model.config.num_tokens, model.config.embed_dim), np.float32)


def _metadata(
    checkpoint: Checkpoint, models: dict[Size, Any], options: Options, selftest: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The checkpoint's config at the (first) exported size, and what of its work is in the file."""
    model = next(iter(models.values()))
    described = replace(
        checkpoint,
        vit=model.config,
        preprocess=replace(checkpoint.preprocess, size=model.config.img_size),
        temperature=None,
        licence=None,  # of the weights that were exported, which the file does not say
    )
    measured: dict[str, Any] = {} if selftest is None else {"selftest": selftest}
    if not options.softmax and (temperature := temperature_of(checkpoint)) != 1:
        measured["temperature"] = temperature
    config = build_config(described, measured=measured)
    return {CONFIG_KEY: json.dumps(config), **options.metadata(model.config.img_size)}


def _images(pictures: Sequence[Load], preprocess: Preprocess, failed: list[str]) -> Array:
    """Images (B, C, H, W) to compare with; what cannot be read is put into `failed`."""
    if not pictures:
        pixels = np.random.default_rng(0).integers(0, 256, (FEW, preprocess.in_chans, *preprocess.size))
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std
    loaded = []
    for load in pictures:
        try:
            loaded.append(load(preprocess))
        except ImageError as error:
            failed.append(str(error))
    if not loaded:
        raise VitError(f"none of the {len(pictures)} images could be read; the first: {failed[0]}")
    return np.stack(loaded)


def _parity(
    runs: Mapping[str, Run], model: Any, checkpoint: Checkpoint, size: Size, images: Array, options: Options
) -> Iterator[Parity]:
    """What the file gives beside `model` for `images` (B, C, *size), in batches of several sizes."""
    import torch

    with torch.inference_mode():
        outputs = np.concatenate([model(torch.from_numpy(part)).numpy() for part in _batches(images, 8)])
    fed = images
    if options.pixels:
        preprocess = checkpoint.preprocess
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        fed = (images * std + mean) * np.float32(255)
    scale = 1.0
    expected: np.ndarray[Any, Any] = outputs
    classes, temperature = checkpoint.why_no_classes is None, temperature_of(checkpoint)
    if classes:
        expected = probabilities(outputs, temperature, checkpoint.outputs)
    else:  # a softmax of features would hide what all of them are off by
        scale = max(float(np.abs(outputs).max()), 1e-12)
    for how, run in runs.items():
        for batch in BATCHES:
            n = len(fed) if batch == 1 else min(len(fed), FEW)
            given: np.ndarray[Any, Any] = np.concatenate([run(part) for part in _batches(fed[:n], batch)])
            if classes and not options.softmax:
                given = probabilities(given, temperature, checkpoint.outputs)
            difference = float(np.abs(given - expected[:n]).max()) / scale
            agreement = interval = None
            if classes:
                same = int((given.argmax(axis=1) == expected[:n].argmax(axis=1)).sum())
                agreement, interval = same / n, wilson(same, n)
            yield Parity(size, batch, n, difference, agreement, interval, how)


def _batches(images: Array, size: int) -> list[Array]:
    return [images[start : start + size] for start in range(0, len(images), size)]
