"""Why this answer: for each image the map of what spoke for a class, over the picture.

    for one in explain(["cat.jpg"], "imagenet"):
        one.picture().save("why.png")

Each method has a file of its own and one entry of `METHODS`; which one is taken by default was measured
(docs/inspecting.md, benchmarks/relevance.py).

Legend: B batch, C channels, H W pixels, h w cells of the map, K classes.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.load import load_any
from vitcli.checkpoint.naming import placeholders
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import ImageError, UsageError
from vitcli.images.find import ImageSource, find_images
from vitcli.images.preprocess import load
from vitcli.inspection.attention_gradients import gradient_rollout, legrad
from vitcli.inspection.cells import enlarged
from vitcli.inspection.exhibit import Array
from vitcli.inspection.gradcam import gradcam
from vitcli.inspection.images import Picture, colours
from vitcli.inspection.input_relevance import integrated_gradients, occlusion
from vitcli.inspection.maps import over
from vitcli.machine import default_device
from vitcli.model import linear
from vitcli.model.vit import VisionTransformer
from vitcli.text import did_you_mean, safe

if TYPE_CHECKING:
    from PIL import Image

# Images (B, C, H, W) and a class of each (B,) → maps (B, h, w): the more, the more a cell spoke for its image's class.
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]

METHODS: Mapping[str, Method] = {
    "gradient-rollout": cast(Method, gradient_rollout),
    "legrad": cast(Method, legrad),
    "gradcam": gradcam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}
OF_ATTENTION = ("gradient-rollout", "legrad")  # methods that a model without attention cannot have


def default_method(model: nn.Module) -> str:
    """The method that a model is explained by unless another one is named."""
    return "gradient-rollout" if isinstance(model, VisionTransformer) else "gradcam"


def method_for(model: nn.Module, name: str | None) -> Method:
    """The method called `name`, the default one for None. Raises UsageError where the model cannot have it."""
    name = name or default_method(model)
    if name not in METHODS:
        raise UsageError(
            f"there is no method '{safe(name)}'; there are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
        )
    if name in OF_ATTENTION and not isinstance(model, VisionTransformer):
        raise UsageError(f"{name} reads attention weights, which a {type(model).__name__} has not; take gradcam")
    return METHODS[name]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What in an image spoke for a class; or, in `error`, why that cannot be told."""

    path: str
    label: str | None = None
    index: int | None = None  # of the class, in the order of the logits
    map: Array | None = None  # (h, w), a number for each patch, or cell of a CNN's last feature map: the more, the more
    error: str | None = None
    pixels: Array | None = None  # (H, W, 3) uint8: the image as the model sees it, small ones enlarged
    weights: Array | None = None  # (H, W): the map where its cells lie in the image

    def picture(self) -> "Image.Image":
        """The image as the model sees it, and beside it the map over its gray. Raises ValueError without a map."""
        from PIL import Image

        if self.pixels is None or self.weights is None:
            raise ValueError(f"{self.path}: {self.error}")
        gap = np.full((self.pixels.shape[0], max(2, self.pixels.shape[1] // 50), 3), 255, np.uint8)
        return Image.fromarray(np.concatenate([self.pixels, gap, over(self.pixels, self.weights)], axis=1))


class Explainer:
    """A model that can be asked why. Its weights are read at once, and stay."""

    def __init__(
        self, model: str | Path | Checkpoint | None = None, *, method: str | None = None, device: str | None = None
    ) -> None:
        """Take `model`, `method` and `device` as `explain` does, and raise what it raises of them."""
        self.checkpoint = model if isinstance(model, Checkpoint) else resolve(None if model is None else str(model))
        name = safe(self.checkpoint.name)
        if self.checkpoint.exported:
            raise UsageError(f"{name}: an ONNX file gives answers and no gradient of them: name its checkpoint")
        if why := self.checkpoint.why_no_classes:
            raise UsageError(f"{name}: {why}, so there is no answer to explain")
        self.labels = self.checkpoint.labels or placeholders(self.checkpoint.num_classes)
        self.device = torch.device(device or default_device())
        if self.device.type == "cpu":
            linear.kernel()
        self.model = load_any(self.checkpoint).to(self.device).requires_grad_(False)
        self.method = method or default_method(self.model)
        self._map = method_for(self.model, method)

    def index(self, label: str | int) -> int:
        """The class that `label` names, or counts from 0. Raises UsageError where there is none, or more than one."""
        if isinstance(label, int):
            if 0 <= label < len(self.labels):
                return label
            raise UsageError(f"{safe(self.checkpoint.name)} has classes 0 to {len(self.labels) - 1}, and no {label}")
        for spelling in (_exact, _loose, _first_synonym):
            found = [i for i, name in enumerate(self.labels) if spelling(name) == spelling(label)]
            if len(found) == 1:
                return found[0]
        hint = did_you_mean(label, self.labels)
        raise UsageError(f"{safe(self.checkpoint.name)} has no class called '{safe(label, 80)}'.{hint}")

    def explain(self, image: Picture, label: str | int | None = None) -> Explanation:
        """Say what in `image` spoke for the class `label`, for the model's first class where it is None."""
        index = None if label is None else self.index(label)
        try:
            array = image.load(self.checkpoint.preprocess)
        except ImageError as error:
            return Explanation(image.name, error=str(error))
        x = torch.from_numpy(array)[None].to(self.device)
        if index is None:
            with torch.no_grad():
                index = int(self.model(x).argmax())
        found = self._map(self.model, x, torch.tensor([index], device=self.device)).detach()
        if not found.isfinite().all():
            return Explanation(
                image.name, self.labels[index], index, error=f"{safe(image.name)}: the map is not finite"
            )
        pixels = colours(array, self.checkpoint.preprocess)
        times = pixels.shape[0] // array.shape[1]
        weights = (
            enlarged(self.model, found, (array.shape[-2], array.shape[-1]))[0]
            .repeat_interleave(times, 0)
            .repeat_interleave(times, 1)
        )
        return Explanation(
            image.name, self.labels[index], index, found[0].cpu().numpy(), None, pixels, weights.cpu().numpy()
        )


def explain(
    inputs: str | Path | Iterable[str | Path],
    model: str | Path | Checkpoint | None = None,
    *,
    label: str | int | None = None,
    method: str | None = None,
    device: str | None = None,
) -> Iterator[Explanation]:
    """What in each image spoke for its first class, or for the class `label`: one explanation after the other.

    Args:
        inputs: files, folders and globs.
        model: the name of a checkpoint, or one that was read; None is the default model.
        label: a class by its name or its number, from 0.
        method: one of `METHODS`; by default the one that was measured best at a cost of a few forward passes.
        device: such as "cpu" or "cuda:0"; a GPU by default where there is one.

    Raises:
        UsageError: the model has no classes, is an ONNX file, or cannot have that method; there is no such class.
        CheckpointError, HubError: the model cannot be read.
    """
    explainer = Explainer(model, method=method, device=device)
    index = None if label is None else explainer.index(label)
    named = [inputs] if isinstance(inputs, str | Path) else inputs
    return (explainer.explain(picture_of(found), index) for found in find_images(named))


def picture_of(found: ImageSource, *, exact: bool = False) -> Picture:
    """An image that was named, still to be read; `exact` resizes as timm does, to the bit."""
    return Picture(found.name, partial(load, found.source, exact=exact, name=found.name))


def _exact(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loose(name: str) -> str:
    return _exact(name).casefold().strip()


def _first_synonym(name: str) -> str:
    return _loose(name.partition(",")[0])
