"""What a step minimises: cross-entropy to the labels, mixed labels, class weights, and a teacher's opinion; of
several labels an image binary cross-entropy or the asymmetric loss.

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
    """(model, images (B, C, H, W), labels (B,) or (B, K), numbers of the samples (B,)) → mean loss, a scalar."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.recipe = task.recipe
        self.mixup = _mixup(task.recipe, task.classes)
        self.several = task.data.multi_label
        weights = positive_weights if self.several else class_weights
        self.weights = weights(task.data).to(device) if task.recipe.class_weights else None
        self.answers = task.answers  # (N, K), on the CPU: they may be many
        self.teacher = task.teacher.to(device) if task.teacher is not None and task.answers is None else None
        self.patches = task.vit.num_patches if task.vit and task.recipe.token_weight else 0  # to compare

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # soft targets (B, K), label smoothing included
            smoothing = 0.0
        logits, tokens = model(images, with_tokens=True) if self.patches else (model(images), None)
        if self.several:
            return self._of_labels(logits, labels)
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

    def _of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K) for labels (B, K) of 0 and 1, each by itself: summed over labels, the mean over images."""
        if self.recipe.loss == "asymmetric":
            return asymmetric_loss(logits, labels, *self.recipe.asymmetric, weights=self.weights)
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), pos_weight=self.weights, reduction="sum"
        )
        return loss / len(logits)

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


def asymmetric_loss(
    logits: Tensor, labels: Tensor, positive: float, negative: float, margin: float, weights: Tensor | None = None
) -> Tensor:
    """The asymmetric loss of logits (B, K) for labels (B, K) of 0 and 1, mean over images (arXiv 2009.14119, eq. 4, 5).

    A label that holds costs −(1 − p)^γ+ log p, times its weight; one that does not −p_m^γ− log(1 − p_m), where
    p_m = max(p − m, 0): many easy negatives then weigh little, and very easy ones nothing.
    """
    holds, z = labels.float(), logits.float()
    p = z.sigmoid()
    gained = (1 - p) ** positive * F.logsigmoid(z)
    shifted = (p - margin).clamp(min=0)
    rest = F.logsigmoid(-z) if not margin else torch.log1p(-shifted.clamp(max=1 - 1e-7))
    lost = shifted**negative * rest
    if weights is not None:
        gained = gained * weights
    return -(holds * gained + (1 - holds) * lost).sum() / len(z)


def positive_weights(data: DataSet) -> Tensor:
    """(N − n_k) / n_k for each label of the training split, (K,): images with and without it then weigh the same."""
    counts = torch.from_numpy(data.train.labels.sum(axis=0)).clamp(min=1).float()
    return (len(data.train) - counts).clamp(min=1) / counts


def class_weights(data: DataSet) -> Tensor:
    """N / (K · n_k) for each class of the training split, (K,): their mean over the images is 1."""
    counts = torch.bincount(torch.from_numpy(data.train.labels), minlength=len(data.classes))
    return len(data.train) / (len(data.classes) * counts.clamp(min=1).float())


def _mixup(recipe: Recipe, classes: int) -> Any:
    if not (recipe.mixup or recipe.cutmix):
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
