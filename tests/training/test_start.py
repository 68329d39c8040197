"""What a fine-tuning begins with where no model was named: which bundled one, how large, and what would be better."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitcli.checkpoint.catalog import STARTS
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.cli.app import app
from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.training import start
from vitcli.training.estimate import AFTER, ALLOWED, FIXED, Estimate
from vitcli.training.run import finetuning_settings
from vitcli.training.settings import Settings
from vitcli.training.start import affordable_size, better_start, bundled_start

Write = Callable[[int, bool], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes two classes of noise, square images of so many pixels, gray or coloured; gives their folder."""

    def written(side: int, gray: bool) -> Path:
        rng = np.random.default_rng(0)
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / label
            folder.mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 256, (side, side, 1 if gray else 3), dtype=np.uint8)
                Image.fromarray(np.broadcast_to(pixels, (side, side, 3))).save(folder / f"{i}.png")
        return tmp_path / "data"

    return written


@pytest.mark.parametrize(
    ("side", "gray", "expected"),
    [(28, True, "fashion-vit"), (28, False, "photo-vit"), (64, True, "photo-vit"), (100, False, "photo-vit")],
)
def test_small_gray_images_begin_with_the_model_of_clothes(side: int, gray: bool, expected: str, write: Write) -> None:
    assert bundled_start(open_data(write(side, gray))) == expected


def settings_of(data: DataSet, tune: Any = "auto", budget: float | None = None) -> Settings:
    base = resolve("photo-vit")
    return finetuning_settings(base, weights_digest(base), str(data.root), tune=tune, time_budget=budget)


def measured(epoch: float, head: float) -> Estimate:
    """Of one image: `epoch` seconds for one of 15 epochs, `head` for the features that a head is fitted to."""
    return Estimate(forward=head - AFTER, training=epoch, memory=0, epochs=15, images=1, held_out=0, scored=0)


# A model at twice the side costs about 4.6 times as much, at 1.5 times the side 2.4 times.
@pytest.mark.parametrize(
    ("side", "tune", "budget", "epoch", "expected"),
    [
        (200, "auto", 600, 1, (128, 128)),
        (200, "auto", 600, 20, (96, 96)),
        (200, "auto", 600, 60, None),
        (200, "auto", None, ALLOWED / 100, (128, 128)),
        (200, "auto", None, ALLOWED / 50, (96, 96)),
        (200, "auto", None, ALLOWED / 30, None),
        (200, "head", None, 1e9, (128, 128)),  # its epochs cost nothing
        (100, "auto", 600, 1, (96, 96)),  # no larger than the images
        (64, "auto", 600, 1, None),
    ],
)
def test_the_largest_size_that_images_and_time_have(
    side: int,
    tune: str,
    budget: float | None,
    epoch: float,
    expected: tuple[int, int] | None,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "build_task", lambda settings, data, base: None)
    monkeypatch.setattr(start, "estimate", lambda task, device, training: measured(epoch, AFTER + FIXED))
    data = open_data(write(side, False))
    assert affordable_size(settings_of(data, tune, budget), data, resolve("photo-vit"), "cpu") == expected


class TestBetter:
    def test_large_images_are_told_of_a_larger_model(self, write: Write) -> None:
        line = better_start(resolve("photo-vit"), open_data(write(200, False)))
        assert line is not None
        assert "200 pixels" in line
        assert f"-m {next(iter(STARTS))}" in line
        assert "download of 88 MB" in line

    def test_one_that_is_here_already_goes_first(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        here = list(STARTS)[1]
        monkeypatch.setattr(start, "find_cached", lambda name: name == here or None)
        line = better_start(resolve("photo-vit"), open_data(write(200, False)))
        assert line is not None
        assert line.endswith(f"-m {here} is in the local Hub cache")

    def test_small_images_are_not(self, write: Write) -> None:
        assert better_start(resolve("photo-vit"), open_data(write(100, False))) is None


def test_the_command_says_what_it_begins_with(write: Write) -> None:
    result = CliRunner().invoke(app, ["finetune", "--data", str(write(140, False)), "--tune", "head", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "photo-vit, bundled" in result.stderr
    assert "128x128 pixels" in result.stderr
    assert next(iter(STARTS)) in result.stderr.replace("\n", " ")
