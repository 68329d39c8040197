"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of the attention's matrices: qkv (or its three) and proj.

W + (α / r) · B A with W frozen, as a torch parametrisation: whoever reads `weight` reads the sum. `merged` folds the
update into W, so what is kept is a plain ViT. Knows modules only.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

ADAPTED = tuple(f".attn.{matrix}" for matrix in ("qkv", "q_proj", "k_proj", "v_proj", "proj"))
ALPHA_PER_RANK = 2.0  # α / r: the strength of the update does not depend on the rank


class LowRank(nn.Module):
    """A trainable update of low rank to a weight (out, in). Begins as none: B is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.b, self.a, alpha=ALPHA_PER_RANK)


def adapt(model: nn.Module, rank: int) -> None:
    """Freeze `model` but for its head (or two), and give every attention's matrices an update of `rank`, in place."""
    model.requires_grad_(False)
    for head in (model.head, model.head_dist):
        if isinstance(head, nn.Module):
            head.requires_grad_(True)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name.endswith(ADAPTED):
            register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merged(model: nn.Module, *, own: bool = False) -> nn.Module:
    """`model` itself, or a copy with plain layers in place of adapted ones; where it is the caller's `own`, no copy."""
    if not any(map(is_parametrized, model.modules())):
        return model
    model = model if own else deepcopy(model)
    # Not remove_parametrizations: it takes `weight` away from a class that the copy shares with the original.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and is_parametrized(layer):
            model.set_submodule(name, _plain(layer))
    return model


def _plain(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach())
    plain.bias = layer.bias
    return plain
