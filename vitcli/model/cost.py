"""What a ViT costs: parameters and multiply–adds, from its config alone. Imports no torch, allocates nothing.

Counted are matrix products and convolutions, as `torch.utils.flop_counter` counts them (its FLOPs are two for each
multiply–add); norms, activations and the softmax are not. A training step takes about three forward passes.

Legend: N tokens, M queries (M ≤ N), D width, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import NamedTuple

from vitcli.model.config import Convolution, ViTConfig


@dataclass(frozen=True)
class Stage:
    """One part of the model."""

    name: str
    params: int
    macs: int  # multiply–adds of the forward pass, for one image


@dataclass(frozen=True)
class Cost:
    """The parts of the model in the order of the data: cnn (of a hybrid), patches, position, attention, mlp, head."""

    stages: tuple[Stage, ...]

    @property
    def params(self) -> int:
        return sum(stage.params for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply–adds of the forward pass, for one image."""
        return sum(stage.macs for stage in self.stages)


def cost(config: ViTConfig) -> Cost:
    """Parameters and multiply–adds of each part; attention and mlp are those of all blocks, each with its norm."""
    stages = (_patches(config), _position(config), _attention(config), _mlp(config), _head(config))
    return Cost((_cnn(config), *stages) if config.stem else stages)


def _cnn(config: ViTConfig) -> Stage:
    convolutions = list(_convolutions(config))
    params = sum(conv.weights + 2 * conv.channels for conv in convolutions)  # a GroupNorm follows each
    return Stage("cnn", params, sum(conv.weights * conv.cells for conv in convolutions))


def _patches(config: ViTConfig) -> Stage:
    """The projection E."""
    channels = config.stem.out_channels if config.stem else config.in_chans
    weights = prod(config.patch_size) * channels * config.embed_dim
    bias = 0 if config.pre_norm else config.embed_dim
    return Stage("patches", weights + bias, weights * config.num_patches)


def _position(config: ViTConfig) -> Stage:
    """Class token, registers, position embedding, CLIP's norm."""
    rows = config.num_prefix_tokens + config.num_pos_tokens + 2 * config.pre_norm
    return Stage("position", rows * config.embed_dim, 0)


def _attention(config: ViTConfig) -> Stage:
    D, N = config.embed_dim, config.num_tokens
    biases = 3 if config.qkv == "fused" else 2
    params = 2 * D + 4 * D * D + biases * D * config.qkv_bias + D * config.proj_bias + D * bool(config.init_values)
    params += 4 * config.head_dim * config.qk_norm + 2 * D * config.attn_norm + _places(config)
    # k and v of all tokens; q and the projection of the queries; q·k and the sum over v
    macs = sum(2 * N * D * D + 2 * M * D * D + 2 * M * N * D for M in _queries(config))
    return Stage("attention", config.depth * params, macs)


def _places(config: ViTConfig) -> int:
    """What a block has learnt of places: BEiT's addends, or the frequencies of its angles."""
    (h, w), heads = config.grid, config.num_heads
    addends = ((2 * h - 1) * (2 * w - 1) + 3) * heads if config.rel_pos_bias else 0
    return addends + (config.embed_dim if config.rope and config.rope.kind == "mixed" else 0)


def _mlp(config: ViTConfig) -> Stage:
    D, first, hidden = config.embed_dim, config.mlp_dim, config.mlp_hidden
    weights = D * first + hidden * D
    params = 2 * D + weights + (first + D) * config.proj_bias + D * bool(config.init_values)
    params += 2 * hidden * config.mlp_norm
    return Stage("mlp", config.depth * params, weights * sum(_queries(config)))


def _head(config: ViTConfig) -> Stage:
    """The last norm, pooling, the pre-training head's hidden layer, the classifier."""
    D, hidden = config.embed_dim, config.pool_mlp_dim
    params, macs = 2 * D * config.final_norm, 0
    if config.global_pool == "map":
        N = config.num_tokens if config.pools_prefix else config.num_patches
        weights = 2 * D * D + 2 * D * hidden  # of the query, the projection and the MLP: one token
        params += D + weights + 2 * D * D + 4 * D + 2 * D + hidden + D
        macs += weights + 2 * N * D * D + 2 * N * D
    if config.head_hidden:
        params += (D + 1) * config.head_hidden
        macs += D * config.head_hidden
    params += (config.num_features + config.pooled_tokens) * config.num_classes
    return Stage("head", params, macs + config.num_features * config.num_classes)


def _queries(config: ViTConfig) -> list[int]:
    """How many tokens each block computes: the last one only the class token, when nothing else is looked at."""
    last = config.pooled_tokens if config.global_pool == "token" else config.num_tokens
    return [config.num_tokens] * (config.depth - 1) + [last]


class _Convolution(NamedTuple):
    weights: int
    channels: int  # that come out
    cells: int  # that come out


def _convolutions(config: ViTConfig) -> Iterator[_Convolution]:
    """The CNN's convolutions, in its order."""
    stem = config.stem
    if stem is None:
        return

    def cells(reduction: int) -> int:
        return prod(-(-size // reduction) for size in config.img_size)

    def counted(conv: Convolution, reduction: int) -> _Convolution:
        return _Convolution(conv.kernel**2 * conv.inputs * conv.outputs, conv.outputs, cells(reduction))

    yield _Convolution(7 * 7 * config.in_chans * stem.width, stem.width, cells(2))
    reduction = 4
    for block in chain.from_iterable(stem.stages):
        if block.shortcut:
            yield counted(block.shortcut, reduction * block.shortcut.stride)
        for convolution in block.convolutions:
            reduction *= convolution.stride
            yield counted(convolution, reduction)
