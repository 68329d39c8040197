"""Fine-tuning's beginning: a checkpoint without its head, at the resolution and for the classes of new data.

The whole pre-training head goes, its hidden layer too, and a zero-initialised linear layer takes its place (paper,
section 3.2); where the classes of the data are the checkpoint's own, that layer begins as its head. The patch size
stays; for another image size the position embedding is resampled in 2-D.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from vitcli.checkpoint.load import build, load_any, load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import DataSet
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.config import ViTConfig
from vitcli.model.posemb import Kernel
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe
from vitcli.training.lora import adapt
from vitcli.training.recipe import Recipe
from vitcli.training.task import Task

Tune = Literal["head", "all", "head+all", "lora"]


@dataclass(frozen=True)
class Start:
    """What a fine-tuning run begins with. Kept in run.json."""

    checkpoint: str  # any name that `resolve` takes; a folder or file by its absolute path
    sha256: str  # of its weights
    tune: Tune
    img_size: tuple[int, int] | None = None  # pixels; None: the checkpoint's own
    kernel: Kernel = "timm"
    rank: int = 0  # of the low-rank update, for `lora`

    def __post_init__(self) -> None:
        if self.img_size is not None:
            object.__setattr__(self, "img_size", tuple(self.img_size))  # JSON knows lists only
        if (self.tune == "lora") != (self.rank > 0):
            raise UsageError("a LoRA rank is needed for --tune lora and for nothing else")


def from_checkpoint(start: Start, data: DataSet, recipe: Recipe) -> Task:
    """The checkpoint of `start` with a new head for `data`.

    Raises UsageError when it cannot be had at that size or tuned that way, CheckpointError when it changed meanwhile.
    """
    checkpoint = resolve(start.checkpoint)
    if weights_digest(checkpoint) != start.sha256:
        raise CheckpointError(f"{safe(start.checkpoint)} is not what it was when this run began; start a new run")
    notes: list[str] = []
    classes = len(data.classes)
    model: nn.Module
    if checkpoint.vit:
        _require_whole_patches(start.img_size, checkpoint.vit)
        known = load_model(checkpoint, img_size=start.img_size, kernel=start.kernel, say=notes.append)
        model = with_head(_headless(known), classes, dropout=recipe.dropout, drop_path=recipe.drop_path)
        if checkpoint.labels == data.classes and isinstance(known.head, nn.Linear) and known.config.head_hidden is None:
            model.head.load_state_dict(known.head.state_dict())
            notes.append("the classes are the checkpoint's own: its head is where training begins")
        size = model.config.img_size
    else:
        size = start.img_size or checkpoint.preprocess.size
        if size != checkpoint.preprocess.size and not any_size(checkpoint.architecture):
            raise UsageError(f"{safe(checkpoint.name)} is a {checkpoint.architecture}, which timm builds for one size")
        model = load_any(checkpoint)
        model.reset_classifier(classes)  # type: ignore[operator]  # timm's name for it, on every model
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
    if start.tune == "lora":
        if not isinstance(model, VisionTransformer):
            raise UsageError(
                f"--tune lora needs a Vision Transformer; {safe(checkpoint.name)} is a {checkpoint.architecture}"
            )
        adapt(model, start.rank)
    if start.tune == "head":
        freeze_trunk(model)
    origin: dict[str, Any] = {
        "base_model": checkpoint.public_name,
        "base_weights": start.sha256,
        "tuned": start.tune,
        "posemb_kernel": start.kernel,
    }
    return Task(
        architecture=checkpoint.architecture,
        model_args=dict(checkpoint.timm_args),
        vit=model.config if isinstance(model, VisionTransformer) else None,
        model=model,
        preprocess=replace(checkpoint.preprocess, size=size),
        data=data,
        recipe=recipe,
        origin=origin,
        notes=tuple(notes),
    )


def _require_whole_patches(img_size: tuple[int, int] | None, vit: ViTConfig) -> None:
    """Raises UsageError for a size of which the patches would leave a strip out."""
    for pixels, stride in zip(img_size or (), vit.stride, strict=False):
        if pixels % stride or pixels < stride:
            raise UsageError(f"--img-size: {pixels} is not a multiple of the patch's {stride} pixels")


def any_size(architecture: str) -> bool:
    """Whether timm's model of that name takes images of any size, as CNNs do."""
    import timm

    return timm.is_model(architecture) and not timm.get_pretrained_cfg(architecture).fixed_input_size


def _headless(model: VisionTransformer) -> VisionTransformer:
    """The same trunk, without head and pre-training hidden layer: images → representation (B, D)."""
    config = replace(model.config, num_classes=0, head_hidden=None)
    trunk = {n: t for n, t in model.state_dict().items() if not n.startswith(("head.", "pre_logits."))}
    return build(config, trunk)


def with_head(
    trunk: VisionTransformer, classes: int, *, dropout: float = 0.0, drop_path: float = 0.0
) -> VisionTransformer:
    """A trainable ViT with the weights of `trunk` (which has no head) and a linear head of zeros."""
    config = replace(trunk.config, num_classes=classes)
    with torch.device("meta"):
        model = VisionTransformer(config, dropout=dropout, drop_path=drop_path)
    head = {"head.weight": torch.zeros(classes, config.num_features), "head.bias": torch.zeros(classes)}
    model.load_state_dict({**trunk.state_dict(), **head}, strict=True, assign=True)
    return model.requires_grad_(True)


def freeze_trunk(model: nn.Module) -> None:
    """Leave only the head trainable."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer of ours or of a timm model. Raises UsageError where the classifier is something else."""
    head = model.head if isinstance(model, VisionTransformer) else model.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise UsageError(f"the classifier is a {type(head).__name__}, not one linear layer; use --tune all")
    return head
