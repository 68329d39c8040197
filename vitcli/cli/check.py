"""`vit check`: a data set before hours are spent on it."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from vitcli.cli import console
from vitcli.cli.options import FoldersOpt, JsonOpt
from vitcli.errors import EXIT_SOME_FAILED

DataArg = Annotated[str, typer.Argument(help="Class folders, a manifest, or a folder of MNIST-style IDX files.")]
NearOpt = Annotated[
    bool,
    typer.Option(
        "--near/--no-near",
        help="Look for nearly equal pictures, too, by their pixels; crops and recolourings: vit similar --duplicates.",
    ),
]


def check(data: DataArg, near: NearOpt = True, folders: FoldersOpt = None, json: JsonOpt = False) -> None:
    """Look through a data set: counts, damaged files, duplicates, leaks between splits, images that surprise.

    Exit code 3 when something would spoil a measurement.
    """
    from vitcli.cli.views.dataset import show
    from vitcli.data.check import check as look

    with console.progress() as bar:
        report = look(data, near=near, folders=folders, progress=bar)
    if json:
        content = {"schema": "vit.check/1", **asdict(report), "root": str(report.root), "spoiled": report.spoiled}
        console.document(content)
    else:
        show(report)
    sys.stdout.flush()
    if report.spoiled:
        console.note("something here would spoil a measurement")
        raise typer.Exit(EXIT_SOME_FAILED)
