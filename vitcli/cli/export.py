"""`vit export`: a checkpoint for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from vitcli.cli.options import JsonOpt
from vitcli.errors import UsageError
from vitcli.text import as_json, safe

CheckpointArg = Annotated[
    str | None,
    typer.Argument(help="A bundled name, a timm or Hub name, a folder, a file; the default model if left out."),
]
ToOpt = Annotated[
    Literal["onnx", "openvino", "torch"],
    typer.Option("--to", help="openvino needs its extra, vitcli[openvino]; torch is torch.export's .pt2."),
]
FileOpt = Annotated[str | None, typer.Option("--out", "-o", help="File to write; NAME.onnx (.xml, .pt2) by default.")]
PrecisionOpt = Annotated[
    Literal["fp32", "fp16", "int8"],
    typer.Option("--precision", help="fp16 is half the size, int8 quantises as it runs; both may change a label."),
]
SizesOpt = Annotated[
    str | None,
    typer.Option("--img-size", help="Another image size, 384 or 256x384; several, 224,384: the file takes each."),
]
PixelsOpt = Annotated[
    bool, typer.Option("--pixels", help="Take pixels from 0 to 255: the file normalises, and does not resize.")
]
SoftmaxOpt = Annotated[bool, typer.Option("--softmax", help="Give probabilities, calibrated ones if the model is.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def export(
    checkpoint: CheckpointArg = None,
    to: ToOpt = "onnx",
    out: FileOpt = None,
    precision: PrecisionOpt = "fp32",
    img_size: SizesOpt = None,
    pixels: PixelsOpt = False,
    softmax: SoftmaxOpt = False,
    force: ForceOpt = False,
    json: JsonOpt = False,
) -> None:
    """Write a checkpoint as a file for other programs, and measure that it gives the model's answers.

    Labels and preprocessing go into its metadata: `vit predict -m FILE.onnx` works from the file alone.
    """
    from vitcli.checkpoint.card import use_command
    from vitcli.cli import console
    from vitcli.cli.progress import resolved
    from vitcli.cli.settings import size
    from vitcli.inference.export import SUFFIXES, Options, export

    source = resolved(checkpoint)
    if checkpoint is None:
        console.note(source.why)
    path = Path(out or f"{Path(source.name).name}{SUFFIXES[to]}")
    if path.suffix != SUFFIXES[to]:
        raise UsageError(f"--out {safe(path)}: the file's name must end with {SUFFIXES[to]}")
    if path.exists() and not force:
        raise UsageError(f"{safe(path)} is there already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{safe(path.parent)}: no such folder")
    pairs = [size(text, "--img-size") or [] for text in img_size.split(",")] if img_size else []
    options = Options(precision, tuple((height, width) for height, width in pairs), pixels, softmax)
    made = export(source, path, to, options)
    if json:
        document = {"schema": "vit.export/1", **asdict(made), "path": str(made.path), "from": source.name, "to": to}
        print(as_json(document))
        return
    numbers = ("batch", "max difference", "same class")
    table = console.table("pixels", *numbers, right=numbers)
    for one in made.parity:
        height, width = one.size
        console.row(table, f"{height}x{width}", one.batch, f"{one.difference:.1e}", f"{one.agreement:.0%}")
    console.stdout().print(table)
    takes = "pixels from 0 to 255" if pixels else "normalised pixels"
    gives = "probabilities" if softmax else "features" if source.why_no_classes else "logits"
    console.note(f"{safe(path)}: {made.bytes / 2**20:.1f} MiB, {precision}, {takes} to {gives}")
    if to == "onnx" and not source.why_no_classes:
        console.note(f"use it: {use_command(str(path), classifies=True)}")
