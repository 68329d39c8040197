"""The logit lens: what the model's own last norm and head would say after each block (nostalgebraist 2020).

Tells at which layer the answer settles. Nothing is trained: early layers are read with a head made for the last one.

Legend: B batch, N tokens, D width, K classes, L layers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcli.errors import UsageError
from vitcli.inspection.measurement import Array
from vitcli.inspection.observe import Instrument
from vitcli.model.vit import VisionTransformer


@dataclass(frozen=True)
class Lens:
    logits: Array  # (images, L, K)

    @property
    def answers(self) -> npt.NDArray[np.int64]:
        """Class index, (images, L)."""
        return self.logits.argmax(axis=-1)  # type: ignore[no-any-return]

    @property
    def agrees(self) -> Array:
        """Share of the images whose answer after each layer is that of the last, (L,)."""
        return (self.answers == self.answers[:, -1:]).mean(axis=0)  # type: ignore[no-any-return]

    @property
    def confidence(self) -> Array:
        """Mean probability that each layer gives the last layer's answer, (L,)."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        shares = shifted / shifted.sum(axis=-1, keepdims=True)
        last = np.broadcast_to(self.answers[:, -1, None, None], (*self.answers.shape, 1))
        return np.take_along_axis(shares, last, axis=-1)[..., 0].mean(axis=0)  # type: ignore[no-any-return]

    @property
    def settled(self) -> Array:
        """The layer, from 0, from which on an image's answer stays what it is at the end, (images,)."""
        same = self.answers == self.answers[:, -1:]
        return same.shape[1] - np.cumprod(same[:, ::-1], axis=1).sum(axis=1)  # type: ignore[no-any-return]


class LogitLens(Instrument):
    def __init__(self, model: VisionTransformer) -> None:
        """Raises UsageError when the model has no classes."""
        if not model.config.num_classes:
            raise UsageError("the logit lens needs a model with classes; this one ends with features")
        self.model = model
        self._logits: list[list[Tensor]] = [[] for _ in range(model.config.depth)]

    def tokens(self, layer: int, tokens: Tensor) -> None:
        logits: Tensor = self.model.head(self.model.pool(self.model.norm(tokens)))
        self._logits[layer].append(logits.float().cpu())

    def result(self) -> Lens:
        """What was seen so far, of at least one image."""
        return Lens(torch.stack([torch.cat(layer) for layer in self._logits], dim=1).double().numpy())
