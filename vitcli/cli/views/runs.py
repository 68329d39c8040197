"""Runs of a folder for people (a table, and how to go on) and for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vitcli.cli.console import note, row, stdout, table
from vitcli.text import as_json, safe
from vitcli.training.runs import Listed


def show_runs(folder: Path, found: Sequence[Listed], *, json: bool) -> None:
    """`found`, the runs below `folder`, on standard output."""
    if json:
        rows = [{**asdict(run), "folder": str(run.folder)} for run in found]
        print(as_json({"schema": "vit.runs/1", "folder": str(folder), "runs": rows}))
        return
    if not found:
        note(f"no runs in {safe(folder)}")
        return
    grid = table("run", "state", "epoch", "accuracy", "95 %", "data", "model", right=("epoch", "accuracy"))
    for run in found:
        low_high = f"{run.interval.low:.4f} to {run.interval.high:.4f}" if run.interval else ""
        accuracy = "" if run.accuracy is None else f"{run.accuracy:.4f}"
        done = f"{run.epoch:.4g}/{run.epochs:.4g}" if run.epochs else ""
        row(grid, str(run.folder), run.state, done, accuracy, low_high, run.data, run.model)
    stdout().print(grid)
    for run in found:
        if run.error:
            note(f"damaged: {run.error}")
        elif run.go_on:
            note(f"to go on: {run.go_on}")
