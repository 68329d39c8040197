"""Filters: the principal components of the patch embedding, as pictures (paper, figure 7 left).

The D filters of the patch projection E are points in the space of patches (C·P·P); their principal components are the
directions in which they differ most. In a hybrid the CNN's first filters stand in for E, which sees no pixels there.

Legend: C channels, P Q height and width of a patch, D width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vitcli.inspection.measurement import Array
from vitcli.model.vit import VisionTransformer

COMPONENTS = 28  # as many as the paper shows


@dataclass(frozen=True)
class Filters:
    components: Array  # (≤ 28, C, P, Q), unit length; the entry that is largest in size is positive
    explained: Array  # share of the variance that each of *all* components explains, falling
    of_cnn: bool  # the CNN's first filters instead of the patch embedding

    def pictures(self) -> Array:
        """RGB in 0 to 1, (≤ 28, P, Q, 3): 0 is middle gray, each component scaled to its largest entry."""
        size = abs(self.components).max(axis=(1, 2, 3), keepdims=True)
        shades = (0.5 + self.components / (2 * size.clip(1e-12))).transpose(0, 2, 3, 1)
        return shades if shades.shape[-1] == 3 else np.repeat(shades.mean(axis=-1, keepdims=True), 3, axis=-1)


def filters(model: VisionTransformer) -> Filters:
    """The components of `model`'s filters, strongest first."""
    stem = next((module for module in model.patch_embed.backbone.modules() if isinstance(module, nn.Conv2d)), None)
    weight = (stem or model.patch_embed.proj).weight.detach().double()  # (D, C, P, Q)
    points = weight.flatten(1)
    _, lengths, directions = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    components = (directions * signs)[:COMPONENTS].unflatten(1, weight.shape[1:])
    variance = lengths**2
    return Filters(components.numpy(), (variance / variance.sum().clamp(min=1e-300)).numpy(), stem is not None)
