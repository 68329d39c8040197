"""Every ViT that we build of those that timm 1.0.31 registers, by timm's names: families derived from sizes.

The plain ones, DeiT and hybrids are here; EVA, DINOv3, Perception Encoder and BEiT in `related_architectures.py`.

Says how a model computes, not what it knows: the number of classes, the preprocessing and often the image size belong
to a checkpoint. All have 1000 classes here, and the image size of timm's first weights. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vitcli.errors import CheckpointError
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.families import Members, family
from vitcli.model.related_architectures import RELATED
from vitcli.text import did_you_mean, safe

# What families differ in from the paper's ViT:
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}  # the mean of the patches
MAP: dict[str, Any] = {"class_token": False, "global_pool": "map"}  # a learned query gathers (arXiv 2106.04560)
REGISTERED: dict[str, Any] = {"class_token": False, "global_pool": "avg", "no_embed_class": True}  # arXiv 2309.16588
CLIP: dict[str, Any] = {"pre_norm": True, "norm_eps": 1e-5}  # a norm before the encoder (arXiv 2103.00020)
DINOV2: dict[str, Any] = {"init_values": 1e-5}  # layer scale (arXiv 2304.07193)
TIPSV2: dict[str, Any] = {"init_values": 1.0, "reg_tokens": 1, "no_embed_class": True}  # arXiv 2604.12012
RADIO: dict[str, Any] = {"no_embed_class": True, "final_norm": False}

# SigLIP (arXiv 2303.15343) has the exact GELU, SigLIP 2 (arXiv 2502.14786) with new sizes the tanh one
SIGLIP: Members = {"base": {16: [224, 256, 384, 512]}, "large": {16: [256, 384]}, "so400m": {14: [224, 378, 384]}}
SIGLIP_TANH: Members = {
    "base": {32: [256]},
    "large": {16: [512]},
    "so400m": {16: [256, 384, 512]},
    "giantopt": {16: [256, 384]},
}

ARCHITECTURES: Mapping[str, ViTConfig] = {
    # The paper's ViT at all sizes, and near relations
    **family(
        "vit_{scale}_patch{patch}_{img}",
        {
            "tiny": {16: [224, 384]},
            "small": {32: [224, 384], 16: [224, 384], 8: [224]},
            "base": {32: [224, 384], 16: [224, 384], 8: [224]},
            "large": {32: [224, 384], 16: [224, 384], 14: [224]},
            "huge": {14: [224]},
            "giant": {14: [224]},
            "gigantic": {14: [224]},
        },
    ),
    **family("vit_base_patch16_224_miil", {"base": {16: [224]}}, qkv_bias=False),
    **family("vit_base_patch{patch}_plus_{img}", {"base_plus": {32: [256], 16: [240]}}, init_values=1e-5),
    **family("vit_small_patch16_36x1_224", {"small": {16: [224]}}, depth=36, init_values=1e-5),
    **family(
        "flexivit_{scale}",
        {"small": {16: [240]}, "base": {16: [240]}, "large": {16: [240]}},
        no_embed_class=True,
    ),
    **family("eva_large_patch14_{img}", {"large": {14: [196, 336]}}, global_pool="avg"),
    # Hybrids: a cell of the feature map is a patch (paper, section 3.1; sizes from the authors' configs/models.py).
    # R+Ti/16 is named after the stride of its convolution alone: with the max pool its patches lie 32 pixels apart.
    **family("vit_tiny_r_s16_p8_{img}", {"tiny": {8: [224, 384]}}, stem=StemConfig(())),
    **family(
        "vit_{scale}_r26_s32_{img}", {"small": {1: [224, 384]}, "base": {1: [224]}}, stem=StemConfig((2, 2, 2, 2))
    ),
    **family("vit_base_r50_s16_{img}", {"base": {1: [224, 384]}}, stem=StemConfig((3, 4, 9))),
    **family("vit_large_r50_s32_{img}", {"large": {1: [224, 384]}}, stem=StemConfig((3, 4, 6, 3))),
    # Without a class token
    **family(
        "vit_medium_patch16_gap_{img}", {"medium": {16: [240, 256, 384]}}, **GAP, qkv_bias=False, init_values=1e-6
    ),
    **family("vit_betwixt_patch16_gap_{img}", {"betwixt": {16: [256]}}, **GAP, qkv_bias=False, init_values=1e-6),
    **family("vit_base_patch16_gap_{img}", {"base": {16: [224]}}, **GAP, num_heads=16),
    **family("vit_{scale}_patch{patch}_gap_{img}", {"huge": {14: [224], 16: [448]}, "giant": {16: [224]}}, **GAP),
    **family(
        "vit_{scale}_patch16_reg1_gap_{img}",
        {"wee": {16: [256]}, "little": {16: [256]}, "medium": {16: [256]}, "betwixt": {16: [256]}},
        **REGISTERED,
        reg_tokens=1,
        init_values=1e-5,
    ),
    **family(
        "vit_{scale}_patch16_reg4_gap_{img}",
        {"little": {16: [256]}, "medium": {16: [256]}, "mediumd": {16: [256, 384]}, "betwixt": {16: [256, 384]}},
        **REGISTERED,
        reg_tokens=4,
        init_values=1e-5,
    ),
    **family("vit_base_patch16_reg4_gap_{img}", {"base": {16: [256]}}, **REGISTERED, reg_tokens=4),
    **family("vit_so150m_patch16_reg4_gap_{img}", {"so150m": {16: [256, 384]}}, **GAP, reg_tokens=4),
    **family("vit_so150m_patch16_reg4_map_{img}", {"so150m": {16: [256]}}, **MAP, reg_tokens=4),
    **family(
        "vit_so150m2_patch16_reg1_gap_{img}",
        {"so150m2": {16: [256, 384, 448]}},
        **{**GAP, "fc_norm": None},
        reg_tokens=1,
        init_values=1e-5,
        qkv_bias=False,
    ),
    # Image towers of CLIP and its successors
    **family(
        "vit_{scale}_patch{patch}_clip_{img}",
        {
            "xsmall": {16: [224]},
            "medium": {32: [224], 16: [224]},
            "betwixt": {32: [224]},
            "base": {32: [224, 256, 384, 448], 16: [224, 384]},
            "large": {14: [224, 336]},
            "huge": {14: [224, 336, 378]},
            "giant": {14: [224]},
            "gigantic": {14: [224, 378]},
        },
        **CLIP,
    ),
    **family("vit_base_patch16_plus_clip_{img}", {"base_plus": {16: [240]}}, **CLIP),
    **family(
        "vit_{scale}_patch{patch}_clip_quickgelu_{img}",
        {"base": {32: [224], 16: [224]}, "large": {14: [224, 336]}, "huge": {14: [224, 378]}, "gigantic": {14: [224]}},
        **CLIP,
        act="quick_gelu",
    ),
    **family("vit_{scale}_patch{patch}_siglip_{img}", SIGLIP, **MAP),
    **family("vit_{scale}_patch{patch}_siglip_{img}", SIGLIP_TANH, **MAP, act="gelu_tanh"),
    **family("vit_{scale}_patch{patch}_siglip_gap_{img}", SIGLIP, **GAP),
    **family("vit_{scale}_patch{patch}_siglip_gap_{img}", {"so400m": {14: [448, 896]}}, **GAP),  # PaliGemma's
    **family("vit_{scale}_patch{patch}_siglip_gap_{img}", SIGLIP_TANH, **GAP, act="gelu_tanh"),
    # Teachers without labels, and students of several teachers
    **family("vit_{scale}_patch14_dinov2", {"small": {14: [518]}, "base": {14: [518]}, "large": {14: [518]}}, **DINOV2),
    **family("vit_giant_patch14_dinov2", {"giant_gated": {14: [518]}}, **DINOV2, mlp="swiglu"),
    **family(
        "vit_{scale}_patch14_reg4_dinov2",
        {"small": {14: [518]}, "base": {14: [518]}, "large": {14: [518]}},
        **DINOV2,
        reg_tokens=4,
        no_embed_class=True,
    ),
    **family(
        "vit_giant_patch14_reg4_dinov2",
        {"giant_gated": {14: [518]}},
        **DINOV2,
        reg_tokens=4,
        no_embed_class=True,
        mlp="swiglu",
    ),
    **family(
        "vit_{scale}_patch14_reg1_tipsv2", {"base": {14: [448]}, "large": {14: [448]}, "so400m": {14: [448]}}, **TIPSV2
    ),
    **family("vit_giant_patch14_reg1_tipsv2", {"giant_gated": {14: [448]}}, **TIPSV2, mlp="swiglu"),
    **family(
        "vit_{scale}_patch16_radio_v3",
        {"base": {16: [512]}, "large": {16: [512]}},
        **RADIO,
        reg_tokens=7,
        init_values=1e-5,
    ),
    **family("vit_huge_patch16_radio_v3", {"huge": {16: [512]}}, **RADIO, reg_tokens=7),
    **family("vit_giant_patch16_radio_v3", {"giant_radio": {16: [512]}}, **RADIO, reg_tokens=7),
    **family("vit_{scale}_patch16_radio_v4", {"so400m": {16: [512]}, "huge": {16: [512]}}, **RADIO, reg_tokens=9),
    **family("vit_intern300m_patch14_{img}", {"large": {14: [448]}}, init_values=0.1, final_norm=False),
    # DeiT without distillation (arXiv 2012.12877) is the paper's ViT; DeiT III (arXiv 2204.07118) has layer scale
    **family("deit_{scale}_patch{patch}_{img}", {"tiny": {16: [224]}, "small": {16: [224]}, "base": {16: [224, 384]}}),
    **family(
        "deit3_{scale}_patch{patch}_{img}",
        {
            "small": {16: [224, 384]},
            "medium": {16: [224]},
            "base": {16: [224, 384]},
            "large": {16: [224, 384]},
            "huge": {14: [224]},
        },
        no_embed_class=True,
        init_values=1e-6,
    ),
    **family(
        "deit_{scale}_distilled_patch{patch}_{img}",
        {"tiny": {16: [224]}, "small": {16: [224]}, "base": {16: [224, 384]}},
        layout="distilled",
    ),
    # timm's own test models
    **family("test_vit", {"test6": {16: [160]}}),
    **family("test_vit2", {"test8": {16: [160]}}, **GAP | {"fc_norm": None}, reg_tokens=1, init_values=1e-5),
    **family("test_vit3", {"test9": {16: [160]}}, **MAP, pool_include_prefix=True, reg_tokens=1, init_values=1e-5),
    **RELATED,
}

_REASONS: Mapping[str, Sequence[str]] = {
    "RMSNorm, a norm on the patches, and a gated MLP with its own norm": [
        f"aimv2_{scale}_patch14_{img}" for scale in ("large", "huge", "1b", "3b") for img in (224, 336, 448)
    ],
    "norms inside attention and MLP": [
        "beit3_base_patch16_224",
        "beit3_large_patch16_224",
        "beit3_giant_patch14_224",
        "beit3_giant_patch14_336",
    ],
    "attention and MLP side by side in one block, RMSNorm": [
        "vit_base_patch16_xp_224",
        "vit_large_patch14_xp_224",
        "vit_huge_patch14_xp_224",
    ],
    "attention and MLP side by side in one block": ["vit_pwee_patch16_reg1_gap_256"],
    "two attentions and two MLPs side by side in one block": [
        "vit_small_patch16_18x2_224",
        "vit_base_patch16_18x2_224",
    ],
    "differential attention": ["vit_dwee_patch16_reg1_gap_256", "vit_dlittle_patch16_reg1_gap_256"],
    "differential attention and MLP side by side in one block": ["vit_dpwee_patch16_reg1_gap_256"],
    "norms after attention and MLP": ["vit_base_patch16_rpn_224"],
    "RMSNorm": ["test_vit4"],
    "a stem with batch norm (MobileCLIP)": ["vit_base_mci_224"],
    "norms after attention and MLP alone": ["eva02_enormous_patch14_clip_224"],
    "RMSNorm, norms of queries and keys, and layer scale in the attention only": ["vit_base_patch16_sapiens2"],
    "RMSNorm, and fewer keys and values than queries": [
        f"vit_{scale}_patch16_sapiens2" for scale in ("large", "huge", "giant", "5b")
    ],
    "two stages of convolutions before its encoder (ViTamin)": [
        "vitamin_small_224",
        "vitamin_base_224",
        *(f"vitamin_large{kind}_{img}" for kind in ("", "2") for img in (224, 256, 336, 384)),
        *(f"vitamin_xlarge_{img}" for img in (256, 336, 384)),
    ],
    "a ResNet-D stem with batch norm, for which there are no weights": [
        "vit_small_resnet26d_224",
        "vit_small_resnet50d_s16_224",
        "vit_base_resnet26d_224",
        "vit_base_resnet50d_224",
    ],
}

NOT_COVERED: Mapping[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}
"""timm's other names that its VisionTransformer, Eva or Beit stands behind, with what they have that we do not."""

# Names that timm has given up, and what it reads them as (but for the SAM ones, whose tag it has renamed since)
ALIASES: Mapping[str, str] = {
    **{
        f"vit_{size}_in21k": f"vit_{size}.augreg_in21k"
        for size in (
            "tiny_patch16_224",
            "small_patch32_224",
            "small_patch16_224",
            "base_patch32_224",
            "base_patch16_224",
            "base_patch8_224",
            "large_patch16_224",
            "tiny_r_s16_p8_224",
            "small_r26_s32_224",
            "large_r50_s32_224",
        )
    },
    "vit_large_patch32_224_in21k": "vit_large_patch32_224.orig_in21k",
    "vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
    "vit_base_patch32_224_sam": "vit_base_patch32_224.sam_in1k",
    "vit_base_patch16_224_sam": "vit_base_patch16_224.sam_in1k",
    "vit_small_patch16_224_dino": "vit_small_patch16_224.dino",
    "vit_small_patch8_224_dino": "vit_small_patch8_224.dino",
    "vit_base_patch16_224_dino": "vit_base_patch16_224.dino",
    "vit_base_patch8_224_dino": "vit_base_patch8_224.dino",
    "vit_base_patch16_224_miil_in21k": "vit_base_patch16_224_miil.in21k",
    "vit_base_patch32_224_clip_laion2b": "vit_base_patch32_clip_224.laion2b",
    "vit_large_patch14_224_clip_laion2b": "vit_large_patch14_clip_224.laion2b",
    "vit_huge_patch14_224_clip_laion2b": "vit_huge_patch14_clip_224.laion2b",
    "vit_giant_patch14_224_clip_laion2b": "vit_giant_patch14_clip_224.laion2b",
    "vit_base_r50_s16_224_in21k": "vit_base_r50_s16_224.orig_in21k",
    "vit_base_resnet50_224_in21k": "vit_base_r50_s16_224.orig_in21k",
    "vit_base_resnet50_384": "vit_base_r50_s16_384.orig_in21k_ft_in1k",
    **{
        f"deit3_{size}_in21ft1k": f"deit3_{size}.fb_in22k_ft_in1k"
        for size in (
            "small_patch16_224",
            "small_patch16_384",
            "medium_patch16_224",
            "base_patch16_224",
            "base_patch16_384",
            "large_patch16_224",
            "large_patch16_384",
            "huge_patch14_224",
        )
    },
}


def not_built(name: str) -> str:
    """The sentence on an architecture of timm's that is not in the table: that it is none of ours, and why if known."""
    if has := NOT_COVERED.get(name):
        return f"{name} is not a plain ViT: it has {has}"
    return f"{safe(name, 80)} is no Vision Transformer that this program builds itself"


def architecture(name: str) -> ViTConfig:
    """The config of timm's `name`, with or without `timm/` in front and a `.tag` behind; old names too.

    Raises CheckpointError for a timm model that we do not build, and for a name that timm does not have either.
    """
    base = name.removeprefix("timm/").partition(".")[0]
    base = ALIASES.get(base, base).partition(".")[0]
    if base in ARCHITECTURES:
        return ARCHITECTURES[base]
    if base in NOT_COVERED:
        raise CheckpointError(f"{not_built(base)}; choose another, see `vit models`")
    raise CheckpointError(f"no architecture is named '{safe(name)}'.{did_you_mean(base, ARCHITECTURES)}")
