"""Whether maps of what spoke for a class tell the truth, by what becomes of the class's probability.

Deletion takes the cells that a map names away, the strongest first, and insertion brings them back in that order
(RISE, arXiv 1806.07421): after a true map the probability falls at once, and rises at once. A cell that is away is the
mean colour. A map that is not of the class, but of whatever is in the picture, is told by how alike the maps of two
classes are.

Legend: B batch, C channels, H W pixels, h w cells, S shares, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.checkpoint.config import Outputs
from vitcli.inspection.exhibit import Array
from vitcli.model.config import Size

SHARES = tuple(i / 10 for i in range(11))  # of the cells


@dataclass(frozen=True, eq=False)
class Curves:
    """The probability of each image's class, (images, S), when a share of the cells is away or back."""

    shares: tuple[float, ...]  # from 0 to 1
    deletion: Array
    insertion: Array

    @property
    def areas(self) -> tuple[Array, Array]:
        """The areas under deletion and insertion of each image, (images,) each: the mean probability on the way."""
        return np.trapezoid(self.deletion, self.shares), np.trapezoid(self.insertion, self.shares)

    @property
    def gain(self) -> Array:
        """How much insertion's area is above deletion's, (images,): 0 on the mean for an order that knows nothing."""
        deletion, insertion = self.areas
        return insertion - deletion


@torch.no_grad()
def curves(
    model: nn.Module, x: Tensor, classes: Tensor, maps: Tensor, grid: Size, *, outputs: Outputs = "classes"
) -> Curves:
    """The curves of images `x` (B, C, H, W) and a class of each (B,), by their `maps`, cut into a `grid` (h, w)."""
    order = ranks(maps, grid)
    deletion, insertion = (
        torch.stack([_probability(model, _without(x, order, away(share)), classes, outputs) for share in SHARES], dim=1)
        for away in (lambda share: (0.0, share), lambda share: (share, 1.0))
    )
    return Curves(SHARES, deletion.double().cpu().numpy(), insertion.double().cpu().numpy())


def joined(parts: Sequence[Curves]) -> Curves:
    """The curves of several batches as one."""
    return Curves(
        SHARES, np.concatenate([part.deletion for part in parts]), np.concatenate([part.insertion for part in parts])
    )


def ranks(maps: Tensor, grid: Size, seed: int = 0) -> Tensor:
    """The place of each cell of a `grid` in the order of `maps` (B, …, …), 0 for the strongest: (B, h, w).

    Of equal cells, which many a map has at 0, the order is drawn.
    """
    if maps.shape[-2:] != grid:
        maps = F.interpolate(maps[:, None], grid, mode="bilinear", antialias=True)[:, 0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(maps), grid[0] * grid[1], generator=generator).argsort(dim=1).to(maps.device)
    shuffled = maps.flatten(1).gather(1, drawn).argsort(dim=1, descending=True, stable=True)
    return drawn.gather(1, shuffled).argsort(dim=1).view(-1, *grid)


def likeness(one: Tensor, other: Tensor) -> Array:
    """Spearman's rank correlation of each two maps (B, h, w), (B,): 1 where both name the same cells in one order.

    NaN where a map is the same everywhere.
    """
    places = (np.array([_places(cells) for cells in maps.flatten(1).double().cpu().numpy()]) for maps in (one, other))
    a, b = (place - place.mean(axis=1, keepdims=True) for place in places)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))  # type: ignore[no-any-return]


def _places(values: Array) -> Array:
    """The place of each of `values` (N,) in their order; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def _without(x: Tensor, order: Tensor, away: tuple[float, float]) -> Tensor:
    """Images (B, C, H, W) whose cells between two shares of the `order` (B, h, w) are the mean colour."""
    count = order[0].numel()
    first, end = (round(share * count) for share in away)
    kept = ((order < first) | (order >= end)).to(x)[:, None]
    return x * F.interpolate(kept, size=x.shape[-2:], mode="nearest-exact")


def _probability(model: nn.Module, x: Tensor, classes: Tensor, outputs: Outputs) -> Tensor:
    logits = model(x).float()
    shares = logits.sigmoid() if outputs == "labels" else logits.softmax(dim=1)
    return shares.gather(1, classes[:, None])[:, 0]  # type: ignore[no-any-return]
