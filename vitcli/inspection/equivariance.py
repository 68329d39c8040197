"""Translation: does the representation move with the image? (the paper's "inductive bias", section 3.1)

The input is shifted by k pixels, round the edge; then a layer that is equivariant gives its features of the unshifted
image, shifted as far. Measured is the cosine of the two at each cell, mean over cells away from the border. Where k is
no multiple of the layer's stride, features are shifted by linear interpolation, which no strided layer can match
exactly.

By construction a convolution scores 1 at strides that divide k, and a ViT without position embeddings scores 1 for
whole patches. Cosines are high anyway where all cells are alike, so `still` says what standing still would score.

Legend: B batch, F channels of a map, h w cells.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.inspection.feature_maps import feature_maps, strides
from vitcli.inspection.measurement import Array


@dataclass(frozen=True)
class Equivariance:
    """Cosines (layers, shifts), means over images, cells, and the directions right and down; NaN: no cell is inside."""

    layers: tuple[str, ...]
    shifts: tuple[int, ...]  # pixels
    moved: Array  # features of the shifted image, with the shifted features
    still: Array  # features of the shifted image, with the features where they were


@torch.inference_mode()
def equivariance(model: nn.Module, batches: Iterable[Tensor], shifts: Sequence[int]) -> Equivariance:
    """Over `batches` of images (B, C, H, W); at least one image."""
    totals: dict[str, Array] = {}
    images = 0
    for x in batches:
        before = feature_maps(model, x)
        between = strides(model, x, before)
        for i, pixels in enumerate(shifts):
            for axis in (-1, -2):
                after = feature_maps(model, torch.roll(x, pixels, dims=axis))
                for name, found in after.items():
                    total = totals.setdefault(name, np.zeros((len(shifts), 2)))
                    total[i] += _scores(before[name], found, pixels / between[name][axis], axis) * len(x) / 2
        images += len(x)
    both = np.stack(list(totals.values())) / images  # (layers, shifts, 2)
    return Equivariance(tuple(totals), tuple(shifts), both[..., 0], both[..., 1])


def _scores(before: Tensor, after: Tensor, cells: float, axis: int) -> Array:
    """Cosines of `after` with `before` shifted by `cells`, and with `before` itself; NaN when no cell is inside."""
    inside = [slice(size // 4, size - size // 4) for size in after.shape[-2:]]
    inside[axis] = slice(after.shape[axis] // 4 + math.ceil(cells), after.shape[axis] - after.shape[axis] // 4)
    after = after[..., inside[0], inside[1]]
    if not after.shape[-1] * after.shape[-2]:
        return np.array([np.nan, np.nan])
    expected = (shifted(before, cells, axis), before)
    return np.array([_cosine(after, one[..., inside[0], inside[1]]) for one in expected])


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean over cells of maps (B, F, h, w). Two cells without any feature, as a ReLU leaves them, are alike."""
    a, b = a.double(), b.double()
    both_empty = (a == 0).all(dim=1) & (b == 0).all(dim=1)
    return F.cosine_similarity(a, b, dim=1).masked_fill(both_empty, 1.0).mean().item()


def shifted(maps: Tensor, cells: float, axis: int) -> Tensor:
    """`maps` moved by `cells` along `axis`, round the edge; between cells by linear interpolation."""
    whole, part = int(cells // 1), cells % 1
    moved = torch.roll(maps, whole, dims=axis)
    return moved if part == 0 else (1 - part) * moved + part * torch.roll(maps, whole + 1, dims=axis)


def usual_shifts(patch: int, size: int) -> list[int]:
    """One pixel, half a patch, one, two and three patches, as far as they are less than half of the image's `size`."""
    return sorted({k for k in (1, patch // 2, patch, 2 * patch, 3 * patch) if 0 < k < size / 2})
