"""In which numbers a training computes: half precision where it pays, tensor cores for the rest."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(amp: str, device: torch.device) -> AbstractContextManager[Any]:
    """The forward pass in the precision `amp`; "fp32" is as the weights are."""
    return torch.autocast(device.type, HALVES[amp]) if amp in HALVES else nullcontext()


@contextmanager
def tensor_cores(amp: str, device: torch.device) -> Iterator[None]:
    """On NVIDIA's GPUs TF32 for what half precision leaves in float32; none at all in float32, the reference."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = amp in HALVES
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
