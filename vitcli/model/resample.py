"""Weights that know the image's plane, for another grid or patch size; and what a position embedding knows of it.

Position embeddings are interpolated in 2-D by the patches' place in the image (paper, section 3.2). One paper, many
kernels: projects disagree about the interpolation, and each is here under the name of who uses it.

    timm        bicubic, antialiased, half-pixel centres     timm resample_abs_pos_embed (default)
    paper       bilinear, corners aligned                    the authors' code and big_vision: scipy zoom(order=1)
    hf          bicubic, half-pixel centres                  transformers, mmpretrain
    torchvision bicubic, corners aligned                     torchvision interpolate_embeddings
    dinov2      bicubic, scale factor (n + 0.1) / n_source   facebookresearch/dino and dinov2

Patch embeddings are resized by FlexiViT's pseudo-inverse (Beyer et al. 2023, arXiv 2212.08013): bilinear resizing of
the filters alone would change every token's size. It finds the filters whose responses on resized patches are those of
the old filters on the old ones: exactly, when the patch grows.

Knows tensors only. Legend: N tokens, h w patch grid, D width, C channels, p q patch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcli.model.config import Size

Kernel = Literal["timm", "paper", "hf", "torchvision", "dinov2"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def resample_pos_embed(
    pos: Tensor, source_grid: Size, target_grid: Size, num_prefix: int, kernel: Kernel = "timm"
) -> Tensor:
    """Position embedding (1, prefix + h·w, D) of `source_grid` (h, w) → (1, prefix + h'·w', D) of `target_grid`.

    The first `num_prefix` rows (class token, registers; 0 with `no_embed_class`) are kept. Computed in float32, given
    back in the type of `pos`. Equal grids give `pos` itself, bit for bit; an equal number of patches in another shape
    (2×8 → 4×4) is resampled, where timm 1.0.31 keeps the old order silently.

    Raises ValueError when `pos` has not the rows of `source_grid`, or a grid is empty.
    """
    rows = num_prefix + source_grid[0] * source_grid[1]
    if pos.ndim != 3 or pos.shape[:2] != (1, rows):
        raise ValueError(f"position embedding {tuple(pos.shape)} is not (1, {rows}, D), the grid {source_grid}")
    if min(*source_grid, *target_grid) < 1:
        raise ValueError(f"empty grid: {source_grid} → {target_grid}")
    if source_grid == target_grid:
        return pos
    prefix, patches = pos[:, :num_prefix], pos[:, num_prefix:]
    grid = patches.reshape(1, *source_grid, -1).permute(0, 3, 1, 2).float()  # (1, D, h, w)
    grid = _interpolate(grid, target_grid, kernel)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos.dtype)  # (1, h'·w', D)
    return torch.cat([prefix, patches], dim=1)


def _interpolate(grid: Tensor, target: Size, kernel: Kernel) -> Tensor:
    """(1, D, h, w) → (1, D, h', w')."""
    match kernel:
        case "timm" if target[0] > target[1] == 1:
            # torch 2.14 antialiases to a single column wrongly (one value repeated), and to a single row rightly.
            return _interpolate(grid.transpose(2, 3), (1, target[0]), kernel).transpose(2, 3)
        case "timm":
            return F.interpolate(grid, target, mode="bicubic", antialias=True)
        case "paper":
            return F.interpolate(grid, target, mode="bilinear", align_corners=True)
        case "hf":
            return F.interpolate(grid, target, mode="bicubic", align_corners=False)
        case "torchvision":
            return F.interpolate(grid, target, mode="bicubic", align_corners=True)
        case "dinov2":
            # The 0.1 keeps floor(n · scale) at the target size; the shifted sampling that results is in their features.
            scale = [(new + 0.1) / old for new, old in zip(target, grid.shape[-2:], strict=True)]
            return F.interpolate(grid, scale_factor=scale, mode="bicubic")


def resample_patch_embed(weight: Tensor, target: Size) -> Tensor:
    """Filters (D, C, p, q) → (D, C, p', q') = `target`, by the pseudo-inverse of the bicubic, antialiased resize.

    Computed in float64, given back in the type of `weight`. The same patch size gives `weight` itself. Raises
    ValueError for an empty target.
    """
    source = (weight.shape[-2], weight.shape[-1])
    if min(target) < 1:
        raise ValueError(f"empty patch: {target}")
    if source == target:
        return weight
    resize = resize_matrix(source, target)  # (p'q', pq): new patch = resize · old patch
    back = torch.linalg.pinv(resize.T)  # (p'q', pq)
    filters = weight.flatten(2).double()  # (D, C, pq)
    resized: Tensor = filters @ back.T
    return resized.view(*weight.shape[:2], *target).to(weight.dtype)


def resize_matrix(source: Size, target: Size) -> Tensor:
    """The linear map (p'q', pq), float64, that resizes a patch of `source` pixels to `target`."""
    pixels = source[0] * source[1]
    basis = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *source)
    return F.interpolate(basis, target, mode="bicubic", antialias=True).view(pixels, -1).T


@dataclass(frozen=True)
class Positions:
    """A position embedding in numbers. Similarities are mean cosines, −1 to 1; None on a grid of one row or column."""

    grid: Size
    neighbours: float | None  # between patches side by side or one above the other
    far: float | None  # between patches half the grid apart in one direction; needs three rows or columns


def cosines(patches: Tensor) -> Tensor:
    """Cosine similarity of every two position embeddings (h·w, D), (h·w, h·w) in float64."""
    unit = F.normalize(patches.double(), dim=1)
    return unit @ unit.T


def measure_positions(patches: Tensor, grid: Size) -> Positions:
    """Similarities of the position embeddings `patches` (h·w, D) on `grid`."""
    tiles = F.normalize(patches.double(), dim=1).view(*grid, -1)  # (h, w, D)

    def apart(rows: int, columns: int) -> list[float]:
        h, w = grid
        if rows >= h or columns >= w:
            return []
        pairs = (tiles[rows:, columns:] * tiles[: h - rows, : w - columns]).sum(dim=-1)
        return pairs.flatten().tolist()

    near = apart(0, 1) + apart(1, 0)
    far = (apart(0, grid[1] // 2) if grid[1] > 2 else []) + (apart(grid[0] // 2, 0) if grid[0] > 2 else [])
    return Positions(grid, sum(near) / len(near) if near else None, sum(far) / len(far) if far else None)
