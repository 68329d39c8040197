"""The Transformer encoder's parts: attention, MLP, block (paper, section 3.1, equations 2 and 3).

    z' = MSA(LN(z)) + z          z = MLP(LN(z')) + z'

Module and parameter names are timm's, so that state dicts fit. Knows tokens, not images.

Legend: B batch, N tokens, M queries (M ≤ N), D width, n heads, d width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.model.config import Activation, ViTConfig
from vitcli.model.linear import Linear, linear

Watch = Callable[[int, Tensor], None]  # index in the batch, attention weights (n, N, N)


class Gathered(NamedTuple):
    """What the heads of one attention gathered, from which values, and how it comes by the weights of them."""

    heads: Tensor  # (B, n, M, d)
    values: Tensor  # (B, n, N, d)
    weights: Callable[[], Tensor]  # computes (B, n, M, N)


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the approximation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: Activation) -> nn.Module:
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class LayerScale(nn.Module):
    """A learnable factor per channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: leaves a whole residual branch out, per sample (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # A tensor, so that what was compiled for one block serves all, whatever their rates; none of the state.
        self.keep = torch.tensor(1.0 - rate, device="cpu") if rate else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.keep is None:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < self.keep
        return x * (kept.to(x.dtype) / self.keep)


def attend(q: Tensor, k: Tensor, v: Tensor, addend: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + `addend`) v: queries (…, M, d), keys and values (…, N, d) → (…, M, d)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # The fused kernel of torch 2.14 makes no use of the CPU's bfloat16 instructions (benchmarks/bfloat16.py).
        return attention_weights(q, k, addend) @ v
    return F.scaled_dot_product_attention(q, k, v, addend)


def attention_weights(q: Tensor, k: Tensor, addend: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + `addend`), (…, M, N), written to `out` where that is given; each row sums to 1."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1), out=out)
    return torch.softmax(scores if addend is None else torch.add(scores, addend, out=out), dim=-1, out=out)


class Attention(nn.Module):
    """Multi-head self-attention (paper, appendix A)."""

    def __init__(self, config: ViTConfig, dropout: float = 0.0) -> None:
        super().__init__()
        D, d = config.embed_dim, config.head_dim
        self.num_heads = config.num_heads
        self.head_dim = d
        self.qkv = Linear(D, 3 * D, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(d, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(d, config.norm_eps) if config.qk_norm else nn.Identity()
        self.proj = Linear(D, D, bias=config.proj_bias)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Tokens (B, N, D) → (B, M, D): what each of the first `queries` tokens gathers (all tokens when None)."""
        return self._project(self._attend(*self._heads(x, queries)))

    def weights(self, x: Tensor) -> Tensor:
        """Attention weights (B, n, N, N) for the block input `x` after its norm; each row sums to 1.

        The fused kernel of `forward` never has these in memory; here they are computed again from the same q and k,
        so looking inside needs no hook and no switch.
        """
        q, k, _ = self._heads(x)
        return self._weights(q, k)

    @torch.no_grad()
    def watched(self, x: Tensor, watch: Watch) -> Tensor:
        """`forward`, image by image: the weights (n, N, N) of each are shown to `watch(image, weights)` and then used.

        One buffer serves all images, so `watch` must copy what it wants to keep, and the memory is that of one image.
        """
        q, k, v = self._heads(x)
        gathered = torch.empty_like(q)
        weights = x.new_empty(self.num_heads, x.shape[1], x.shape[1])
        for image in range(len(x)):
            self._weights(q[image], k[image], out=weights)
            watch(image, weights)
            gathered[image] = weights @ v[image]
        return self._project(gathered)

    def traced(self, x: Tensor, trace: Callable[[Gathered], None], queries: int | None = None) -> Tensor:
        """`forward`, fused kernel and gradient included, of which `trace` is shown what the heads gathered."""
        q, k, v = self._heads(x, queries)
        heads = self._attend(q, k, v)
        trace(Gathered(heads, v, partial(self._weights, q, k)))
        return self._project(heads)

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of queries, keys and values, (D, D) each: n heads of d rows."""
        q, k, v = self.qkv.weight.chunk(3)
        return q, k, v

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, n, M, d), k and v (B, n, N, d)."""
        q, k, v = self._projected(x, queries)
        return self.q_norm(q), self.k_norm(k), v

    def _projected(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        weight, bias = self.qkv.weight, self._bias()
        if queries is None:
            qkv = linear(x, weight, bias).view(B, N, 3, self.num_heads, self.head_dim)  # (B, N, 3, n, d)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = linear(x[:, :queries], weight[:D], None if bias is None else bias[:D])
            kv = linear(x, weight[D:], None if bias is None else bias[D:])
            q = q.view(B, queries, self.num_heads, self.head_dim).transpose(1, 2)
            k, v = kv.view(B, N, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _bias(self) -> Tensor | None:
        return self.qkv.bias

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v)

    def _weights(self, q: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
        return attention_weights(q, k, out=out)

    def _project(self, x: Tensor) -> Tensor:
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, n, M, d) → (B, M, D)
        return self.proj_drop(x)


Attend = Callable[[Attention, Tensor, int | None], Tensor]


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on each token alone."""

    def __init__(
        self, dim: int, hidden: int, act: Activation = "gelu", bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias)
        self.act = activation(act)
        self.fc2 = Linear(hidden, dim, bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))  # (B, N, 4 D)
        return self.drop(self.fc2(x))


class SwiGLU(nn.Module):
    """A gated MLP: SiLU(a) · b of the two halves of one projection (arXiv 2002.05202; DINOv2's giant)."""

    def __init__(self, dim: int, hidden: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias)
        self.fc2 = Linear(hidden // 2, dim, bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(F.silu(gate) * x)))


class Block(nn.Module):
    """One pre-norm encoder block."""

    def __init__(self, config: ViTConfig, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        D = config.embed_dim
        self.norm1 = nn.LayerNorm(D, config.norm_eps)
        self.attn = Attention(config, dropout)
        self.ls1 = LayerScale(D, config.init_values) if config.init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(D, config.norm_eps)
        self.mlp: nn.Module
        if config.mlp == "swiglu":
            self.mlp = SwiGLU(D, config.mlp_dim, config.proj_bias, dropout)
        else:
            self.mlp = Mlp(D, config.mlp_dim, config.act, config.proj_bias, dropout)
        self.ls2 = LayerScale(D, config.init_values) if config.init_values else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, queries: int | None = None, attend: Attend | None = None) -> Tensor:
        """Tokens (B, N, D) → (B, M, D): the first `queries` tokens after this block (all tokens when None).

        `attend` is called with the attention and what it is called with, in its stead: `watched` and `traced` are there
        for it.
        """
        y = attend(self.attn, self.norm1(x), queries) if attend else self.attn(self.norm1(x), queries)
        x = x[:, :queries] + self.drop_path(self.ls1(y))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
