"""Maps of what spoke for a class: equal to what is computed by hand or by captum, and true where the truth is known."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers import marked
from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from tests.helpers.inspecting import WIDE, build, images
from tests.helpers.relatives import FAMILIES
from vitcli import explain
from vitcli.errors import UsageError
from vitcli.images.find import ImageSource
from vitcli.inspection.attention_gradients import gradient_rollout, legrad, of_classes
from vitcli.inspection.cells import enlarged, summed
from vitcli.inspection.explain import METHODS, OF_ATTENTION, Explainer, default_method, method_for, picture_of
from vitcli.inspection.faithfulness import likeness
from vitcli.inspection.gradcam import gradcam
from vitcli.inspection.input_relevance import integrated_gradients, occlusion
from vitcli.model.config import ViTConfig
from vitcli.model.encoder import Attention
from vitcli.model.vit import VisionTransformer

MODELS = {
    "class token": WIDE,
    "mean": replace(WIDE, class_token=False, global_pool="avg"),
    "registers": replace(WIDE, reg_tokens=2, global_pool="avg"),
    "attention pooling": replace(WIDE, class_token=False, global_pool="map"),
    **FAMILIES,
}


def by_hand(model: VisionTransformer, x: Tensor, classes: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Attention weights (B, n, N, N) of each block and their gradients, written out; and the encoded tokens."""
    kept: list[Tensor] = []

    def attend(attention: Attention, y: Tensor, _: int | None) -> Tensor:
        q, k, v = attention._heads(y)
        kept.append(attention._weights(q, k))
        return attention._project(kept[-1] @ v)

    tokens = model.embed(x)
    for block in model.blocks:
        tokens = block(tokens, attend=attend)
    tokens = model.norm(tokens)
    gradients = torch.autograd.grad(of_classes(model.classify(model.pool(tokens)), classes), kept)
    return kept, list(gradients), tokens.detach()


@pytest.mark.parametrize("name", [name for name, config in MODELS.items() if config.global_pool != "map"])
def test_gradient_rollout_is_that_of_weights_written_out(name: str) -> None:
    model = build(MODELS[name])
    x, classes = images(model.config, 3), torch.tensor([0, 2, 1])
    weights, gradients, tokens = by_hand(model, x, classes)
    joint = torch.eye(tokens.shape[1]).expand(3, -1, -1)
    for one, gradient in zip(weights, gradients, strict=True):
        joint = joint + (one * gradient).clamp(min=0).mean(dim=1) @ joint
    config = model.config
    read = slice(0, config.pooled_tokens) if config.global_pool == "token" else slice(config.num_prefix_tokens, None)
    expected = joint[:, read, config.num_prefix_tokens :].mean(dim=1).view(3, *config.grid)
    found = gradient_rollout(model, x, classes)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_legrad_asks_each_layer() -> None:
    model = build(WIDE)
    x, classes = images(WIDE, 2), torch.tensor([4, 0])
    expected = torch.zeros(2, WIDE.num_tokens)
    for depth in range(1, WIDE.depth + 1):
        shorter = copy.deepcopy(model)
        shorter.blocks = shorter.blocks[:depth]
        expected += by_hand(shorter, x, classes)[1][-1].clamp(min=0).mean(dim=1).sum(dim=1) / WIDE.depth
    found = legrad(model, x, classes)
    torch.testing.assert_close(found, expected[:, 1:].view(2, *WIDE.grid), rtol=1e-3, atol=1e-6)


OF_ANY_MODEL = ("integrated-gradients", "occlusion")  # these see images and logits only
OF_FAMILIES = [(method, name) for method in METHODS for name in MODELS if method not in OF_ANY_MODEL or name == "BEiT"]


@pytest.mark.parametrize(("method", "name"), OF_FAMILIES)
def test_every_method_knows_every_family(method: str, name: str) -> None:
    model = build(MODELS[name])
    x = images(model.config, 2)
    one, other = (METHODS[method](model, x, torch.tensor([index] * 2)).detach() for index in (0, 1))
    assert one.shape == (2, *model.config.grid)
    assert one.isfinite().all()
    assert not torch.allclose(one, other), "the map knows nothing of the class"
    alone = METHODS[method](model, x[1:], torch.tensor([0])).detach()
    torch.testing.assert_close(one[1:], alone, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_integrated_gradients_are_complete() -> None:
    """Their sum is what the logit gains between an image of the mean colour and the image."""
    model = build(WIDE).double()
    x, classes = images(WIDE, 3).double() / 4, torch.tensor([0, 1, 2])
    maps = integrated_gradients(model, x, classes, steps=48)
    with torch.no_grad():
        gained = (model(x) - model(torch.zeros_like(x))).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(maps.sum(dim=(1, 2)), gained, rtol=0.01, atol=0.01)


def test_integrated_gradients_are_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model = build(WIDE)
    x, classes = images(WIDE, 2), torch.tensor([3, 1])
    pixels = attr.IntegratedGradients(model).attribute(x, target=classes, n_steps=16, method="riemann_middle")
    expected = summed(model, pixels.sum(dim=1).float(), WIDE.grid)
    torch.testing.assert_close(integrated_gradients(model, x, classes), expected, rtol=1e-3, atol=1e-4)


def test_occlusion_is_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model = build(WIDE)
    x, classes = images(WIDE, 2), torch.tensor([3, 1])
    with torch.no_grad():
        pixels = attr.Occlusion(model).attribute(x, (3, 4, 4), strides=(3, 4, 4), target=classes)
    torch.testing.assert_close(occlusion(model, x, classes), pixels[:, 0, ::4, ::4], rtol=1e-3, atol=1e-4)


def test_gradcam_of_a_cnn_is_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model, (x, colours, _) = marked.learnt(marked.cnn()), marked.pictures(2, 1)
    expected = attr.LayerGradCam(model, model.layers).attribute(x, target=colours[:, 0], relu_attributions=True)
    torch.testing.assert_close(gradcam(model, x, colours[:, 0]), expected[:, 0])


@pytest.fixture(scope="module")
def learnt() -> dict[str, nn.Module]:
    return {"vit": marked.learnt(marked.vit()), "cnn": marked.learnt(marked.cnn())}


def hits(model: nn.Module, method: str, x: Tensor, classes: Tensor, cells: Tensor) -> float:
    """How often the strongest cell of the map is the marked one."""
    maps = METHODS[method](model, x, classes).detach()
    return float((maps.flatten(1).argmax(dim=1) == cells).double().mean())


LEAST = {"legrad": 0.6}  # of the maps whose strongest cell is the mark, of fifteen; 0.75 else
CASES = [(kind, name) for kind in ("vit", "cnn") for name in METHODS if kind == "vit" or name not in OF_ATTENTION]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_map_points_at_the_evidence_for_its_class(learnt: dict[str, nn.Module], kind: str, method: str) -> None:
    """Of two marks each speaks for its own class. Grad-CAM of tokens is known to be no good (docs/inspecting.md)."""
    if (kind, method) == ("vit", "gradcam"):
        pytest.skip("it weighs features of patches that have seen each other")
    x, colours, cells = marked.pictures(40, 1, marks=2)
    for which in (0, 1):
        assert hits(learnt[kind], method, x, colours[:, which], cells[:, which]) > LEAST.get(method, 0.75)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gradcam"])
def test_a_model_of_other_weights_has_other_maps(learnt: dict[str, nn.Module], method: str) -> None:
    """Shuffled weights have learnt nothing, and a map that still shows the same shows the picture (Adebayo et al.)."""
    x, colours, cells = marked.pictures(40, 1)
    other = copy.deepcopy(learnt["vit"])
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            order = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(i))
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    maps = [METHODS[method](model, x, colours[:, 0]).detach() for model in (learnt["vit"], other)]
    assert likeness(*maps).mean() < 0.5
    assert hits(other, method, x, colours[:, 0], cells[:, 0]) < 0.5


def test_the_fused_kernel_stays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcli.model import encoder

    fused = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        encoder.F, "scaled_dot_product_attention", lambda *given, **more: fused.append(1) or real(*given, **more)
    )
    gradient_rollout(build(WIDE), images(WIDE, 1), torch.tensor([0]))
    assert len(fused) == WIDE.depth


def test_cells_lie_where_the_patches_do() -> None:
    """Pixels that no patch covers belong to no cell."""
    model = build(replace(WIDE, img_size=(14, 23)))
    maps = torch.arange(1.0, 16).view(1, 3, 5)
    large = enlarged(model, maps, (14, 23))
    assert large.shape == (1, 14, 23)
    assert (large[0, 12:] == 0).all()
    assert (large[0, :, 20:] == 0).all()
    assert (large[0, 4:8, 8:12] == maps[0, 1, 2]).all()
    torch.testing.assert_close(summed(model, large, (3, 5)), maps * 16)


def test_a_hybrids_cells_cover_its_image() -> None:
    from vitcli.model.architectures import architecture

    config = architecture("vit_tiny_r_s16_p8_224")
    model = VisionTransformer(replace(config, img_size=(56, 100), embed_dim=12, depth=1, num_heads=1, num_classes=3))
    h, w = model.config.grid
    assert enlarged(model, torch.ones(1, h, w), (56, 100)).shape == (1, 56, 100)


# --- from Python ---


def test_explains_the_first_class_or_the_one_that_is_named(here: Path) -> None:
    (first, *_), (named, *_) = explain("images/0.png", "a"), explain(["images/0.png"], "a", label="dog")
    assert first.label in LABELS
    assert named.index == LABELS.index("dog")
    assert named.map is not None
    assert named.map.shape == TINY.grid
    (by_number,) = explain(Path("images/0.png"), "a", label=1)
    assert by_number.map is not None
    np.testing.assert_array_equal(by_number.map, named.map)
    assert named.picture().size == (2 * 192 + 3, 192)


def test_an_image_that_cannot_be_read_is_said(here: Path) -> None:
    first, last = explain(["nowhere.png", "images/1.png"], "a")
    assert first.error == "nowhere.png does not exist"
    assert last.error is None
    with pytest.raises(ValueError, match="does not exist"):
        first.picture()


def test_classes_are_named_as_people_write_them(here: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", labels=("tabby, tabby cat", "Dog", "dog house, DOG"))
    explainer = Explainer(str(tmp_path / "model"))
    assert [explainer.index(name) for name in ("tabby", "Dog", "tabby, Tabby Cat", "dog house", 2)] == [0, 1, 0, 2, 2]
    with pytest.raises(UsageError, match=r"no class called 'tabbi, tabby cot'. Did you mean 'tabby, tabby cat'\?"):
        explainer.index("tabbi, tabby cot")
    with pytest.raises(UsageError, match="has classes 0 to 2, and no 3"):
        explainer.index(3)


def test_what_cannot_be_explained_is_refused(here: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "features", replace(TINY, num_classes=0))
    with pytest.raises(UsageError, match="it has no classes"):
        Explainer(str(tmp_path / "features"))
    with pytest.raises(UsageError, match=r"no method 'gradcan'.* Did you mean 'gradcam'\?"):
        Explainer("a", method="gradcan")
    with pytest.raises(UsageError, match="reads attention weights, which a Convolutions has not; take gradcam"):
        method_for(marked.cnn(), "legrad")
    assert default_method(marked.cnn()) == "gradcam"


def test_a_timm_model_without_a_feature_map_is_refused() -> None:
    from timm.models.mlp_mixer import MlpMixer

    mixer = MlpMixer(num_classes=3, img_size=32, embed_dim=8, num_blocks=1)
    with pytest.raises(UsageError, match="MlpMixer of timm ends without a feature map"):
        gradcam(mixer.eval(), torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_a_map_that_is_not_finite_is_said(here: Path) -> None:
    explainer = Explainer("a")
    explainer._map = lambda model, x, classes: torch.full((1, 4, 4), torch.nan)
    assert explainer.explain(picture_of(ImageSource("x", Path("images/0.png")))).error == "x: the map is not finite"


def test_one_image_of_gray_is_explained(tmp_path: Path) -> None:
    gray = ViTConfig(**{**vars(TINY), "in_chans": 1})
    from tests.helpers.checkpoints import PREPROCESS

    write_tiny(tmp_path / "gray", gray, preprocess=replace(PREPROCESS, mean=(0.5,), std=(0.5,)))
    Image.new("L", (64, 64), 99).save(tmp_path / "x.png")
    (found,) = explain(tmp_path / "x.png", tmp_path / "gray")
    assert found.error is None
    assert found.picture().mode == "RGB"
