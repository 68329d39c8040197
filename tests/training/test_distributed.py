"""Two processes under `torchrun`: the curve of one, the counts of one, a death that changes no bit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import write_tiny
from tests.helpers.counting import COUNTS, decided, first
from tests.helpers.data import write_idx, write_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.process import environment
from tests.helpers.runs import MODEL, RECIPE, run_to_end, state_digest, without_rates
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import UsageError
from vitcli.training import train as training
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.fit import fit
from vitcli.training.folder import Run, read_config
from vitcli.training.recipe import as_dict
from vitcli.training.settings import Settings
from vitcli.training.stop import StopFlag
from vitcli.training.validation import validate

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

# The command line with a save after every step, and what a test asks for: in the first attempt, process 1 counts the
# validation images and then dies before step 7 is saved; or it cannot read the data.
SCRIPT = """
import json, os, signal, sys
from copy import deepcopy
from pathlib import Path
import torch
from vitcli.cli.app import app
from vitcli.data import sources
from vitcli.errors import DataError
from vitcli.training import train as training
from vitcli.training.validation import validate
from vitcli.training.events import Stepped
from vitcli.training.fit import fit

place, fault = Path(sys.argv.pop(1)), sys.argv.pop(1)
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], int(os.environ["RANK"])

def count(task, world):
    from tests.helpers.counting import COUNTS, decided, first
    found = [validate(decided(task.model), task, first(task.data.val, n), world) for n in COUNTS]
    if rank == 0:
        (place / "counts.json").write_text(json.dumps([[e.n, e.accuracy] for e in found]))

def faulty(task, run, world, stop, **options):
    if attempt == "0":
        count(task, world)
    for event in fit(task, run, world, stop, **options | {"save_every": 0.0}):
        if isinstance(event, Stepped):
            with (place / f"steps-{rank}-{attempt}").open("a") as file:
                print(event.step, file=file)
            if rank == 1 and attempt == "0" and event.step == 7:
                os.kill(os.getpid(), signal.SIGKILL)
        yield event

def unreadable(*_, **__):
    raise DataError("the disk of this machine is not mounted")

training.fit = faulty
if fault == "scan" and rank == 1:
    sources.open_data = unreadable
app()
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_idx(folder, "train", rng.integers(0, 256, (100, 16, 16)), np.arange(100) % 3)
    return Settings("vit_tiny_patch16_224", MODEL, str(folder), RECIPE)


def torchrun(settings: Settings, folder: Path, *program: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    recipe = [f"--set={name}={json.dumps(value)}" for name, value in as_dict(settings.recipe).items()]
    model = [f"--set={name}={value}" for name, value in settings.model_args.items()]
    places = ["--data", settings.data, "--out", str(folder)]
    return subprocess.run(
        [
            *[*TORCHRUN, f"--max-restarts={restarts}", *program, "train", *places, "--model", settings.architecture],
            *[*recipe, *model, "--device", "cpu", "--score", "none"],
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    run_to_end(settings, folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """The run in two processes, undisturbed."""
    folder = tmp_path_factory.mktemp("runs") / "pair"
    result = torchrun(settings, folder, "-m", "vitcli")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(folder / "best")
    return folder


def test_two_processes_follow_the_curve_of_one(alone: Path, pair: Path) -> None:
    """Same losses at every step, though each saw half of every batch.

    Sums of gradients are taken in another order, so the curves drift apart by float noise that Adam's division
    amplifies; 1e-3 of the loss is far below what one wrong sample would change (about 1e-1).
    """
    losses = [np.array([line["loss"] for line in without_rates(run) if "lr" in line]) for run in (pair, alone)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    ends = [[line["validation"] for line in without_rates(run) if "validation" in line] for run in (pair, alone)]
    assert [end["n"] for end in ends[0]] == [end["n"] for end in ends[1]]  # nothing padded, nothing counted twice


def test_a_killed_process_and_torchruns_restart_change_no_bit(settings: Settings, pair: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "run"
    result = torchrun(settings, folder, str(tmp_path / "script.py"), str(tmp_path), "kill", restarts=1)
    assert result.returncode == 0, result.stderr
    steps = [list(map(int, (tmp_path / f"steps-0-{attempt}").read_text().split())) for attempt in (0, 1)]
    begun = steps[1][0]
    assert begun in (7, 8)  # from the state of step 6, or of step 7 where process 0 had saved it before it ended
    assert steps == [[1, 2, 3, 4, 5, 6, 7], list(range(begun, 21))]
    assert "another process of this run ended" in result.stderr
    assert "Traceback" not in result.stderr
    assert state_digest(folder) == state_digest(pair)
    assert without_rates(folder) == without_rates(pair)
    for name in ("best", "last"):
        assert (folder / name / "model.safetensors").read_bytes() == (pair / name / "model.safetensors").read_bytes()

    # and both processes together counted what one counts
    task = build_task(settings, training.open_settings_data(settings))
    expected = [validate(decided(task.model), task, first(task.data.val, n), World()) for n in COUNTS]  # type: ignore[arg-type]
    assert json.loads((tmp_path / "counts.json").read_text()) == [[e.n, e.accuracy] for e in expected]
    assert len({e.accuracy for e in expected}) > 1


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 6, 10])
def test_shares_of_an_evaluation_add_up(settings: Settings, n: int, size: int) -> None:
    """Every image counts once, whatever number of processes it is divided by."""
    parts: list[list[float]] = []

    class Part(World):
        def sum(self, values: list[float]) -> list[float]:
            parts.append(values)
            return values

    task = build_task(settings, training.open_settings_data(settings))
    model, samples = decided(task.model), first(task.data.val, n)
    for rank in range(size):
        validate(model, task, samples, Part(rank, size))  # type: ignore[arg-type]
    whole = validate(model, task, samples, World())  # type: ignore[arg-type]
    counted, correct, loss = np.sum(parts, axis=0)
    assert (counted, correct / n) == (whole.n, whole.accuracy) == (n, whole.accuracy)
    assert loss / n == pytest.approx(whole.loss, rel=1e-6)  # float32 sums in another order


def test_a_failed_run_of_others_is_not_gone_on_with(
    settings: Settings, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torchrun` also restarts a command that was refused because its --out holds another run."""
    config = Settings.from_dict(read_config(pair))
    assert not training.restarted(config, pair)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert training.restarted(config, pair)
    assert not training.restarted(replace(config, recipe=replace(config.recipe, seed=1)), pair)
    assert not training.restarted(config, pair.parent)


def test_a_process_that_cannot_read_the_data_ends_all(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    result = torchrun(settings, tmp_path / "run", str(tmp_path / "script.py"), str(tmp_path), "scan")
    assert result.returncode != 0
    assert "error: the disk of this machine is not mounted" in result.stderr
    assert "rank      : 1" in result.stderr  # torchrun's summary names the process


def test_another_number_of_processes_may_go_on(settings: Settings, alone: Path, pair: Path, tmp_path: Path) -> None:
    """Within float noise of what one process alone does (see above); where the batch cannot be shared, in one line."""
    import shutil

    losses = []
    for name, source in (("alone", alone), ("pair", pair)):
        shutil.copytree(source, tmp_path / name)
        longer, data = training.resumed(tmp_path / name, 6)
        training.extend(longer, tmp_path / name)
        events = list(training.train(longer, data, tmp_path / name, device="cpu"))
        losses.append([event.loss for event in events if hasattr(event, "lr")])
        assert len(losses[-1]) == 10
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)  # 30 steps instead of 20
    task = build_task(settings, data)
    with pytest.raises(UsageError, match="3 processes cannot share 2 micro-batches"):
        next(fit(task, Run(tmp_path / "pair", {}), World(0, 3), StopFlag()))


def test_a_head_is_that_of_one_process(tmp_path: Path) -> None:
    """Each process holds the features of half of the images, an odd number of them; they solve together."""
    x = torch.from_numpy(np.random.default_rng(1).random((20, 3, 28, 28), np.float32))
    (tmp_path / "data").mkdir()
    write_stripes(tmp_path / "data", np.arange(91) % 3, 28)
    base = write_tiny(tmp_path / "base", SMALL)
    line = ["finetune", "--data", str(tmp_path / "data"), "-m", str(base), "--tune", "head", "--score", "none"]
    line += ["--device", "cpu", "--out"]
    found = []
    for name, program in (("one", [sys.executable]), ("two", TORCHRUN)):
        result = subprocess.run(
            [*program, "-m", "vitcli", *line, str(tmp_path / name)],
            env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        best = load_model(resolve(str(tmp_path / name / "best")))
        with torch.inference_mode():
            found.append(best.eval()(x).softmax(dim=1))
    torch.testing.assert_close(*found, atol=5e-3, rtol=0)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2
