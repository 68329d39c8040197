"""The settings of timm's `Eva` and `Beit` ↔ the fields of ViTConfig: the same things under other names.

What an architecture's name settles (where queries come from, how they are turned, what gates an MLP) may be repeated in
a checkpoint and not changed. Values are not checked here.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitcli.errors import CheckpointError
from vitcli.files import shown
from vitcli.model.config import Layout, ViTConfig
from vitcli.text import did_you_mean, safe

_SHARED = {
    name: name
    for name in (
        "img_size",
        "patch_size",
        "in_chans",
        "embed_dim",
        "depth",
        "num_heads",
        "qkv_bias",
        "mlp_ratio",
        "init_values",
        "global_pool",
    )
} | {"use_abs_pos_emb": "pos_embed", "use_fc_norm": "fc_norm"}

# timm's name → ours
NAMES: Mapping[Layout, Mapping[str, str]] = {
    "beit": _SHARED,
    "eva": {
        **_SHARED,
        "class_token": "class_token",
        "num_reg_tokens": "reg_tokens",
        "no_embed_class": "no_embed_class",
        "use_pre_transformer_norm": "pre_norm",
        "use_post_transformer_norm": "final_norm",
        "attn_pool_num_heads": "attn_pool_num_heads",
        "attn_pool_mlp_ratio": "attn_pool_mlp_ratio",
    },
}

# What an architecture settles. A checkpoint of ours cannot say otherwise, either.
SETTLED = ("layout", "qkv", "rope", "rel_pos_bias", "attn_norm", "mlp_norm", "mlp_align")

# Of training, or of the first weights
_WITHOUT_EFFECT = {"rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords", "head_init_scale"}


def settable(vit: ViTConfig) -> set[str]:
    """The fields of ViTConfig that timm's class behind `vit` has settings for."""
    return set(NAMES[vit.layout].values())


def fields_of(architecture: str, base: ViTConfig, args: Mapping[str, Any]) -> dict[str, Any]:
    """timm's `args` by the names of ViTConfig; `base` is what `architecture` means without them.

    Raises CheckpointError for a setting that timm's class does not have, and for one that the architecture settles
    otherwise.
    """
    names, settled = NAMES[base.layout], _settled(base)
    found: dict[str, Any] = {}
    for key, value in args.items():
        if key in _WITHOUT_EFFECT:
            continue
        if key in settled:
            meant = tuple(value) if isinstance(value, list) else value
            if meant != settled[key]:
                raise CheckpointError(
                    f"model_args.{key} is {shown(value)}, {architecture} has {shown(settled[key])}; other models are "
                    "not built"
                )
        elif key in names:
            found[names[key]] = value
        else:
            raise CheckpointError(f"model_args.{safe(key, 40)} is not known.{did_you_mean(key, names)}")
    if isinstance(learnt := found.get("pos_embed"), bool):
        found["pos_embed"] = "learn" if learnt else "none"
    if found.get("final_norm", ...) is None:
        del found["final_norm"]
    elif isinstance(found.get("final_norm"), bool):
        found["final_norm"] = _any_norm(base, found)
    return found


def _any_norm(base: ViTConfig, found: Mapping[str, Any]) -> bool:
    """Whether a norm stands before the pooling, as `found` says, or after it, as it says or by timm's default."""
    pool, after = found.get("global_pool", base.global_pool), found.get("fc_norm", base.fc_norm)
    after = pool == "avg" if after is None else after
    if found["final_norm"] and after:
        raise CheckpointError("model_args asks for norms before and after the pooling; models with both are not built")
    return bool(found["final_norm"] or after)


def args_of(base: ViTConfig, vit: ViTConfig) -> dict[str, Any]:
    """What timm's class must be told to build `vit` from `base`, by ViTConfig's values; the size and pooling always.

    Raises CheckpointError where `vit` is of another kind than `base`.
    """
    if different := _different(base, vit):
        raise CheckpointError(f"{', '.join(different)}: timm's model of this name has another, and no setting for it")
    args: dict[str, Any] = {}
    for name, field in NAMES[vit.layout].items():
        value = getattr(vit, field)
        if field in ("img_size", "in_chans", "global_pool") or value != getattr(base, field):
            args[name] = value
    if "use_abs_pos_emb" in args:
        args["use_abs_pos_emb"] = vit.pos_embed == "learn"
    if {"use_fc_norm", "use_post_transformer_norm"} & args.keys():
        args["use_fc_norm"] = vit.final_norm and vit.norm_after_pool
        if vit.layout == "eva":
            args["use_post_transformer_norm"] = vit.final_norm and not vit.norm_after_pool
    return args


def buildable(base: ViTConfig, vit: ViTConfig) -> bool:
    """Whether an architecture `base` can be told to be `vit`; what only we read may differ in a plain ViT."""
    return not _different(base, vit)


def _different(base: ViTConfig, vit: ViTConfig) -> list[str]:
    """The fields in which `vit` is of another kind than `base`, and nothing can say so."""
    names: tuple[str, ...] = SETTLED
    if base.related:
        allowed = settable(base) | {"norm_eps", "num_classes"}
        names = tuple(field.name for field in fields(ViTConfig) if field.name not in allowed)
    return [name for name in names if getattr(vit, name) != getattr(base, name)]


def _settled(base: ViTConfig) -> dict[str, Any]:
    """timm's settings of what the architecture settles."""
    gated = {"swiglu_mlp": base.gated, "scale_mlp": base.mlp_norm}
    if base.layout == "beit":
        return {**gated, "use_rel_pos_bias": base.rel_pos_bias, "use_shared_rel_pos_bias": False}
    rope = base.rope
    settled: dict[str, Any] = {
        **gated,
        "swiglu_align_to": base.mlp_align,
        "scale_attn_inner": base.attn_norm,
        "attn_type": "rope" if base.qkv == "fused" else "eva",
        "qkv_fused": base.qkv != "split",
        "num_kv_heads": None,
        "qk_norm": False,
        "use_post_norm": False,
        "attn_only_layer_scale": False,
        "use_rot_pos_emb": rope is not None,
        "rope_mrope_section": None,
    }
    if rope:
        settled |= {
            "rope_type": rope.kind,
            "rope_temperature": rope.temperature,
            "ref_feat_shape": rope.reference,
            "rope_grid_offset": rope.offset,
            "rope_grid_indexing": "xy" if rope.columns_first else "ij",
            "rope_rotate_half": rope.half,
        }
    return settled
