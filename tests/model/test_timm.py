"""Our model against timm's, for every name that timm registers as a ViT, a hybrid, a DeiT, an EVA or a BEiT.

Two proofs for each name. Small: the same reduction on both sides (two blocks, eight channels a head, a grid of a few
patches, often not square), random weights, timm's state dict loaded strictly, equal float32 logits at
`torch.testing.assert_close`'s own tolerances. Full: names, shapes and settings at full size, without the memory.
"""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.layers import HybridEmbed, StdConv2dSame, SwiGLUPacked
from timm.models import _registry
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from tests.helpers.timm_models import TIMM, assert_same_logits
from vitcli.errors import CheckpointError
from vitcli.model.architectures import ALIASES, ARCHITECTURES, NOT_COVERED, architecture
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.vit import VisionTransformer

RELATED = ("eva", "beit")  # whose blocks are not the paper's; at full size: test_relatives.py
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "vitamin", *RELATED)
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]
if timm.__version__ != TIMM:  # another version may have names that the table cannot know
    NAMES = [name for name in NAMES if name in ARCHITECTURES or name in NOT_COVERED]
OLD_NAMES = [name for name in _registry._deprecated_models if _registry._model_to_module[name] in MODULES]
COVERED = [name for name in NAMES if name in ARCHITECTURES]
PLAIN = [name for name in COVERED if not ARCHITECTURES[name].related]


def test_every_name_of_timm_is_covered_or_explained() -> None:
    if timm.__version__ != TIMM:
        pytest.skip(f"the table is that of timm {TIMM}")
    assert ARCHITECTURES.keys() | NOT_COVERED.keys() == set(NAMES)
    assert not ARCHITECTURES.keys() & NOT_COVERED.keys()
    assert len(COVERED) >= 120
    assert ALIASES.keys() == set(OLD_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_timms(name: str) -> None:
    if name in NOT_COVERED:
        with pytest.raises(CheckpointError, match=name):
            architecture(name)
        return
    full = architecture(name)
    h, w = [(2, 3), (3, 2), (2, 2), (1, 4)][NAMES.index(name) % 4]
    rest = [size % stride for size, stride in zip(full.img_size, full.stride, strict=True)]  # 384 pixels, patches of 14
    img_size = (h * full.stride[0] + rest[0], w * full.stride[1] + rest[1])
    reduction = {"img_size": img_size, "embed_dim": 8 * full.num_heads, "depth": 2, "num_classes": 7}
    config = replace(full, **reduction)
    assert config.grid == (h, w)
    assert_same_logits(config, timm.create_model(name, **reduction))


def first_block_only(**arguments: object) -> nn.Module:
    """As many blocks as timm's model has, but only the first is real; the others would be the same again."""
    return Block(**arguments) if arguments["depth"] == 0 else nn.Identity()


@pytest.mark.parametrize("name", PLAIN)
def test_full_size_is_timms(name: str) -> None:
    config = architecture(name)
    theirs = timm.create_model(name, num_classes=1000, block_fn=first_block_only, weight_init="skip", device="meta")
    with torch.device("meta"):
        ours = VisionTransformer(replace(config, depth=1))

    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def norms(model: nn.Module) -> dict[str, float]:
        return {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)}

    assert len(theirs.blocks) == config.depth
    assert shapes(ours) == shapes(theirs)
    assert norms(ours) == norms(theirs)
    embed = theirs.patch_embed
    assert config.img_size == embed.img_size
    assert config.grid == embed.grid_size
    assert config.stride == embed.feat_ratio(as_scalar=False)
    assert config.num_heads == theirs.blocks[0].attn.num_heads
    assert config.qk_norm == isinstance(theirs.blocks[0].attn.q_norm, nn.LayerNorm)
    assert config.global_pool == theirs.global_pool
    assert config.pool_include_prefix == theirs.pool_include_prefix
    assert config.class_token == theirs.has_class_token
    assert config.num_prefix_tokens == theirs.num_prefix_tokens
    assert config.no_embed_class == theirs.no_embed_class


@pytest.mark.parametrize(
    "settings",
    [
        {"qk_norm": True},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True, "global_pool": "avg", "pool_include_prefix": True},
        {"class_token": False, "pos_embed": "none", "global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"fc_norm": True},
        {"final_norm": False},
        {"proj_bias": False, "qkv_bias": False},
        {"pre_norm": True, "init_values": 0.5},
        {"global_pool": "map", "class_token": False, "qkv_bias": False},
        {"in_chans": 1, "patch_size": (4, 8)},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_settings_apart_from_names(settings: dict[str, object]) -> None:
    """What no registered name has on its own, or has only beside other settings."""
    small = {"img_size": (16, 24), "patch_size": (8, 8), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    small |= settings
    assert_same_logits(ViTConfig(**small), TimmViT(**small))


def test_gated_mlp() -> None:
    small = {"img_size": (16, 24), "patch_size": (8, 8), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    assert_same_logits(ViTConfig(**small, mlp="swiglu"), TimmViT(**small, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU))


@pytest.mark.parametrize("img_size", [(32, 32), (29, 50)])
def test_small_hybrid(img_size: tuple[int, int]) -> None:
    """A stem of another width and depth, on images that the strides do not divide."""
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7, "img_size": img_size}
    resnet = ResNetV2(
        layers=(1, 2),
        channels=(128, 256),
        stem_chs=32,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    config = ViTConfig(**small, patch_size=(1, 1), stem=StemConfig((1, 2), width=32))
    theirs = TimmViT(**small, patch_size=1, embed_layer=partial(HybridEmbed, backbone=resnet))
    assert config.grid == theirs.patch_embed.grid_size
    assert_same_logits(config, theirs)


def test_small_hybrid_that_timm_can_build_by_name() -> None:
    """28 pixels to 7×7 tokens: what a checkpoint's `model_args` can say."""
    arguments = {"img_size": (28, 28), "depth": 2, "num_classes": 7}
    config = replace(architecture("vit_tiny_r_s16_p8_224"), patch_size=(1, 1), **arguments)
    assert config.grid == (7, 7)
    assert_same_logits(config, timm.create_model("vit_tiny_r_s16_p8_224", patch_size=1, **arguments))


def test_old_names_mean_what_timm_reads_them_as() -> None:
    for name, tagged in ALIASES.items():
        assert timm.get_pretrained_cfg(tagged) is not None  # raises for a tag that timm does not have
        assert architecture(name) is ARCHITECTURES[_registry._deprecated_models[name].partition(".")[0]]
        assert architecture(f"timm/{tagged}") is architecture(name)


def test_unknown_names_are_told_what_was_meant() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no architecture is named 'vit_base_patch16_244'\. Did you mean 'vit_base_patch16_224'\?",
    ):
        architecture("vit_base_patch16_244")
    with pytest.raises(CheckpointError, match=r"test_vit4 is not a plain ViT: it has RMSNorm"):
        architecture("timm/test_vit4.r160_in1k")
