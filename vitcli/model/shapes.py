"""The names and shapes that a ViT's weights must have, from its config alone: no torch, and nothing is allocated.

The same table that `VisionTransformer(config).state_dict()` gives (a test says so for every architecture), without
torch: both engines check a file against it before they build anything. Names are timm's.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitcli.model.config import StemConfig, ViTConfig

Shape = tuple[int, ...]
Array = np.ndarray[Any, np.dtype[np.float32]]  # weights, and what is computed with them


def weight_shapes(vit: ViTConfig) -> dict[str, Shape]:
    """Name → shape of every weight of `vit`."""
    return dict(_weights(vit))


def _weights(vit: ViTConfig) -> Iterator[tuple[str, Shape]]:
    D = vit.embed_dim
    if vit.class_token:
        yield "cls_token", (1, 1, D)
    if vit.distilled:
        yield "dist_token", (1, 1, D)
    if vit.reg_tokens:
        yield "reg_token", (1, vit.reg_tokens, D)
    if vit.num_pos_tokens:
        yield "pos_embed", (1, vit.num_pos_tokens, D)
    channels = vit.in_chans
    if vit.stem:
        yield from _resnetv2("patch_embed.backbone", vit.stem, vit.in_chans)
        channels = vit.stem.out_channels
    yield "patch_embed.proj.weight", (D, channels, *vit.patch_size)
    if not vit.pre_norm:
        yield "patch_embed.proj.bias", (D,)
    else:
        yield from _norm("norm_pre", D)
    if vit.rope and vit.rope.kind == "mixed":
        yield "rope.freqs", (2, vit.depth, vit.num_heads, vit.head_dim // 2)
    for i in range(vit.depth):
        yield from _block(f"blocks.{i}", vit)
    if vit.final_norm:
        yield from _norm("fc_norm" if vit.norm_after_pool else "norm", D)
    if vit.global_pool == "map":
        yield "attn_pool.latent", (1, 1, D)
        yield from _linear("attn_pool.q", D, D)
        yield from _linear("attn_pool.kv", D, 2 * D)
        yield from _linear("attn_pool.proj", D, D)
        yield from _norm("attn_pool.norm", D)
        yield from _linear("attn_pool.mlp.fc1", D, vit.pool_mlp_dim)
        yield from _linear("attn_pool.mlp.fc2", vit.pool_mlp_dim, D)
    if vit.head_hidden:
        yield from _linear("pre_logits.fc", D, vit.head_hidden)
    if vit.num_classes:
        for head in ("head", "head_dist")[: vit.pooled_tokens]:
            yield from _linear(head, vit.num_features // vit.pooled_tokens, vit.num_classes)


def _block(name: str, vit: ViTConfig) -> Iterator[tuple[str, Shape]]:
    D = vit.embed_dim
    yield from _norm(f"{name}.norm1", D)
    yield from _attention(f"{name}.attn", vit)
    yield from _norm(f"{name}.norm2", D)
    yield from _mlp(f"{name}.mlp", vit)
    if vit.init_values:
        for factor in ("gamma_1", "gamma_2") if vit.related else ("ls1.gamma", "ls2.gamma"):
            yield f"{name}.{factor}", (D,)


def _attention(name: str, vit: ViTConfig) -> Iterator[tuple[str, Shape]]:
    D = vit.embed_dim
    if vit.rel_pos_bias:
        h, w = vit.grid
        yield f"{name}.relative_position_bias_table", ((2 * h - 1) * (2 * w - 1) + 3, vit.num_heads)
    if vit.qkv == "split":
        yield from _linear(f"{name}.q_proj", D, D, vit.qkv_bias)
        yield from _linear(f"{name}.k_proj", D, D, bias=False)
        yield from _linear(f"{name}.v_proj", D, D, vit.qkv_bias)
    else:
        yield from _linear(f"{name}.qkv", D, 3 * D, vit.qkv_bias and vit.qkv == "fused")
        if vit.qkv_bias and vit.qkv == "bias_apart":
            yield f"{name}.q_bias", (D,)
            yield f"{name}.v_bias", (D,)
    if vit.qk_norm:
        yield from _norm(f"{name}.q_norm", vit.head_dim)
        yield from _norm(f"{name}.k_norm", vit.head_dim)
    if vit.attn_norm:
        yield from _norm(f"{name}.norm", D)
    yield from _linear(f"{name}.proj", D, D, vit.proj_bias)


def _mlp(name: str, vit: ViTConfig) -> Iterator[tuple[str, Shape]]:
    D, hidden = vit.embed_dim, vit.mlp_hidden
    if vit.mlp == "swiglu_split":
        yield from _linear(f"{name}.fc1_g", D, hidden, vit.proj_bias)
        yield from _linear(f"{name}.fc1_x", D, hidden, vit.proj_bias)
    else:
        yield from _linear(f"{name}.fc1", D, vit.mlp_dim, vit.proj_bias)
    if vit.mlp_norm:
        yield from _norm(f"{name}.norm", hidden)
    yield from _linear(f"{name}.fc2", hidden, D, vit.proj_bias)


def _resnetv2(name: str, stem: StemConfig, in_chans: int) -> Iterator[tuple[str, Shape]]:
    root = f"{name}.stem" if stem.layers else name
    yield f"{root}.conv.weight", (stem.width, in_chans, 7, 7)
    yield from _norm(f"{root}.norm", stem.width)
    for s, stage in enumerate(stem.stages):
        for b, block in enumerate(stage):
            convolutions = {f"conv{i}": conv for i, conv in enumerate(block.convolutions, start=1)}
            if block.shortcut:
                convolutions = {"downsample.conv": block.shortcut, **convolutions}
            for conv, (inputs, outputs, kernel, _) in convolutions.items():
                yield f"{name}.stages.{s}.blocks.{b}.{conv}.weight", (outputs, inputs, kernel, kernel)
                yield from _norm(f"{name}.stages.{s}.blocks.{b}.{conv.replace('conv', 'norm')}", outputs)


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
