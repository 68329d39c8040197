"""Which optimiser trains which parameters how: weight decay, learning rate by depth, and what Muon orthogonalises.

Muon is momentum whose update is orthogonalised, for the matrices inside the encoder; all else is AdamW's. After Jordan
et al. 2024 (github.com/KellerJordan/Muon) with the step size of arXiv 2502.16982, which lets learning rate and weight
decay be those of AdamW. torch and timm have it too, but both orthogonalise in bfloat16, which a CPU without bfloat16
units emulates: 60 ms an image where float32 takes 8 (docs/decisions.md). Here the caller says in which type.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vitcli.training.recipe import Recipe

Group = dict[str, Any]  # a parameter group of torch.optim, with `lr_scale` and, for Muon, `orthogonal` and `parts`


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of `recipe` for the trainable parameters of `model`."""
    from timm.optim import create_optimizer_v2

    muon = recipe.optimizer == "muon"
    groups = parameter_groups(model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay, orthogonal=muon)
    if muon:
        dtype = torch.bfloat16 if recipe.amp == "bf16" else torch.float32
        return Muon(groups, lr=recipe.lr, betas=recipe.betas, dtype=dtype)
    if recipe.optimizer == "sgd":
        return create_optimizer_v2(groups, "momentum", lr=recipe.lr, momentum=recipe.betas[0])  # type: ignore[no-any-return]
    return create_optimizer_v2(groups, recipe.optimizer, lr=recipe.lr, betas=recipe.betas, fused=True)  # type: ignore[no-any-return]


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0, orthogonal: bool = False
) -> list[Group]:
    """The trainable parameters of `model`. Biases, norms, other vectors and tables of places in
    the attention are not decayed.

    Layer-wise lr decay (BEiT, arXiv 2106.08254, as fine-tuning recipes use it): the head trains at the full rate, each
    block below at `layer_decay` of the one above it, the embedding lowest. `orthogonal` sets apart the matrices inside
    the encoder and a stem's stages.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depth = 1 + max((layer for name, _ in named if (layer := _block(name)) is not None), default=-1)
    groups: dict[tuple[Any, ...], Group] = {}
    for name, p in named:
        block = _block(name)
        above = 0 if _is_on_top(name) else depth + 1 if block is None else depth - block
        group = {
            "lr_scale": layer_decay**above,
            "weight_decay": weight_decay if p.ndim > 1 and not _says_places(name) else 0.0,
        }
        if orthogonal:
            # q, k and v are three matrices that are only stored as one.
            group |= {"orthogonal": _is_inner_matrix(name, p), "parts": 3 if name.endswith(".qkv.weight") else 1}
        groups.setdefault(tuple(group.values()), {**group, "params": []})["params"].append(p)
    return list(groups.values())


def _block(name: str) -> int | None:
    """The encoder block that a parameter belongs to; None outside the encoder."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def _is_on_top(name: str) -> bool:
    """Whether a parameter lies above the encoder: the last norm, the pooling, the head."""
    return name.startswith(("norm.", "fc_norm.", "attn_pool.", "pre_logits.", "head.", "head_dist.", "fc."))


def _is_inner_matrix(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix of the encoder or, as (out, in · kernel), a filter bank of a stem's stages."""
    inside = name.startswith("blocks.") and not _says_places(name)
    return (inside and p.ndim == 2) or (".stages." in name and p.ndim == 4)


def _says_places(name: str) -> bool:
    """Whether a parameter is a table of places inside the attention, and no matrix: BEiT's addends, learnt angles."""
    return name.endswith(("relative_position_bias_table", "rope.freqs"))


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between 0.7 and 1.2
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Groups marked `orthogonal` (see `parameter_groups`) by Muon, the others by AdamW, with one learning rate."""

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is that of the products that orthogonalise; momentum and weights keep their own."""
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum, "eps": 1e-8}
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["orthogonal"]:
                self._muon(params, group)
            else:
                self._adamw(params, group)

    def _muon(self, params: list[Tensor], group: Group) -> None:
        lr, momentum = group["lr"], group["momentum"]
        gradients = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        averages = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, averages, momentum)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for same in _alike(params):
            updates = orthogonalised([nesterov[place] for place in same], group["parts"], self.dtype)
            rows, columns = updates.shape[1] // group["parts"], updates.shape[2]
            size = 0.2 * math.sqrt(max(rows, columns))  # the root mean square of an AdamW update
            moved = [params[place] for place in same]
            steps = [update.view_as(p) for update, p in zip(updates, moved, strict=True)]
            torch._foreach_sub_(moved, steps, alpha=lr * size)

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


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The places of `tensors`, those of one shape together."""
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[tensor.shape].append(place)
    return list(places.values())


def orthogonalised(stack: Sequence[Tensor], parts: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """`orthogonalise` of S tensors of one shape, as matrices (parts · M, N) each part by itself, in one product.

    → (S, parts · M, N), computed in `dtype`.
    """
    matrices = torch.stack([one.flatten(1) for one in stack])
    S, _, N = matrices.shape
    found = orthogonalise(matrices.to(dtype).view(S, parts, -1, N))
    return found.flatten(1, 2).to(matrices.dtype)


def orthogonalise(x: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to `x` (…, M, N), roughly: singular values between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
