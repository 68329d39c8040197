"""Where the model looks in an image: attention of the class token, and rollout (paper, figure 6 and appendix D.8).

Rollout: in each layer heads are averaged, the identity is added for the residual connection and rows are normalised;
the layers are multiplied. The class token's row is the map. A model without a class token has the mean row of its
patches instead, for that is what its head reads.

Legend: n heads, N tokens, h w patch grid, L layers.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcli.inspection.measurement import Array
from vitcli.inspection.observe import Instrument, stacked
from vitcli.model.config import ViTConfig

MASS = 0.6  # of a head's attention that its mask holds, as in DINO's visualisation (arXiv 2104.14294)


@dataclass(frozen=True)
class Maps:
    """For each image. Rollout rows and attention rows sum to 1 over all tokens, so maps of patches sum to less."""

    rollout: Array  # (images, h, w)
    attention: Array  # (images, layers, n, h, w)
    layers: tuple[int, ...]  # those of `attention`, from 0

    def masks(self, mass: float = MASS) -> Array:
        """The fewest patches that hold `mass` of a head's attention on patches, as 0 and 1, shaped like `attention`."""
        return fewest(self.attention, mass)


def fewest(maps: Array, mass: float = MASS) -> Array:
    """The fewest patches that hold `mass` of each of `maps` (…, h, w), as 0 and 1."""
    flat = torch.from_numpy(maps).flatten(-2)
    values, order = (flat / flat.sum(dim=-1, keepdim=True)).sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    return torch.zeros_like(flat).scatter(-1, order, (before < mass).to(flat.dtype)).view(maps.shape).numpy()


class AttentionMaps(Instrument):
    """Of the first `most` images only: of each it keeps every token's attention to every other."""

    watches_weights = True

    def __init__(self, config: ViTConfig, layers: Collection[int], most: int) -> None:
        self.config, self.layers, self.most = config, tuple(sorted(layers)), most
        self._joint: list[Tensor] = []  # of each image: the product up to its present layer, (N, N)
        self._attention: list[list[Tensor]] = [[] for _ in self.layers]

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        if image >= self.most:
            return
        step = weights.mean(dim=0) + torch.eye(weights.shape[-1], device=weights.device)
        step = step / step.sum(dim=-1, keepdim=True)
        if layer == 0:
            self._joint.append(step)
        else:
            self._joint[image] = step @ self._joint[image]
        if layer in self.layers:
            self._attention[self.layers.index(layer)].append(self._row(weights))

    def result(self) -> Maps:
        """What was seen so far, of at least one image."""
        rollout = torch.stack([self._row(joint) for joint in self._joint]).cpu()
        attention = stacked(self._attention) if self.layers else torch.zeros(len(rollout), 0, 0, *self.config.grid)
        return Maps(rollout.double().numpy(), attention.double().numpy(), self.layers)

    def _row(self, weights: Tensor) -> Tensor:
        """What the head reads of `weights` (…, N, N), on the grid: (…, h, w)."""
        prefix = self.config.num_prefix_tokens
        row = weights[..., 0, prefix:] if self.config.class_token else weights[..., prefix:, prefix:].mean(dim=-2)
        return row.reshape(*row.shape[:-1], *self.config.grid).clone()
