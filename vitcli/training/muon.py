"""Muon: momentum whose update is orthogonalised, for the matrices inside; AdamW for everything else.

After Jordan et al. 2024 (github.com/KellerJordan/Muon) with the step size of arXiv 2502.16982, which lets learning rate
and weight decay be those of AdamW. torch and timm have it too, but both orthogonalise in bfloat16, which a CPU without
bfloat16 units emulates: 60 ms an image where this takes 8 (docs/decisions.md).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vitcli.training.groups import Group

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between 0.7 and 1.2
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Groups marked `orthogonal` (`groups.parameter_groups`) by Muon, the others by AdamW, with one learning rate."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum, "eps": 1e-8}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if group["orthogonal"]:
                    p.sub_(self._muon(p, group), alpha=group["lr"])
                else:
                    p.sub_(self._adam(p, group), alpha=group["lr"])

    def _muon(self, p: Tensor, group: Group) -> Tensor:
        state, momentum = self.state[p], group["momentum"]
        average = state.setdefault("momentum", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        nesterov = torch.lerp(p.grad, average, momentum).flatten(1)  # type: ignore[arg-type]
        parts = [orthogonalise(part) for part in nesterov.chunk(group["parts"])]
        update = torch.cat(parts) * (0.2 * math.sqrt(max(parts[0].shape)))  # the root mean square of an AdamW update
        return update.view_as(p)

    def _adam(self, p: Tensor, group: Group) -> Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        state["step"] += 1
        steps = state["step"].item()
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].lerp_(p.grad.square(), 1 - beta2)  # type: ignore[union-attr]
        deviation = (state["square"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        return state["mean"] / deviation / (1 - beta1**steps)  # type: ignore[no-any-return]


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to `matrix` (M, N), roughly: singular values between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
