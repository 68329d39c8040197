"""What kind of head each head is: sharp or even, on patches or on prefix tokens, alone or one of two alike.

Means over query patches. Legend: n heads, N tokens, L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcli.inspection.measurement import Array, PerHead
from vitcli.inspection.observe import Instrument, stacked
from vitcli.model.config import ViTConfig

ALIKE = 0.95  # cosine of two heads' attention maps from which on they are called near-duplicates


@dataclass(frozen=True)
class Heads:
    """`alike`: cosine of each pair of heads of a layer, (L, n, n), over all their weights on the same images."""

    entropy: PerHead  # nats; from 0 (one token) to `most_entropy` (all tokens alike)
    on_prefix: PerHead  # share of attention on class token and registers
    alike: Array
    most_entropy: float

    def duplicates(self) -> list[tuple[int, int, int, float]]:
        """(layer, head, head, cosine) of near-duplicate heads, from 0."""
        layers, heads, _ = self.alike.shape
        return [
            (layer, a, b, float(self.alike[layer, a, b]))
            for layer in range(layers)
            for a in range(heads)
            for b in range(a + 1, heads)
            if self.alike[layer, a, b] >= ALIKE
        ]


class HeadKinds(Instrument):
    watches_weights = True

    def __init__(self, config: ViTConfig) -> None:
        self.prefix, self.most = config.num_prefix_tokens, float(torch.tensor(config.num_tokens).log())
        self._entropy: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._on_prefix: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._products = torch.zeros(config.depth, config.num_heads, config.num_heads, dtype=torch.float64)

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        queries = weights[:, self.prefix :]  # (n, h·w, N)
        self._entropy[layer].append(torch.special.entr(queries).sum(dim=-1).mean(dim=-1))
        self._on_prefix[layer].append(queries[..., : self.prefix].sum(dim=-1).mean(dim=-1))
        flat = weights.flatten(1)
        self._products[layer] += (flat @ flat.T).double().cpu()

    def result(self) -> Heads:
        """What was measured so far, over at least one image."""
        length = self._products.diagonal(dim1=1, dim2=2).sqrt()
        alike = self._products / (length[:, :, None] * length[:, None])
        entropy, on_prefix = (PerHead(stacked(part).double().numpy()) for part in (self._entropy, self._on_prefix))
        return Heads(entropy, on_prefix, alike.numpy(), self.most)
