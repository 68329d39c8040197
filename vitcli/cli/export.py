"""`vit export`: a checkpoint for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitcli.cli.options import CountOpt, ForceOpt, JsonOpt, OptionalCheckpointArg
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import as_json, command, plural, safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.inference.export import Exported

ToOpt = Annotated[
    Literal["onnx", "openvino", "torch", "web"],
    typer.Option(
        "--to",
        help="openvino needs its extra, vitcli[openvino]; torch is torch.export's .pt2; web is a folder with a page.",
    ),
]
FileOpt = Annotated[
    str | None, typer.Option("--out", "-o", help="File to write; NAME.onnx (.xml, .pt2, NAME-web) by default.")
]
RuntimeOpt = Annotated[
    str | None,
    typer.Option("--runtime", help="For --to web: a folder with npm's onnxruntime-web, or npm to download it."),
]
FilePrecisionOpt = Annotated[
    Literal["fp32", "fp16", "int8"],
    typer.Option("--precision", help="fp16 is half the size, int8 quantises as it runs; both may change a label."),
]
ImgSizesOpt = Annotated[
    str | None,
    typer.Option("--img-size", help="Another image size, 384 or 256x384; several, 224,384: the file takes each."),
]
PixelsOpt = Annotated[
    bool, typer.Option("--pixels", help="Take pixels from 0 to 255: the file normalises, and does not resize.")
]
SoftmaxOpt = Annotated[bool, typer.Option("--softmax", help="Give probabilities, calibrated ones if the model is.")]
MeasureImagesOpt = Annotated[
    list[str] | None,
    typer.Option("--images", "-i", help="Files, folders, globs to measure the file with; may be repeated."),
]
MeasureDataOpt = Annotated[
    str | None, typer.Option("--data", "-d", help="A data set to measure with, as for vit train.")
]


def export(
    checkpoint: OptionalCheckpointArg = None,
    to: ToOpt = "onnx",
    out: FileOpt = None,
    precision: FilePrecisionOpt = "fp32",
    img_size: ImgSizesOpt = None,
    pixels: PixelsOpt = False,
    softmax: SoftmaxOpt = False,
    runtime: RuntimeOpt = None,
    images: MeasureImagesOpt = None,
    data: MeasureDataOpt = None,
    count: CountOpt = None,
    force: ForceOpt = False,
    json: JsonOpt = False,
) -> None:
    """Write a checkpoint as a file for other programs, and measure that it gives the model's answers.

    Labels and preprocessing go into its metadata: `vit predict -m FILE.onnx` works from the file alone. Images to
    measure with: --images, --data, or a built-in set; what fp16 and int8 change depends on them.
    """
    if images and data:
        raise UsageError("--images and --data are two ways to say the same; give one")
    if runtime is not None and to != "web":
        raise UsageError("--runtime belongs to --to web")
    from vitcli.cli import console
    from vitcli.cli.console import resolved
    from vitcli.cli.settings import size
    from vitcli.inference.export import SUFFIXES, export
    from vitcli.inference.exported import Options
    from vitcli.inspection.images import COUNT, pictures_of
    from vitcli.serve.runtime import runtime_files
    from vitcli.serve.web import export_web

    files = runtime_files(runtime) if to == "web" else {}
    source = resolved(checkpoint)
    if checkpoint is None:
        console.note(source.why)
    path = Path(out or f"{Path(source.name).name}{'-web' if to == 'web' else SUFFIXES[to]}")
    if to != "web" and path.suffix != SUFFIXES[to]:
        raise UsageError(f"--out {safe(path)}: the file's name must end with {SUFFIXES[to]}")
    if path.exists() and not force:
        raise UsageError(f"{safe(path)} is there already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{safe(path.parent)}: no such folder")
    pairs = [size(text, "--img-size") or [] for text in img_size.split(",")] if img_size else []
    options = Options(precision, tuple((height, width) for height, width in pairs), pixels, softmax)
    pictures = pictures_of(source, images, data, count or COUNT, doing="measuring", say=console.note)
    loads = [picture.load for picture in pictures]
    made = export_web(source, path, files, options, loads) if to == "web" else export(source, path, to, options, loads)
    if json:
        document = {"schema": "vit.export/1", **asdict(made), "path": str(made.path), "from": source.name, "to": to}
        print(as_json(document))
    else:
        _show(made, to, source)
    for line in made.failed[:5]:
        console.note(line)
    if made.failed:
        console.note(f"{plural(len(made.failed), 'image')} could not be read and measured nothing")
        raise typer.Exit(EXIT_SOME_FAILED)


def _show(made: "Exported", to: str, source: "Checkpoint") -> None:
    from vitcli.checkpoint.card import use_command
    from vitcli.cli import console

    classes = source.why_no_classes is None
    numbers = ("batch", "images", "max difference", *(("same class", "95% interval") if classes else ()))
    several = to == "openvino"
    table = console.table("pixels", *(("precision",) if several else ()), *numbers, right=numbers)
    for one in made.parity:
        height, width = one.size
        cells = [f"{height}x{width}", *([one.how] if several else []), one.batch, one.images, f"{one.difference:.1e}"]
        if one.agreement is not None and one.interval is not None:
            cells += [f"{one.agreement:.1%}", f"{one.interval.low:.1%} to {one.interval.high:.1%}"]
        console.row(table, *cells)
    console.stdout().print(table)
    takes = "pixels from 0 to 255" if made.options.pixels else "normalised pixels"
    gives = "probabilities" if made.options.softmax else "logits" if classes else "features"
    shown = safe(made.path)
    console.note(f"{shown}: {made.bytes / 2**20:.1f} MiB, {made.options.precision}, {takes} to {gives}")
    if to == "onnx" and classes:
        console.note(f"use it: {use_command(str(made.path), classifies=True)}")
    if to == "web":
        console.note(
            f"try it: {command('python3', '-m', 'http.server', '-b', '127.0.0.1', '-d', made.path)}, at http://localhost:8000/"
        )
    if several:
        console.note(
            "default is what OpenVINO chooses on this processor, bfloat16 where there is any; float32 is had by"
        )
        console.note(f'openvino.compile_model("{shown}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})')
