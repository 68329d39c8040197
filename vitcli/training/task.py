"""What is trained on what: the model, the data, the recipe and the preprocessing, put together once a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vitcli.data.samples import DataSet
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import ViTConfig
from vitcli.training.augment import Transform, training_transform
from vitcli.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Task:
    """A model and all that its training needs to know, built by `build_task`."""

    architecture: str  # timm's name
    model_args: Mapping[str, Any]  # what differs from the architecture
    vit: ViTConfig | None  # None for a timm model that is not one of our Vision Transformers
    model: nn.Module
    preprocess: Preprocess
    data: DataSet
    recipe: Recipe
    teacher: nn.Module | None = None
    answers: Tensor | None = None  # the teacher's logits for the whole training images (N, K), where they are kept
    origin: Mapping[str, Any] = field(default_factory=dict)  # provenance: what fine-tuning began from, the teacher
    notes: tuple[str, ...] = ()  # what was done to the model before its first step

    @property
    def classes(self) -> int:
        """How many classes the data have."""
        return len(self.data.classes)

    @property
    def transform(self) -> Transform:
        """The augmentation of one training image."""
        return training_transform(self.recipe, self.preprocess)
