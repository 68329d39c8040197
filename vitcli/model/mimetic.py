"""First weights like those of a trained ViT: what is near attends to what is near.

On little data a ViT from scratch first has to find out that images are two-dimensional. Here the position embedding
begins as two-dimensional waves, query and key agree on every token, so that tokens of near positions and of like
contents attend to each other, and value and projection take away a part of what is gathered. The architecture stays
the same. After Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828).
"""

import torch
from torch import Tensor

from vitcli.model.config import Size
from vitcli.model.encoder import Attention
from vitcli.model.vit import VisionTransformer

QUERY_KEY = (0.7, 0.7)  # Wq'Wk of each head ≈ 0.7 noise + 0.7 I
VALUE_PROJECTION = (0.4, -0.4)  # Wp Wv ≈ 0.4 noise − 0.4 I


@torch.no_grad()
def mimic(model: VisionTransformer) -> None:
    """Set the attention weights and the position embedding of a freshly initialised `model`, from the global generator.

    Raises ValueError when a learned position embedding has a width that is not a multiple of 4.
    """
    config, D, d = model.config, model.config.embed_dim, model.config.head_dim
    if model.pos_embed is not None:
        model.pos_embed.zero_()
        model.pos_embed[:, -config.num_patches :] = waves(config.grid, D)
    for attention in (module for module in model.modules() if isinstance(module, Attention)):
        q, k, v = attention.matrices()  # (D, D) each, n heads of d rows
        for head in range(config.num_heads):
            rows = slice(head * d, (head + 1) * d)
            left, right = _factors(*QUERY_KEY, D)
            q[rows], k[rows] = left[:, :d].T, right[:d]
        left, right = _factors(*VALUE_PROJECTION, D)
        attention.proj.weight.copy_(left)
        v.copy_(right)


def waves(grid: Size, width: int, slowest: float = 100.0) -> Tensor:
    """Sine and cosine of row and column (h·w, width), of periods from 2π to almost 2π · `slowest` patches."""
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4")
    frequencies = slowest ** (-torch.arange(width // 4) / (width // 4))  # radians a patch
    rows, columns = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(
        torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"
    ))  # (h·w, width / 4)  # fmt: skip
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)


def _factors(noise: float, identity: float, size: int) -> tuple[Tensor, Tensor]:
    """Two (size, size) matrices whose product is noise · N(0, 1/size) + identity · I, most of it in their first columns
    and rows."""
    wanted = noise * torch.randn(size, size) / size**0.5 + identity * torch.eye(size)
    u, s, vt = torch.linalg.svd(wanted)
    return u * s.sqrt(), s.sqrt()[:, None] * vt
