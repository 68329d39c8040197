"""From the encoder's output to the representation y and to logits: pooling and the pre-training head.

Knows tokens, not images. The fine-tuning head (paper, section 3.2) is one `nn.Linear`; a distilled DeiT has two.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.model.config import ViTConfig
from vitcli.model.encoder import Gathered, Mlp, attention_weights
from vitcli.model.linear import Linear


class AttentionPool(nn.Module):
    """One learned query attends to all tokens ("MAP" of Scaling ViT, arXiv 2106.04560; timm AttentionPoolLatent)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.pool_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, D))
        self.q = Linear(D, D)
        self.kv = Linear(D, 2 * D)
        self.proj = Linear(D, D)
        self.norm = nn.LayerNorm(D, config.norm_eps)
        self.mlp = Mlp(D, config.pool_mlp_dim, config.act)

    def forward(self, x: Tensor, trace: Callable[[Gathered], None] | None = None) -> Tensor:
        """Tokens (B, N, D) → (B, D); `trace` is shown what the heads gathered."""
        B, N, D = x.shape
        n, d = self.num_heads, D // self.num_heads
        q = self.q(self.latent.expand(B, -1, -1)).view(B, 1, n, d).transpose(1, 2)  # (B, n, 1, d)
        k, v = self.kv(x).view(B, N, 2, n, d).permute(2, 0, 3, 1, 4).unbind(0)  # (B, n, N, d)
        heads = F.scaled_dot_product_attention(q, k, v)  # (B, n, 1, d)
        if trace:
            trace(Gathered(heads, v, partial(attention_weights, q, k)))
        x = self.proj(heads.transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x)))[:, 0]


class PreLogits(nn.Module):
    """The hidden layer of the pre-training head (paper, section 3.1): tanh in the authors' code, GELU on request."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        assert config.head_hidden is not None
        self.fc = Linear(config.embed_dim, config.head_hidden)
        self.act = nn.Tanh() if config.head_act == "tanh" else nn.GELU()

    def forward(self, y: Tensor) -> Tensor:
        """(B, D) → (B, head_hidden)."""
        return self.act(self.fc(y))


def classifier(config: ViTConfig) -> nn.Module:
    """One linear layer to the classes, from one token's width; the identity where there are none."""
    width = config.num_features // config.pooled_tokens
    return nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()


def mean_of_heads(y: Tensor, head: nn.Module, head_dist: nn.Module) -> Tensor:
    """The mean of a distilled DeiT's two answers (arXiv 2012.12877, section 4), each from its own token.

    Class and distillation token beside each other (B, 2 D) → logits (B, K); y itself where there are no classes.
    """
    if isinstance(head, nn.Identity):
        return y
    own, teachers = y.chunk(2, dim=-1)
    mean: Tensor = (head(own) + head_dist(teachers)) / 2
    return mean
