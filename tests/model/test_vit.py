"""The model against the paper's equations, closed forms and properties. Against timm: model/test_timm.py.

Tolerances are those of `torch.testing.assert_close` for float32 where nothing else is said.
"""

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from vitcli.model.architectures import architecture
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.cost import cost
from vitcli.model.encoder import Block, DropPath, activation, attend
from vitcli.model.linear import Linear, linear
from vitcli.model.mimetic import QUERY_KEY, VALUE_PROJECTION, mimic, waves
from vitcli.model.stem import GroupNorm, Residual, StdConv, pad_same
from vitcli.model.vit import VisionTransformer

SMALL = ViTConfig(img_size=(8, 12), patch_size=(4, 4), embed_dim=16, depth=3, num_heads=2, num_classes=5)
HYBRID = replace(SMALL, img_size=(32, 48), patch_size=(1, 1), stem=StemConfig((1, 1), width=32))
BASIC = replace(HYBRID, stem=StemConfig((2, 1), width=32, block="basic"))


def build(config: ViTConfig = SMALL, **rates: float) -> VisionTransformer:
    """A model whose weights hide nothing: no zero, no one, activations near 1."""
    torch.manual_seed(0)
    model = VisionTransformer(config, **rates)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=1.0 if name.endswith((".weight", ".gamma")) else 0.0, std=0.2)
    return model


def images(config: ViTConfig = SMALL, count: int = 2) -> Tensor:
    return torch.randn(count, config.in_chans, *config.img_size, generator=torch.Generator().manual_seed(1))


# --- equation 1 ---


def test_patches_are_pixels_times_a_matrix() -> None:
    model, x = build(), images()
    pixels = F.unfold(x, kernel_size=4, stride=4).transpose(1, 2)  # (B, N, C·P²)
    E = model.patch_embed.proj.weight.flatten(1).T  # (C·P², D)
    assert_close(model.patch_embed(x), pixels @ E + model.patch_embed.proj.bias)


@pytest.mark.parametrize("patch_size", [(4, 4), (4, 2), (2, 6)])
def test_patches_are_read_row_by_row(patch_size: tuple[int, int]) -> None:
    config = replace(SMALL, patch_size=patch_size)
    embed = build(config).patch_embed
    nn.init.zeros_(embed.proj.bias)
    h, w = config.grid
    for row in range(h):
        for column in range(w):
            x = torch.zeros(1, 3, *config.img_size)
            x[..., row * patch_size[0], column * patch_size[1]] = 1.0
            lit = embed(x)[0].abs().sum(dim=-1).nonzero().flatten()
            assert lit.tolist() == [row * w + column]


def test_first_tokens_and_position() -> None:
    x = images()
    for settings in ({}, {"reg_tokens": 2}, {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}):
        for no_embed_class in (False, True):
            model = build(replace(SMALL, **settings, no_embed_class=no_embed_class))
            prefix = [t.expand(2, -1, -1) for t in (model.cls_token, model.reg_token) if t is not None]
            prefix = torch.cat(prefix, dim=1)
            pos = model.pos_embed
            if no_embed_class:
                expected = torch.cat([prefix, model.patch_embed(x) + pos], dim=1)
            else:
                expected = torch.cat([prefix, model.patch_embed(x)], dim=1) + pos
            assert_close(model.embed(x), expected)
            assert model.embed(x).shape == (2, model.config.num_tokens, 16)


def test_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image is \(12, 8\), the model's position embedding is for \(8, 12\)"):
        build()(torch.zeros(1, 3, 12, 8))


def test_grids() -> None:
    assert replace(SMALL, img_size=(9, 15)).grid == (2, 3)  # the rest belongs to no patch
    assert architecture("vit_base_r50_s16_384").grid == (24, 24)
    assert architecture("vit_tiny_r_s16_p8_224").stride == (32, 32)
    # a stride rounds up: 50 → 25 → 13 → 7
    hybrid = replace(HYBRID, img_size=(32, 50))
    assert hybrid.grid == (4, 7)
    assert build(hybrid).patch_embed(images(hybrid)).shape == (2, 28, 16)


# --- equations 2 to 4 ---


def norm(layer: nn.LayerNorm, z: Tensor) -> Tensor:
    mean, variance = z.mean(-1, keepdim=True), z.var(-1, keepdim=True, correction=0)
    return (z - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias


def self_attention(block: Block, z: Tensor) -> Tensor:
    """Appendix A, equations 5 to 8, one head after another."""
    D, d = 16, 8
    heads = []
    for n in range(2):
        rows = slice(n * d, (n + 1) * d)
        q, k, v = (
            z @ block.attn.qkv.weight[i * D : (i + 1) * D][rows].T + block.attn.qkv.bias[i * D : (i + 1) * D][rows]
            for i in range(3)
        )
        heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(d), dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ block.attn.proj.weight.T + block.attn.proj.bias


def test_block_is_the_paper_s() -> None:
    model = build()
    block: Block = model.blocks[0]
    z = torch.randn(2, 7, 16)
    between = self_attention(block, norm(block.norm1, z)) + z
    mlp = block.mlp
    hidden = norm(block.norm2, between) @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    assert_close(block(z), hidden @ mlp.fc2.weight.T + mlp.fc2.bias + between)


def test_representation_is_the_class_token_normed() -> None:
    model, x = build(), images()
    z = model.embed(x)
    for block in model.blocks:
        z = block(z)
    y = norm(model.norm, z[:, 0])
    assert_close(model.representation(x), y)
    assert_close(model(x), y @ model.head.weight.T + model.head.bias)


def test_no_classes_means_the_representation() -> None:
    model = build(replace(SMALL, num_classes=0))
    assert_close(model(images()), model.representation(images()))
    assert model(images()).shape == (2, 16)
    assert not any(name.startswith("head") for name in model.state_dict())


@pytest.mark.parametrize(("head_act", "function"), [("tanh", torch.tanh), ("gelu", F.gelu)])
def test_pre_training_head(head_act: str, function: object) -> None:
    model, x = build(replace(SMALL, head_hidden=24, head_act=head_act)), images()
    y = model.norm(model.intermediates(x, ["blocks.2"])["blocks.2"])[:, 0]
    hidden = function(model.pre_logits.fc(y))
    assert_close(model.representation(x), hidden)
    assert_close(model(x), model.head(hidden))
    assert model.head.in_features == 24


def test_average_of_patches() -> None:
    config = replace(SMALL, reg_tokens=2, global_pool="avg")
    x = images()
    model = build(config)
    encoded = model.intermediates(x, ["encoded"])["encoded"]
    assert_close(model.representation(x), norm(model.fc_norm, encoded[:, 3:].mean(dim=1)))
    model = build(replace(config, pool_include_prefix=True, fc_norm=False))
    encoded = model.intermediates(x, ["encoded"])["encoded"]
    assert_close(model.representation(x), encoded.mean(dim=1))


def test_activations() -> None:
    x = torch.linspace(-4, 4, 101)
    assert_close(activation("gelu")(x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    assert_close(activation("gelu_tanh")(x), 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    assert_close(activation("quick_gelu")(x), x / (1 + torch.exp(-1.702 * x)))


# --- looking inside ---


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"qkv_bias": False}], ids=str)
def test_attention_weights(settings: dict[str, object]) -> None:
    model = build(replace(SMALL, **settings))
    block: Block = model.blocks[1]
    z = block.norm1(torch.randn(2, 7, 16))
    weights = block.attn.weights(z)
    assert weights.shape == (2, 2, 7, 7)
    assert_close(weights.sum(dim=-1), torch.ones(2, 2, 7))
    assert weights.std() > 0.05, "even weights would prove nothing"
    taken = []
    assert_close(block.attn.watched(z, lambda _, one: taken.append(one.clone())), block.attn(z))
    assert_close(torch.stack(taken), weights)
    assert_close(block.attn(z, queries=3), block.attn(z)[:, :3])


def test_intermediates() -> None:
    model, x = build(), images()
    shapes = {
        "stem": (2, 6, 16),
        "embedded": (2, 7, 16),
        "blocks.0": (2, 7, 16),
        "blocks.1": (2, 7, 16),
        "blocks.2": (2, 7, 16),
        "encoded": (2, 7, 16),
        "pre_logits": (2, 16),
        "logits": (2, 5),
    }
    taken = model.intermediates(x, shapes)
    assert {name: tuple(value.shape) for name, value in taken.items()} == shapes
    assert_close(taken["embedded"], model.embed(x))
    assert_close(taken["blocks.1"], model.blocks[1](taken["blocks.0"]))
    assert_close(taken["logits"], model(x))
    alone = model.intermediates(x, ["blocks.1"])
    assert list(alone) == ["blocks.1"]
    assert_close(alone["blocks.1"], taken["blocks.1"], rtol=0, atol=0)


def test_intermediates_stop_at_the_last_one_wanted() -> None:
    model = build()
    del model.blocks[2].mlp  # calling it would fail
    model.intermediates(images(), ["stem", "blocks.1"])
    with pytest.raises(AttributeError, match="mlp"):
        model.intermediates(images(), ["blocks.2"])


def test_unknown_intermediate() -> None:
    with pytest.raises(KeyError, match=r"no intermediate named blocks\.3; there are stem, embedded, blocks\.0"):
        build().intermediates(images(), ["blocks.3", "logits"])


@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_last_block_trimmed_to_the_class_token_changes_nothing(reg_tokens: int) -> None:
    model, x = build(replace(SMALL, reg_tokens=reg_tokens, init_values=0.5)), images()
    target = torch.tensor([1, 4])

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(logits, target), list(model.parameters())))

    trimmed, untrimmed = model(x), model.intermediates(x, ["logits"])["logits"]
    assert_close(trimmed, untrimmed)
    assert_close(gradients(trimmed), gradients(untrimmed))


def test_last_block_is_trimmed() -> None:
    """The saving is there, not only the equality: fewer multiply–adds than with every token."""
    model, x = build().requires_grad_(False).to("meta"), images().to("meta")
    with FlopCounterMode(display=False) as trimmed:
        model(x)
    with FlopCounterMode(display=False) as untrimmed:
        model.intermediates(x, ["logits"])
    assert trimmed.get_total_flops() < 0.85 * untrimmed.get_total_flops()  # of 3 blocks, 6/7 of most of one


# --- the hybrid's CNN ---


def test_standardised_convolution() -> None:
    conv = StdConv(3, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(5).add_(2)
    weight = conv.weight
    mean, std = weight.mean(dim=(1, 2, 3), keepdim=True), weight.std(dim=(1, 2, 3), keepdim=True, correction=0)
    x = torch.randn(2, 3, 9, 7)
    assert_close(conv(x), F.conv2d(x, (weight - mean) / std, padding=1), rtol=1e-5, atol=1e-5)  # ε, and 27 terms near 1


@pytest.mark.parametrize(("size", "before", "after"), [(8, 2, 3), (7, 3, 3), (1, 3, 3)])
def test_same_padding(size: int, before: int, after: int) -> None:
    """TensorFlow's SAME for a kernel of 7 and stride 2: ⌈size/2⌉ cells, the odd zero behind."""
    padded = pad_same(torch.ones(1, 1, size, size), kernel=7, stride=2)[0, 0]
    expected = torch.zeros(before + size + after)
    expected[before : before + size] = 1
    assert_close(padded, expected[:, None] * expected)
    assert (padded.shape[0] - 7) // 2 + 1 == math.ceil(size / 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_basic_block_is_torchvisions(stride: int) -> None:
    """With GroupNorm in it and standardised weights. At an odd size SAME padding is as symmetric as torchvision's."""
    torch.manual_seed(0)
    block = build(BASIC).patch_embed.backbone.stages[stride - 1].blocks[0]
    inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(32, outputs))
    theirs = BasicBlock(inputs, outputs, stride, shortcut, norm_layer=partial(nn.GroupNorm, 32))
    rename = {"norm1": "bn1", "norm2": "bn2", "downsample.conv": "downsample.0", "downsample.norm": "downsample.1"}
    weights = {}
    for name, weight in block.state_dict().items():
        if weight.ndim > 1:
            std, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
            weight = (weight - mean) / std
        module, _, kind = name.rpartition(".")
        weights[f"{rename.get(module, module)}.{kind}"] = weight
    theirs.load_state_dict(weights)
    x = torch.randn(2, inputs, 9, 7)
    assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [HYBRID, BASIC], ids=["bottleneck", "basic"])
def test_hybrid_begins_as_its_shortcuts(config: ViTConfig) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(config)
    block = next(m for m in model.modules() if isinstance(m, Residual))
    x = torch.randn(2, 32, 6, 6)
    assert_close(block(x), F.relu(block.downsample(x)))


# --- training ---


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        HYBRID,
        BASIC,
        replace(HYBRID, stem=StemConfig((), width=32)),
        replace(SMALL, class_token=False, reg_tokens=2, global_pool="map", init_values=0.1),
        replace(SMALL, global_pool="avg", qk_norm=True, mlp="swiglu", pre_norm=True, head_hidden=8),
    ],
    ids=["plain", "hybrid", "basic", "one convolution", "registers and attention pool", "gated, qk-norm, pre-norm"],
)
def test_every_weight_learns(config: ViTConfig) -> None:
    model = build(config, dropout=0.1, drop_path=0.1).train()
    F.cross_entropy(model(images(config, 8)), torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("k_norm.bias"):  # the same added to every key changes no softmax
            assert parameter.grad.abs().max() > 1e-6, name


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(replace(SMALL, embed_dim=192, num_heads=3, reg_tokens=1, head_hidden=192))
    assert_close(model(images()), torch.zeros(2, 5), rtol=0, atol=0)  # the head is zero
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    block: Block = model.blocks[0]
    for weight in (*block.attn.qkv.weight.split(192), block.attn.proj.weight):  # Xavier: U(±√(6 / (in + out)))
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / (192 + 192)), rel=0.01)
    assert block.mlp.fc1.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (192 + 768)), rel=0.01)
    assert not block.attn.qkv.bias.any()
    assert 0 < block.mlp.fc1.bias.abs().max() < 1e-5
    # LeCun: variance 1 / inputs. 36 864 draws lie within 2 % of their variance
    assert model.pre_logits.fc.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(48**-0.5, rel=0.05)


def test_initialisation_follows_the_seed() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return VisionTransformer(SMALL).state_dict()

    assert_close(weights(3), weights(3), rtol=0, atol=0)
    assert not torch.equal(weights(3)["pos_embed"], weights(4)["pos_embed"])


@pytest.mark.parametrize("config", [SMALL, HYBRID], ids=["plain", "hybrid"])
def test_nothing_is_initialised_when_weights_follow(config: ViTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = build(config).state_dict()
    before = torch.get_rng_state()
    with monkeypatch.context() as patch, torch.device("meta"):
        patch.delattr(nn.init, "xavier_uniform_")  # calling it would fail
        model = VisionTransformer(config)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)
    model.load_state_dict(weights, strict=True, assign=True)
    assert model.pos_embed.data_ptr() == weights["pos_embed"].data_ptr()  # taken over, not copied
    assert_close(model.eval()(images(config)), build(config).eval()(images(config)), rtol=0, atol=0)


def test_a_mimetic_start_looks_at_what_is_near() -> None:
    """On an empty image only positions differ: attention falls with distance; most goes to the patch or beside it."""
    torch.manual_seed(0)
    config = ViTConfig(img_size=(28, 40), patch_size=(4, 4), embed_dim=64, depth=2, num_heads=4, reg_tokens=1)
    model, x = VisionTransformer(config), torch.zeros(1, 3, 28, 40)
    block, places = model.blocks[0], torch.cartesian_prod(torch.arange(7.0), torch.arange(10.0))  # (h·w, 2)
    far = torch.cdist(places, places)  # (h·w, h·w), patches

    def attention() -> Tensor:
        return block.attn.weights(block.norm1(model.embed(x)))[0, :, 2:, 2:].mean(dim=0)  # (h·w, h·w)

    def correlation() -> float:
        return torch.corrcoef(torch.stack([far.flatten(), attention().log().flatten()]))[0, 1].item()

    assert abs(correlation()) < 0.2
    mimic(model)
    assert correlation() < -0.6
    assert (far[torch.arange(70), attention().argmax(dim=1)] <= 1.5).float().mean() > 0.9


def test_a_mimetic_start_has_the_products_it_names() -> None:
    torch.manual_seed(0)
    D, model = 256, VisionTransformer(replace(SMALL, embed_dim=256, depth=1, num_heads=1))
    mimic(model)
    q, k, v = model.blocks[0].attn.qkv.weight.chunk(3)
    for product, (noise, identity) in ((q.T @ k, QUERY_KEY), (model.blocks[0].attn.proj.weight @ v, VALUE_PROJECTION)):
        assert product.diagonal().mean().item() == pytest.approx(identity, abs=0.02)
        rest = product - identity * torch.eye(D)
        assert rest.std().item() == pytest.approx(noise / D**0.5, rel=0.02)


def test_waves_are_sines_and_cosines_of_row_and_column() -> None:
    found = waves((2, 3), 8, slowest=100.0)
    expected = [
        [wave(x / scale) for x in (row, column) for wave in (math.sin, math.cos) for scale in (1, 10)]
        for row in range(2)
        for column in range(3)
    ]
    assert_close(found, torch.tensor(expected))
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4"):
        waves((2, 2), 6)


def test_a_mimetic_start_without_positions_or_class_token() -> None:
    for changes in ({"pos_embed": "none"}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}):
        model = VisionTransformer(replace(SMALL, **changes))
        mimic(model)
        assert model(images()).isfinite().all()


def test_dropout_follows_every_dense_layer_but_qkv_and_the_position() -> None:
    model = build(dropout=0.3).train()
    calls: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, *_: calls.append(module.p))
    model(images())
    assert calls == [0.3] * (1 + 3 * SMALL.depth)  # position; attention's projection, both layers of the MLP
    first, second = model(images()), model(images())
    assert not torch.allclose(first, second)
    model.eval()
    assert_close(model(images()), build().eval()(images()), rtol=0, atol=0)


def test_drop_path_grows_linearly_with_depth() -> None:
    model = VisionTransformer(replace(SMALL, depth=5), drop_path=0.2)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25).train(), torch.ones(4000, 3, 2)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert_close(y, kept[:, None, None] * torch.full_like(x, 4 / 3))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / 4000))  # 4 σ
    assert_close(drop.eval()(x), x, rtol=0, atol=0)


def test_drop_path_leaves_the_residual() -> None:
    block = Block(SMALL, drop_path=0.999999).train()
    z = torch.randn(2, 7, 16)
    assert_close(block(z), z, rtol=0, atol=0)


# --- cost ---


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit_tiny_patch16_224", 5.7),
        ("vit_small_patch16_224", 22),
        ("vit_base_patch16_224", 86),
        ("vit_large_patch16_224", 307),
        ("vit_huge_patch14_224", 632),
    ],
)
def test_parameters_are_those_of_table_1(name: str, millions: float) -> None:
    """To 1 %: the table rounds, and does not say which patch size and how many classes it counts."""
    assert cost(architecture(name)).params / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_224_miil",
        "vit_medium_patch16_gap_240",
        "vit_base_patch32_clip_448",
        "vit_so400m_patch14_siglip_384",
        "vit_giant_patch14_reg4_dinov2",
        "vit_base_patch16_radio_v3",
        "test_vit3",
        "vit_tiny_r_s16_p8_224",
        "vit_small_r26_s32_224",
        "vit_base_r50_s16_384",
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 0, "img_size": (251, 350)},
        {"qk_norm": True, "head_hidden": 9},
        {"stem": BASIC.stem, "patch_size": (2, 2), "img_size": (81, 130)},
    ],
)
def test_cost_is_what_torch_counts(name: str, changes: dict[str, object]) -> None:
    config = replace(architecture(name), depth=2, **changes)
    with torch.device("meta"):
        model = VisionTransformer(config).requires_grad_(False)
        x = torch.empty(1, 3, *config.img_size)
    with FlopCounterMode(display=False) as counter:
        model(x)
    stages = cost(config)
    assert stages.params == sum(parameter.numel() for parameter in model.parameters())
    assert 2 * stages.macs == counter.get_total_flops()


def test_cost_by_stage() -> None:
    """Each stage's parameters are those of its modules."""
    config = replace(HYBRID, class_token=False, global_pool="map", reg_tokens=2, init_values=0.1, head_hidden=8)
    of: dict[str, int] = {}
    for name, parameter in build(config).named_parameters():
        stage = "head"
        if name.startswith("patch_embed"):
            stage = "cnn" if "backbone" in name else "patches"
        elif name in ("reg_token", "pos_embed"):
            stage = "position"
        elif name.startswith("blocks"):
            stage = "attention" if any(part in name for part in ("norm1", "attn", "ls1")) else "mlp"
        of[stage] = of.get(stage, 0) + parameter.numel()
    assert {stage.name: stage.params for stage in cost(config).stages} == of


BFLOAT16 = {"rtol": 0.03, "atol": 0.03}  # 8 bits of mantissa are 0.4 %; a few of those add up


def test_attention_in_bfloat16_is_that_in_float32_rounded() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 50, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    attended, expected = attend(*inputs), attend(*exact)
    assert attended.dtype == torch.bfloat16
    assert_close(attended.float(), expected, **BFLOAT16)
    attended.float().square().sum().backward()
    expected.square().sum().backward()
    for tensor, reference in zip(inputs, exact, strict=True):
        assert tensor.grad is not None
        assert reference.grad is not None
        assert_close(tensor.grad.float(), reference.grad, **BFLOAT16)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_group_norm_in_bfloat16_with_channels_last_is_torchs_in_float32_rounded(mean: float) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    nn.init.normal_(norm.weight, mean=1.0, std=0.2)
    nn.init.normal_(norm.bias, std=0.2)
    x = (torch.randn(3, 16, 7, 5) + mean).to(torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = nn.functional.group_norm(exact, 4, norm.weight, norm.bias)
    assert_close(y.float(), expected, **BFLOAT16)
    target = torch.randn(3, 16, 7, 5)
    ours = torch.autograd.grad(((y.float() - target) ** 2).sum(), [x, norm.weight, norm.bias])
    theirs = torch.autograd.grad(((expected - target) ** 2).sum(), [exact, norm.weight, norm.bias])
    for gradient, reference in zip(ours, theirs, strict=True):
        assert_close(gradient.float(), reference, rtol=0.03, atol=0.03 * reference.abs().max().item())


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (1, 12), (2, 1, 4, 12), (0, 12)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_torchs_with_its_gradients(
    shape: tuple[int, ...], with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is not contiguous, too."""
    monkeypatch.setattr("vitcli.model.linear._chosen", "onednn")
    torch.manual_seed(0)
    layer = Linear(12, 7, bias=with_bias)
    exact = deepcopy(layer).double()
    x = torch.randn(*shape[:-1], 24)[..., ::2].requires_grad_()
    y, expected = layer(x), F.linear(x.double(), exact.weight, exact.bias)
    if x.numel():
        assert y.grad_fn.name().startswith("_Linear")  # else this compares torch with itself
    assert_close(y, expected.float())
    ours = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(expected.sin().sum(), [x, *exact.parameters()])
    for gradient, reference in zip(ours, theirs, strict=True):
        assert_close(gradient, reference.float())
    with torch.inference_mode():
        assert_close(layer(x), expected.float())


def test_linear_has_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcli.model.linear._chosen", "onednn")
    torch.manual_seed(0)
    x, weight = torch.randn(3, 12, requires_grad=True), torch.randn(7, 12, requires_grad=True)
    found = []
    for product in (linear, F.linear):
        (slope,) = torch.autograd.grad(product(x, weight, None).sigmoid().sum(), x, create_graph=True)
        found += torch.autograd.grad(slope.sum(), weight)
    assert_close(*found)


def test_linear_in_other_precisions_is_torchs() -> None:
    x, layer = torch.randn(3, 12), Linear(12, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(layer.double()(x.double()), F.linear(x.double(), layer.weight, layer.bias))
