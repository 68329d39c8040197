"""Randomness without state: every draw is a function of (seed, what it is for), so a resumed run repeats it exactly.

Order of the epoch, augmentation of a sample, and the noise inside one forward pass (dropout, stochastic depth, mixup)
are keyed apart. Nothing of a generator needs saving, and neither the number of workers nor of processes matters.
"""

import hashlib
import random

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A 63-bit number that depends on every part."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order (n,) in which epoch `epoch` visits n samples."""
    return np.random.Generator(np.random.Philox(key=key(seed, "order", epoch))).permutation(n)


def reseed(*parts: int | str) -> None:
    """Sets the global generators that library transforms draw from: random, numpy, torch (CPU and GPUs)."""
    value = key(*parts)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 140 µs, this takes 2
    for kind in (torch.cuda, torch.xpu):
        if kind.is_initialized():
            kind.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
