"""What an aspect of a model is: a name, a measurement, and an exhibit of what was measured.

Each aspect has a file of its own, which ends with its `ASPECT`; `look` lists them and measures those asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.inspection.exhibit import Exhibit
from vitcli.inspection.images import Feed
from vitcli.inspection.observe import Instrument
from vitcli.model.config import Size, ViTConfig
from vitcli.model.vit import VisionTransformer


@dataclass(frozen=True)
class Cut:
    """How the first of the models cuts its images, in pixels; the others are measured on the same share of theirs."""

    size: Size
    patch: Size

    @property
    def grid(self) -> Size:
        """Rows and columns of patches that cover the image."""
        return -(-self.size[0] // self.patch[0]), -(-self.size[1] // self.patch[1])


@dataclass(frozen=True)
class Subject:
    """A model that is looked at, and with what. Only aspects of `OfAnyModel` may meet one that is not a plain ViT."""

    title: str
    checkpoint: Checkpoint
    model: nn.Module
    feed: Feed  # of the images, as this model wants them
    layers: tuple[int, ...]  # from 0: those whose attention maps are kept
    cut: Cut

    @property
    def vit(self) -> VisionTransformer:
        return cast(VisionTransformer, self.model)

    @property
    def config(self) -> ViTConfig:
        return self.vit.config


@dataclass(frozen=True, kw_only=True)
class Aspect:
    """Something that can be looked at in a model. Results are of the aspect's own type, one for each model."""

    name: str  # of the option that asks for it, without its dashes
    show: Callable[[Mapping[str, Any]], Exhibit]  # makes the exhibit of the results by the models' titles
    most: int | None = None  # how many images it makes use of; all by default
    of_data: bool = False  # means little without labels: of all aspects taken only where a data set is given
    lacking: Callable[[Subject], str | None] = lambda subject: None  # why a model does not have it

    def images(self, count: int) -> int:
        """How many images it makes use of when `count` are there."""
        return count if self.most is None else min(count, self.most)


@dataclass(frozen=True, kw_only=True)
class OfParameters(Aspect):
    """An aspect of the parameters alone; needs no images."""

    measure: Callable[[VisionTransformer], Any]
    most: int | None = 0


@dataclass(frozen=True, kw_only=True)
class OfBlocks(Aspect):
    """An aspect that an instrument watches while images pass through the blocks."""

    watch: Callable[[Subject], Instrument]


@dataclass(frozen=True, kw_only=True)
class OfAnyModel(Aspect):
    """An aspect of the feature maps and answers, which every model of timm's has, too; given the images in batches."""

    measure: Callable[[Subject, Sequence[Tensor]], Any]
