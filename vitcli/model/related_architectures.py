"""EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT, LingBot-Vision and BEiT, by timm's names. Imports no torch.

All have 1000 classes and the image size of timm's first weights, as in `architectures.py`.
"""

from collections.abc import Mapping
from typing import Any

from vitcli.model.config import RopeConfig, Size, ViTConfig
from vitcli.model.families import family

# What families differ in from the paper's ViT:
EVA: dict[str, Any] = {"layout": "eva", "qkv": "bias_apart", "global_pool": "avg"}  # arXiv 2211.07636
EVA02: dict[str, Any] = EVA | {  # arXiv 2303.11331
    "rope": RopeConfig(reference=(16, 16)),
    "mlp": "swiglu",
    "mlp_ratio": 4 * 2 / 3,
}
EVA02_LARGE: dict[str, Any] = EVA02 | {"qkv": "split", "mlp": "swiglu_split", "mlp_norm": True}
EVA02_CLIP: dict[str, Any] = EVA02_LARGE | {"attn_norm": True, "global_pool": "token"}  # arXiv 2303.15389
SBB: dict[str, Any] = EVA | {  # timm's own
    "rope": RopeConfig(reference=(16, 16)),
    "pos_embed": "none",
    "class_token": False,
    "init_values": 1e-5,
}
ROPE_VIT: dict[str, Any] = {  # arXiv 2403.13298
    "layout": "eva",
    "rope": RopeConfig(temperature=100.0, columns_first=True),
    "pos_embed": "none",
    "init_values": 1e-5,
}
MIXED: dict[str, Any] = ROPE_VIT | {"rope": RopeConfig("mixed", temperature=10.0, columns_first=True)}
APE: dict[str, Any] = {"pos_embed": "learn", "no_embed_class": True}
DINOV3: dict[str, Any] = EVA | {  # arXiv 2508.10104
    "rope": RopeConfig("dinov3", temperature=100.0, half=True),
    "pos_embed": "none",
    "reg_tokens": 4,
    "init_values": 1e-5,
    "fc_norm": False,
    "norm_eps": 1e-5,
}
LINGBOT: dict[str, Any] = DINOV3 | {"global_pool": "token"}  # arXiv 2607.05247
SPLIT: dict[str, Any] = {"mlp": "swiglu_split", "mlp_align": 8}
BEIT: dict[str, Any] = {  # arXiv 2106.08254, 2208.06366
    "layout": "beit",
    "qkv": "bias_apart",
    "global_pool": "avg",
    "pos_embed": "none",
    "rel_pos_bias": True,
    "init_values": 1e-5,
}


def perception(reference: Size, *, class_token: bool = True, **differences: Any) -> dict[str, Any]:
    """Perception Encoder (arXiv 2504.13181): CLIP's norms; places counted from 1 where there is a class token."""
    rope = RopeConfig(reference=reference, offset=float(class_token), columns_first=True)
    shared = {"layout": "eva", "pre_norm": True, "norm_eps": 1e-5, "rope": rope, "class_token": class_token}
    return {**shared, **differences}


PE_CORE: dict[str, Any] = {"global_pool": "map", "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0}
PE_GIGANTIC: dict[str, Any] = {"depth": 50, "mlp_ratio": 8960 / 1536}
PE_DENSE: dict[str, Any] = {"global_pool": "avg", "fc_norm": False, "final_norm": False}

RELATED: Mapping[str, ViTConfig] = {
    **family("eva_giant_patch14_{img}", {"giant": {14: [224, 336, 560]}}, **EVA),
    **family("eva_giant_patch14_clip_{img}", {"giant": {14: [224]}}, **EVA | {"global_pool": "token"}),
    **family("eva02_{scale}_patch14_{img}", {"tiny": {14: [224, 336]}, "small": {14: [224, 336]}}, **EVA02),
    **family("eva02_{scale}_patch14_{img}", {"base": {14: [224, 448]}, "large": {14: [224, 448]}}, **EVA02_LARGE),
    **family("eva02_{scale}_patch{patch}_clip_{img}", {"base": {16: [224]}, "large": {14: [224, 336]}}, **EVA02_CLIP),
    **family(
        "vit_{scale}_patch16_rope_reg1_gap_256", {"medium": {16: [256]}, "base": {16: [256]}}, **SBB, reg_tokens=1
    ),
    **family("vit_mediumd_patch16_rope_reg1_gap_256", {"mediumd": {16: [256]}}, **SBB, reg_tokens=1, qkv_bias=False),
    **family("vit_betwixt_patch16_rope_reg4_gap_256", {"betwixt": {16: [256]}}, **SBB, reg_tokens=4),
    **{
        name: config
        for between, differences in (
            ("rope", ROPE_VIT),
            ("rope_ape", ROPE_VIT | APE),
            ("rope_mixed", MIXED),
            ("rope_mixed_ape", MIXED | APE),
        )
        for name, config in family(
            f"vit_{{scale}}_patch16_{between}_224",
            {"small": {16: [224]}, "base": {16: [224]}, "large": {16: [224]}},
            **differences,
        ).items()
    },
    **family(
        "vit_pe_core_{scale}_patch16_384",
        {"tiny": {16: [384]}, "small": {16: [384]}},
        **perception((24, 24), **PE_CORE),
    ),
    **family("vit_pe_core_base_patch16_224", {"base": {16: [224]}}, **perception((14, 14), **PE_CORE)),
    **family("vit_pe_core_large_patch14_336", {"large": {14: [336]}}, **perception((24, 24), **PE_CORE)),
    **family(
        "vit_pe_core_gigantic_patch14_448",
        {"giantopt": {14: [448]}},
        **perception((32, 32), class_token=False, **PE_CORE | PE_GIGANTIC),
    ),
    **family(
        "vit_pe_lang_large_patch14_448",
        {"large": {14: [448]}},
        **perception((32, 32), **PE_DENSE, depth=23, init_values=0.1),
    ),
    **family(
        "vit_pe_lang_gigantic_patch14_448",
        {"giantopt": {14: [448]}},
        **perception((32, 32), class_token=False, **PE_DENSE | PE_GIGANTIC | {"depth": 47}, init_values=0.1),
    ),
    **family(
        "vit_pe_spatial_{scale}_patch{patch}_{img}",
        {"tiny": {16: [512]}, "small": {16: [512]}, "base": {16: [512]}, "large": {14: [448]}},
        **perception((32, 32), **PE_DENSE),
    ),
    **family(
        "vit_pe_spatial_gigantic_patch14_448",
        {"giantopt": {14: [448]}},
        **perception((32, 32), class_token=False, **PE_DENSE | PE_GIGANTIC, init_values=0.1),
    ),
    **family(
        "vit_{scale}_patch16_dinov3",
        {"small": {16: [256]}, "base": {16: [256]}, "large": {16: [256]}},
        **DINOV3,
        qkv_bias=False,
    ),
    **family(
        "vit_{scale}_patch16_dinov3_qkvb",
        {"tiny": {16: [256]}, "small": {16: [256]}, "base": {16: [256]}, "large": {16: [256]}},
        **DINOV3,
    ),
    **family("vit_small_plus_patch16_dinov3", {"small": {16: [256]}}, **DINOV3 | SPLIT, qkv_bias=False),
    **family("vit_small_plus_patch16_dinov3_qkvb", {"small": {16: [256]}}, **DINOV3 | SPLIT),
    **family("vit_huge_plus_patch16_dinov3", {"huge": {16: [256]}}, **DINOV3 | SPLIT, num_heads=20, qkv_bias=False),
    **family("vit_huge_plus_patch16_dinov3_qkvb", {"huge": {16: [256]}}, **DINOV3 | SPLIT | {"num_heads": 20}),
    **family(
        "vit_7b_patch16_dinov3",
        {"huge": {16: [256]}},
        **DINOV3 | SPLIT | {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0, "mlp_align": 64},
        qkv_bias=False,
    ),
    **family(
        "vit_{scale}_patch16_lingbot", {"small": {16: [512]}, "base": {16: [512]}, "large": {16: [512]}}, **LINGBOT
    ),
    **family(
        "vit_giant_patch16_lingbot",
        {"giant_gated": {16: [512]}},
        **LINGBOT | SPLIT | {"mlp_ratio": 8 / 3},
        qkv_bias=False,
    ),
    **family("beit_base_patch16_{img}", {"base": {16: [224, 384]}}, **BEIT | {"init_values": 0.1}),
    **family("beit_large_patch16_{img}", {"large": {16: [224, 384, 512]}}, **BEIT),
    **family("beitv2_{scale}_patch16_224", {"base": {16: [224]}, "large": {16: [224]}}, **BEIT),
}
