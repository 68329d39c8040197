"""torchvision's Vision Transformers (`vit_b_16`, `vit_h_14`, …): the same model as the paper's, under other names.

Epsilon 1e-6 and GELU are torchvision's own; heads are those of the published size. The weights do not say how images
are prepared: ImageNet's mean and standard deviation are common to all of torchvision's, the resizing is not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitcli.checkpoint.convert.names import Rules, inner, rename
from vitcli.checkpoint.convert.processor import META
from vitcli.checkpoint.convert.result import Converted, Settings, Source, facts_of, fitted, without_head
from vitcli.checkpoint.convert.shape import vit_of
from vitcli.errors import CheckpointError

_ANCHOR = "encoder.layers.encoder_layer_0.ln_1.weight"
SUPERVISED_SIZE = (224, 224)  # pixels; larger ones are those of SWAG, resized to their own size, bicubic

_NAMES: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
    (r"^heads\.head\.", "head."),
)


def is_torchvision(tensors: Mapping[str, Any]) -> bool:
    return any(name.endswith(_ANCHOR) for name in tensors)


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for a stem of several convolutions, and for what is no ViT of torchvision's."""
    tensors, outside = inner(source.tensors, _ANCHOR, source.where)
    if any(name.startswith("conv_proj.conv_bn_relu") for name in tensors):
        raise CheckpointError(f"{source.where}: not converted: its patches come from several convolutions (conv stem)")
    tensors = rename(tensors, _NAMES, source.where)
    tensors, more = without_head(tensors, settings, None)
    facts = facts_of({"act": "gelu", "norm_eps": 1e-6}, settings)
    vit = vit_of(tensors, source.where, facts, global_pool="token", no_embed_class=False)
    own_size = replace(META, crop_pct=1.0, interpolation="bicubic")
    supervised = vit.img_size == SUPERVISED_SIZE
    said = "the file has no preprocessing; torchvision's for its weights of this size is taken"
    if supervised:
        said += ", IMAGENET1K_V1 (SWAG_LINEAR: --set crop_pct=1 --set interpolation=bicubic)"
    preprocess = replace(META, crop_pct=0.875, interpolation="bilinear") if supervised else own_size
    return Converted(
        "ViT of torchvision",
        vit,
        tensors,
        fitted(preprocess, vit, settings),
        dropped=(*outside, *more),
        notes=() if settings.preprocess else (said,),
    )
