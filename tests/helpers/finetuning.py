"""Fine-tuning of a tiny ViT: its size, a recipe without chance but for the order, settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import TINY
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.training.recipe import Recipe
from vitcli.training.settings import FineTuning, Settings

SMALL = replace(TINY, img_size=(28, 28), patch_size=(14, 14), embed_dim=24, num_heads=3, num_classes=5)
RECIPE = Recipe(
    epochs=2, batch_size=16, micro_batch=8, lr=3e-3, mixup=0, crop_scale=1, randaugment="", hflip=0, random_erasing=0,
    drop_path=0, ema_decay=0.5, layer_decay=0.75, label_smoothing=0, amp="fp32", compile=False,
)  # fmt: skip


def settings_of(base: Path, data: Path, tune: str = "all", recipe: Recipe = RECIPE, **start: Any) -> Settings:
    """Settings that train `tune` of the checkpoint in `base` on the images in `data`."""
    checkpoint = resolve(str(base))
    begin = FineTuning(str(base), weights_digest(checkpoint), tune, **start)  # type: ignore[arg-type]
    return Settings(checkpoint.architecture, {}, str(data), recipe, start=begin)
