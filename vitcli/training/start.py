"""What a fine-tuning begins with where nobody chose: a bundled model, an image size, and what would be better still.

benchmarks/starts.py measures these choices; its table has not been made yet, so they are rules of thumb.
"""

from dataclasses import replace

import numpy as np

from vitcli.checkpoint.catalog import STARTS
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.hub import find_cached
from vitcli.checkpoint.layout import DEFAULT_BUNDLED
from vitcli.data.samples import DataSet, Samples, Stored, usual_side
from vitcli.errors import ImageError
from vitcli.machine import default_device
from vitcli.model.cost import cost
from vitcli.text import command
from vitcli.training.budget import Clock
from vitcli.training.build import build_task
from vitcli.training.estimate import ALLOWED, Estimate, estimate
from vitcli.training.settings import Settings
from vitcli.training.train import alone

SMALL = 40  # pixels of the shorter side; below it a gray picture is no photograph
LARGER = (2.0, 1.5)  # times a model's own size, tried in this order; it has never seen things larger than that
WORTH_EPOCHS = 8.0  # of the whole model; a size that leaves fewer in a time budget is not affordable


def bundled_start(data: DataSet) -> str:
    """The bundled model that suits `data`: for small gray images the one of clothes, else the one of photographs."""
    return bundled_for(data.train)


def bundled_for(samples: Stored) -> str:
    """The bundled model that suits these images, as in `bundled_start`."""
    return "fashion-vit" if usual_side(samples) <= SMALL and are_gray(samples) else DEFAULT_BUNDLED


def are_gray(samples: Samples) -> bool:
    """Whether the first 16 images have no colour; those that cannot be read do not count."""
    for i in range(min(16, len(samples))):
        try:
            pixels = np.asarray(samples.image(i).convert("RGB"))
        except ImageError:
            continue
        if (pixels != pixels[..., :1]).any():
            return False
    return True


def affordable_size(
    settings: Settings, data: DataSet, base: Checkpoint, device: str | None = None, began: float | None = None
) -> tuple[int, int] | None:
    """Height and width above the checkpoint's own that the images have and the time affords; None for its own.

    `settings` are those of the checkpoint's own size, whose cost is measured; `began` (time.monotonic) is when the time
    budget started to run. Several processes take its own, for each would measure for itself.
    """
    vit = base.vit
    if vit is None or not alone() or not any(_fits(factor, base, data) for factor in LARGER):
        return None
    task = build_task(settings, data, base=base)
    measured = estimate(task, device or default_device(), training=settings.tune != "head")
    left = settings.budget - Clock(settings.budget, began).used if settings.budget else ALLOWED
    own = cost(vit).macs
    for factor in LARGER:
        if _fits(factor, base, data):
            height, width = (round(factor * side) for side in base.preprocess.size)
            slower = cost(replace(vit, img_size=(height, width))).macs / own
            if slower * _least(measured, settings) <= left:
                return height, width
    return None


def _fits(factor: float, base: Checkpoint, data: DataSet) -> bool:
    """Whether the images are as large as `factor` times the model's size, and that is a whole number of patches."""
    assert base.vit
    sides = [factor * side for side in base.preprocess.size]
    return max(sides) <= data.side and not any(s % stride for s, stride in zip(sides, base.vit.stride, strict=True))


def _least(measured: Estimate, settings: Settings) -> float:
    """Seconds at the checkpoint's own size, below which a run is not worth beginning."""
    if settings.tune == "head":
        return measured.head_seconds
    epochs = min(WORTH_EPOCHS, measured.epochs) if settings.budget else measured.epochs
    return measured.head_seconds + epochs / measured.epochs * measured.all_seconds


def better_start(base: Checkpoint, data: DataSet) -> str | None:
    """A line that names the model worth having for images much larger than `base` sees; None where they are not.

    Nothing is downloaded. One that is in the Hub's cache already is named first.
    """
    side = max(base.preprocess.size)
    if data.side < 2 * side:
        return None
    cached = next((name for name in STARTS if find_cached(name)), None)
    name = cached or next(iter(STARTS))
    have = "is in the local Hub cache" if cached else f"is worth its download of {STARTS[name]} MB"
    return f"the images are about {data.side} pixels, {base.name} was trained with {side}: {command('-m', name)} {have}"
