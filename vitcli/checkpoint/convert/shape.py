"""What the weights' own names and shapes say about a ViT, and timm's name for it. Imports no torch.

Only four things are not in any shape: the number of heads, the activation, the norms' epsilon and the shape of a grid
that is not square. Those come from the original's config, from its project's habits, or from the user.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from vitcli.checkpoint.convert.names import Weights
from vitcli.checkpoint.model_args import other_fields_of
from vitcli.checkpoint.related_args import buildable
from vitcli.checkpoint.weights import require_same_shapes
from vitcli.errors import CheckpointError
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.config import Size, StemConfig, ViTConfig
from vitcli.model.families import SCALES
from vitcli.model.shapes import Shape, weight_shapes

_ROOTS = ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight")  # with and without stages
_STAGE_BLOCK = re.compile(r"patch_embed\.backbone\.stages\.(\d{1,2})\.blocks\.(\d{1,3})\.conv1\.weight")
_LAYER_SCALES = {"blocks.0.ls1.gamma", "blocks.0.gamma_1"}
_ANY_LAYER_SCALE = 1e-5  # an initial value; the weights have taken its place


def vit_of(tensors: Weights, where: str, facts: Mapping[str, Any], **structure: Any) -> ViTConfig:
    """The config of `tensors` (timm's names), proven by comparing every name and shape.

    `facts`: num_heads, act, norm_eps, img_size, as far as known. `structure`: fields of ViTConfig that follow from the
    family (global_pool, fc_norm, final_norm, no_embed_class). Raises CheckpointError for weights that are not a ViT's.
    """
    shapes: dict[str, Shape] = {name: array.shape for name, array in tensors.items()}

    def dims(name: str, count: int) -> Shape:
        shape = shapes.get(name, ())
        if len(shape) != count or 0 in shape:
            raise CheckpointError(f"{where}: no {name} of {count} dimensions, so this is not a Vision Transformer")
        return shape

    D, channels, *patch = dims("patch_embed.proj.weight", 4)
    root = next((name for name in _ROOTS if name in shapes), None)
    stem = _stem(shapes, dims(root, 4)[0]) if root else None
    depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d{1,4})\.", name))), default=-1)
    gate = "blocks.0.mlp.fc1_g.weight"
    hidden, fc2 = dims(gate if gate in shapes else "blocks.0.mlp.fc1.weight", 2)[0], dims("blocks.0.mlp.fc2.weight", 2)
    ratio = hidden / D
    vit = ViTConfig(
        patch_size=(patch[0], patch[1]),
        in_chans=dims(root, 4)[1] if root else channels,
        num_classes=dims("head.weight", 2)[0] if "head.weight" in shapes else 0,
        embed_dim=D,
        depth=depth,
        num_heads=1,
        mlp_ratio=ratio if int(D * ratio) == hidden else math.nextafter(ratio, math.inf),
        qkv_bias=not shapes.keys().isdisjoint({"blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias"}),
        proj_bias="blocks.0.attn.proj.bias" in shapes,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        init_values=None if shapes.keys().isdisjoint(_LAYER_SCALES) else _ANY_LAYER_SCALE,
        class_token="cls_token" in shapes,
        reg_tokens=dims("reg_token", 3)[1] if "reg_token" in shapes else 0,
        pos_embed="learn" if "pos_embed" in shapes else "none",
        pre_norm="norm_pre.weight" in shapes,
        mlp="swiglu" if 2 * fc2[1] == hidden else "mlp",
        head_hidden=dims("pre_logits.fc.weight", 2)[0] if "pre_logits.fc.weight" in shapes else None,
        stem=stem,
    )
    known = {key: value for key, value in facts.items() if key != "img_size"}
    vit = replace(vit, **structure, **{"num_heads": _heads(vit, known.pop("num_heads", None), where), **known})
    rows = dims("pos_embed", 3)[1] if vit.pos_embed == "learn" else None
    vit = _with_image(vit, rows, facts.get("img_size"), "no_embed_class" in structure, where)
    require_same_shapes(shapes, weight_shapes(vit), where)
    return vit


def pooling(tensors: Weights, base: ViTConfig | None = None) -> dict[str, Any]:
    """The fields of ViTConfig that say how timm's names pool: as in timm's `base`, or by what is there."""
    if base:
        return {"global_pool": base.global_pool, "fc_norm": base.fc_norm, "final_norm": base.final_norm,
                "pool_include_prefix": base.pool_include_prefix}  # fmt: skip
    if "attn_pool.latent" in tensors:
        return {"global_pool": "map"}
    if "fc_norm.weight" in tensors:
        return {"global_pool": "avg", "fc_norm": True}
    return {"global_pool": "token"} if "cls_token" in tensors else {"global_pool": "avg", "fc_norm": False}


def nearest_architecture(vit: ViTConfig) -> str:
    """timm's name whose config `vit` resembles most: first in what timm's `model_args` cannot say, then in the rest.

    Raises CheckpointError when timm has none of its kind.
    """

    def distance(name: str) -> tuple[int, int]:
        base = ARCHITECTURES[name]
        different = sum(getattr(base, field.name) != getattr(vit, field.name) for field in fields(ViTConfig))
        return len(other_fields_of(name, vit)), different

    # LingBot's are DINOv3's in all but who trained them.
    offered = (name for name in ARCHITECTURES if not name.startswith("test_") and "lingbot" not in name)
    candidates = [name for name in offered if buildable(ARCHITECTURES[name], vit)]
    if not candidates:
        raise CheckpointError("timm has no architecture of this kind")
    return min(candidates, key=distance)


def _stem(shapes: Mapping[str, Shape], width: int) -> StemConfig:
    """A hybrid's CNN with a root of `width` channels, from the convolutions that are there."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if match := _STAGE_BLOCK.fullmatch(name):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    is_basic = blocks and "patch_embed.backbone.stages.0.blocks.0.conv3.weight" not in shapes
    return StemConfig(tuple(blocks[stage] for stage in sorted(blocks)), width, "basic" if is_basic else "bottleneck")


def _heads(vit: ViTConfig, said: int | None, where: str) -> int:
    """The number of heads: as said, else that of the published scale of the same width, depth and MLP."""
    if said is None:
        sizes = {
            s.num_heads for s in SCALES.values() if s[:2] == (vit.embed_dim, vit.depth) and _mlp_dim(s) == vit.mlp_dim
        }
        if len(sizes) != 1:
            raise CheckpointError(
                f"{where}: the file does not say how many heads this model of width {vit.embed_dim} and {vit.depth} "
                "layers has; add --set num_heads=N"
            )
        said = sizes.pop()
    if vit.embed_dim % said:
        raise CheckpointError(f"{where}: a width of {vit.embed_dim} cannot be split over {said} heads")
    return said


def _mlp_dim(scale: Any) -> int:
    return int(scale.embed_dim * scale.mlp_ratio)


def _with_image(vit: ViTConfig, rows: int | None, said: Size | None, prefix_known: bool, where: str) -> ViTConfig:
    """`vit` with its image size and, where the family leaves it open, `no_embed_class`, from the position embedding."""
    if said is not None:
        vit = replace(vit, img_size=said)
    if rows is None:
        if said is None:
            raise CheckpointError(f"{where}: without position embeddings, the image size is needed: --set img_size=224")
        return vit
    choices = [vit.no_embed_class] if prefix_known else [False, True]
    for no_embed_class in choices:
        patches = rows - (0 if no_embed_class else vit.num_prefix_tokens)
        side = math.isqrt(max(patches, 0))
        if said is None and side and side * side == patches:
            said_by_grid = side * vit.stride[0], side * vit.stride[1]
            return replace(vit, no_embed_class=no_embed_class, img_size=said_by_grid)
        if said is not None and patches == vit.num_patches:
            return replace(vit, no_embed_class=no_embed_class)
    if said is None:
        raise CheckpointError(
            f"{where}: a position embedding of {rows} rows is not that of a square grid; say the image's size: "
            "--set img_size=[HEIGHT,WIDTH]"
        )
    raise CheckpointError(
        f"{where}: {said[0]}×{said[1]} pixels make {vit.num_patches} patches, the position embedding has {rows} rows "
        f"for patches and {vit.num_prefix_tokens} prefix tokens"
    )
