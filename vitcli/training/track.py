"""`--track`: what metrics.jsonl holds, told to TensorBoard, MLflow, Weights & Biases or Trackio while it happens.

metrics.jsonl stays the truth. A tracker that fails is told once, and the run goes on without it; none asks a question,
and none sends anything anywhere unless its own settings (environment, login) say so. Which trackers a run has, and by
what name they know it, is in tracking.json of its folder, for when it is gone on with.
"""

import importlib.util
import json
import netrc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import read_config, write_file
from vitcli.text import did_you_mean, safe
from vitcli.training.events import Evaluated, Event, Lost, Stepped

FILE = "tracking.json"
PROJECT = "vit"  # unless the tracker's own variable names another
Scalars = Mapping[str, float]


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a run as it begins, or is gone on with."""

    folder: Path
    settings: Mapping[str, Any]  # as in run.json, `recipe.lr` for what is inside
    step: int  # of the first event
    known: str | None  # by which name the tracker knows the run already


class Tracker(Protocol):
    """One open run of a tracker."""

    name: str  # by which the tracker finds the run again

    def scalars(self, step: int, values: Scalars) -> None:
        """Numbers of a step."""

    def end(self, facts: Scalars, files: Mapping[str, Path], done: bool) -> None:
        """The last words: results, and where report and checkpoints lie. `done`: not merely stopped."""


class _TensorBoard:
    """Event files in `tensorboard/` of the run folder. Steps that are done again replace those of before."""

    name = "tensorboard"

    def __init__(self, told: Told) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = told.step if told.known else None
        self._writer: Any = SummaryWriter(str(told.folder / "tensorboard"), purge_step=purge)
        rows = "\n".join(f"| {name} | {value} |" for name, value in told.settings.items())
        self._writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
        self._last = told.step

    def scalars(self, step: int, values: Scalars) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._last = step

    def end(self, facts: Scalars, files: Mapping[str, Path], done: bool) -> None:
        self.scalars(self._last, facts)
        self._writer.add_text("files", "\n\n".join(f"{name}: `{path}`" for name, path in files.items()))
        self._writer.close()


class _MLflow:
    """A run in the store that MLFLOW_TRACKING_URI names; else in MLflow's own place here."""

    def __init__(self, told: Told) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        if not told.known and not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=told.known, run_name=None if told.known else told.folder.resolve().name)
        self.name = run.info.run_id
        if not told.known:
            mlflow.log_params({name: str(value)[:500] for name, value in told.settings.items()})

    def scalars(self, step: int, values: Scalars) -> None:
        self._mlflow.log_metrics({name.replace("/", "."): value for name, value in values.items()}, step=step)

    def end(self, facts: Scalars, files: Mapping[str, Path], done: bool) -> None:
        if facts:
            self._mlflow.log_metrics({name.replace("/", "."): value for name, value in facts.items()})
        self._mlflow.set_tags({name: str(path) for name, path in files.items()})
        if "report" in files:
            self._mlflow.log_artifact(str(files["report"]))
        self._mlflow.end_run("FINISHED" if done else "KILLED")


class _WandB:
    """A run of Weights & Biases; without a login, or with WANDB_MODE=offline, in `wandb/` of the run folder."""

    def __init__(self, told: Told) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=told.folder.resolve().name, dir=str(told.folder),
            id=told.known, resume="allow", config=dict(told.settings),
            mode=None if "WANDB_MODE" in os.environ or _logged_in() else "offline",
        )  # fmt: skip
        self.name = self._run.id
        self._run.define_metric("*", step_metric="step")  # its own count knows no step that is done again

    def scalars(self, step: int, values: Scalars) -> None:
        self._run.log({"step": step, **values})

    def end(self, facts: Scalars, files: Mapping[str, Path], done: bool) -> None:
        self._run.summary.update(dict(facts))
        if "best" in files:
            artifact = self._wandb.Artifact(f"{self.name}-best", "model")
            artifact.add_reference(files["best"].as_uri(), checksum=False)
            self._run.log_artifact(artifact)
        self._run.summary.update({name: str(path) for name, path in files.items()})
        self._run.finish(exit_code=0 if done else 1)


class _Trackio:
    """A run in Trackio's place on this machine, or where its own variables say."""

    def __init__(self, told: Told) -> None:
        import trackio

        self._trackio: Any = trackio
        self.name = told.known or told.folder.resolve().name
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=self.name, config=dict(told.settings),
            resume="allow" if told.known else "never", embed=False,
        )  # fmt: skip

    def scalars(self, step: int, values: Scalars) -> None:
        self._trackio.log(dict(values), step=step)

    def end(self, facts: Scalars, files: Mapping[str, Path], done: bool) -> None:
        self._trackio.log({**facts, **{name: str(path) for name, path in files.items()}})
        self._trackio.finish()


@dataclass(frozen=True)
class _Kind:
    title: str
    package: str
    open: Callable[[Told], Tracker]


KINDS = {
    "tensorboard": _Kind("TensorBoard", "tensorboard", _TensorBoard),
    "mlflow": _Kind("MLflow", "mlflow", _MLflow),
    "wandb": _Kind("Weights & Biases", "wandb", _WandB),
    "trackio": _Kind("Trackio", "trackio", _Trackio),
}


def require_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a name that is none of `KINDS`, VitError for one that is not installed."""
    for name in names:
        if name not in KINDS:
            raise UsageError(f"--track {safe(name)}: write {', '.join(KINDS)}.{did_you_mean(name, KINDS)}")
        if importlib.util.find_spec(KINDS[name].package) is None:
            raise VitError(f"--track {name}: {KINDS[name].title} is not installed: pip install 'vitcli[{name}]'")


class Trackers:
    """All trackers of a run, each opened at its first event. A context, which ends them however the run ends."""

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        """Those of `names`, and those that the run in `folder` had before. Raises as `require_trackers` for `names`."""
        require_trackers(names)
        self._folder, self._settings = folder, flat(settings)
        self._known = _known(folder)
        self._waiting = list(dict.fromkeys([*self._known, *names]))
        self._open: dict[str, Tracker] = {}

    def tell(self, event: Event) -> Iterator[Lost]:
        """Pass `event` on where it has numbers; what went wrong, a line for each tracker that is given up."""
        values = scalars_of(event)
        if not values or not isinstance(event, Stepped | Evaluated):
            return
        while self._waiting:
            name = self._waiting.pop(0)
            told = Told(self._folder, self._settings, event.step, self._known.get(name))
            yield from self._tried(name, partial(self._begin, name, told))
        for name, tracker in list(self._open.items()):
            yield from self._tried(name, partial(tracker.scalars, event.step, values))

    def end(self, facts: Scalars, done: bool = True) -> Iterator[Lost]:
        """Tell results and where things lie, and close all."""
        places = {"report": "report.html", "best": "best", "last": "last", "metrics": "metrics.jsonl"}
        folder = self._folder.resolve()
        files = {name: folder / place for name, place in places.items() if (folder / place).exists()}
        for name, tracker in list(self._open.items()):
            yield from self._tried(name, partial(tracker.end, facts, files, done))
        self._open.clear()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self.end({}, done=False):
            pass

    def _begin(self, name: str, told: Told) -> None:
        self._open[name] = tracker = KINDS[name].open(told)
        self._known[name] = tracker.name
        write_file(self._folder / FILE, [json.dumps(self._known, indent=1).encode()])

    def _tried(self, name: str, work: Callable[[], object]) -> Iterator[Lost]:
        try:
            with _quiet():
                work()
        except Exception as error:  # whatever it is, it is not the run's
            self._open.pop(name, None)
            said = safe(f"{type(error).__name__}: {error}".splitlines()[0], 200)
            yield Lost(f"{KINDS[name].title} failed ({said}): the run goes on without it, metrics.jsonl has everything")


def scalars_of(event: Event) -> dict[str, float]:
    """The numbers of `event` by the names that trackers know them by; none where it has none."""
    if isinstance(event, Stepped):
        return {
            "train/loss": event.loss,
            "train/lr": event.lr,
            "train/images_per_second": event.images_per_second,
            "epoch": event.epoch,
        }
    if isinstance(event, Evaluated):
        found = {"train/mean_loss": event.train_loss} if event.step else {}
        validation = event.validation
        if validation.n:
            found |= {"val/loss": validation.loss, "val/accuracy": validation.accuracy}
        if validation.mean_average_precision is not None:
            found["val/mean_average_precision"] = validation.mean_average_precision
        return found
    return {}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`settings` without anything inside anything: `{"recipe": {"lr": 1}}` is `{"recipe.lr": 1}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _known(folder: Path) -> dict[str, str]:
    """What tracking.json of a run says; nothing where there is none, or it is damaged."""
    try:
        found = read_config(folder / FILE) if (folder / FILE).exists() else {}
    except CheckpointError:
        return {}
    return {name: value for name, value in found.items() if name in KINDS and isinstance(value, str)}


def _logged_in() -> bool:
    """Whether Weights & Biases would find a key: without one it would ask for it."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].partition("/")[0]
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(host):
            return True
    return bool(os.environ.get("WANDB_API_KEY"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is the command's: what a tracker prints there is dropped."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
