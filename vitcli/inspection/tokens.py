"""How long the tokens' vectors are after each block, and where artefacts sit.

Large ViTs turn a few patches of plain background into registers of their own: their norm is many times that of the
others and they say little about their place (Darcet et al. 2024, arXiv 2309.16588). Those authors cut at a fixed norm
for one model; here an artefact is a patch whose norm is more than `FACTOR` times the median of its image and layer.

Legend: B batch, N tokens, D width, h w patch grid, L layers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitcli.inspection.measurement import Array
from vitcli.inspection.observe import Instrument
from vitcli.model.config import ViTConfig

FACTOR = 3.0


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of tokens after each block."""

    patches: Array  # (images, L, h, w)
    prefix: Array  # (images, L, class token and registers)

    @property
    def artefacts(self) -> Array:
        """Which patches are artefacts, as 0 and 1, (images, L, h, w)."""
        median = np.median(self.patches, axis=(2, 3), keepdims=True)
        return (self.patches > FACTOR * median).astype(np.float64)

    @property
    def places(self) -> Array:
        """How often each patch is an artefact, (L, h, w)."""
        return self.artefacts.mean(axis=0)  # type: ignore[no-any-return]


class TokenNorms(Instrument):
    def __init__(self, config: ViTConfig) -> None:
        self.config = config
        self._norms: list[list[Tensor]] = [[] for _ in range(config.depth)]

    def tokens(self, layer: int, tokens: Tensor) -> None:
        self._norms[layer].append(tokens.norm(dim=-1).cpu())

    def result(self) -> Norms:
        """What was measured so far, over at least one image."""
        norms = torch.stack([torch.cat(layer) for layer in self._norms], dim=1).double()  # (images, L, N)
        prefix = self.config.num_prefix_tokens
        return Norms(
            norms[..., prefix:].reshape(*norms.shape[:2], *self.config.grid).numpy(), norms[..., :prefix].numpy()
        )
