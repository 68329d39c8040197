"""Logits stored beside the weights, computed again after loading: the only thing that notices a config whose lies
change no shape (number of heads, activation, epsilon), or an engine that computes something else.

Knows arrays only; whoever runs a model gives the logits. The input is an integer formula, so NumPy, torch and any
other reader can make the same float32 values to the last bit.
"""

from typing import Any

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess
from vitcli.model.shapes import Array
from vitcli.text import safe

MAX_LOGIT = 1e30  # in size; beyond it, differences overflow
MAX_STORED = 64  # logits kept, of the first classes

# Engines and devices differ by rounding, about 1e-5 of the logits' scale in float32 and 1e-3 with TF32. A wrong
# number of heads, activation or epsilon moves the logits of trained weights by more.
TOLERANCE = 5e-3


def selftest_input(preprocess: Preprocess, seed: int = 0) -> Array:
    """The synthetic image (1, C, H, W), float32 in [-2, 2), already normalised: the same on every machine.

    Value i, counted row by row, is ((i · 2654435761 + seed · 40503) mod 2^32 >> 16) / 16384 - 2.
    """
    shape = (1, preprocess.in_chans, *preprocess.size)
    index = np.arange(np.prod(shape), dtype=np.uint64)
    bits = ((index * 2654435761 + seed * 40503) & 0xFFFFFFFF) >> 16
    return (bits.astype(np.float32) / np.float32(16384) - np.float32(2)).reshape(shape)


def selftest_entry(logits: Array, seed: int = 0) -> dict[str, Any]:
    """What config.json stores of the `logits` (1, K) for `selftest_input(preprocess, seed)`."""
    return {"seed": seed, "logits": [float(f"{value:.6g}") for value in logits.reshape(-1)[:MAX_STORED]]}


def selftest_seed(checkpoint: Checkpoint) -> int | None:
    """The seed of the stored self-test, or None when there is none. CheckpointError when it makes no sense."""
    entry = checkpoint.selftest
    if entry is None:
        return None
    seed = entry.get("seed")
    if type(seed) is not int or not 0 <= seed < 1 << 31:
        raise CheckpointError(f"{safe(checkpoint.config_path)}: vit.selftest.seed must be a whole number")
    return seed


def check_selftest(checkpoint: Checkpoint, logits: Array, tolerance: float = TOLERANCE) -> None:
    """Compare `logits` (1, K), computed from `selftest_input`, with the stored ones. CheckpointError when they differ.

    `selftest_before` counts too: it is there only while a checkpoint is being replaced (see `write`).
    """
    entries = [entry for entry in (checkpoint.selftest, checkpoint.selftest_before) if entry is not None]
    error = min(_relative_error(entry, logits.reshape(-1), checkpoint) for entry in entries)
    if not error <= tolerance:
        raise CheckpointError(
            f"{safe(checkpoint.config_path)}: the self-test gives other logits (off by {error:.2g} of their scale): "
            "the config is not that of these weights, or one of the two files was changed"
        )


def _relative_error(entry: Any, computed: Array, checkpoint: Checkpoint) -> float:
    values = entry.get("logits") if isinstance(entry, dict) else None
    if not isinstance(values, list) or len(values) != min(len(computed), MAX_STORED):
        raise CheckpointError(
            f"{safe(checkpoint.config_path)}: vit.selftest.logits is not a list with the model's classes"
        )
    if not all(type(value) in (int, float) and abs(value) < MAX_LOGIT for value in values):
        raise CheckpointError(f"{safe(checkpoint.config_path)}: vit.selftest.logits must be numbers")
    stored = np.array(values, np.float64)
    difference = np.abs(computed[: len(stored)] - stored).max(initial=0.0)
    return float(difference / max(np.abs(stored).max(initial=0.0), 1e-3))
