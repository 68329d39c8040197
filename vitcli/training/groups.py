"""Which parameters are trained how: weight decay, learning rate by depth, and what Muon orthogonalises."""

import re
from typing import Any

from torch import Tensor, nn

Group = dict[str, Any]  # a parameter group of torch.optim, with `lr_scale` and, for Muon, `orthogonal` and `parts`


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0, orthogonal: bool = False
) -> list[Group]:
    """The trainable parameters of `model`. Biases, norms and other vectors are not decayed.

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
            "weight_decay": weight_decay if p.ndim > 1 else 0.0,
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
    return name.startswith(("norm.", "fc_norm.", "attn_pool.", "pre_logits.", "head.", "fc."))


def _is_inner_matrix(name: str, p: Tensor) -> bool:
    """Of the encoder, and each filter bank of a stem's stages as the matrix (out, in · kernel)."""
    return (name.startswith("blocks.") and p.ndim == 2) or (".stages." in name and p.ndim == 4)
