"""What the originals of DINOv3 and of BEiT and data2vec have that a plain ViT has not, under timm's names.

A family's part of the conversion takes weights whose names are timm's but for its own, and gives the fields of
ViTConfig that no shape tells.
"""

import re
from typing import Any

import numpy as np

from vitcli.checkpoint.convert.names import Reasons, Rules, Weights, join, rename
from vitcli.errors import CheckpointError
from vitcli.model.config import RopeConfig
from vitcli.model.shapes import Array
from vitcli.text import safe

TEMPERATURE = 100.0  # DINOv3's, of every model that was published
_BFLOAT16 = 2.0**-8  # of a number that was rounded to that type, relative
_ALIGN = 8  # DINOv3's gated MLPs are as wide as a multiple of this

DINOV3_NAMES: Rules = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(model\.)?layer\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
DINOV3_ORIGINAL: Rules = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
DINOV3_LEFT_OUT: Reasons = (
    (r"^(embeddings\.)?mask_token$", "the mask token of its pre-training"),
    (r"^local_cls_norm\.", "the norm for small crops of its pre-training"),
)

BEIT_NAMES: Rules = (
    (r"^(beit|data2vec_vision)\.", ""),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^((encoder\.)?relative_position_bias|shared_position_bias)\.relative_position_bias_table$", "shared_table"),
    (
        r"\.(attention\.attention\.|attention\.)?relative_position_bias\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.lambda_([12])$", r".gamma_\1"),
)
BEIT_LEFT_OUT: Reasons = (
    (r"(^|\.)mask_token$", "the mask token of its pre-training"),
    (r"^lm_head\.", "the head of its pre-training"),
    (r"relative_position_index$", "indices into its tables of addends"),
)


def dinov3(tensors: Weights, temperature: Any, where: str) -> dict[str, Any]:
    """The structure of a DINOv3 whose q, k and v are joined but for their biases; what is missing is named, in place.

    Raises CheckpointError for what timm's cannot be.
    """
    if temperature != TEMPERATURE:
        raise CheckpointError(
            f"{where}: its queries and keys are turned with rope_theta {safe(temperature, 20)}, and timm's DINOv3 has "
            f"{TEMPERATURE:g}"
        )
    if (registers := tensors.get("reg_token")) is not None and not registers.size:
        del tensors["reg_token"]  # transformers stores none of them as an empty array
    gated = any(".mlp.fc1_g." in name for name in tensors)
    for name in [name for name in tensors if ".mlp.up_proj." in name]:
        tensors[name.replace("up_proj", "fc1_x" if gated else "fc1")] = tensors.pop(name)
    _biases_apart(tensors, where)
    hidden = tensors.get("blocks.0.mlp.fc2.weight")
    if gated and hidden is not None and hidden.shape[-1] % _ALIGN:
        raise CheckpointError(f"{where}: its gated MLP is {hidden.shape[-1]} wide, and timm's a multiple of {_ALIGN}")
    more = {"mlp": "swiglu_split", "mlp_align": _ALIGN} if gated else {}
    rope = RopeConfig("dinov3", TEMPERATURE, half=True)
    return {"layout": "eva", "qkv": "bias_apart", "rope": rope, "global_pool": "token", "fc_norm": False, **more}


def dinov3_original(tensors: Weights, where: str) -> tuple[Weights, dict[str, Any], list[str]]:
    """A DINOv3 of its authors under timm's names, its facts (num_heads) and notes. Raises CheckpointError."""
    facts: dict[str, Any] = {}
    notes: list[str] = []
    if (periods := tensors.pop("rope_embed.periods", None)) is not None:
        usual = TEMPERATURE ** (np.arange(periods.size) / max(periods.size, 1))
        if periods.ndim != 1 or not np.allclose(periods, usual, rtol=_BFLOAT16, atol=0):
            raise CheckpointError(f"{where}: it turns queries and keys by other periods than DINOv3's {TEMPERATURE:g}")
        patches = tensors.get("patch_embed.proj.weight")
        if patches is not None and len(periods) and len(patches) % (4 * len(periods)) == 0:
            facts["num_heads"] = len(patches) // (4 * len(periods))
        if not np.allclose(periods, usual, rtol=1e-6, atol=0):
            notes.append(
                "its periods of turning are stored rounded to bfloat16; they are computed afresh, as timm and "
                "transformers do, so features differ from the authors' own program by that rounding"
            )
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias_mask")]:
        del tensors[name]  # zeros at the keys' biases: those are looked at themselves
    tensors = rename(tensors, DINOV3_ORIGINAL, where)
    for name in [name for name in tensors if name.endswith(".attn.qkv.bias")]:
        _split_bias(tensors, name, where)
    return tensors, facts, notes


def _split_bias(tensors: Weights, name: str, where: str) -> None:
    """One bias of q, k and v → those of q and v, in place. That of k must be zero, as training keeps it."""
    q, k, v = np.split(np.nan_to_num(tensors.pop(name)), 3)  # what is masked may be stored as NaN
    if k.any():
        raise CheckpointError(f"{where}: {_KEYS}")
    tensors[name.replace("qkv.bias", "q_bias")], tensors[name.replace("qkv.bias", "v_bias")] = q, v


def beit(tensors: Weights, where: str) -> dict[str, Any]:
    """The structure of a BEiT or data2vec, whose addends that all blocks share are given to each, in place."""
    blocks = sorted({match[0] for name in tensors if (match := re.match(r"blocks\.\d+\.", name))})
    shared = tensors.pop("shared_table", None)
    tables: dict[str, Array] = {}
    for block in blocks:
        name = f"{block}attn.relative_position_bias_table"
        own = tensors.get(name)
        if shared is not None:
            own = shared if own is None or own.shape != shared.shape else own + shared
        if own is not None:
            tables[name] = own
    if not tables:
        raise CheckpointError(
            f"{where}: not converted: it has keys without a bias, and no relative position biases, as timm's BEiT has"
        )
    tensors |= tables
    _biases_apart(tensors, where)
    mean = "fc_norm.weight" in tensors
    if mean:  # the last norm of a model that pools by the mean is that of the mean
        for name in ("norm.weight", "norm.bias"):
            tensors.pop(name, None)
    return {
        "layout": "beit",
        "qkv": "bias_apart",
        "rel_pos_bias": True,
        "global_pool": "avg" if mean else "token",
        "fc_norm": mean,
    }


_KEYS = "its keys have a bias, and those of timm's model have none"


def _biases_apart(tensors: Weights, where: str) -> None:
    """Weights of q, k and v as one; their biases under names of their own, in place."""
    join(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv")
    if any(name.endswith((".attn.k.bias", ".attn.qkv.bias")) for name in tensors):
        raise CheckpointError(f"{where}: {_KEYS}")
    for name in [name for name in tensors if name.endswith((".attn.q.bias", ".attn.v.bias"))]:
        tensors[re.sub(r"\.([qv])\.bias$", r".\1_bias", name)] = tensors.pop(name)
