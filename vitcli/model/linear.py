"""Linear layers whose float32 products on a CPU are oneDNN's, as those of convolutions are.

torch leaves such products to MKL, which on processors of other makers than Intel reaches less than half of what oneDNN
does, to the same accuracy (benchmarks/linear.py, docs/decisions.md). Everything else is `F.linear`.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0  # oneDNN has no products of nothing
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # the compiler and torch.export know F.linear
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
