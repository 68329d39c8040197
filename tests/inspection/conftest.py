"""What `vit inspect` is run on: two tiny checkpoints of different grids, and four images."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import TINY, write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inspect")
    write_tiny(place / "a")
    write_tiny(place / "b", replace(TINY, img_size=(64, 96), class_token=False, global_pool="avg"), seed=1)
    (place / "images").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{i}.png")
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    yield place
    shutil.rmtree(place / "out", ignore_errors=True)
