"""EVA, DINOv3, Perception Encoder, RoPE-ViT and BEiT against timm, and what holds for turned and biased attention.

Small and not square: `test_logits_are_timms` in test_timm.py, for every name. Here: each name at its own image size,
and at full width and depth without the memory.
"""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from timm.models.eva import AttentionRope
from torch import Tensor, nn
from torch.testing import assert_close

from tests.helpers.timm_models import TIMM, assert_same_logits
from vitcli.model.architectures import ARCHITECTURES, NOT_COVERED, architecture
from vitcli.model.config import RopeConfig, ViTConfig
from vitcli.model.places import angles, relative_places
from vitcli.model.relatives import Rotary
from vitcli.model.vit import VisionTransformer

RELATED = ("eva", "beit")
ALL = [name for module in RELATED for name in timm.list_models(module=module)]
NAMES = [name for name in ALL if name in ARCHITECTURES]


def test_nine_in_ten_are_ours() -> None:
    if timm.__version__ != TIMM:
        pytest.skip(f"the table is that of timm {TIMM}")
    for module in RELATED:
        names = timm.list_models(module=module)
        assert len([name for name in names if name in ARCHITECTURES]) >= 0.9 * len(names)
        assert all(name in ARCHITECTURES or name in NOT_COVERED for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_its_own_size(name: str) -> None:
    """As many patches as timm's weights are for: where angles are largest and tables longest."""
    full = architecture(name)
    reduction = {"embed_dim": 8 * full.num_heads, "depth": 2, "num_classes": 7}
    assert_same_logits(replace(full, **reduction), timm.create_model(name, **reduction))


@pytest.mark.parametrize("name", NAMES)
def test_full_size(name: str) -> None:
    config = architecture(name)
    theirs = timm.create_model(name, num_classes=1000, device="meta")
    with torch.device("meta"):
        ours = VisionTransformer(config)

    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    def norms(model: nn.Module) -> dict[str, float]:
        return {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}

    assert shapes(ours) == shapes(theirs)
    assert norms(ours) == norms(theirs)
    assert config.img_size == theirs.patch_embed.img_size
    assert config.global_pool == theirs.global_pool
    assert config.num_prefix_tokens == theirs.num_prefix_tokens
    assert config.num_heads == theirs.blocks[0].attn.num_heads
    if config.layout == "eva":
        assert isinstance(theirs.blocks[0].attn, AttentionRope) == (config.qkv == "fused")
    if config.global_pool == "map":
        assert config.pool_heads == theirs.attn_pool.num_heads


# --- turning ---

TURNED = ViTConfig(
    img_size=(12, 20),
    patch_size=(4, 4),
    embed_dim=32,
    depth=2,
    num_heads=2,
    num_classes=5,
    layout="eva",
    pos_embed="none",
    rope=RopeConfig(),
)
ROPES = {
    "rows first": RopeConfig(),
    "columns first, from 1": RopeConfig(columns_first=True, offset=1.0),
    "as on another grid": RopeConfig(reference=(6, 10)),
    "centred": RopeConfig("dinov3", temperature=100.0, half=True),
    "learnt": RopeConfig("mixed", temperature=10.0, columns_first=True),
}


def sharp(config: ViTConfig) -> VisionTransformer:
    """A model whose attention is far from even."""
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn." in name and parameter.ndim == 2:
                parameter.normal_(std=2 * parameter.shape[1] ** -0.5)
            elif "token" in name or "table" in name or name.startswith("head"):
                parameter.normal_()
    return model


def turned(config: ViTConfig, x: Tensor) -> Tensor:
    """Queries x (1, n, N, d) turned."""
    y = Rotary(config).turn(x.clone(), x.clone(), 0)[0]
    assert config.rope is not None
    # Pairs half a head apart come out beside each other.
    return y.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if config.rope.half else y


@pytest.mark.parametrize("kind", [kind for kind in ROPES if kind != "learnt"])
def test_products_know_the_distance_only(kind: str) -> None:
    """q turned by its place times k turned by its place is the same for all pairs equally far apart."""
    config = replace(TURNED, rope=ROPES[kind])
    h, w = config.grid
    torch.manual_seed(0)
    q, k = (torch.randn(1, 2, 1, 16).expand(1, 2, config.num_tokens, 16) for _ in range(2))
    scores = (turned(config, q) @ turned(config, k).mT)[0, :, 1:, 1:].reshape(2, h, w, h, w)
    for down in range(-h + 1, h):
        for right in range(-w + 1, w):
            pairs = [
                scores[:, row, column, row + down, column + right]
                for row in range(max(0, -down), min(h, h - down))
                for column in range(max(0, -right), min(w, w - right))
            ]
            for pair in pairs[1:]:
                assert_close(pair, pairs[0], atol=2e-5, rtol=1e-5)
    assert (scores[:, 0, 0, 0, 1] - scores[:, 0, 0, 1, 0]).abs().min() > 1e-3  # and down is not right


@pytest.mark.parametrize("kind", ROPES)
def test_lengths_stay_and_tokens_without_a_place_are_not_turned(kind: str) -> None:
    config = replace(TURNED, rope=ROPES[kind], reg_tokens=2)
    x = torch.randn(1, 2, config.num_tokens, 16, generator=torch.Generator().manual_seed(0))
    y = turned(config, x)
    assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[:, :, :3], x[:, :, :3])
    stayed = (y[:, :, 3:] - x[:, :, 3:]).abs().amax(dim=-1) < 1e-3
    assert stayed.sum(dim=-1).max() <= 1  # at the origin


def test_angles_by_hand() -> None:
    config = replace(TURNED, img_size=(8, 8), embed_dim=16)  # d = 8: two frequencies for each axis
    assert_close(
        angles(config), torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0.01], [1, 0.01, 0, 0], [1, 0.01, 1, 0.01]]).numpy()
    )
    centred = angles(replace(config, rope=RopeConfig("dinov3", temperature=100.0)))
    assert_close(centred[1], torch.tensor([-math.pi, -math.pi / 10, math.pi, math.pi / 10]).numpy())


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2, "qkv": "split"}, {"qkv": "bias_apart"}], ids=str)
def test_the_class_token_alone_is_what_it_is_among_all(kind: str, settings: dict[str, object]) -> None:
    model = sharp(replace(TURNED, rope=ROPES[kind], **settings))
    x = torch.randn(2, model.config.num_tokens, 32)
    for queries in (1, 3, 5):
        assert_close(model.blocks[0](x, queries=queries), model.blocks[0](x)[:, :queries])


BIASED = replace(TURNED, layout="beit", qkv="bias_apart", rope=None, rel_pos_bias=True)
RELATIVES = {"turned": TURNED, "learnt": replace(TURNED, rope=ROPES["learnt"]), "biased": BIASED}


@pytest.mark.parametrize(
    "config", [TURNED, replace(TURNED, rope=ROPES["learnt"]), BIASED], ids=["turned", "learnt", "biased"]
)
def test_watched_weights_are_the_ones_that_are_used(config: ViTConfig) -> None:
    model = sharp(config)
    x = torch.randn(2, config.num_tokens, 32)
    attention = model.blocks[0].attn
    seen: list[Tensor] = []
    gathered = attention.watched(x, lambda image, weights: seen.append(weights.clone()))
    assert_close(torch.stack(seen), attention.weights(x))
    assert_close(gathered, attention(x))
    assert_close(attention.weights(x).sum(-1), torch.ones(2, 2, config.num_tokens))


@pytest.mark.parametrize(
    "config", [TURNED, replace(TURNED, rope=ROPES["learnt"]), BIASED], ids=["turned", "learnt", "biased"]
)
def test_a_copy_is_a_model_of_its_own(config: ViTConfig) -> None:
    """What turns a copy's queries is the copy's: an averaged model would else follow the one it averages."""
    model = sharp(config)
    x = torch.randn(1, 3, *config.img_size)
    expected, copied = model(x), deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert_close(copied(x), expected)
    assert copied.rope is None or copied.blocks[0].attn._rotary[0] is copied.rope


def test_every_pair_of_places_has_its_addend() -> None:
    h, w = BIASED.grid
    places = relative_places(BIASED.grid)
    assert places.shape == (1 + h * w, 1 + h * w)
    assert sorted(set(places.ravel())) == list(range((2 * h - 1) * (2 * w - 1) + 3))
    assert places[1, 2] == places[2, 3] != places[2, 1]  # one column to the right, to the left


def test_addends_move_attention() -> None:
    model = sharp(BIASED)
    attention, x = model.blocks[0].attn, torch.randn(1, BIASED.num_tokens, 32)
    with torch.no_grad():
        attention.relative_position_bias_table.zero_()
        attention.relative_position_bias_table[relative_places(BIASED.grid)[5, 6]] = 50.0
    weights = attention.weights(x)[0]
    assert (weights[:, 5, 6] > 0.99).all()
    assert (weights[:, 6, 7] < 1.01).all()
    assert (weights[:, 6, 5] < 0.5).all()


def test_learnt_frequencies_and_addends_learn() -> None:
    table = "blocks.0.attn.relative_position_bias_table"
    for config, name in ((RELATIVES["learnt"], "rope.freqs"), (BIASED, table)):
        model = sharp(config).train()
        model(torch.randn(2, 3, *config.img_size)).square().sum().backward()
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


# --- two answers ---


def test_a_distilled_deit_answers_with_the_mean_of_two_heads() -> None:
    small = {"img_size": (32, 48), "embed_dim": 24, "depth": 2, "num_classes": 5}
    config = replace(architecture("deit_tiny_distilled_patch16_224"), **small)
    model = sharp(config)
    with torch.no_grad():
        model.head_dist.weight.normal_()
    x = torch.randn(2, 3, 32, 48)
    tokens = model.intermediates(x, ["encoded"])["encoded"]
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    assert_close(model(x), expected)
    assert_close(model.representation(x), tokens[:, :2].flatten(1))
    assert_close(model.intermediates(x, ["logits"])["logits"], expected)
