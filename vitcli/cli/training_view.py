"""A training run on the terminal: the plan, a live line of progress, one line an epoch, the result.

Everything goes to standard error but the result: the best checkpoint's folder, or one JSON document.
"""

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vitcli.data.samples import DataSet
from vitcli.text import safe
from vitcli.training.events import Evaluated, Event
from vitcli.training.start import parameters
from vitcli.training.task import Task


class TrainingView:
    """Use as a context manager around the run; `show` each event."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self.json, self.quiet = json, quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]:>6.2f}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} img/s"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.bar: TaskID | None = None
        self.rate = 0.0
        self.best: Evaluated | None = None
        self.last: Evaluated | None = None

    def plan(self, task: Task, folder: Path, *, resumed: bool) -> None:
        """What was found and what will be done, before it starts."""
        recipe, data = task.recipe, task.data
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        rows = [
            ("model", f"{task.architecture}, {_size(task)}, {parameters(task.model) / 1e6:.2f}M parameters"),
            ("data", f"{data.root}: {_splits(data)}"),
            ("classes", _classes(data)),
            ("recipe", f"{recipe.epochs:g} epochs, batch {recipe.batch_size}, {recipe.optimizer} lr {recipe.lr:g}"),
            ("run", f"{folder}{' (resumed)' if resumed else ''}"),
            *(("note", note) for note in data.notes),
        ]
        for name, value in rows:
            table.add_row(Text(name, style="dim"), Text(safe(value)))
        self.console.print(table)

    def __enter__(self) -> "TrainingView":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            self._epoch(event)
            return
        # A moving average: single steps jump with whatever else the machine does.
        self.rate = event.images_per_second if not self.rate else 0.95 * self.rate + 0.05 * event.images_per_second
        if self.bar is None:
            self.bar = self.progress.add_task("", total=event.total, epoch=0.0, loss=0.0, rate=0.0)
        self.progress.update(self.bar, completed=event.step, epoch=event.epoch, loss=event.loss, rate=self.rate)

    def _epoch(self, event: Evaluated) -> None:
        self.last = event
        if event.is_best:
            self.best = event
        validation = event.validation
        line = Text(
            f"epoch {event.epoch:6.2f}  train loss {event.train_loss:.4f}  val loss {validation.loss:.4f}"
            f"  val accuracy {validation.accuracy:.4f}  {self.rate:.0f} img/s"
        )
        self.console.print(line.append(" *", style="green") if event.is_best else line)

    def finish(self, folder: Path) -> None:
        """The result on standard output, and what to type next on standard error."""
        if self.quiet:
            return
        best = folder / "best"
        if self.json:
            result: dict[str, Any] = {"schema": "vit.train/1", "run": str(folder), "checkpoint": str(best)}
            result |= {"best": self.best and asdict(self.best), "last": self.last and asdict(self.last)}
            print(json_format.dumps(result, allow_nan=False))
        else:
            print(best)
        sys.stdout.flush()
        self.console.print(Text(f"use it: vit predict -m {best} IMAGE…", style="dim"))


def _size(task: Task) -> str:
    height, width = task.preprocess.size
    size = f"{height}x{width} pixels"
    if task.vit is None:
        return size
    return f"{size}, {task.vit.grid[0]}x{task.vit.grid[1]} patches of {task.vit.stride[0]}x{task.vit.stride[1]}"


def _splits(data: DataSet) -> str:
    test = f", {len(data.test)} test" if data.test is not None else ""
    return f"{len(data.train)} train, {len(data.val)} validation{test} images"


def _classes(data: DataSet) -> str:
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    shown = ", ".join(data.classes[:10]) + (", …" if len(data.classes) > 10 else "")
    return f"{len(data.classes)} ({counts.min()} to {counts.max()} training images each): {shown}"
