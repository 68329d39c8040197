"""A training run on the terminal: the plan, a live line of progress, one line an epoch, the result.

Everything goes to standard error but the result: the best checkpoint's folder, or one JSON document.
"""

import sys
from dataclasses import asdict
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vitcli.data.samples import DataSet, label_counts
from vitcli.text import as_json, safe
from vitcli.training.build import parameters
from vitcli.training.estimate import Estimate, minutes, trainable_parameters
from vitcli.training.events import (
    Asked,
    Evaluated,
    Event,
    Featured,
    FellBack,
    FoldScored,
    HeadFitted,
    Lost,
    Shrunk,
    Stepped,
    Tried,
    Uncompiled,
)
from vitcli.training.plan import PlannedRun
from vitcli.training.report import predict_command
from vitcli.training.run import FinishedRun
from vitcli.training.settings import Settings
from vitcli.training.task import Task


class TrainingView:
    """Use as a context manager around the run; `show` each event."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self.json, self.quiet = json, quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.rate = 0.0

    def say(self, line: str) -> None:
        self.console.print(Text(safe(line, None), style="dim"))

    def plan(self, planned: PlannedRun) -> None:
        """What was found and what will be done, before it starts."""
        task, settings, cost, why = planned.task, planned.settings, planned.cost, planned.why
        recipe, data, start = task.recipe, task.data, settings.start
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        whole, trained = parameters(task.model), trainable_parameters(task.model)
        rows = [("model", f"{task.architecture}, {_size(task)}, {whole / 1e6:.2f}M parameters")]
        if start:
            rows += [("from", start.checkpoint), *(("", note) for note in task.notes)]
            rows += [("tune", f"{start.tune}: {trained:,} trainable parameters" + (f"; {why}" if why else ""))]
        if settings.teacher:
            rows += [("teacher", f"{settings.teacher}, {recipe.teacher_weight:g} of the loss")]
        rows += [("data", f"{data.root}: {_splits(data)}"), ("classes", _classes(data))]
        if settings.folds and not settings.fold:
            how = "group by group, " if data.train.groups else ""
            rows += [("folds", f"{settings.folds}, {how}each scored by a model trained without it; this one is on all")]
        if not start or start.tune != "head":
            length = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs:g} epochs"
            lr = f"one of {', '.join(f'{lr:g}' for lr in recipe.lrs)}" if recipe.lrs else f"{recipe.lr:g}"
            rows += [("recipe", f"{length}, batch {recipe.batch_size}, {recipe.optimizer} lr {lr}")]
            rows += [("precision", _precision(planned))]
        if cost:
            rows += [("cost", _cost(cost, settings))]
        rows += [("cache", planned.cache)] * bool(planned.cache)
        rows += [("run", f"{planned.folder}{' (resumed)' if planned.goes_on else ''}")]
        rows += [("note", note) for note in data.notes]
        for name, value in rows:
            table.add_row(Text(name, style="dim"), Text(safe(value)))
        self.console.print(table)
        for line in planned.notes:
            self.say(line)

    def plan_json(self, planned: PlannedRun) -> None:
        """The plan on standard output, where --json asked for it and nothing will follow."""
        if not self.json or self.quiet:
            return
        task, settings, data = planned.task, planned.settings, planned.task.data
        images = {"train": len(data.train), "val": len(data.val), "test": len(data.test) if data.test else 0}
        result: dict[str, Any] = {
            "schema": "vit.plan/1",
            "run": str(planned.folder),
            "images": images,
            "classes": data.classes,
        }
        result |= {"settings": settings.as_dict(), "parameters": parameters(task.model)}
        result |= {"trainable_parameters": trainable_parameters(task.model)}
        if planned.cost:
            result |= {"seconds": planned.cost.seconds(settings), "bytes": planned.cost.memory}
        print(as_json(result))

    def __enter__(self) -> "TrainingView":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        match event:
            case Evaluated():
                self._epoch(event)
            case Stepped():
                # A moving average: single steps jump with whatever else the machine does.
                rate = event.images_per_second
                self.rate = rate if not self.rate else 0.95 * self.rate + 0.05 * rate
                state = f"loss {event.loss:.3f}  {self.rate:.0f} img/s"
                self._advance("training", f"epoch {event.epoch:6.2f}", event.step, event.total, state)
            case Featured():
                self._advance("features", "features", event.done, event.total, "")
            case Asked():
                self._advance("teacher", "teacher's answers", event.done, event.total, "")
            case HeadFitted():
                held_out = "" if event.accuracy is None else f", {event.accuracy:.4f} on a slice of train"
                self.console.print(Text(f"head fitted in {event.seconds:.0f} s (L2 {event.penalty:g}{held_out})"))
            case Shrunk():
                self.console.print(
                    Text(f"out of memory: again with {event.micro_batch} images at once, the same batch size", "yellow")
                )
            case FellBack():
                lost = "; ".join(event.skipped)
                self.console.print(Text(f"goes on from step {event.step}, an older state: {safe(lost)}", "yellow"))
            case Uncompiled():
                self.console.print(Text(f"goes on without --compile: {safe(event.why)}", "yellow"))
            case FoldScored():
                images = f"{event.n} images that its model was trained without"
                self.console.print(
                    Text(f"fold {event.fold} of {event.folds}: {event.measure} {event.score:.4f} on {images}")
                )
            case Lost():
                self.console.print(Text(safe(event.what), "yellow"))
            case Tried():
                self.console.print(
                    Text(
                        f"lr {event.lr:g}: now on all of train"
                        if event.chosen
                        else f"lr {event.lr:g}: accuracy {event.accuracy:.4f} on the held-out slice"
                    )
                )

    def _advance(self, name: str, description: str, done: int, total: int, state: str) -> None:
        if name not in self.bars:
            for bar in self.bars.values():
                self.progress.update(bar, visible=False)
            self.bars[name] = self.progress.add_task("", total=total, state="")
        self.progress.update(self.bars[name], completed=done, description=description, state=state)

    def _epoch(self, event: Evaluated) -> None:
        validation = event.validation
        name = f"epoch {event.epoch:6.2f}" if event.step else "head only   "
        score = "accuracy" if validation.mean_average_precision is None else "mAP"
        scores = f"  val loss {validation.loss:.4f}  val {score} {validation.score:.4f}" if validation.n else ""
        rate = f"  {self.rate:.0f} img/s" if event.step else ""
        line = Text(f"{name}  loss {event.train_loss:.4f}{scores}{rate}")
        self.console.print(line.append(" *", style="green") if event.is_best and validation.n else line)

    def finish(self, run: FinishedRun) -> None:
        """The result on standard output, and what to type next on standard error."""
        if self.quiet:
            return
        if run.outcome:
            from vitcli.cli.views.evaluation import show_outcome

            show_outcome(self.console, run.outcome)
        print(as_json(_result(run)) if self.json else run.best)
        sys.stdout.flush()
        self.console.print(Text(f"use it: {predict_command(run.folder)}", style="dim"), soft_wrap=True)


def _result(run: FinishedRun) -> dict[str, Any]:
    """The document of --json."""
    epochs = run.evaluations
    result: dict[str, Any] = {"schema": "vit.train/1", "run": str(run.folder), "checkpoint": str(run.best)}
    result |= {"best": next((one for one in reversed(epochs) if one["is_best"]), None)}
    result |= {"last": epochs[-1] if epochs else None}
    if outcome := run.outcome:
        result |= {"split": outcome.split, "folds": outcome.folds, "measures": asdict(outcome.evaluation.measures)}
        result |= {"failed": len(outcome.evaluation.failed)}
        if outcome.forgotten:
            result |= {"forgotten": asdict(outcome.forgotten)}
        result |= {"report": str(outcome.report)}
    return result


def _size(task: Task) -> str:
    height, width = task.preprocess.size
    size = f"{height}x{width} pixels"
    if task.vit is None:
        return size
    return f"{size}, {task.vit.grid[0]}x{task.vit.grid[1]} patches of {task.vit.stride[0]}x{task.vit.stride[1]}"


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16 with a scaled loss"}


def _precision(planned: PlannedRun) -> str:
    """How the machine computes."""
    recipe = planned.task.recipe
    compiled = ", compiled" if recipe.compile else ""
    return f"{PRECISIONS[recipe.amp]} on {planned.device}, {recipe.micro_batch} images a pass{compiled}"


def _cost(cost: Estimate, settings: Settings) -> str:
    """Memory and time, measured just now."""
    limit = f", of {minutes(settings.budget)} allowed" if settings.budget else ""
    return f"about {minutes(cost.seconds(settings))}{limit} and {cost.memory / 2**20:.0f} MiB"


def _splits(data: DataSet) -> str:
    test = f", {len(data.test)} test" if data.test is not None else ""
    return f"{len(data.train)} train, {len(data.val)} validation{test} images"


def _classes(data: DataSet) -> str:
    counts = label_counts(data.train.labels, len(data.classes))
    shown = ", ".join(data.classes[:10]) + (", …" if len(data.classes) > 10 else "")
    return f"{len(data.classes)} ({counts.min()} to {counts.max()} training images each): {shown}"
