"""Runs a ViT block by block while instruments watch. One pass serves them all.

Attention is computed as the model computes it, from the block's own input, without hooks or a global switch; each
image's weights exist only while they are shown, so memory stays that of a forward pass.

Legend: B batch, C channels, H W pixels, N tokens (prefix, then patches), D width, L layers, n heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcli.inspection.exhibit import Array
from vitcli.model.encoder import Attention, Watch
from vitcli.model.vit import VisionTransformer


class Instrument:
    """Something that watches. A subclass takes what it needs; layers count from 0, images over all batches."""

    watches_weights = False

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        """Attention weights (n, N, N) of one image; only during the call."""

    def tokens(self, layer: int, tokens: Tensor) -> None:
        """Tokens (B, N, D) after the block `layer`."""

    def result(self) -> Any:
        """What was measured so far, over at least one image."""
        raise NotImplementedError


@torch.inference_mode()
def observe(model: VisionTransformer, batches: Iterable[Tensor], instruments: Sequence[Instrument]) -> int:
    """Show `batches` of images (B, C, H, W) to `model` and what happens inside to `instruments`. Returns the images."""
    watching = [instrument for instrument in instruments if instrument.watches_weights]
    images = 0
    for pixels in batches:
        x = model.embed(pixels)
        for layer, block in enumerate(model.blocks):
            x = block(x, attend=partial(_watched, partial(_show, watching, layer, images)) if watching else None)
            for instrument in instruments:
                instrument.tokens(layer, x)
        images += len(pixels)
    return images


def _watched(watch: Watch, attention: Attention, x: Tensor, _: int | None) -> Tensor:
    return attention.watched(x, watch)


def _show(watching: Sequence[Instrument], layer: int, before: int, image: int, weights: Tensor) -> None:
    for instrument in watching:
        instrument.weights(layer, before + image, weights)


def stacked(layers: Sequence[Sequence[Tensor]]) -> Tensor:
    """One tensor for each image of each layer → (images, L, …), on the CPU."""
    return torch.stack([torch.stack(list(images)) for images in layers], dim=1).cpu()


@dataclass(frozen=True, eq=False)
class PerHead:
    """A number for each head of each layer, measured on many images: `values` (images, L, n)."""

    values: Array

    @property
    def mean(self) -> Array:
        """(L, n), over the images."""
        return self.values.mean(axis=0)  # type: ignore[no-any-return]

    @property
    def error(self) -> Array:
        """Standard error of the mean over the images, (L, n); NaN for a single image."""
        images = len(self.values)
        if images < 2:
            return np.full(self.values.shape[1:], np.nan)
        return self.values.std(axis=0, ddof=1) / images**0.5  # type: ignore[no-any-return]
