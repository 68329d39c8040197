"""Whole runs: planned, trained, scored and reported from Python, and how often that looks at the checkpoint."""

import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.helpers.checkpoints import TINY, write_tiny
from tests.helpers.data import write_stripes
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import read_weights, weights_digest
from vitcli.cli.app import app
from vitcli.errors import UsageError
from vitcli.training.build import build_task
from vitcli.training.events import Evaluated, Event, HeadFitted
from vitcli.training.run import finetune, resume, train

SMALL = replace(TINY, img_size=(28, 28), patch_size=(14, 14), embed_dim=24, num_heads=3, num_classes=5)
QUICK: dict[str, Any] = {"batch_size": 16, "micro_batch": 8, "mixup": 0.0, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 28×28 in three classes."""
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder, np.arange(60) % 3, 28)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny", SMALL)


@pytest.fixture
def counted(base: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the checkpoint `base` is resolved, hashed, read and built, and a task with it."""
    found: Counter[str] = Counter()

    def counting(function: Any) -> Any:
        def call(subject: Any, *arguments: Any, **options: Any) -> Any:
            if function is build_task or str(getattr(subject, "name", subject)) == str(base):
                found[function.__name__] += 1
            return function(subject, *arguments, **options)

        return call

    import_module("vitcli.cli.run")  # imported later it would keep what counts
    modules = [module for name, module in sys.modules.items() if name.startswith("vitcli.")]
    for function in (resolve, weights_digest, read_weights, load_model, build_task):
        counter = counting(function)
        for module, name in [(one, name) for one in modules for name, value in vars(one).items() if value is function]:
            monkeypatch.setattr(module, name, counter)
    return found


ONCE = dict.fromkeys(("resolve", "weights_digest", "read_weights", "load_model", "build_task"), 1)


@pytest.mark.parametrize("tune", ["auto", "head", "all", "lora"])
def test_a_fine_tuning_looks_at_its_checkpoint_once(
    counted: Counter[str], base: Path, data: Path, tmp_path: Path, tune: str
) -> None:
    """It is resolved, hashed, read and built once, from the plan to the last step."""
    line = ["finetune", "--data", data, "-m", base, "--tune", tune, "--out", tmp_path / "run", "--score", "none"]
    line += [] if tune == "head" else ["--epochs", 1, "--batch-size", 16]
    result = CliRunner().invoke(app, [str(part) for part in line])
    assert result.exit_code == 0, result.stderr
    assert counted == ONCE


def test_resuming_looks_at_its_checkpoint_once(counted: Counter[str], base: Path, data: Path, tmp_path: Path) -> None:
    finetune(data, model=str(base), tune="all", epochs=1, out=tmp_path / "run", score="none", **QUICK)
    counted.clear()
    line = ["finetune", "--resume", tmp_path / "run", "--epochs", 2, "--score", "none"]
    result = CliRunner().invoke(app, [str(part) for part in line])
    assert result.exit_code == 0, result.stderr
    assert counted == ONCE


def test_fine_tuning_from_python(base: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The head first, then all of it; scored, with a report, and without a word on the terminal."""
    events: list[Event] = []
    run = finetune(data, model=str(base), epochs=2, out=tmp_path / "run", on_event=events.append, **QUICK)
    assert any(isinstance(event, HeadFitted) for event in events)
    assert run.outcome is not None
    assert run.outcome.split == "val"
    assert run.outcome.evaluation.measures.n == run.evaluations[-1]["validation"]["n"]
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
