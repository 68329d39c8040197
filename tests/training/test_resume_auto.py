"""`--resume auto`: one command that begins a run, goes on with it, and ends at once when it is done."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_class_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.runs import state_digest, without_rates
from tests.helpers.terminal import invoke
from vitcli.training import train as training
from vitcli.training.events import Stepped
from vitcli.training.fit import fit

SIZES = {"img_size": [28, 28], "patch_size": [14, 14], "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_stripes(tmp_path_factory.mktemp("data"), {"left": 0, "right": 3}, each=20)


@pytest.fixture
def asked(data: Path, request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The command without --out: `train`, or `finetune` of all, or as the cost decides."""
    words = ["--data", str(data), "--device", "cpu", "--score", "none", "--workers", "0", "--resume", "auto"]
    if request.param == "train":
        return ["train", *words, "--epochs", "2", "--batch-size", "8", *(f"--set={k}={v}" for k, v in SIZES.items())]
    base = write_tiny(tmp_path / "base", SMALL)
    tune = [] if request.param == "finetune" else ["--tune", request.param]
    return ["finetune", *words, "-m", str(base), *tune, "--epochs", "2", "--batch-size", "8"]


def stopped_at(step: int) -> Any:
    """`fit`, which a scheduler asks to stop after `step`."""

    def run(*arguments: Any, **options: Any) -> Iterator[Any]:
        for event in fit(*arguments, **options):
            if isinstance(event, Stepped) and event.step == step:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield event

    return run


@pytest.mark.parametrize("asked", ["train"], indirect=True)
def test_the_same_command_until_it_is_done(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is put back into the queue twice: the bits of one that was left alone."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert invoke(*asked, "--out", whole).exit_code == 0
    for step in (2, 5):
        with monkeypatch.context() as patch:
            patch.setattr(training, "fit", stopped_at(step))
            result = invoke(*asked, "--out", cut)
        assert result.exit_code == 75
        assert f"stopped at step {step}" in result.stderr
    assert invoke(*asked, "--out", cut).exit_code == 0
    assert state_digest(cut) == state_digest(whole)
    assert without_rates(cut) == without_rates(whole)
    lines = (cut / "metrics.jsonl").read_bytes()
    assert invoke(*asked, "--out", cut).exit_code == 0  # once more: nothing is left to do
    assert (cut / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("asked", ["finetune"], indirect=True)
def test_what_was_chosen_is_gone_on_with(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cost, measured anew, would choose now."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", stopped_at(2))
        invoke(*asked, "--out", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    assert invoke(*asked, "--out", tmp_path / "run").exit_code == 0
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    assert after["start"]["tune"] == before["start"]["tune"]


@pytest.mark.parametrize("asked", ["train"], indirect=True)
def test_a_run_of_other_settings_is_refused(asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(*asked, "--out", run).exit_code == 0
    for more, said in ((["--lr", "0.5"], "lr"), (["--set", "depth=3"], "model_args"), (["--seed", "7"], "seed")):
        result = invoke(*asked, "--out", run, *more)
        assert result.exit_code == 2
        assert f"holds a run with another {said}" in result.stderr
        assert f"--resume {run}" in result.stderr
    assert invoke("train", "--resume", run, "--epochs", "3", "--score", "none").exit_code == 0
    assert invoke(*asked, "--out", run).exit_code == 0  # made longer since: it is done, and that too


@pytest.mark.parametrize("asked", ["train"], indirect=True)
def test_it_has_to_know_where(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*asked)
    assert result.exit_code == 2
    assert "--resume auto goes on with the run in --out, which is missing" in result.stderr
