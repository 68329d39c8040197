"""Position-embedding resampling against those who use each kernel (timm, the authors' scipy, transformers, torchvision,
DINOv2's formula), and properties that any kernel must have.
"""

import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vitcli.model.resample import KERNELS, Kernel, resample_pos_embed

Grid = tuple[int, int]
CASES: list[tuple[Grid, Grid]] = [
    ((14, 14), (24, 24)),
    ((24, 24), (14, 14)),
    ((4, 4), (7, 3)),
    ((3, 7), (7, 7)),
    ((1, 1), (2, 3)),
    ((5, 2), (1, 1)),
    ((2, 8), (4, 4)),
    ((14, 14), (7, 28)),
]
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def position_embedding(grid: Grid, prefix: int, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, prefix + grid[0] * grid[1], width, generator=generator)


def as_map(pos: Tensor, grid: Grid, prefix: int) -> Tensor:
    """(1, N, D) → (1, D, h, w)."""
    return pos[:, prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2)


# --- against others ---


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("source", "target"), CASES)
def test_timm(source: Grid, target: Grid, prefix: int) -> None:
    """Bit for bit, chained too; where the number of patches is equal timm keeps the old order, and we do not."""
    pos = position_embedding(source, prefix)
    ours = resample_pos_embed(pos, source, target, prefix)
    theirs = resample_abs_pos_embed(pos, list(target), list(source), prefix)
    assert torch.equal(ours, theirs)
    back = resample_abs_pos_embed(theirs, list(source), list(target), prefix)
    assert torch.equal(resample_pos_embed(ours, target, source, prefix), back)


def test_what_timm_keeps_by_count_is_resampled() -> None:
    """timm without `old_size`, as its checkpoint loading calls it, thinks that 196 patches are 14 × 14 already."""
    pos = position_embedding((7, 28), 1)
    assert resample_abs_pos_embed(pos, [14, 14], num_prefix_tokens=1) is pos
    assert not torch.equal(resample_pos_embed(pos, (7, 28), (14, 14), 1), pos)


def test_a_single_column() -> None:
    """torch, and so timm, repeats one value here. Right: columns 4 → 1 and rows 4 → 3, one after the other, turned."""
    pos = position_embedding((4, 4), 0)
    turned = as_map(pos, (4, 4), 0).transpose(2, 3)
    right = torch.nn.functional.interpolate(turned, (1, 4), mode="bicubic", antialias=True)
    right = torch.nn.functional.interpolate(right, (1, 3), mode="bicubic", antialias=True).transpose(2, 3)
    ours = as_map(resample_pos_embed(pos, (4, 4), (3, 1), 0), (3, 1), 0)
    torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-5)
    assert ours.std(dim=2).min() > 0.01


@pytest.mark.parametrize(("source", "target"), CASES)
def test_the_authors_zoom(source: Grid, target: Grid) -> None:
    """scipy.ndimage.zoom(order=1), which vision_transformer and big_vision call.

    scipy's coordinates are float64, torch's float32: 24 cells × 2⁻²⁴ off, times a slope of a few units per cell.
    """
    pos = position_embedding(source, 1)
    grid = pos[0, 1:].reshape(*source, -1).double().numpy()
    zoomed = scipy.ndimage.zoom(grid, (target[0] / source[0], target[1] / source[1], 1), order=1)
    ours = resample_pos_embed(pos, source, target, 1, "paper")
    torch.testing.assert_close(ours[0, 1:].reshape(*target, -1).double(), torch.from_numpy(zoomed), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("source", "target"), [case for case in CASES if case[0][0] == case[0][1]])
def test_transformers(source: Grid, target: Grid) -> None:
    """ViTEmbeddings.interpolate_pos_encoding, which knows square sources only."""
    from transformers import ViTConfig as TheirConfig
    from transformers.models.vit.modeling_vit import ViTEmbeddings

    config = TheirConfig(image_size=source[0] * 4, patch_size=4, hidden_size=8)
    embeddings = ViTEmbeddings(config)
    pos = position_embedding(source, 1, width=8)
    embeddings.position_embeddings.data = pos
    size = target[0] * 4, target[1] * 4
    theirs = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + target[0] * target[1], 8), *size)
    torch.testing.assert_close(resample_pos_embed(pos, source, target, 1, "hf"), theirs.detach(), atol=0, rtol=0)


def test_torchvision() -> None:
    """interpolate_embeddings, square to square."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    pos = position_embedding((14, 14), 1)
    state = interpolate_embeddings(384, 16, {"encoder.pos_embedding": pos.clone()})  # type: ignore[arg-type]
    ours = resample_pos_embed(pos, (14, 14), (24, 24), 1, "torchvision")
    torch.testing.assert_close(ours, state["encoder.pos_embedding"], atol=0, rtol=0)


@pytest.mark.parametrize(("source", "target"), CASES)
def test_dinov2(source: Grid, target: Grid) -> None:
    """dinov2/models/vision_transformer.py, interpolate_pos_encoding, with interpolate_offset 0.1."""
    pos = position_embedding(source, 1)
    factor = tuple(float(new + 0.1) / old for new, old in zip(target, source, strict=True))
    theirs = torch.nn.functional.interpolate(as_map(pos, source, 1), mode="bicubic", scale_factor=factor)
    assert theirs.shape[-2:] == target
    ours = resample_pos_embed(pos, source, target, 1, "dinov2")
    assert torch.equal(as_map(ours, target, 1), theirs)


# --- properties ---


@settings(max_examples=60, deadline=None)
@given(grids, st.integers(0, 3), st.sampled_from(KERNELS))
def test_the_same_grid_is_the_same_tensor(grid: Grid, prefix: int, kernel: Kernel) -> None:
    pos = position_embedding(grid, prefix)
    assert resample_pos_embed(pos, grid, grid, prefix, kernel) is pos


@settings(max_examples=100, deadline=None)
@given(grids, grids, st.integers(0, 3), st.sampled_from(KERNELS))
def test_shape_prefix_and_constants_survive(source: Grid, target: Grid, prefix: int, kernel: Kernel) -> None:
    """Every kernel's weights sum to one, so a constant map stays constant, but for rounding (1e-6)."""
    pos = position_embedding(source, prefix)
    pos[:, prefix:] = 3.0
    new = resample_pos_embed(pos, source, target, prefix, kernel)
    assert new.shape == (1, prefix + target[0] * target[1], 5)
    assert torch.equal(new[:, :prefix], pos[:, :prefix])
    torch.testing.assert_close(new[:, prefix:], torch.full_like(new[:, prefix:], 3.0), atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(grids, grids, st.sampled_from(KERNELS))
def test_rows_and_columns_are_treated_alike(source: Grid, target: Grid, kernel: Kernel) -> None:
    """Transposing before or after is the same; a mix-up of height and width breaks this where a grid is not square."""
    pos = position_embedding(source, 0)
    turned = as_map(pos, source, 0).transpose(2, 3).flatten(2).transpose(1, 2)
    one = as_map(resample_pos_embed(pos, source, target, 0, kernel), target, 0)
    two = as_map(resample_pos_embed(turned, source[::-1], target[::-1], 0, kernel), target[::-1], 0)
    torch.testing.assert_close(one, two.transpose(2, 3), atol=1e-5, rtol=1e-5)  # another order of additions


@settings(max_examples=60, deadline=None)
@given(grids, grids, st.sampled_from(KERNELS))
def test_it_is_linear(source: Grid, target: Grid, kernel: Kernel) -> None:
    one, two = position_embedding(source, 1, seed=1), position_embedding(source, 1, seed=2)
    both = resample_pos_embed(one + 2 * two, source, target, 1, kernel)
    apart = resample_pos_embed(one, source, target, 1, kernel) + 2 * resample_pos_embed(two, source, target, 1, kernel)
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=1e-5)


def test_up_and_down_again_comes_back() -> None:
    """14 → 24 → 14 of a smooth map: bicubic keeps it to 2 % of its range, bilinear to 3 %."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 14), torch.linspace(0, 3, 14), indexing="ij")
    smooth = torch.sin(rows) + torch.cos(columns)
    pos = smooth.reshape(1, -1, 1)
    for kernel, most in (("timm", 0.02), ("paper", 0.03), ("hf", 0.02), ("torchvision", 0.02), ("dinov2", 0.1)):
        up = resample_pos_embed(pos, (14, 14), (24, 24), 0, kernel)  # type: ignore[arg-type]
        back = resample_pos_embed(up, (24, 24), (14, 14), 0, kernel)  # type: ignore[arg-type]
        assert (back - pos).abs().max() < most * (smooth.max() - smooth.min()), kernel


def test_half_precision_is_computed_in_float32() -> None:
    pos = position_embedding((4, 4), 1)
    half = resample_pos_embed(pos.half(), (4, 4), (7, 7), 1)
    assert half.dtype == torch.float16
    assert torch.equal(half, resample_pos_embed(pos.half().float(), (4, 4), (7, 7), 1).half())


@pytest.mark.parametrize(
    ("shape", "source", "target"),
    [((1, 17, 5), (4, 5), (2, 2)), ((2, 17, 5), (4, 4), (2, 2)), ((1, 17, 5), (4, 4), (0, 2))],
)
def test_what_does_not_fit_is_an_error(shape: tuple[int, ...], source: Grid, target: Grid) -> None:
    with pytest.raises(ValueError, match="grid"):
        resample_pos_embed(torch.zeros(shape), source, target, 1)
