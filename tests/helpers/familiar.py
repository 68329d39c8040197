"""A small checkpoint with statistics of held-out images, and images of its kind and of none."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.checkpoints import write_tiny
from vitcli.checkpoint.resolve import resolve
from vitcli.data.samples import ArraySamples
from vitcli.inference.familiarity import familiarise, store


def own_samples(n: int = 120, seed: int = 0) -> ArraySamples:
    """Gray ramps with a little noise, in three classes."""
    rng = np.random.default_rng(seed)
    ramps = np.linspace(0, 1, 64) * rng.uniform(60, 200, (n, 1, 1)) + rng.uniform(0, 50, (n, 1, 1))
    images = (ramps + rng.normal(0, 4, (n, 64, 64))).clip(0, 255).astype(np.uint8)
    return ArraySamples(images, rng.integers(0, 3, n), "ramps", np.arange(n))


def strangers(n: int = 4) -> list[Image.Image]:
    """Coarse noise in colours."""
    rng = np.random.default_rng(7)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(n)]


def write_familiar(folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder with random weights and statistics."""
    write_tiny(folder, seed=seed)
    checkpoint = resolve(str(folder))
    found = familiarise(checkpoint, own_samples(), data="ramps")
    assert found is not None
    store(folder, found)
    return folder
