"""The loop waits for nothing: between two looks at the losses nobody reads a number from the device."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.runs import MODEL, RECIPE, run_to_end, state_digest, without_rates
from vitcli.errors import ImageError, VitError
from vitcli.training import train as training
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.events import Stepped
from vitcli.training.feed import one_ahead, onto
from vitcli.training.fit import fit
from vitcli.training.learner import Learner
from vitcli.training.settings import Settings
from vitcli.training.state import load_state


@pytest.fixture
def settings(data_folder: Path) -> Settings:
    return Settings("vit_tiny_patch16_224", MODEL, str(data_folder), replace(RECIPE, epochs=2))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks to see a step before something else needs them."""
    monkeypatch.setattr(training, "fit", partial(fit, show_every=1e9))


class Reads(TorchDispatchMode):
    """Counts how often a number is read from the device, which waits for it."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


HALF: dict[str, Any] = {"amp": "bf16"}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("changes", [{}, HALF, {"optimizer": "muon"}, {"optimizer": "sgd"}], ids=str)
def test_no_step_waits_for_the_device(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """With everything on that a step can have; a read in the validation shows that reads are counted."""
    reads, at = Reads(), []
    for name in ("tolist", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, real: Any = real) -> Any:
            reads.count += 1
            return real(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for name, whole in (("first_step", Learner.first_step), ("step", Learner.step)):

        def step(self: Learner, *arguments: Any, real: Any = whole) -> Any:
            at.append(reads.count)
            result = real(self, *arguments)
            at.append(reads.count)
            return result

        monkeypatch.setattr(Learner, name, step)
    recipe = replace(settings.recipe, **changes)
    with reads:
        run_to_end(replace(settings, recipe=recipe), tmp_path / "run")
    assert len(at) == 2 * (10 + 1)  # the first step passes through both
    within = at[3:-1]  # after the loader began; five steps an epoch, a look between the two epochs
    assert len(set(within)) == 2
    assert reads.count > within[-1]


@pytest.mark.usefixtures("late")
def test_steps_that_are_seen_late_are_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are on record, in order, before what follows them; the state is the same to the last bit."""
    events = run_to_end(settings, tmp_path / "late")
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(1, 11))
    monkeypatch.setattr(training, "fit", fit)
    run_to_end(settings, tmp_path / "soon")
    assert without_rates(tmp_path / "late") == without_rates(tmp_path / "soon")
    assert state_digest(tmp_path / "late") == state_digest(tmp_path / "soon")


def test_what_is_saved_was_written_down(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill right after a save loses no line of a step before it."""
    monkeypatch.setattr(training, "fit", partial(fit, show_every=1e9, save_every=0.0))
    folder, saved = tmp_path / "run", training.Run.save

    def save(self: training.Run, position: Any, tensors: Any) -> None:
        saved(self, position, tensors)
        if position.step == 3:
            raise KeyboardInterrupt  # as good as a kill: nothing is done after it

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run_to_end(settings, folder)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    run_to_end(settings, folder)
    monkeypatch.setattr(training, "fit", fit)
    run_to_end(settings, tmp_path / "whole")
    assert without_rates(folder) == without_rates(tmp_path / "whole")
    assert state_digest(folder) == state_digest(tmp_path / "whole")


@pytest.mark.usefixtures("late")
def test_a_loss_that_was_not_finite_is_told_by_its_step_before_anything_is_saved(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.step

    def step(self: Learner, batches: Iterator[Any], step: int, lr: float) -> Any:
        return real(self, batches, step, lr) * (torch.nan if step == 2 else 1.0)

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(VitError, match="the loss is nan at step 2: lower --lr"):
        run_to_end(settings, tmp_path / "run")
    assert load_state(tmp_path / "run") is None
    assert not (tmp_path / "run" / "best").exists()


def test_weights_that_are_not_finite_are_found_wherever_they_are(settings: Settings) -> None:
    task = build_task(settings, training.open_settings_data(settings))
    learner = Learner(task, World(), 1)
    learner.require_finite(0)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for parameter in list(task.model.parameters())[::7]:
            with torch.no_grad():
                before = parameter.view(-1)[-1].item()
                parameter.view(-1)[-1] = bad
                with pytest.raises(VitError, match="no longer finite after step 5"):
                    learner.require_finite(5)
                parameter.view(-1)[-1] = before


class TestOneAhead:
    def test_each_is_begun_while_the_one_before_is_in_use(self) -> None:
        log: list[str] = []

        def begin(item: int) -> int:
            log.append(f"begin {item}")
            return item

        for item in one_ahead(iter(range(3)), begin):
            log.append(f"use {item}")
        assert log == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]

    def test_what_goes_wrong_waits_for_its_turn(self) -> None:
        """A step before an unreadable image ends as ever, and is saved."""

        def items() -> Iterator[int]:
            yield from (0, 1)
            raise ImageError("2.png: damaged")

        begun = one_ahead(items(), lambda item: item)
        assert [next(begun), next(begun)] == [0, 1]
        with pytest.raises(ImageError, match=r"2\.png"):
            next(begun)

    def test_a_cpu_needs_none_of_it(self) -> None:
        batches: Iterator[Any] = iter([])
        assert onto(batches, torch.device("cpu")) is batches
