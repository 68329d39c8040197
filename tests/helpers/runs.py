"""Training runs of seconds on the CPU, and what must be equal after two of them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vitcli.training import train as training
from vitcli.training.events import Stepped
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings
from vitcli.training.state import load_state

# Everything that draws random numbers is on: any draw that is not keyed would break the equality of two runs.
RECIPE = Recipe(
    epochs=4, batch_size=16, micro_batch=8, lr=3e-3, dropout=0.1, drop_path=0.2, mixup=0.3, cutmix=0.5, crop_scale=0.6,
    invert=0.3, random_erasing=0.4, ema_decay=0.9, amp="fp32", compile=False,
)  # fmt: skip
MODEL = {"img_size": [16, 16], "patch_size": [4, 4], "embed_dim": 24, "depth": 2, "num_heads": 3}


def run_to_end(settings: Settings, folder: Path, **options: Any) -> list[Any]:
    """Events of the run in `folder`, which is begun where it does not exist."""
    data = training.open_settings_data(settings)
    if not folder.exists():
        training.begin(settings, data, folder)
    return list(training.train(settings, data, folder, device="cpu", **options))


def run_and_signal(settings: Settings, folder: Path, stop_at: int, number: int) -> None:
    """Train until step `stop_at`, then send this process the signal `number`: raises what the run makes of it."""
    for event in training.train(settings, training.open_settings_data(settings), folder, device="cpu"):
        if isinstance(event, Stepped) and event.step == stop_at:
            os.kill(os.getpid(), number)


def state_digest(folder: Path) -> str:
    """SHA-256 over every tensor of the newest state: weights, averaged weights, optimiser."""
    state = load_state(folder)
    assert state is not None
    progress, tensors, _ = state
    digest = hashlib.sha256(repr(progress).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def without_rates(folder: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl but for the one number that is time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]
