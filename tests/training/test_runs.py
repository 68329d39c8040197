"""`vit runs`: what stands in run folders, whole or not, without torch and without touching them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.process import environment
from tests.helpers.terminal import invoke
from vitcli.errors import VitError
from vitcli.training.events import Event, Stepped
from vitcli.training.lock import locked
from vitcli.training.run import finetune
from vitcli.training.runs import runs_below

QUICK: dict[str, Any] = {"batch_size": 16, "micro_batch": 8, "mixup": 0.0, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs in runs/: one that ended, one that was stopped at its third step, one of a head alone."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    write_stripes(folder / "data", np.arange(60) % 3, 28)
    base = str(write_tiny(folder / "base", SMALL))

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    finetune(folder / "data", model=base, tune="all", epochs=1, out=folder / "runs" / "ended", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        finetune(folder / "data", model=base, tune="all", epochs=9, out=folder / "runs" / "more" / "stopped",
                 on_event=stop, **QUICK)  # fmt: skip
    finetune(folder / "data", model=base, tune="head", out=folder / "runs" / "head", workers=0, device="cpu")
    return folder


def test_each_says_how_it_stands_and_how_good_it_is(place: Path) -> None:
    ended, head, stopped = runs_below(place / "runs")
    assert [run.folder.name for run in (ended, head, stopped)] == ["ended", "head", "stopped"]
    assert [run.state for run in (ended, head, stopped)] == ["ended", "ended", "stopped"]
    assert (ended.data, ended.epoch, ended.epochs, ended.go_on) == ("data", 1, 1, None)
    assert ended.model == str(place / "base")
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    assert ended.accuracy == max(line["validation"]["accuracy"] for line in lines if line["event"] == "evaluated")
    assert ended.interval is not None
    assert ended.interval.low <= ended.accuracy <= ended.interval.high
    assert stopped.go_on == f"vit finetune --resume {stopped.folder}"


def test_one_at_work_is_running(place: Path) -> None:
    with locked(place / "runs" / "more" / "stopped"):
        assert {run.folder.name: run.state for run in runs_below(place / "runs")}["stopped"] == "running"
        code = "import pathlib, sys; from vitcli.training.lock import is_locked as held"
        other = [
            sys.executable,
            "-c",
            f"{code}; print(held(pathlib.Path(sys.argv[1])))",
            str(place / "runs" / "more" / "stopped"),
        ]
        told = subprocess.run(other, capture_output=True, text=True, check=True, env=environment())
    assert told.stdout == "True\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{"),
        ("run.json", '{"data": 3, "recipe": {}}'),
        ("run.json", '{"data": "a", "recipe": {"epochs": "x"}}'),
        ("run.json", "[1]"),
        ("run.json", '{"data": "\\u001b[2Ja", "recipe": {"epochs": 1e400}}'),
    ],
)
def test_a_damaged_one_is_a_row_and_hides_no_other(place: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(text)
    (tmp_path / "b").symlink_to(place / "runs" / "ended")  # links are not followed
    (tmp_path / "c").mkdir()
    for file in ("run.json", "metrics.jsonl"):
        (tmp_path / "c" / file).write_bytes((place / "runs" / "ended" / file).read_bytes())
    result = invoke("runs", tmp_path)
    assert result.exit_code == 3
    assert "damaged" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout
    rows = json.loads(invoke("runs", tmp_path, "--json").stdout)["runs"]
    assert [(Path(row["folder"]).name, row["state"]) for row in rows] == [("a", "damaged"), ("c", "stopped")]


def test_the_table_and_where_there_is_nothing(place: Path, tmp_path: Path) -> None:
    result = invoke("runs", place / "runs")
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if "stopped" in line]
    assert "/9" in row
    assert f"vit finetune --resume {place}/runs/more/stopped" in result.stderr.replace("\n", "")
    assert "no runs" in invoke("runs", tmp_path).stderr
    with pytest.raises(VitError, match="no folder"):
        list(runs_below(tmp_path / "nowhere"))


def test_it_takes_no_torch(place: Path) -> None:
    code = "import sys; from vitcli.cli.app import app; app(standalone_mode=False); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "runs", str(place / "runs"), "--json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert told.stdout.splitlines()[-1] == "False"
