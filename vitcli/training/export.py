"""A trained model → a checkpoint folder that every command, timm and transformers load."""

from pathlib import Path

from torch import nn

from vitcli.checkpoint.save import save_model
from vitcli.training.events import Evaluated
from vitcli.training.lora import merged
from vitcli.training.recipe import as_dict
from vitcli.training.task import Task


def export(model: nn.Module, task: Task, folder: Path, event: Evaluated) -> None:
    """Write `model` as it stands at `event`, with class names, preprocessing and where it comes from."""
    provenance = {
        "trained_by": "vit finetune" if "base_model" in task.origin else "vit train",
        **task.origin,
        "step": event.step,
        "epoch": round(event.epoch, 4),
        "validation_accuracy": event.validation.accuracy,
        "validation_images": event.validation.n,
        "data": {"name": task.data.root.name, "fingerprint": task.data.fingerprint, "images": len(task.data.train)},
        "recipe": as_dict(task.recipe),
    }
    save_model(
        folder,
        merged(model),
        architecture=task.architecture,
        labels=task.data.classes,
        preprocess=task.preprocess,
        provenance=provenance,
        timm_args=None if task.vit else task.model_args,
    )
