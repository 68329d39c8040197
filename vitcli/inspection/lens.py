"""The logit lens: what the model's own last norm and head would say after each block (nostalgebraist 2020).

Tells at which layer the answer settles. Nothing is trained: early layers are read with a head made for the last one.

Legend: B batch, N tokens, D width, K classes, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcli.errors import UsageError
from vitcli.inspection.aspect import OfBlocks, Subject
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.inspection.images import Picture
from vitcli.inspection.observe import Instrument
from vitcli.model.vit import VisionTransformer
from vitcli.report.figures import COLOURS, layer_ticks, legend_below, side_by_side, title_part
from vitcli.text import safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Lens:
    """What the head would say after each block; `labels` in the order of the classes, as far as they have names."""

    logits: Array  # (images, L, K)
    images: tuple[str, ...] = ()  # names
    labels: tuple[str, ...] = ()

    @property
    def answers(self) -> npt.NDArray[np.int64]:
        """The class that gets most after each layer, an index (images, L)."""
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
    """Applies the model's own norm and head to the tokens after every block."""

    def __init__(self, model: VisionTransformer, shown: Sequence[Picture] = (), labels: tuple[str, ...] = ()) -> None:
        """Name the images as `shown`, which may grow meanwhile. Raises UsageError when the model has no classes."""
        if not model.config.num_classes:
            raise UsageError("the logit lens needs a model with classes; this one ends with features")
        self.model, self.shown, self.labels = model, shown, labels
        self._logits: list[list[Tensor]] = [[] for _ in range(model.config.depth)]

    def tokens(self, layer: int, tokens: Tensor) -> None:
        logits: Tensor = self.model.classify(self.model.pool(self.model.norm(tokens)))
        self._logits[layer].append(logits.float().cpu())

    def result(self) -> Lens:
        """What the head would have said so far, of at least one image."""
        logits = torch.stack([torch.cat(layer) for layer in self._logits], dim=1).double().numpy()
        return Lens(logits, tuple(picture.name for picture in self.shown), self.labels)


def exhibit(models: Mapping[str, Lens]) -> Exhibit:
    """The logit lens of `models` by their titles."""
    table = ModelTable(models, "layer", "same answer", "probability", "settled")
    records = ModelTable(models, "image", "layer", "answer", "logit")
    findings, panels = [], []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, logits=found.logits)
        agrees, confidence, settled = found.agrees, found.confidence, found.settled
        for layer in range(len(agrees)):
            done = (settled <= layer).mean()
            table.add(title, str(layer + 1), f"{agrees[layer]:.1%}", f"{confidence[layer]:.3f}", f"{done:.1%}")
        for i, name in enumerate(found.images):
            for layer, answer in enumerate(found.answers[i]):
                label = found.labels[answer] if answer < len(found.labels) else f"class {answer}"
                records.add(title, name, layer + 1, label, found.logits[i, layer, answer])
        half = int(np.median(settled)) + 1
        findings.append(
            f"{said_of(title, models)}half of the images have their answer after layer {half} of {len(agrees)}"
        )
        panels.append((title, agrees, confidence))
    return Exhibit(
        name="logit-lens",
        title="Logit lens",
        words="What the last norm and the head would say after each block: share of the images with the last layer's "
        "answer, the probability it gets, and the images whose answer no longer changes from there.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: lens_figure(panels),
    )


def lens_figure(panels: Sequence[tuple[str, Array, Array]]) -> "Figure":
    """Draw panels of (title, agreement with the last layer (L,), mean probability of its answer (L,))."""

    def draw(i: int, part: Any) -> None:
        title, agrees, confidence = panels[i]
        axes = part.subplots()
        layers = range(1, len(agrees) + 1)
        axes.plot(layers, agrees, color=COLOURS[0], marker="o", markersize=3, label="same answer as the last layer")
        axes.plot(layers, confidence, color=COLOURS[1], marker="s", markersize=3, label="probability of that answer")
        axes.set(xlabel="layer", ylabel="share of the images, probability", ylim=(0, 1.03))
        title_part(part, title)
        legend_below(part, axes, columns=2 if len(panels) == 1 else 1)
        layer_ticks(axes, len(agrees))

    return side_by_side(len(panels), draw)


def _lacking(subject: Subject) -> str | None:
    if not subject.config.num_classes:
        return "the model ends with features, not with classes"
    if subject.checkpoint.outputs != "classes":
        return "the model's outputs are not classes of which one holds"
    return None


def _watch(subject: Subject) -> LogitLens:
    lens = LogitLens(subject.vit, subject.feed.shown, subject.checkpoint.labels)
    if why := _lacking(subject):
        raise UsageError(f"{safe(subject.title)}: --logit-lens: {why}")
    return lens


ASPECT = OfBlocks(name="logit-lens", watch=_watch, lacking=_lacking, show=exhibit)
