"""What `vit train` and `vit finetune` share: a run is read, planned and carried out, and all of it is shown."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from vitcli.cli.console import files_read, resolved
from vitcli.cli.views.training import TrainingView
from vitcli.errors import EXIT_SOME_FAILED
from vitcli.training.plan import PlannedRun, plan_resumption
from vitcli.training.report import ScoredSplit
from vitcli.training.run import carry_out
from vitcli.training.track import require_trackers
from vitcli.training.train import leads, resumed


@dataclass(frozen=True)
class Terms:
    """How a run is carried out, fresh or resumed: what may be typed beside --resume."""

    score: ScoredSplit
    track: Sequence[str]
    device: str | None
    workers: int | None
    dry_run: bool
    json: bool
    # When the process began, or a little after.
    began: float = field(default_factory=lambda: time.monotonic() - time.process_time())

    def __post_init__(self) -> None:
        require_trackers(self.track)  # before the data are read

    def view(self) -> TrainingView:
        return TrainingView(json=self.json, quiet=not leads())


def resumed_from(run: str, epochs: float | None, data_place: str | None, terms: Terms) -> None:
    """The run in the folder `run` from where it stopped; `data_place` is where its data are now, if they moved."""
    folder = Path(run)
    with files_read("reading the data") as tell:
        settings, data = resumed(folder, epochs, data_place, tell)
    planned = plan_resumption(settings, data, folder, score=terms.score, device=terms.device, resolver=resolved)
    carried_out(planned, terms, terms.view())


def carried_out(planned: PlannedRun, terms: Terms, view: TrainingView) -> None:
    """Show the plan, and unless that is all that was asked for the run and its result."""
    view.plan(planned)
    if terms.dry_run:
        view.plan_json(planned)
        return
    with view:
        run = carry_out(
            planned, score=terms.score, track=terms.track, workers=terms.workers, began=terms.began, on_event=view.show
        )
    if leads() and run.outcome is None and terms.score != "none":
        view.say("all images were trained on, so none are left to score: vit evaluate takes others")
    view.finish(run)
    if run.outcome and run.outcome.evaluation.failed:
        raise typer.Exit(EXIT_SOME_FAILED)
