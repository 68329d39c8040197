"""A model that is shared out among processes (FSDP2): DDP's curve, the same files, another number of processes goes on.

Tiny models, in two and four processes of gloo.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.helpers import finetuning
from tests.helpers.checkpoints import write_tiny
from tests.helpers.counting import COUNTS, decided, first
from tests.helpers.data import write_idx
from tests.helpers.process import python
from tests.helpers.runs import MODEL, RECIPE, run_to_end, without_rates
from tests.helpers.terminal import invoke
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import UsageError
from vitcli.training import plan as planning
from vitcli.training import train as training
from vitcli.training.build import build_task, parameters
from vitcli.training.distributed import World
from vitcli.training.estimate import held_bytes
from vitcli.training.folder import read_config
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings
from vitcli.training.sharding import require_shardable
from vitcli.training.state import load_state
from vitcli.training.validation import validate

# Imports everything once and forks two processes, then four. Each does what is left of the run folders named, in one
# world, and notes who waits for a device.
SCRIPT = """
import json, os, shutil, socket, sys, traceback
from pathlib import Path
import torch, torch.distributed.fsdp, torch.distributed.tensor, timm.optim
from tests.helpers.counting import COUNTS, decided, first
from vitcli.training import train as training
from vitcli.training.build import build_task
from vitcli.training.distributed import join_world
from vitcli.training.fit import fit
from vitcli.training.folder import Run, read_config
from vitcli.training.learner import Learner
from vitcli.training.sharding import is_sharded, shard
from vitcli.training.stop import StopFlag
from vitcli.training.validation import validate

place, reads, waits, real_step = Path(sys.argv[1]), [0], [], Learner.step
for name in ("tolist", "cpu", "numpy", "item"):
    def counted(tensor, *arguments, real=getattr(torch.Tensor, name)):
        reads[0] += 1
        return real(tensor, *arguments)
    setattr(torch.Tensor, name, counted)

def step(self, *arguments):
    before = reads[0]
    result = real_step(self, *arguments)
    waits.append(reads[0] - before)
    assert self.sharded == self.recipe.shard_model == is_sharded(self.model) == is_sharded(self.averaged)
    return result

Learner.step = step

def work(folders):
    found = {}
    with join_world("cpu") as world:
        for folder in folders:
            settings, data = training.resumed(folder)
            run = Run(folder, read_config(folder))
            list(fit(build_task(settings, data), run, world, StopFlag(), save_every=1e9))
            found[folder.name] = waits[:]
            waits.clear()
        task = build_task(settings, data)
        model = decided(task.model)
        shard(model, world)
        counts = [validate(model, task, first(task.data.val, n), world) for n in COUNTS]
        found["counts"] = [[one.n, one.accuracy] for one in counts]
        if world.leads:
            (place / f"found-{world.size}.json").write_text(json.dumps(found))

def short_of_memory(folders):
    # Process 1 alone has no room for more than two images at once.
    real = Learner._pass
    def short(self, batch, *arguments):
        if os.environ["RANK"] == "1" and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(self, batch, *arguments)
    Learner._pass = short
    settings, data = training.resumed(folders[0])
    events = list(training.train(settings, data, folders[0], device="cpu"))
    if os.environ["RANK"] == "0":
        (place / "shrunk.json").write_text(json.dumps([type(event).__name__ for event in events]))

def together(size, *names, work=work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for rank in range(size):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            try:
                work([place / name for name in names])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    assert not sum(os.wait()[1] for _ in range(size))

together(2, "sharded", "ddp", "lora", "lora-ddp")
together(2, "short", work=short_of_memory)
os.environ["WORLD_SIZE"] = "1"
for name in ("four", "one"):
    shutil.copytree(place / "sharded", place / name)
    training.extend(training.resumed(place / name, 3)[0], place / name)
together(4, "four")
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_idx(folder, "train", rng.integers(0, 256, (100, 16, 16)), np.arange(100) % 3)
    recipe = replace(RECIPE, micro_batch=4, epochs=2, shard_model=True, grad_checkpointing=True)
    return Settings("vit_tiny_patch16_224", MODEL, str(folder), recipe)


def lora(place: Path) -> Settings:
    folder, rng = place / "lora-data", np.random.default_rng(0)
    folder.mkdir()
    write_idx(folder, "train", rng.integers(0, 256, (90, 28, 28)), np.arange(90) % 3)
    recipe = replace(finetuning.RECIPE, micro_batch=4, shard_model=True)
    base = write_tiny(place / "base", finetuning.SMALL)
    return finetuning.settings_of(base, folder, "lora", recipe, rank=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> dict[str, Any]:
    """Run folders by name, and what was found on the way: shared out and DDP, LoRA too, by two processes.

    Then what two processes had shared out gets longer, in four processes (`four`) and in one (`one`).
    """
    place = tmp_path_factory.mktemp("runs")
    of_lora, short = lora(place), replace(settings, recipe=replace(settings.recipe, micro_batch=8, epochs=1))
    for name, one in (
        ("sharded", settings),
        ("ddp", settings),
        ("lora", of_lora),
        ("lora-ddp", of_lora),
        ("short", short),
    ):
        chosen = replace(one, recipe=replace(one.recipe, shard_model=name in ("sharded", "lora")))
        training.begin(chosen, training.open_settings_data(chosen), place / name)
    result = python("-c", SCRIPT, place)
    assert result.returncode == 0, result.stderr
    found = {count: json.loads((place / f"found-{n}.json").read_text()) for count, n in (("two", 2), ("four", 4))}
    run_to_end(training.resumed(place / "one")[0], place / "one")
    return {
        **{path.name: path for path in place.iterdir()},
        "found": found,
        "shrunk": json.loads((place / "shrunk.json").read_text()),
    }


def losses(folder: Path) -> Any:
    return np.array([line["loss"] for line in without_rates(folder) if "lr" in line])


def tensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("name", ["", "lora"])
def test_the_curve_is_ddps(runs: dict[str, Any], name: str) -> None:
    """The same sums in another order."""
    sharded, ddp = (losses(runs[one]) for one in ((name or "sharded"), f"{name}-ddp".strip("-")))
    assert len(sharded) == 10
    np.testing.assert_allclose(sharded, ddp, rtol=1e-3)


@pytest.mark.parametrize("name", ["", "lora"])
def test_what_is_left_is_what_ddp_leaves(runs: dict[str, Any], name: str) -> None:
    """The same files with the same tensors; a state knows averages, optimiser and all, and a checkpoint loads."""
    ours, theirs = runs[name or "sharded"], runs[f"{name}-ddp".strip("-")]

    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"}

    assert files(ours) == files(theirs)
    for file in sorted(one for one in files(ours) if one.endswith(".safetensors")):
        found, expected = tensors(ours / file), tensors(theirs / file)
        assert list(found) == list(expected)
        for tensor, values in expected.items():
            assert (found[tensor].shape, found[tensor].dtype) == (values.shape, values.dtype)
            np.testing.assert_allclose(found[tensor], values, atol=5e-3, err_msg=tensor)
    model = load_model(resolve(str(ours / "best")))
    assert model.config == load_model(resolve(str(theirs / "best"))).config
    state = load_state(ours)
    assert state is not None
    assert {name.partition(".")[0] for name in state.tensors} == {"model", "ema", "optimizer"}


def test_no_step_waits_for_the_device(runs: dict[str, Any]) -> None:
    """But for the first, in which all agree that it fits."""
    for name in ("sharded", "lora"):
        steps = runs["found"]["two"][name]
        assert len(steps) > 5
        assert not any(steps)
    assert not any(runs["found"]["four"]["four"])


def test_another_number_of_processes_goes_on(runs: dict[str, Any]) -> None:
    four, one = losses(runs["four"]), losses(runs["one"])
    assert len(four) == len(one) == 15
    np.testing.assert_array_equal(four[:10], one[:10])
    np.testing.assert_allclose(four, one, rtol=5e-3)
    ends = [load_state(runs[name]) for name in ("four", "one")]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].position.step == ends[1].position.step == 15
    assert ends[0].tensors.keys() == ends[1].tensors.keys()


def test_all_take_less_at_once_where_one_has_no_room(runs: dict[str, Any]) -> None:
    """DDP's processes: none waits for the one that could not; of 8 images half, and half of that."""
    assert runs["shrunk"] == ["Shrunk", "Shrunk", *["Stepped"] * 5, "Evaluated"]
    assert read_config(runs["short"])["recipe"]["micro_batch"] == 2
    assert len(losses(runs["short"])) == 5


@pytest.mark.parametrize("count", ["two", "four"])
def test_every_validation_image_counts_once(runs: dict[str, Any], settings: Settings, count: str) -> None:
    """Fewer images than processes, too: all of them compute equally often."""
    longer, data = training.resumed(runs["lora-ddp"] if count == "two" else runs["four"])
    task = build_task(longer, data)
    torch.manual_seed(0)
    model = decided(task.model)
    expected = [validate(model, task, first(task.data.val, n), World()) for n in COUNTS]  # type: ignore[arg-type]
    assert runs["found"][count]["counts"] == [[one.n, one.accuracy] for one in expected]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "muon"}, "muon orthogonalises whole ones"),
        ({"amp": "fp16"}, "fp16"),
        ({}, "start them with torchrun"),
    ],
)
def test_what_does_not_go_together(settings: Settings, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    words = [f"--set={name}={value}" for name, value in {"shard_model": "true", **changes}.items()]
    if changes:
        task = build_task(settings, training.open_settings_data(settings))
        with pytest.raises(UsageError, match=said):
            require_shardable(replace(settings.recipe, **changes), task.model, "vit")
        return
    result = invoke("train", "--data", settings.data, "--out", tmp_path / "r", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "r").exists()


def test_models_without_blocks_or_with_statistics_of_a_batch() -> None:
    recipe = Recipe(shard_model=True)
    with pytest.raises(UsageError, match="for Vision Transformers, not for resnet"):
        require_shardable(recipe, nn.Sequential(nn.BatchNorm2d(3)), "resnet")
    require_shardable(replace(recipe, shard_model=False), nn.BatchNorm2d(3), "resnet")


class TestMemory:
    def test_what_each_process_holds(self, settings: Settings) -> None:
        task = build_task(settings, training.open_settings_data(settings))
        block = sum(p.numel() for p in task.model.blocks[0].parameters())  # type: ignore[index,union-attr]
        n = parameters(task.model)
        assert held_bytes(task) == 4 * 5 * n  # weights, gradients, two of Adam's, averages
        rest = n - 2 * block
        assert held_bytes(task, 4) == 4 * (-(-5 * n // 4) + 2 * max(block, rest))
        plain = replace(task, recipe=replace(task.recipe, shard_model=False))
        assert held_bytes(plain, 4) == held_bytes(task)

    @pytest.mark.parametrize("sharded", [False, True])
    def test_a_plan_says_what_does_not_fit(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(planning, "memory_free", lambda _: 1 << 16)
        recipe = replace(settings.recipe, shard_model=sharded)
        planned = planning.plan(
            replace(settings, recipe=recipe), training.open_settings_data(settings), tmp_path / "r", device="cpu"
        )
        assert planned.cost is None
        said = "shared out, each takes" if sharded else "does not fit: each process needs"
        assert any(said in note for note in planned.notes)
        assert any("--set shard_model=true" in note for note in planned.notes) == (not sharded)
