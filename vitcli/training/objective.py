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
    """(model, images (B, C, H, W), labels (B,), numbers of the samples (B,)) → mean loss, a scalar."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.recipe = task.recipe
        self.mixup = _mixup(task.recipe, task.classes)
        self.weights = class_weights(task.data).to(device) if task.recipe.class_weights else None
        self.answers = task.answers  # (N, K), on the CPU: they may be many
        self.teacher = task.teacher.to(device) if task.teacher is not None and task.answers is None else None
        self.patches = task.vit.num_patches if task.vit and task.recipe.token_weight else 0  # to compare

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # soft targets (B, K), label smoothing included
            smoothing = 0.0
        logits, tokens = model(images, with_tokens=True) if self.patches else (model(images), None)
        loss = F.cross_entropy(logits, labels, self.weights, label_smoothing=smoothing)
        if self.answers is not None:
            opinion, example = self.answers[samples].to(logits.device), None
        elif self.teacher is not None:
            opinion, example = self._asked(images)
        else:
            return loss
        share = self.recipe.teacher_weight
        loss = (1 - share) * loss + share * self._distance(logits, opinion)
        if tokens is not None and example is not None:
            loss = loss + self.recipe.token_weight * token_distance(tokens, example, self.patches)
        return loss

    @torch.no_grad()
    def _asked(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the teacher says of these very images: logits (B, K) and, where they are compared, tokens (B, M, D)."""
        assert self.teacher is not None
        return self.teacher(images, with_tokens=True) if self.patches else (self.teacher(images), None)

    def _distance(self, logits: Tensor, opinion: Tensor) -> Tensor:
        """KL divergence of the student from the teacher at temperature T, times T² (Hinton et al. 2015)."""
        T = self.recipe.teacher_temperature
        student, teacher = (F.log_softmax(values.float() / T, dim=1) for values in (logits, opinion))
        return T * T * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def token_distance(tokens: Tensor, example: Tensor, patches: int) -> Tensor:
    """Mean squared difference of the last `patches` of tokens (B, N, D) and (B, M, D), each of them standardised.

    That is 2 − 2 · their correlation. An example for every place of the image teaches more than a label does (FitNets,
    arXiv 1412.6550; standardised as in arXiv 2205.14141).
    """
    ours, theirs = (F.layer_norm(t[:, -patches:].float(), t.shape[-1:]) for t in (tokens, example))
    return F.mse_loss(ours, theirs)


def class_weights(data: DataSet) -> Tensor:
    """N / (K · n_k) for each class of the training split, (K,): their mean over the images is 1."""
    counts = torch.bincount(torch.from_numpy(data.train.labels), minlength=len(data.classes))
    return len(data.train) / (len(data.classes) * counts.clamp(min=1).float())


def _mixup(recipe: Recipe, classes: int) -> Any:
    if not (recipe.mixup or recipe.cutmix):
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
