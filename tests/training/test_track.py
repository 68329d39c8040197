"""Trackers hear what metrics.jsonl holds, and whatever they do the run ends as without them."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.terminal import invoke
from vitcli.errors import UsageError, VitError
from vitcli.training import track
from vitcli.training.events import Event, Lost
from vitcli.training.log import read_metrics
from vitcli.training.run import finetune, resume

QUICK: dict[str, Any] = {"batch_size": 16, "micro_batch": 8, "mixup": 0.0, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    write_stripes(folder / "data", np.arange(60) % 3, 28)
    write_tiny(folder / "base", SMALL)
    return folder


class Ear:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, told: track.Told, fails: str = "") -> None:
        self.told, self.fails, self.heard, self.ended = told, fails, [], None
        self.name = told.known or "ear-1"
        print("noise that no reader of standard output wants")
        if fails == "begin":
            raise RuntimeError("no such server\x1b[2J\nand more")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.fails == "scalars":
            raise OSError("disk full")
        self.heard.append((step, dict(values)))

    def end(self, facts: Mapping[str, float], files: Mapping[str, Path], done: bool) -> None:
        if self.fails == "end":
            raise TimeoutError
        self.ended = dict(facts), dict(files), done


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> list[Ear]:
    found: list[Ear] = []

    def opened(told: track.Told, fails: str = "") -> Ear:
        found.append(Ear(told, fails))
        return found[-1]

    kinds = {name: (lambda told, name=name: opened(told, name)) for name in ("begin", "scalars", "end")}
    kinds["ear"] = opened
    monkeypatch.setattr(track, "KINDS", {name: track._Kind(name.title(), "json", one) for name, one in kinds.items()})
    return found


def test_a_tracker_hears_every_line_and_the_result(place: Path, ears: list[Ear], tmp_path: Path) -> None:
    run = finetune(place / "data", model=str(place / "base"), tune="all", epochs=2, out=tmp_path / "run",
                   track=["ear"], **QUICK)  # fmt: skip
    (ear,) = ears
    lines = read_metrics(run.folder)[0]
    steps = [line for line in lines if line["event"] == "stepped"]
    heard = [values for step, values in ear.heard if "train/loss" in values]
    assert [values["train/loss"] for values in heard] == [line["loss"] for line in steps]
    validated = [values["val/accuracy"] for _, values in ear.heard if "val/accuracy" in values]
    assert validated == [line["validation"]["accuracy"] for line in lines if line["event"] == "evaluated"]
    assert (ear.told.settings["recipe.epochs"], ear.told.known) == (2, None)
    assert run.outcome is not None
    facts, files, done = ear.ended
    assert facts == {f"{run.outcome.split}/accuracy": run.outcome.evaluation.measures.top1}
    assert files["report"] == run.outcome.report.resolve()
    assert files["best"].is_dir()
    assert done


def test_a_run_that_goes_on_is_the_same_one_to_its_tracker(place: Path, ears: list[Ear], tmp_path: Path) -> None:
    run = finetune(place / "data", model=str(place / "base"), tune="all", epochs=1, out=tmp_path / "run",
                   track=["ear"], **QUICK)  # fmt: skip
    last = ears[0].heard[-1][0]
    resume(run.folder, epochs=2, workers=0, device="cpu")
    assert ears[1].told.known == "ear-1"
    assert ears[1].heard[0][0] == ears[1].told.step == last + 1


@pytest.mark.parametrize("fault", ["begin", "scalars", "end"])
def test_one_that_fails_is_told_once_and_stops_nothing(
    place: Path, ears: list[Ear], tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Event] = []
    run = finetune(place / "data", model=str(place / "base"), tune="all", epochs=2, out=tmp_path / "run",
                   track=[fault, "ear"], on_event=told.append, **QUICK)  # fmt: skip
    (lost,) = [event.what for event in told if isinstance(event, Lost)]
    assert lost.startswith(f"{fault.title()} failed (")
    assert "\x1b" not in lost
    assert "\n" not in lost
    assert run.outcome is not None
    assert ears[-1].ended is not None
    assert ears[-1].ended[2]
    assert "noise" not in capsys.readouterr().out


def test_one_that_is_stopped_is_ended_as_stopped(place: Path, ears: list[Ear], tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if ears and len(ears[0].heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(place / "data", model=str(place / "base"), tune="all", epochs=2, out=tmp_path / "run",
                 track=["ear"], on_event=stop, **QUICK)  # fmt: skip
    assert ears[0].ended is not None
    assert not ears[0].ended[2]


def test_names_and_packages_are_looked_at_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        track.require_trackers(["wandbb"])
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VitError, match=r"pip install 'vitcli\[mlflow\]'"):
        track.require_trackers(["mlflow"])
    result = invoke("finetune", "--data", place / "data", "--track", "tensorbord", "--dry-run")
    assert result.exit_code == 2
    assert "Did you mean 'tensorboard'" in result.stderr


@pytest.mark.parametrize("text", ["[", "[]", '{"ear": 3, "x": "y"}', "\x00"])
def test_a_damaged_list_of_trackers_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "tracking.json").write_text(text)
    assert track._known(tmp_path) == {}


def tracked(place: Path, out: Path, name: str) -> Any:
    run = finetune(place / "data", model=str(place / "base"), tune="all", epochs=1, out=out, track=[name], **QUICK)
    return resume(run.folder, epochs=2, workers=0, device="cpu")


def test_tensorboard(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked(place, tmp_path / "run", "tensorboard")
    found = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    steps = [line for line in read_metrics(run.folder)[0] if line["event"] == "stepped"]
    written = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert written == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in steps]
    assert found.Scalars("val/accuracy")


def test_mlflow(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    run = tracked(place, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "vit"]
    (found,) = client.search_runs([experiment.experiment_id])
    losses = {one.step: one.value for one in client.get_metric_history(found.info.run_id, "train.loss")}
    assert losses == {line["step"]: line["loss"] for line in read_metrics(run.folder)[0] if line["event"] == "stepped"}
    assert found.data.params["recipe.epochs"]
    assert found.info.status == "FINISHED"
    assert found.data.tags["best"] == str(run.best.resolve())


def test_wandb_without_a_login_stays_here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = tracked(place, tmp_path / "run", "wandb")
    known = json.loads((run.folder / "tracking.json").read_text())["wandb"]
    assert len(list((run.folder / "wandb").glob(f"offline-run-*-{known}"))) == 2  # before and after


def test_trackio(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run = tracked(place, tmp_path / "run", "trackio")
    (base,) = (tmp_path / "trackio").glob("vit*.db")
    with sqlite3.connect(base) as opened:
        rows = [json.loads(metrics) for (metrics,) in opened.execute("select metrics from metrics order by id")]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [line["loss"] for line in read_metrics(run.folder)[0] if line["event"] == "stepped"]
