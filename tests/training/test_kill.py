"""SIGKILL at random moments, and a process that dies between any two system calls of a save: nothing is lost.

`import torch` takes seconds, so one child imports it once and forks each attempt; the attempt is killed from outside.
Randomness has no state (training/seeds.py), so weights, their average, the optimiser and the progress are everything.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import finetuning
from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_idx
from tests.helpers.process import environment
from tests.helpers.runs import MODEL, RECIPE, state_digest, without_rates
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.training import train as training
from vitcli.training.settings import Settings

KILLS = 30

# What the child does: import, then for each line on standard input fork an attempt and answer with its pid; the next
# line is read when the attempt has ended. An attempt resumes the run in FOLDER and saves after every step.
CHILD = """
import os, sys
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
import torch
torch.set_num_threads(1)
import timm.data.auto_augment, timm.data.transforms, timm.data.random_erasing, timm.optim, timm.data
import tests.helpers.finetuning, tests.helpers.runs
from vitcli.errors import Stopped
from vitcli.training import train as training
from vitcli.training.fit import fit
from vitcli.training.folder import Run, read_config
from vitcli.training.lock import locked
from vitcli.training.distributed import World
from vitcli.training.build import build_task
from vitcli.training.stop import stop_on_signals
from vitcli.training.head import tune_head
from pathlib import Path

def attempt(folder, workers, fail_at):
    settings, data = training.resumed(folder)
    if fail_at:
        arm(fail_at)
    with locked(folder), stop_on_signals() as stop:
        run = Run(folder, read_config(folder))
        task = build_task(settings, data)
        best = -1.0
        if settings.start and "head" in settings.start.tune:
            steps = tune_head(task, run, World(), stop)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    best = end.value
                    break
        for _ in fit(task, run, World(), stop, workers=workers, save_every=0.0, best=best):
            pass

def arm(fail_at):
    # Die at the n-th of all calls that make a file durable or visible.
    count = 0
    for name in ("fsync", "replace", "rename", "unlink"):
        def dying(*a, real=getattr(os, name), **k):
            nonlocal count
            count += 1
            if count == fail_at:
                os._exit(137)
            return real(*a, **k)
        setattr(os, name, dying)

for line in sys.stdin:
    folder, workers, fail_at = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        os.setpgrp()
        try:
            attempt(Path(folder), int(workers), int(fail_at))
        except Stopped as stopped:
            os._exit(stopped.exit_code)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
os._exit(0)  # taking down all that was imported can take long where others want the cores too
"""


class Forks:
    """The child that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def start(self, folder: Path, workers: int = 0, fail_at: int = 0) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{folder}\t{workers}\t{fail_at}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def forks() -> "object":
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    folder = _begin(tmp_path_factory.mktemp("whole"))
    forks.start(folder)
    assert forks.end() == 0
    return folder


def _begin(place: Path, **changes: float) -> Path:
    """A run of 20 steps or as `changes` to its recipe say, not yet started."""
    data = place / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    write_idx(data, "train", rng.integers(0, 256, (100, 16, 16)), np.arange(100) % 3)
    settings = Settings("vit_tiny_patch16_224", MODEL, str(data), replace(RECIPE, **changes))
    training.begin(settings, training.open_settings_data(settings), place / "run")
    return place / "run"


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it had ended by itself
        os.kill(pid, signal.SIGKILL)


def _lines(folder: Path) -> int:
    """Of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _same(folder: Path, whole: Path) -> None:
    assert state_digest(folder) == state_digest(whole)
    assert without_rates(folder) == without_rates(whole)
    for name in ("best", "last"):
        assert (folder / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()


def test_thirty_kills_at_random_moments(tmp_path: Path, forks: Forks) -> None:
    """Each attempt gets from nothing to the time that some steps take, with 0 to 2 workers; the end is the same."""
    long = {"epochs": 10}  # 50 steps
    whole, rng = _begin(tmp_path / "whole", **long), random.Random(0)
    began = time.monotonic()
    forks.start(whole)
    assert forks.end() == 0
    most = 0.5 * (time.monotonic() - began)  # of what it takes here: a slow machine is hit in all places, too
    folder = _begin(tmp_path / "0", **long)
    kills = of_saved = ended = 0
    while kills < KILLS:
        pid = forks.start(folder, workers=rng.choice((0, 0, 0, 1, 2)))
        time.sleep(rng.uniform(0.0, most))
        _kill(pid)
        if forks.end() == 0:  # a fast machine: done before the signal came
            _same(folder, whole)
            ended += 1
            folder = _begin(tmp_path / str(ended), **long)
            continue
        kills += 1
        of_saved += (folder / "LATEST.json").exists()
    forks.start(folder)
    assert forks.end() == 0
    _same(folder, whole)
    assert of_saved >= 5  # enough of them hit a run that had already saved


@pytest.mark.parametrize("where", range(0, 60, 3))
def test_dying_between_any_two_calls_of_a_save(tmp_path: Path, forks: Forks, whole: Path, where: int) -> None:
    """The n-th fsync, rename or unlink never happens: whatever was visible before it is whole and resumes."""
    folder = _begin(tmp_path)
    forks.start(folder, fail_at=where + 1)
    assert forks.end() == 137
    for name in ("best", "last"):  # a checkpoint that is there can be loaded at every moment
        if (folder / name / "model.safetensors").exists() and (folder / name / "config.json").exists():
            load_model(resolve(str(folder / name)))
    forks.start(folder)
    assert forks.end() == 0
    _same(folder, whole)
    assert not list(folder.glob("**/.*.tmp"))


@pytest.mark.parametrize("twice", [False, True])
def test_signals_to_the_whole_group(tmp_path: Path, forks: Forks, whole: Path, twice: bool) -> None:
    """As a scheduler and Ctrl-C send them: the data workers too get each, wherever the run stands; a second one may end
    it in the middle of a save."""
    folder, rng = _begin(tmp_path), random.Random(3)
    codes = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
    stopped = 0
    for number in [*codes, *codes]:
        pid = forks.start(folder, workers=2)
        lines = _lines(folder)
        deadline = time.monotonic() + 60
        while _lines(folder) <= lines and time.monotonic() < deadline:  # until the handlers are there
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.05))
        for _ in range(1 + twice):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        code = forks.end()
        assert code in (codes[number], 0)  # 0: it was done before the signal came
        stopped += code != 0
        if code == 0:
            break
    assert stopped >= 2
    forks.start(folder)
    assert forks.end() == 0
    _same(folder, whole)


def test_killed_while_fine_tuning(tmp_path: Path, forks: Forks) -> None:
    """Head first, then all of it: killed in either part, the end has the same bits."""
    rng, place = np.random.default_rng(0), tmp_path / "data"
    place.mkdir()
    write_idx(place, "train", rng.integers(0, 256, (90, 28, 28)), np.arange(90) % 3)
    base = write_tiny(tmp_path / "tiny", finetuning.SMALL)
    settings = finetuning.settings_of(base, place, "head+all")
    for name in ("whole", "cut"):
        training.begin(settings, training.open_settings_data(settings), tmp_path / name)
    forks.start(tmp_path / "whole")
    assert forks.end() == 0
    random_moment = random.Random(1)
    for _ in range(8):
        pid = forks.start(tmp_path / "cut")
        time.sleep(random_moment.uniform(0.05, 0.4))
        _kill(pid)
        forks.end()
    forks.start(tmp_path / "cut")
    assert forks.end() == 0
    assert state_digest(tmp_path / "cut") == state_digest(tmp_path / "whole")
