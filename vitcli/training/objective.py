"""What a step minimises: cross-entropy to the labels, mixed labels, class weights, and a teacher's opinion.

Knows batches of tensors; not where they come from.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.data.samples import DataSet
from vitcli.training.recipe import Recipe
from vitcli.training.task import Task


class Objective:
    """(model, images (B, C, H, W), labels (B,)) → mean loss, a scalar."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.recipe = task.recipe
        self.mixup = _mixup(task.recipe, task.classes)
        self.weights = class_weights(task.data).to(device) if task.recipe.class_weights else None
        self.teacher = task.teacher.to(device) if task.teacher is not None else None

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # soft targets (B, K), label smoothing included
            smoothing = 0.0
        logits = model(images)
        loss = F.cross_entropy(logits, labels, self.weights, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        share = self.recipe.teacher_weight
        return (1 - share) * loss + share * self._distance(logits, images)

    def _distance(self, logits: Tensor, images: Tensor) -> Tensor:
        """KL divergence of the student from the teacher at temperature T, times T² (Hinton et al. 2015)."""
        assert self.teacher is not None
        T = self.recipe.teacher_temperature
        with torch.no_grad():
            opinion = F.log_softmax(self.teacher(images).float() / T, dim=1)
        student = F.log_softmax(logits.float() / T, dim=1)
        return T * T * F.kl_div(student, opinion, reduction="batchmean", log_target=True)


def class_weights(data: DataSet) -> Tensor:
    """N / (K · n_k) for each class of the training split, (K,): their mean over the images is 1."""
    counts = torch.bincount(torch.from_numpy(data.train.labels), minlength=len(data.classes))
    return len(data.train) / (len(data.classes) * counts.clamp(min=1).float())


def _mixup(recipe: Recipe, classes: int) -> Any:
    if not (recipe.mixup or recipe.cutmix):
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
