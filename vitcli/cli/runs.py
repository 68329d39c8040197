"""`vit runs`: the runs of a folder, how good they are, and how to go on with them."""

from pathlib import Path
from typing import Annotated

import typer

from vitcli.cli.options import JsonOpt

FolderArg = Annotated[str, typer.Argument(metavar="folder", help="Where run folders lie, up to three levels deep.")]


def runs(folder: FolderArg = "runs", json: JsonOpt = False) -> None:
    """List training runs: data, model, accuracy, whether they run, and the command that goes on with one that stopped.

    A damaged run folder is a row that says so, and the exit code is then 3.
    """
    from vitcli.cli.views.runs import show_runs
    from vitcli.errors import EXIT_SOME_FAILED
    from vitcli.training.runs import runs_below

    found = list(runs_below(Path(folder)))
    show_runs(Path(folder), found, json=json)
    if any(run.state == "damaged" for run in found):
        raise typer.Exit(EXIT_SOME_FAILED)
