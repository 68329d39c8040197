"""The cells that a map of an image is made of: a ViT's patches, or the cells of a CNN's last feature map.

Legend: B batch, C channels, H W pixels, h w cells, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.errors import UsageError
from vitcli.model.config import Size
from vitcli.model.vit import VisionTransformer


def grid_of(model: nn.Module, x: Tensor) -> Size:
    """Rows and columns of cells of a map of images `x` (B, C, H, W): patches, or the cells of the last feature map."""
    if isinstance(model, VisionTransformer):
        return model.config.grid
    with torch.no_grad():
        features, axis = last_map(model, x[:1])
    return (features.shape[2], features.shape[3]) if axis == 1 else (features.shape[1], features.shape[2])


def enlarged(model: nn.Module, maps: Tensor, size: Size) -> Tensor:
    """Maps (B, h, w) of `model` → (B, H, W), each cell where its pixels are; 0 at an edge that no patch covers."""
    if not isinstance(model, VisionTransformer):
        return F.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]
    (down, right), (height, width) = model.config.stride, size
    large = maps.repeat_interleave(down, dim=1).repeat_interleave(right, dim=2)[:, :height, :width]
    return F.pad(large, (0, width - large.shape[2], 0, height - large.shape[1]))


def summed(model: nn.Module, pixels: Tensor, grid: Size) -> Tensor:
    """A number for each pixel (B, H, W) → the sum over each cell (B, h, w) of the `grid` of `model`."""
    h, w = grid
    numbers = torch.arange(1.0, h * w + 1, device=pixels.device).view(1, h, w)
    cell = (
        enlarged(model, numbers, (pixels.shape[-2], pixels.shape[-1])).long().flatten()
    )  # of each pixel; 0 at an edge
    sums = pixels.new_zeros(len(pixels), h * w + 1).index_add_(1, cell, pixels.flatten(1))
    return sums[:, 1:].view(-1, h, w)


def last_map(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Images (B, C, H, W) → what the head of a model of timm's reads, (B, F, h, w) or (B, h, w, F), and the axis of F.

    Raises UsageError where that lies on no grid.
    """
    features = model.forward_features(x) if hasattr(model, "forward_head") else None  # type: ignore[operator]
    width = getattr(model, "num_features", None)
    if isinstance(features, Tensor) and features.ndim == 4 and width in (features.shape[1], features.shape[3]):
        return features, 1 if features.shape[1] == width else 3
    raise UsageError(
        f"{type(model).__name__} of timm ends without a feature map, and what spoke cannot be told from it"
    )
