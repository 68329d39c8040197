"""Attention distance: how far, in pixels, each head looks (paper, figure 7 right and appendix D.7).

For a query patch: the Euclidean distance between patch positions, weighted by the attention weights; averaged over the
query patches, then over images. Two definitions, for the row and column of the prefix tokens (class token, registers)
are left out, and then weights no longer sum to 1:

    paper         they are taken as they are, as in the authors' code (google-research/vision_transformer, issue 162);
                  attention on the class token shortens the distance
    renormalised  each query's weights on patches are divided by their sum: how far the attention on patches goes

Legend: n heads, N tokens, h w patch grid, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcli.inspection.measurement import PerHead
from vitcli.inspection.observe import Instrument, stacked
from vitcli.model.config import ViTConfig


@dataclass(frozen=True)
class Distances:
    """In pixels of the model's input."""

    paper: PerHead
    renormalised: PerHead
    uniform: float  # pixels, of a head that looks everywhere alike: what "global" means at this size


class AttentionDistance(Instrument):
    watches_weights = True

    def __init__(self, config: ViTConfig) -> None:
        self.prefix, self.between = config.num_prefix_tokens, patch_distances(config)
        tokens = config.num_tokens
        # For each query two columns: distance to each key, and 1 for each key that is a patch.
        self._columns = torch.zeros(tokens, tokens, 2)
        self._columns[self.prefix :, self.prefix :, 0] = self.between
        self._columns[self.prefix :, self.prefix :, 1] = 1
        self._paper: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._renormalised: list[list[Tensor]] = [[] for _ in range(config.depth)]

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        sums = torch.bmm(weights.transpose(0, 1), self._columns.to(weights))[self.prefix :]  # (h·w, n, 2)
        distance, mass = sums.unbind(-1)
        self._paper[layer].append(distance.mean(dim=0))
        share = distance / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        self._renormalised[layer].append(share.mean(dim=0))

    def result(self) -> Distances:
        """What was measured so far, over at least one image."""
        paper, renormalised = (PerHead(stacked(part).double().numpy()) for part in (self._paper, self._renormalised))
        return Distances(paper, renormalised, float(self.between.mean()))


def patch_distances(config: ViTConfig) -> Tensor:
    """Pixels between the positions of every two patches, (h·w, h·w), row by row."""
    (h, w), stride = config.grid, config.stride
    rows, columns = torch.meshgrid(torch.arange(h) * stride[0], torch.arange(w) * stride[1], indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
