"""Linear layers whose float32 products on a CPU are torch's or oneDNN's, whichever is the faster on this processor.

torch leaves such products to MKL, which on AMD's processors without AVX-512 reaches less than half of what oneDNN
does, to the same accuracy, and on those with it a little more (benchmarks/linear.py, docs/decisions.md). Everything
else is `F.linear`.
"""

import math
import os
import time
from functools import cache
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Literal["torch", "onednn"]

LONGEST = 0.15  # seconds of measuring
CLEARLY = 1.04  # times as fast: less is noise, and then the instruction set decides
_chosen: Kernel | None = None  # of this process, once it was measured or taken from a run


def kernel() -> Kernel:
    """What computes float32 products on the CPU in this process: measured when first asked, then fixed.

    VIT_LINEAR, where it names one, is obeyed: two fresh runs then have the same bits for certain.
    """
    global _chosen
    if _chosen is None:
        wanted = os.environ.get("VIT_LINEAR")
        _chosen = cast(Kernel, wanted) if wanted in get_args(Kernel) and _has_onednn() else _measured()
    return _chosen


def use(wanted: Kernel) -> None:
    """Fix what `kernel` gives, as an earlier part of a run had it."""
    global _chosen
    _chosen = wanted if _has_onednn() else "torch"


@cache
def expected() -> Kernel:
    """What is likely the faster one, by the processor's instructions alone."""
    return "onednn" if _has_onednn() and torch.backends.cpu.get_cpu_capability() != "AVX512" else "torch"


@torch.no_grad()
def _measured() -> Kernel:
    """The faster one of both on the products of a block and its gradients; `expected` where they are nearly equal."""
    likely = expected()
    if not _has_onednn():
        return likely
    x, weight, grad = torch.ones(1024, 192), torch.ones(768, 192), torch.ones(1024, 768)  # draws nothing
    products = ((x, weight), (grad, weight.t()), (grad.t(), x.t()))  # forward; backward for input and weight
    ways = {"torch": lambda a, b: F.linear(a, b), "onednn": lambda a, b: _product(a, b, None)}
    other: Kernel = "onednn" if likely == "torch" else "torch"
    least = {likely: math.inf, other: math.inf}  # not the median: whatever else runs here only adds
    begin = time.perf_counter()
    while time.perf_counter() - begin < LONGEST:
        for name in least:
            start = time.perf_counter()
            for a, b in products:
                ways[name](a, b)
            least[name] = min(least[name], time.perf_counter() - start)
    return other if least[likely] > CLEARLY * least[other] else likely


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """As `nn.Linear`, parameters and all."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b: (…, K), (N, K), (N,) → (…, N)."""
    if not _for_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, _Linear.apply(x, weight, bias))
    return _product(x, weight, bias)


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # the compiler and torch.export know F.linear
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0  # oneDNN has no products of nothing
        and (_chosen or expected()) == "onednn"
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.t(), None) if for_x else None,
            linear(rows.t(), x.flatten(0, -2).t(), None) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
