"""`vit export`: a checkpoint for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from vitcli.cli.options import ImgSizeOpt, JsonOpt
from vitcli.errors import UsageError
from vitcli.text import safe

CheckpointArg = Annotated[
    str | None,
    typer.Argument(help="A bundled name, a timm or Hub name, a folder, a file; the default model if left out."),
]
ToOpt = Annotated[Literal["onnx"], typer.Option("--to", help="The format.")]
FileOpt = Annotated[str | None, typer.Option("--out", "-o", help="File to write; NAME.onnx here by default.")]
PrecisionOpt = Annotated[
    Literal["fp32", "fp16", "int8"],
    typer.Option("--precision", help="int8 quantises as it runs; both may change a label."),
]
PixelsOpt = Annotated[
    bool,
    typer.Option(
        "--pixels", help="Take pixels from 0 to 255: the normalisation goes into the file, the resize does not."
    ),
]
SoftmaxOpt = Annotated[bool, typer.Option("--softmax", help="Give probabilities, calibrated ones if the model is.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def export(
    checkpoint: CheckpointArg = None,
    to: ToOpt = "onnx",
    out: FileOpt = None,
    precision: PrecisionOpt = "fp32",
    img_size: ImgSizeOpt = None,
    pixels: PixelsOpt = False,
    softmax: SoftmaxOpt = False,
    force: ForceOpt = False,
    json: JsonOpt = False,
) -> None:
    """Write a checkpoint as one ONNX file, and measure that it gives the model's answers.

    Labels and preprocessing are in its metadata, so `vit predict -m FILE.onnx` works from the file alone.
    """
    from vitcli.checkpoint.resolve import resolve
    from vitcli.cli import console
    from vitcli.cli.settings import size
    from vitcli.inference.export import export_onnx

    source = resolve(checkpoint)
    if checkpoint is None:
        console.note(source.why)
    path = Path(out or f"{Path(source.name).name}.{to}")
    if path.suffix != f".{to}":
        raise UsageError(f"--out {safe(path)}: the file's name must end with .{to}")
    if path.exists() and not force:
        raise UsageError(f"{safe(path)} is there already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{safe(path.parent)}: no such folder")
    pair = size(img_size, "--img-size")
    made = export_onnx(
        source,
        path,
        precision=precision,
        img_size=(pair[0], pair[1]) if pair else None,
        pixels=pixels,
        softmax=softmax,
    )
    if json:
        import json as json_format

        document = {"schema": "vit.export/1", **asdict(made), "path": str(made.path), "from": source.name}
        print(json_format.dumps(document, allow_nan=False))
        return
    table = console.table("batch", "max difference", "same class", right=("batch", "max difference", "same class"))
    for one in made.parity:
        console.row(table, one.batch, f"{one.difference:.1e}", f"{one.agreement:.0%}")
    console.stdout().print(table)
    height, width = made.size
    console.note(
        f"{safe(path)}: {made.bytes / 2**20:.1f} MiB, {made.precision}, {height}x{width} {made.input} to {made.output}"
    )
    console.note(f"use it: vit predict -m {safe(path)} IMAGE…")
