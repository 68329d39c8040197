"""Muon: momentum whose update is orthogonalised, for the matrices inside; AdamW for everything else.

After Jordan et al. 2024 (github.com/KellerJordan/Muon) with the step size of arXiv 2502.16982, which lets learning rate
and weight decay be those of AdamW. torch and timm have it too, but both orthogonalise in bfloat16, which a CPU without
bfloat16 units emulates: 60 ms an image where this takes 8 (docs/decisions.md).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

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
            params = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                self._muon(params, group)
            else:
                self._adamw(params, group)

    def _muon(self, params: list[Tensor], group: Group) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            average = state["momentum"]
            average.lerp_(p.grad, 1 - momentum)
            nesterov = torch.lerp(p.grad, average, momentum).flatten(1)  # type: ignore[arg-type]
            parts = [orthogonalise(part) for part in nesterov.chunk(group["parts"])]
            size = 0.2 * math.sqrt(max(parts[0].shape))  # the root mean square of an AdamW update
            p.mul_(1 - lr * group["weight_decay"]).sub_(torch.cat(parts).view_as(p), alpha=lr * size)

    def _adamw(self, params: list[Tensor], group: Group) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=p.device)
                state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        averages, squares, steps = ([s[slot] for s in states] for slot in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to `matrix` (M, N), roughly: singular values between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
