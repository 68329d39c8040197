"""transformers' ViT and its kin, and the image towers of CLIP and SigLIP.

The kin: DeiT, ViT-MAE, ViT-MSN, I-JEPA, DINOv2 (with registers), DINOv3, BEiT and data2vec.

transformers renamed its modules in version 5 and still writes the old names; both are read. What no weight's shape
tells (heads, activation, epsilon, image size) is in config.json, where a missing field means transformers' default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitcli.checkpoint.config import Outputs, outputs_of
from vitcli.checkpoint.convert.id2label import labels_of
from vitcli.checkpoint.convert.names import (
    Dropped,
    Reasons,
    Rules,
    Weights,
    join,
    leave_out,
    merge_class_position,
    rename,
)
from vitcli.checkpoint.convert.processor import META, SIGLIP, VIT, preprocess_of
from vitcli.checkpoint.convert.relatives import (
    BEIT_LEFT_OUT,
    BEIT_NAMES,
    DINOV3_LEFT_OUT,
    DINOV3_NAMES,
    TEMPERATURE,
    beit,
    dinov3,
)
from vitcli.checkpoint.convert.result import (
    CLIP_MEAN,
    CLIP_STD,
    EMBEDS,
    QUANTITIES,
    TWO_HEADS,
    Converted,
    Settings,
    Source,
    facts_of,
    fitted,
    without_head,
)
from vitcli.checkpoint.convert.shape import vit_of
from vitcli.checkpoint.model_args import checked_facts
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess
from vitcli.text import command, safe

_VIT_NAMES: Rules = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|ijepa)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.(distillation_token|register_tokens)$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)

_TOWER_NAMES: Rules = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),  # sic
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^(classifier|visual_projection)\.", "head."),
)

_LEFT_OUT: Reasons = (
    (r"^decoder\.", "the decoder of its pre-training"),
    (r"(^|\.)mask_token$", "the mask token of its pre-training"),
    (r"^(vit\.|deit\.|ijepa\.)?pooler\.", "transformers' pooler behind the class token"),
    (r"^(text_model\.|text_projection|logit_scale$|logit_bias$)", "the text tower"),
    (r"(^|\.)position_ids$", "position indices"),
)

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Family:
    title: str
    names: Rules
    preprocess: Preprocess
    act: str = "gelu"  # these three: transformers' defaults where config.json is silent
    norm_eps: float = 1e-12
    img_size: int = 224
    nested: bool = False  # config.json holds a text and a vision tower
    processor: str = "ViT"  # the class of image processor that transformers takes when none is named
    left_out: Reasons = _LEFT_OUT


_CLIP = Preprocess(crop_pct=1.0, interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
_CLIP_TOWER: dict[str, Any] = {
    "names": _TOWER_NAMES,
    "preprocess": _CLIP,
    "act": "quick_gelu",
    "norm_eps": 1e-5,
    "processor": "CLIP",
}
_SIGLIP_TOWER: dict[str, Any] = {
    "names": _TOWER_NAMES, "preprocess": SIGLIP, "act": "gelu_pytorch_tanh", "norm_eps": 1e-6, "processor": "Siglip"
}  # fmt: skip

_BEIT = replace(VIT, interpolation="bicubic")

FAMILIES: Mapping[str, Family] = {
    "vit": Family("ViT of transformers", _VIT_NAMES, VIT),
    "deit": Family("DeiT of transformers", _VIT_NAMES, META, processor="DeiT"),
    "dinov2": Family("DINOv2 of transformers", _VIT_NAMES, META, norm_eps=1e-6, processor="Bit"),
    "dinov2_with_registers": Family(
        "DINOv2 with registers of transformers", _VIT_NAMES, META, norm_eps=1e-6, processor="Bit"
    ),
    "dinov3_vit": Family(
        "DINOv3 of transformers",
        DINOV3_NAMES,
        replace(VIT, mean=META.mean, std=META.std),
        norm_eps=1e-5,
        processor="DINOv3ViT",
        left_out=DINOV3_LEFT_OUT,
    ),
    "vit_mae": Family("ViT-MAE of transformers", _VIT_NAMES, META),
    "vit_msn": Family("ViT-MSN of transformers", _VIT_NAMES, META, norm_eps=1e-6),
    "ijepa": Family("I-JEPA of transformers", _VIT_NAMES, VIT),
    "beit": Family("BEiT of transformers", (*BEIT_NAMES, *_VIT_NAMES), _BEIT, processor="Beit", left_out=BEIT_LEFT_OUT),
    "data2vec-vision": Family(
        "data2vec of transformers", (*BEIT_NAMES, *_VIT_NAMES), _BEIT, processor="Beit", left_out=BEIT_LEFT_OUT
    ),
    "clip": Family("CLIP of transformers", **_CLIP_TOWER, nested=True),
    "clip_vision_model": Family("CLIP of transformers", **_CLIP_TOWER),
    "siglip": Family("SigLIP of transformers", **_SIGLIP_TOWER, nested=True),
    "siglip_vision_model": Family("SigLIP of transformers", **_SIGLIP_TOWER),
}

_NOT_CONVERTED = {
    "dinov3_convnext": "convolutions and no attention",
    "siglip2": "flattened patches of images of any aspect ratio (NaFlex)",
    "siglip2_vision_model": "flattened patches of images of any aspect ratio (NaFlex)",
    "swin": "shifted windows instead of global attention",
    "swinv2": "shifted windows instead of global attention",
}


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError with the reason for a model that this program's ViT cannot be."""
    family = family_of(source.config, source.where)
    vision = source.config.get("vision_config") if family.nested else source.config
    if not isinstance(vision, dict):
        raise CheckpointError(f"{source.where}: config.json has no vision_config")
    facts = facts_of(_facts(vision, family, source.where), settings, said_by="config.json")
    tensors, dropped = leave_out(source.tensors, family.left_out)
    tensors = rename(tensors, family.names, source.where)
    inside = _INSIDE.get(source.config["model_type"], _tower if family.names is _TOWER_NAMES else _plain)
    tensors, structure, more, notes = inside(tensors, source, settings)
    vit = vit_of(tensors, source.where, facts, **structure)
    _check_against(vision, {"hidden_size": vit.embed_dim, "num_hidden_layers": vit.depth}, source.where)
    preprocess, said = _preprocess(source, family, vit.img_size, settings)
    return Converted(
        family.title,
        vit,
        tensors,
        fitted(preprocess, vit, settings),
        labels=labels_of(source, vit.num_classes, classifies=_classifies(source)),
        outputs=_outputs(source, vit.num_classes),
        dropped=(*dropped, *more),
        notes=(*notes, *said),
    )


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """Raises CheckpointError with the reason for a model_type that is not converted."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        has = _NOT_CONVERTED.get(kind) if isinstance(kind, str) else None
        reason = f"it has {has}" if has else f"converted are {', '.join(FAMILIES)}"
        raise CheckpointError(f"{where}: transformers' model_type '{safe(kind, 40)}' is not converted; {reason}")
    return family


def _facts(vision: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    act = vision.get("hidden_act", family.act)
    if vision.get("use_gated_mlp"):  # the gate's, which is always this one
        act = "gelu" if act == "silu" else act if act != "gelu" else "a gate of gelu"
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: the activation '{safe(act, 40)}' is none of {', '.join(_ACTIVATIONS)}")
    said = {
        "num_heads": vision.get("num_attention_heads", 12),
        "act": _ACTIVATIONS[act],
        "norm_eps": vision.get("layer_norm_eps", family.norm_eps),
        "img_size": vision.get("image_size", family.img_size),
    }
    return checked_facts(said, f"{where}: config.json")


def _plain(
    tensors: Weights, source: Source, settings: Settings
) -> tuple[Weights, dict[str, Any], list[Dropped], list[str]]:
    """A ViT's weights, the fields of ViTConfig that no shape tells, what was dropped, notes."""
    _join(tensors)
    kind = source.config["model_type"]
    registers = kind == "dinov2_with_registers"
    if registers:
        merge_class_position(tensors)
    why_not = _no_classes(tensors, source)
    if "head_dist.weight" in tensors:
        why_not = f"{source.where}: {TWO_HEADS}"
    elif "head.weight" in tensors and kind.startswith("dinov2"):
        why_not = f"{source.where}: its classifier sees class token and mean of the patches, a ViT's one of them"
    tensors, dropped = without_head(tensors, settings, why_not)
    structure: dict[str, Any] = {"no_embed_class": registers}
    if kind == "ijepa":
        structure |= {"global_pool": "avg", "fc_norm": False}
    return tensors, structure, dropped, []


def _join(tensors: Weights) -> None:
    join(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv")
    join(tensors, ("mlp.gate_proj", "mlp.up_proj"), "mlp.fc1")


def _dinov3(
    tensors: Weights, source: Source, settings: Settings
) -> tuple[Weights, dict[str, Any], list[Dropped], list[str]]:
    structure = dinov3(tensors, source.config.get("rope_theta", TEMPERATURE), source.where)
    tensors, dropped = without_head(tensors, settings, _no_classes(tensors, source))
    return tensors, structure, dropped, []


def _beit(
    tensors: Weights, source: Source, settings: Settings
) -> tuple[Weights, dict[str, Any], list[Dropped], list[str]]:
    structure = beit(tensors, source.where)
    tensors, dropped = without_head(tensors, settings, _no_classes(tensors, source))
    return tensors, structure, dropped, []


def _tower(
    tensors: Weights, source: Source, settings: Settings
) -> tuple[Weights, dict[str, Any], list[Dropped], list[str]]:
    """The same of an image tower."""
    _join(tensors)
    _shape_tower(tensors)
    tensors, dropped = without_head(tensors, settings, _no_classes(tensors, source))
    structure, unused, notes = _pooling(tensors, classifies="head.weight" in tensors and _classifies(source))
    if "head.weight" in tensors and "head.bias" not in tensors:
        tensors["head.bias"] = np.zeros(tensors["head.weight"].shape[:1], np.float32)
        notes.append(EMBEDS)
    return tensors, structure, [*dropped, *unused], notes


_INSIDE = {"dinov3_vit": _dinov3, "beit": _beit, "data2vec-vision": _beit}


def _classifies(source: Source) -> bool:
    """Whether the head is one of classes, and not a tower's projection."""
    return any("classifier." in name for name in source.tensors)


def _shape_tower(tensors: Weights) -> None:
    """A tower's vectors and matrices in the shapes of timm's parameters, in place."""
    if (cls := tensors.get("cls_token")) is not None:
        tensors["cls_token"] = cls.reshape(1, 1, -1)
    if (pos := tensors.get("pos_embed")) is not None and pos.ndim == 2:
        tensors["pos_embed"] = pos[None]
    for kind in ("weight", "bias"):
        if (joined := tensors.get(f"attn_pool.in_proj.{kind}")) is not None and joined.ndim:
            del tensors[f"attn_pool.in_proj.{kind}"]
            width = len(joined) // 3
            tensors[f"attn_pool.q.{kind}"], tensors[f"attn_pool.kv.{kind}"] = joined[:width], joined[width:]


def _pooling(tensors: Weights, classifies: bool) -> tuple[dict[str, Any], list[Dropped], list[str]]:
    """How a tower's tokens become one vector: (fields of ViTConfig, what the pooling leaves unused, notes)."""
    unused = "what transformers' classifier does not look at"
    if "cls_token" in tensors:  # CLIP
        if not classifies:
            return {"no_embed_class": False}, [], []
        norms = [tensors.pop(name) for name in ("norm.weight", "norm.bias") if name in tensors]
        structure = {"no_embed_class": False, "global_pool": "avg", "final_norm": False}
        return structure, [Dropped(f"the last norm: {unused}", len(norms))], []
    pooled = [name for name in tensors if name.startswith("attn_pool.")]
    if pooled and not classifies:
        return {"global_pool": "map"}, [], []
    for name in pooled:
        del tensors[name]
    mean = {"global_pool": "avg", "fc_norm": False}
    if pooled:
        return mean, [Dropped(f"the attention pooling: {unused}", len(pooled))], []
    return mean, [], [] if classifies else ["the tower does not pool; the mean of its patches is taken"]


def _check_against(vision: Mapping[str, Any], found: Mapping[str, int], where: str) -> None:
    for name, value in found.items():
        if vision.get(name, value) != value:
            raise CheckpointError(f"{where}: config.json says {name} {safe(vision[name], 20)}, the weights {value}")


def _preprocess(
    source: Source, family: Family, img_size: tuple[int, int], settings: Settings
) -> tuple[Preprocess, list[str]]:
    if not source.processor:
        return family.preprocess, ["no preprocessor_config.json; the preprocessing is the usual one of its family"]
    try:
        preprocess = preprocess_of(source.processor, source.where, family.processor)
    except CheckpointError:
        if not settings.preprocess:
            raise
        return family.preprocess, ["its image processor cannot be carried over; its family's is taken, with your --set"]
    if preprocess.size == img_size:
        return preprocess, []
    wanted, has = ("×".join(map(str, size)) for size in (preprocess.size, img_size))
    return preprocess, [
        f"its processor makes images of {wanted} and the model resamples its position embedding for each; converted "
        f"for {has}, which it is stored for. To fix the other: "
        + command("vit", "resize-posemb", "--size", wanted.replace("×", "x"), "--posemb-kernel", "hf")
    ]


def _outputs(source: Source, num_classes: int) -> Outputs:
    """What the head's outputs are. Raises CheckpointError for a problem_type that transformers does not have."""
    try:
        return outputs_of(source.config.get("problem_type"), num_classes, embeds=not _classifies(source))
    except CheckpointError as error:
        raise CheckpointError(f"{source.where}: config.json: {error}") from None


def _no_classes(tensors: Weights, source: Source) -> str | None:
    """Why the head, if there is one, cannot be kept: it measures quantities."""
    head = tensors.get("head.weight")
    quantities = head is not None and head.ndim and _outputs(source, len(head)) == "quantities"
    return f"{source.where}: {QUANTITIES}" if quantities else None
