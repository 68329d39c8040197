"""State dicts with timm's own names: original DINO (to DINOv3), DeiT (also III), MAE, and models trained with timm.

These projects build on timm's model, so their files are told apart only by what else is in them: DINOv2's blocks may
be in chunks and its MLP gated, MAE brings a decoder, DeiT a distillation token. All use an epsilon of 1e-6.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitcli.checkpoint.convert.names import (
    Dropped,
    Reasons,
    Rules,
    Weights,
    inner,
    leave_out,
    merge_class_position,
    rename,
)
from vitcli.checkpoint.convert.processor import META
from vitcli.checkpoint.convert.relatives import DINOV3_LEFT_OUT, TEMPERATURE, dinov3, dinov3_original
from vitcli.checkpoint.convert.result import TWO_HEADS, Converted, Settings, Source, facts_of, fitted, without_head
from vitcli.checkpoint.convert.shape import pooling, vit_of
from vitcli.errors import CheckpointError

_ANCHOR = "patch_embed.proj.weight"

_NAMES: Rules = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks keep each block's number
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^(register_tokens|dist_token)$", "reg_token"),
)

_LEFT_OUT: Reasons = (
    (r"^mask_token$", "the mask token of its pre-training"),
    (r"^head\.(mlp|last_layer)", "the projection head of its pre-training"),
)
MAE = "MAE"
_MAE_LEFT_OUT: Reasons = ((r"^decoder_|^mask_token$", "the decoder and mask token of its pre-training"),)

_MARKS = (
    (r"rel_pos|relative_position", "relative position biases in its attention"),
    (r"rope", "rotary position embeddings"),
    (r"(^|\.)cls_token_|cls_attn|blocks_token_only", "layers for the class token alone"),
)


def is_original(tensors: Mapping[str, Any]) -> bool:
    return any(name == _ANCHOR or name.endswith(f".{_ANCHOR}") for name in tensors)


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for what this program's ViT cannot be."""
    tensors, outside = inner(source.tensors, _ANCHOR, source.where)
    if "storage_tokens" in tensors or "rope_embed.periods" in tensors:
        return _dinov3(source, tensors, settings, outside)
    for pattern, has in _MARKS:
        if any(re.search(pattern, name) for name in tensors):
            raise CheckpointError(f"{source.where}: not converted: the model has {has}")
    title = _title(tensors)
    tensors, dropped = leave_out(tensors, _MAE_LEFT_OUT if title == MAE else _LEFT_OUT)
    registers = "register_tokens" in tensors
    tensors = rename(tensors, _NAMES, source.where)
    if registers:
        merge_class_position(tensors)
    why_not = f"{source.where}: {TWO_HEADS}" if "head_dist.weight" in tensors else None
    tensors, more = without_head(tensors, settings, why_not)
    structure = pooling(tensors) | ({"no_embed_class": True} if registers else {})
    vit = vit_of(tensors, source.where, facts_of({"act": "gelu", "norm_eps": 1e-6}, settings), **structure)
    said = [] if settings.preprocess else [
        "the file has no preprocessing; that of DINO, DeiT and MAE is taken (ImageNet's mean and standard deviation); "
        "others: --set mean=[…] --set std=[…]"
    ]  # fmt: skip
    return Converted(
        title, vit, tensors, fitted(META, vit, settings), dropped=(*outside, *dropped, *more), notes=tuple(said)
    )


def _dinov3(source: Source, tensors: Weights, settings: Settings, outside: Sequence[Dropped]) -> Converted:
    tensors, dropped = leave_out(tensors, DINOV3_LEFT_OUT)
    tensors, facts, notes = dinov3_original(tensors, source.where)
    structure = dinov3(tensors, TEMPERATURE, source.where)
    tensors, more = without_head(tensors, settings, None)
    facts |= {"act": "gelu", "norm_eps": 1e-5}
    known = {"img_size": (224, 224), **facts_of(facts, settings, said_by="rope_embed.periods")}
    vit = vit_of(tensors, source.where, known, **structure)
    if not settings.preprocess:
        notes.append(
            "the file has no preprocessing; ImageNet's mean and standard deviation are taken, as its authors do"
        )
    return Converted(
        "DINOv3",
        vit,
        tensors,
        fitted(META, vit, settings),
        dropped=(*outside, *dropped, *more),
        notes=tuple(notes),
    )


def _title(tensors: Weights) -> str:
    if any(name.startswith("decoder_") for name in tensors):
        return MAE
    if "dist_token" in tensors:
        return "DeiT with distillation"
    gated_or_chunked = any(re.search(r"\.mlp\.w12\.|^blocks\.\d+\.\d+\.", name) for name in tensors)
    scaled = any(re.search(r"\.ls1\.gamma$", name) for name in tensors)
    if "register_tokens" in tensors or gated_or_chunked or (scaled and "mask_token" in tensors):
        return "DINOv2"
    if any(name.endswith(".gamma_1") for name in tensors) and "mask_token" not in tensors:
        return "DeiT III"
    return "DINO, DeiT, MAE fine-tuned, or timm: the names are the same"
