"""What the paper's encoder has not, and its descendants have: the blocks of EVA, EVA-02, DINOv3, PE, RoPE-ViT and BEiT.

They attend as the paper does, and differ in where the queries, keys and values come from (their biases apart, or three
layers), in what is said of places inside the attention (queries and keys that are turned, `places.py`, or a learnt
addend to each score), in norms before the last layer of attention and MLP, and in gated MLPs. Module and parameter
names are those of timm's `eva.py` and `beit.py`.

Legend: B batch, h w patch grid, N tokens (prefix and patches), M queries (M ≤ N), D width, n heads, d width of a head.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.model.config import ViTConfig
from vitcli.model.encoder import Attend, Attention, Block, DropPath, Mlp, SwiGLU, attend, attention_weights
from vitcli.model.linear import Linear
from vitcli.model.places import angles, coordinates, relative_places, tables


def blocks(
    config: ViTConfig, dropout: float, drop_paths: Iterable[float], rotary: "Rotary | None"
) -> Iterator[nn.Module]:
    """The encoder's blocks: the paper's, or those of this file, with a stochastic-depth rate for each."""
    for layer, rate in enumerate(drop_paths):
        yield RelatedBlock(config, layer, dropout, rate, rotary) if config.related else Block(config, dropout, rate)


class RelatedBlock(nn.Module):
    """A pre-norm block as the paper's, of the parts in this file; its layer scale has no module of its own."""

    def __init__(
        self,
        config: ViTConfig,
        layer: int,
        dropout: float,
        drop_path: float,
        rotary: "Rotary | None",
    ) -> None:
        super().__init__()
        D = config.embed_dim
        self.norm1 = nn.LayerNorm(D, config.norm_eps)
        self.attn: Attention
        if config.rel_pos_bias:
            self.attn = BiasedAttention(config, dropout)
        else:
            self.attn = TurnedAttention(config, dropout, layer, rotary)
        self.norm2 = nn.LayerNorm(D, config.norm_eps)
        self.mlp = _mlp(config, dropout)
        self.gamma_1 = nn.Parameter(torch.full((D,), config.init_values)) if config.init_values else None
        self.gamma_2 = nn.Parameter(torch.full((D,), config.init_values)) if config.init_values else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, queries: int | None = None, attend: Attend | None = None) -> Tensor:
        """Tokens (B, N, D) → (B, M, D), as `Block.forward`."""
        y = attend(self.attn, self.norm1(x), queries) if attend else self.attn(self.norm1(x), queries)
        x = x[:, :queries] + self.drop_path(_scaled(y, self.gamma_1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma_2))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


# --- attention ---


class RelatedAttention(Attention):
    """The paper's attention with other projections: biases of q and v apart from one layer, or three layers."""

    def __init__(self, config: ViTConfig, dropout: float = 0.0) -> None:
        together = config.qkv == "fused"
        super().__init__(config if together else replace(config, qkv_bias=False), dropout)
        D = config.embed_dim
        self.q_bias: Tensor | None = None
        self.v_bias: Tensor | None = None
        if config.qkv == "bias_apart" and config.qkv_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.split = config.qkv == "split"
        if self.split:
            del self.qkv
            self.q_proj = Linear(D, D, config.qkv_bias)
            self.k_proj = Linear(D, D, bias=False)  # a key's bias would add the same to all scores of a query
            self.v_proj = Linear(D, D, config.qkv_bias)
        self.norm = nn.LayerNorm(D, config.norm_eps) if config.attn_norm else nn.Identity()

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.split:
            return self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        return super().matrices()

    def _bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return super()._bias()
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _projected(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if not self.split:
            return super()._projected(x, queries)
        parts = self.q_proj(x[:, :queries]), self.k_proj(x), self.v_proj(x)
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        return q, k, v

    def _project(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2).flatten(2))  # (B, n, M, d) → (B, M, D)
        return self.proj_drop(self.proj(x))


class TurnedAttention(RelatedAttention):
    """Attention whose queries and keys are turned by their patches' places; not at all where there is no `rotary`."""

    def __init__(self, config: ViTConfig, dropout: float, layer: int, rotary: "Rotary | None") -> None:
        super().__init__(config, dropout)
        self.layer = layer
        self._rotary = (rotary,)  # the model's own, and not a part of this module

    def _heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._heads(x, queries)
        if (rotary := self._rotary[0]) is None:
            return q, k, v
        return *rotary.turn(q, k, self.layer), v


class BiasedAttention(RelatedAttention):
    """Attention with a learnt addend to each head's scores, by how many rows and columns lie between two patches.

    Three more addends are for the class token: as a query, as a key, and with itself (BEiT, arXiv 2106.08254).
    """

    def __init__(self, config: ViTConfig, dropout: float = 0.0) -> None:
        super().__init__(config, dropout)
        h, w = config.grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * h - 1) * (2 * w - 1) + 3, config.num_heads))
        self.register_buffer("places", torch.from_numpy(relative_places(config.grid)), persistent=False)
        self.places: Tensor

    def scores(self) -> Tensor:
        """The addends (n, N, N)."""
        N = self.places.shape[0]
        return self.relative_position_bias_table[self.places.flatten()].view(N, N, -1).permute(2, 0, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.scores()[:, : q.shape[-2]].to(q.dtype))

    def _weights(self, q: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
        return attention_weights(q, k, self.scores()[:, : q.shape[-2]], out)


# --- turning ---


class Rotary(nn.Module):
    """Turns queries and keys: by tables that follow from the grid, or by the frequencies that every block learnt."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        assert config.rope is not None
        self.prefix, self.halves = config.num_prefix_tokens, config.rope.half
        self.freqs: Tensor | None = None
        if config.rope.kind == "mixed":
            heads, pairs = config.num_heads, config.head_dim // 2
            self.freqs = nn.Parameter(_first_frequencies(config.depth, heads, pairs, config.rope.temperature))
            places = torch.from_numpy(coordinates(config.rope, config.grid))  # (h·w, 2)
            self.register_buffer("coordinates", places.T[:, None, :, None].contiguous(), persistent=False)
        else:
            cos, sin = tables(config, angles(config))
            self.register_buffer("cos", torch.from_numpy(cos), persistent=False)
            self.register_buffer("sin", torch.from_numpy(sin), persistent=False)
        self.coordinates: Tensor
        self.cos: Tensor
        self.sin: Tensor

    def turn(self, q: Tensor, k: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Queries (B, n, M, d) of the first M tokens and keys (B, n, N, d) of all, turned for the block `layer`.

        They may be written over.
        """
        M = q.shape[-2]
        cos, sin = self._tables(layer, q.dtype)
        still = self.prefix >= M  # queries that are no patches have no place
        if _in_place(q) and _in_place(k):
            turns = torch.complex(cos, sin)
            q, k = _paired(q, self.halves), _paired(k, self.halves)
            if not still:
                q.mul_(turns[..., :M, :])
            return _unpaired(q), _unpaired(k.mul_(turns))
        turn = _turn_halves if self.halves else _turn_neighbours
        return q if still else turn(q, cos[..., :M, :], sin[..., :M, :]), turn(k, cos, sin)

    def _tables(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (N, d/2) or (n, N, d/2), of the block `layer`."""
        if self.freqs is None:
            return self.cos.to(dtype), self.sin.to(dtype)
        frequencies = self.freqs[:, layer].float().unsqueeze(-2)  # (2, n, 1, d/2)
        angles = (self.coordinates.float() * frequencies).sum(0)  # (n, h·w, d/2)
        angles = F.pad(angles, (0, 0, self.prefix, 0))
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _in_place(x: Tensor) -> bool:
    """Whether nobody asks for x again, no gradient and no compiler, which fuses what a CPU takes several passes for."""
    learning = torch.is_grad_enabled() and x.requires_grad
    return x.dtype == torch.float32 and x.device.type == "cpu" and not learning and not torch.compiler.is_compiling()


def _paired(x: Tensor, halves: bool) -> Tensor:
    """x (…, d) as complex numbers (…, d/2), which a CPU turns by one product in place.

    Pairs beside each other are x itself. Pairs half a head apart (`halves`) are brought together, in a copy: another
    order of the head's numbers, the same for queries and keys, so their products are the same.
    """
    if halves:
        return torch.complex(*x.chunk(2, dim=-1))
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]


def _unpaired(x: Tensor) -> Tensor:
    """(…, d/2) complex → (…, d) real."""
    return torch.view_as_real(x).flatten(-2)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (a, b) of x (…, d), half a head apart → (a cos − b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same of pairs beside each other."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def _first_frequencies(depth: int, heads: int, pairs: int, temperature: float) -> Tensor:
    """Frequencies (2, depth, heads, pairs) along two directions at right angles, at random for each head."""
    sizes = temperature ** (-torch.arange(pairs // 2) / (pairs // 2))
    direction = 2 * torch.pi * torch.rand(depth, heads, 1, 1)
    both = torch.cat([direction, direction + torch.pi / 2], dim=-2)  # (depth, heads, 2, 1)
    return torch.stack([(both.cos() * sizes).flatten(-2), (both.sin() * sizes).flatten(-2)])


# --- MLPs ---


class NormedMlp(Mlp):
    """The paper's MLP with a LayerNorm before its second layer (NormFormer, arXiv 2110.09456)."""

    def __init__(self, config: ViTConfig, dropout: float) -> None:
        super().__init__(config.embed_dim, config.mlp_dim, config.act, config.proj_bias, dropout)
        self.norm = nn.LayerNorm(config.mlp_dim, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.norm(self.drop(self.act(self.fc1(x))))))


class SplitSwiGLU(nn.Module):
    """A gated MLP, SiLU(Gx) · (Vx), with a layer each for gate and value; a norm before the last where wanted."""

    def __init__(self, config: ViTConfig, dropout: float) -> None:
        super().__init__()
        D, hidden = config.embed_dim, config.mlp_hidden
        self.fc1_g = Linear(D, hidden, config.proj_bias)
        self.fc1_x = Linear(D, hidden, config.proj_bias)
        self.norm = nn.LayerNorm(hidden, config.norm_eps) if config.mlp_norm else nn.Identity()
        self.fc2 = Linear(hidden, D, config.proj_bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.silu(self.fc1_g(x)) * self.fc1_x(x))
        return self.drop(self.fc2(self.norm(x)))


def _mlp(config: ViTConfig, dropout: float) -> nn.Module:
    if config.mlp == "swiglu_split":
        return SplitSwiGLU(config, dropout)
    if config.mlp == "swiglu":
        return SwiGLU(config.embed_dim, config.mlp_dim, config.proj_bias, dropout)
    if config.mlp_norm:
        return NormedMlp(config, dropout)
    return Mlp(config.embed_dim, config.mlp_dim, config.act, config.proj_bias, dropout)
