"""What `vit train` and `vit finetune` share: show the plan, run, score the result, leave a report."""

import time
from pathlib import Path

import typer

from vitcli.cli.console import files_read, resolved
from vitcli.cli.views.training import TrainingView
from vitcli.data.samples import DataSet
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.machine import default_device, default_workers, emulated
from vitcli.text import safe
from vitcli.training import train as task
from vitcli.training.budget import seconds
from vitcli.training.build import Settings, build_task, run_name
from vitcli.training.estimate import Estimate, estimate
from vitcli.training.folder import changed_since, next_run_folder, read_config
from vitcli.training.report import Outcome, score_run


class Running:
    """One command's run, fresh (`open`, `begin`) or continued (`resume`)."""

    def __init__(self, *, score: str, device: str | None, workers: int | None, dry_run: bool, json: bool) -> None:
        self.began = time.monotonic() - time.process_time()  # when the process began, or a little after
        self.score, self.device, self.workers, self.dry_run = score, device, workers, dry_run
        self.view = TrainingView(json=json, quiet=not task.leads())

    @property
    def used(self) -> float:
        """Seconds since the process began."""
        return time.monotonic() - self.began

    @property
    def place(self) -> str:
        """The device that was asked for, else what the machine has."""
        return self.device or default_device()

    def open(self, settings: Settings) -> DataSet:
        _fetch(settings)
        with files_read("reading the data") as tell:
            return task.open_settings_data(settings, tell)

    def begin(
        self, settings: Settings, data: DataSet, out: str | None, cost: Estimate | None = None, why: str = ""
    ) -> None:
        """A fresh run in `out`, or in the next free folder; the same run when `torchrun` restarts it."""
        if out is None and not task.alone():
            raise UsageError("under torchrun, name the run folder with --out, so that all processes mean the same")
        if settings.budget and settings.recipe.lrs:
            raise UsageError("a recipe that tries learning rates has no time budget; --lr chooses one")
        self._require_split(settings, data)
        folder = Path(out) if out else next_run_folder(run_name(settings))
        if task.restarted(settings, folder):
            self.resume(str(folder), None)
            return
        planned = build_task(settings, data)
        training = settings.start is None or settings.start.tune != "head"
        cost = cost or estimate(planned, self.place, training=training)
        self.view.plan(planned, settings, folder, cost, why)
        if training and emulated(settings.recipe.amp, self.place):
            self.view.say('this processor has no bfloat16 instructions: --set amp="" is several times as fast')
        if self.dry_run:
            self.view.plan_json(planned, settings, folder, cost)
            return
        if task.leads():
            task.begin(settings, data, folder, device=self.place)
        self._run(settings, data, folder)

    def resume(self, run: str, epochs: float | None, data_place: str | None = None) -> None:
        """The run in the folder `run` from where it stopped; `data_place` is where its data are now, if they moved."""
        folder = Path(run)
        with files_read("reading the data") as tell:
            settings, data = task.resumed(folder, epochs, data_place, tell)
        _fetch(settings)
        self._require_split(settings, data)
        planned = build_task(settings, data)
        self.view.plan(planned, settings, folder, None, "resumed")
        if changed := changed_since(read_config(folder), self.place):
            self.view.say(f"goes on, but not to the same bits: {'; '.join(changed)}")
        if self.dry_run:
            self.view.plan_json(planned, settings, folder, None)
            return
        if task.leads():
            task.extend(settings, folder, self.place)
        self._run(settings, data, folder)

    def _require_split(self, settings: Settings, data: DataSet) -> None:
        """Raises UsageError before the work when the split that was asked for cannot be scored after it."""
        if (self.score == "test" and data.test is None) or (self.score == "val" and not len(data.val)):
            raise UsageError(f"--score {self.score}: {safe(settings.data)} has no such split")

    def _run(self, settings: Settings, data: DataSet, folder: Path) -> None:
        workers = default_workers(data.kind, self.place) if self.workers is None else self.workers
        with self.view:
            for event in task.train(settings, data, folder, device=self.device, workers=workers, began=self.began):
                self.view.show(event)
        if not task.leads():
            return
        outcome: Outcome | None = score_run(folder, task.final_data(settings, data), self.score)
        if outcome is None and self.score != "none":
            self.view.say("all images were trained on, so none are left to score: vit evaluate takes others")
        self.view.finish(folder, outcome)
        if outcome and outcome.evaluation.failed:
            raise typer.Exit(EXIT_SOME_FAILED)


def absolute(path: str | None) -> str | None:
    """`path` from wherever a run may be resumed."""
    return None if path is None else str(Path(path).resolve())


def _fetch(settings: Settings) -> None:
    """Download the models that a run begins with and learns from, where that is seen; building it then finds them."""
    for name in (settings.teacher, settings.start.checkpoint if settings.start else None):
        if name:
            resolved(name)


def seconds_or_none(text: str | None) -> float | None:
    return None if text is None else seconds(text)
