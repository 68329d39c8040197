"""The image tower of open_clip and OpenAI's CLIP (`visual.…`): their own ViT, or timm's (`visual.trunk.…`).

open_clip_config.json beside the weights says heads, activation and preprocessing. Without it: heads as in the
published model of the same size, and GELU, since the weights do not show OpenAI's QuickGELU (--set act=quick_gelu).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitcli.checkpoint.convert.names import Reasons, Rules, Weights, leave_out, rename
from vitcli.checkpoint.convert.result import (
    CLIP_MEAN,
    CLIP_STD,
    EMBEDS,
    Converted,
    Settings,
    Source,
    embedding_labels,
    facts_of,
    fitted,
    without_head,
)
from vitcli.checkpoint.convert.shape import pooling, vit_of
from vitcli.checkpoint.model_args import checked_facts
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import CropMode, Preprocess
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import safe

_NAMES: Rules = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^proj$", "head.weight"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRUNK_NAMES: Rules = ((r"^trunk\.", ""), (r"^head\.proj\.", "head."))

_TEXT: Reasons = (
    (
        r"^(text\.|transformer\.|token_embedding\.|positional_embedding$|ln_final\.|text_projection|logit_scale$|"
        r"logit_bias$|text_decoder\.)",
        "the text tower",
    ),
    (r"^(input_resolution|context_length|vocab_size|attn_mask)$", "what describes the towers"),
)


def is_open_clip(tensors: Mapping[str, Any]) -> bool:
    return any(name.startswith(("visual.conv1.", "visual.trunk.", "visual.class_embedding")) for name in tensors)


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for towers that are no ViT and for poolings that ours has not."""
    rest, dropped = leave_out(source.tensors, _TEXT)
    tensors = {name.removeprefix("visual."): array for name, array in rest.items()}
    if any(name.startswith(("layer1.", "attnpool.")) for name in tensors):
        raise CheckpointError(f"{source.where}: not converted: the image tower is a ResNet")
    if any(name.startswith("attn_pool") for name in tensors):
        raise CheckpointError(f"{source.where}: not converted: CoCa's attention pooling asks with more than one query")
    model = _object(source.clip_config, "model_cfg", source.where)
    vision = _object(model, "vision_cfg", source.where)
    trunk = any(name.startswith("trunk.") for name in tensors)
    notes = []
    if trunk:
        tensors = rename(tensors, _TRUNK_NAMES, source.where)
        facts, structure = _timm_tower(tensors, vision)
    else:
        tensors = rename(tensors, _NAMES, source.where)
        facts, structure = _own_tower(tensors, vision, bool(model.get("quick_gelu")), source.where)
        if not vision and "act" not in settings.facts:
            notes.append("no open_clip_config.json: GELU is taken; OpenAI's own weights need --set act=quick_gelu")
    if "head.weight" in tensors and "head.bias" not in tensors:
        tensors["head.bias"] = np.zeros(tensors["head.weight"].shape[:1], np.float32)
    tensors, more = without_head(tensors, settings, None)
    if "head.weight" in tensors:
        notes.append(EMBEDS)
    said_by = "open_clip_config.json" if vision else None
    facts = facts_of(checked_facts(facts, f"{source.where}: open_clip_config.json"), settings, said_by)
    vit = vit_of(tensors, source.where, facts, **structure)
    preprocess = _preprocess(_object(source.clip_config, "preprocess_cfg", source.where), source.where)
    return Converted(
        "open_clip with a tower of timm's" if trunk else "open_clip",
        vit,
        tensors,
        fitted(preprocess, vit, settings),
        labels=embedding_labels(vit.num_classes),
        outputs="embedding",
        dropped=(*dropped, *more),
        notes=tuple(notes),
    )


def _own_tower(
    tensors: Weights, vision: Mapping[str, Any], quick_gelu: bool, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and structure of open_clip's VisionTransformer, whose arrays get timm's shapes in place."""
    if (cls := tensors.get("cls_token")) is not None:
        tensors["cls_token"] = cls.reshape(1, 1, -1)
    if (pos := tensors.get("pos_embed")) is not None:
        tensors["pos_embed"] = pos[None]
    if (proj := tensors.get("head.weight")) is not None:
        tensors["head.weight"] = proj.T
    if "norm_pre.weight" not in tensors and (filters := tensors.get("patch_embed.proj.weight")) is not None:
        tensors["patch_embed.proj.bias"] = np.zeros(
            filters.shape[:1], np.float32
        )  # ours has none only with a norm behind
    facts: dict[str, Any] = {"act": "quick_gelu" if quick_gelu else "gelu", "norm_eps": 1e-5}
    structure: dict[str, Any] = {"no_embed_class": False}
    if vision:
        width, head_width = vision.get("width", 768), vision.get("head_width", 64)
        if type(width) is not int or type(head_width) is not int or head_width < 1:
            raise CheckpointError(f"{where}: open_clip_config.json: width and head_width must be whole numbers")
        norm = _object(vision, "norm_kwargs", where)
        facts |= {"num_heads": width // head_width, "norm_eps": norm.get("eps", 1e-5)}
        facts["img_size"] = vision.get("image_size", 224)
        if vision.get("pool_type", "tok") == "avg":
            after = bool(vision.get("final_ln_after_pool"))
            structure |= {"global_pool": "avg", "fc_norm": after}
            for kind in ("weight", "bias"):
                if after and (array := tensors.pop(f"norm.{kind}", None)) is not None:
                    tensors[f"fc_norm.{kind}"] = array
        elif vision.get("pool_type", "tok") != "tok":
            raise CheckpointError(f"{where}: not converted: the tower does not pool")
    return facts, structure


def _timm_tower(tensors: Weights, vision: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and structure of a tower that timm built."""
    name = str(vision.get("timm_model_name", "")).partition(".")[0]
    base = ARCHITECTURES.get(name)
    structure = pooling(tensors, base)
    if vision.get("timm_pool") in ("token", "avg", "map"):
        structure["global_pool"] = vision["timm_pool"]
    if base:
        return {"num_heads": base.num_heads, "act": base.act, "norm_eps": base.norm_eps}, structure
    return {"act": "gelu", "norm_eps": 1e-5 if "norm_pre.weight" in tensors else 1e-6}, structure


def _preprocess(config: Mapping[str, Any], where: str) -> Preprocess:
    modes: dict[str, CropMode] = {"shortest": "center", "squash": "squash"}
    mode = config.get("resize_mode", "shortest")
    if mode not in modes:
        raise CheckpointError(f"{where}: resize_mode '{safe(mode, 40)}' is none of {', '.join(modes)}")
    mean, std = config.get("mean", CLIP_MEAN), config.get("std", CLIP_STD)
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        raise CheckpointError(f"{where}: open_clip_config.json: mean and std must be lists")
    return Preprocess(
        crop_pct=1.0,
        crop_mode=modes[mode],
        interpolation=config.get("interpolation", "bicubic"),
        mean=tuple(mean),
        std=tuple(std),
    )


def _object(config: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {name} in open_clip_config.json is not an object")
    return value
