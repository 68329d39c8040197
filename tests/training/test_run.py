"""Whole runs: planned, trained, scored and reported from Python, and how often that looks at the checkpoint."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.helpers.checkpoints import TINY, write_tiny
from tests.training.test_training import write_stripes
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import read_weights, weights_digest
from vitcli.cli.app import app
from vitcli.errors import UsageError
from vitcli.training.build import build_task
from vitcli.training.events import Evaluated, Event, HeadFitted
from vitcli.training.run import finetune, resume, train

SMALL = replace(TINY, img_size=(28, 28), patch_size=(14, 14), embed_dim=24, num_heads=3, num_classes=5)
QUICK = {"batch_size": 16, "micro_batch": 8, "mixup": 0.0, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 28×28 in three classes."""
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder, np.arange(60) % 3, 28)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny", SMALL)


@contextmanager
def calls(base: Path, *functions: Any) -> Iterator[Counter[str]]:
    """Counts the calls of `functions` that are about the checkpoint `base`, by whatever name they were imported."""
    names = {function.__code__: function.__name__ for function in functions}
    counted: Counter[str] = Counter()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in names:
            first = frame.f_locals[frame.f_code.co_varnames[0]]
            if str(getattr(first, "name", first)) == str(base) or names[frame.f_code] == "build_task":
                counted[names[frame.f_code]] += 1

    sys.setprofile(look)
    try:
        yield counted
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("tune", ["auto", "head", "all", "lora"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_fine_tuning_looks_at_its_checkpoint_once(
    base: Path, data: Path, tmp_path: Path, tune: str, dry: bool
) -> None:
    """It is resolved, hashed, read and built once, from the plan to the last step."""
    line = ["finetune", "--data", data, "-m", base, "--tune", tune, "--out", tmp_path / "run", "--score", "none"]
    line += [] if tune == "head" else ["--epochs", 1, "--batch-size", 16]
    with calls(base, resolve, weights_digest, read_weights, load_model, build_task) as counted:
        result = CliRunner().invoke(app, [str(part) for part in line])
    assert result.exit_code == 0, result.stderr
    assert counted == dict.fromkeys(("resolve", "weights_digest", "read_weights", "load_model", "build_task"), 1)


def test_resuming_looks_at_its_checkpoint_once(base: Path, data: Path, tmp_path: Path) -> None:
    finetune(data, model=str(base), tune="all", epochs=1, out=tmp_path / "run", score="none", **QUICK)
    with calls(base, resolve, weights_digest, read_weights, build_task) as counted:
        line = ["finetune", "--resume", tmp_path / "run", "--epochs", 2, "--score", "none"]
        result = CliRunner().invoke(app, [str(part) for part in line])
    assert result.exit_code == 0, result.stderr
    assert counted == dict.fromkeys(("resolve", "weights_digest", "read_weights", "build_task"), 1)


def test_fine_tuning_from_python(base: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The head first, then all of it; scored, with a report, and without a word on the terminal."""
    events: list[Event] = []
    run = finetune(data, model=str(base), epochs=2, out=tmp_path / "run", on_event=events.append, **QUICK)
    assert any(isinstance(event, HeadFitted) for event in events)
    assert run.outcome is not None
    assert run.outcome.split == "val"
    assert run.outcome.evaluation.measures.n == run.evaluations[-1]["validation"]["n"] == 6
    assert run.outcome.report.exists()
    assert resolve(str(run.best)).labels == resolve(str(tmp_path / "run" / "last")).labels
    assert capfd.readouterr() == ("", "")


def test_training_and_going_on_from_python(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(data, epochs=1, lr=1e-4, embed_dim=24, num_heads=3, depth=1, img_size=28, patch_size=(14, 14), **QUICK)
    assert run.folder == Path("runs") / f"{data.name}-1"
    assert run.outcome is not None
    assert resolve(str(run.best)).vit == replace(SMALL, depth=1, num_classes=3)
    events: list[Event] = []
    longer = resume(run.folder, epochs=2, score="none", workers=0, device="cpu", on_event=events.append)
    assert [event.epoch for event in events if isinstance(event, Evaluated)] == [2]
    assert longer.outcome is None
    assert len(longer.evaluations) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rank": 4}, "belongs to --tune lora"),
        ({"posemb_kernel": "hf"}, "without one it would change nothing"),
        ({"learning_rate": 1.0}, "no recipe setting 'learning_rate'"),
        ({"score": "test"}, "has no such split"),
        ({"time_budget": "soon"}, "is no time span"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    base: Path, data: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        finetune(data, model=str(base), out=tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []
