"""Patch embeddings for another patch size: FlexiViT's pseudo-inverse resize (Beyer et al. 2023, arXiv 2212.08013).

Bilinear resizing of the filters alone would change every token's size. PI-resize finds the filters whose responses on
resized patches are those of the old filters on the old ones: exactly, when the patch grows. Knows tensors only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcli.model.config import Size


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
