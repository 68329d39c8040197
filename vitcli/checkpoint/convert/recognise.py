"""Which family an original belongs to, by what is in it, whatever it is called. With torch only to measure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vitcli.checkpoint.config import build_config
from vitcli.checkpoint.convert import google, open_clip, original, timm_layout, torchvision, transformers
from vitcli.checkpoint.convert.result import Converted, Settings, Source
from vitcli.checkpoint.convert.shape import nearest_architecture
from vitcli.checkpoint.model_args import other_fields_of
from vitcli.checkpoint.naming import names_for
from vitcli.errors import CheckpointError
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import safe

_ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|E|up|down|embedding_[AB]|magnitude_vector)|ia3_l|hada_w[12]|lokr_w[12])([._]|$)"
)
LAST_DIGITS = 1e-4  # of the largest output: not seen in a probability of four digits


def convert(source: Source, settings: Settings | None = None) -> tuple[Converted, str]:
    """`source` as a ViT of ours, and timm's name for its architecture.

    Every weight of the original is in the result or counted as dropped; nothing is made up but the zeros of a bias
    that the original has not. Raises CheckpointError with the reason for what cannot be converted exactly, UsageError
    for settings that contradict the file, and for class names that do not fit.
    """
    settings = settings or Settings()
    converted = _family(source)(source, settings)
    if settings.class_names:
        classes = converted.vit.num_classes if converted.outputs in ("classes", "labels") else 0
        names = names_for(settings.class_names, classes, converted.labels, source.name)
        converted = replace(converted, labels=names)
    architecture = nearest_architecture(converted.vit)
    build_config(converted.described(architecture))  # what could not be read back is refused before it is written
    if other := other_fields_of(architecture, converted.vit):
        if other.keys() == {"norm_eps"}:
            from vitcli.checkpoint.convert.store import TEST_IMAGES, timm_difference  # with torch

            off = timm_difference(converted, ARCHITECTURES[architecture].norm_eps)
            converted = replace(converted, timm_difference=off)
            digits = "a difference in the last digits: " if off < LAST_DIGITS else ""
            effect = (
                f"compute with their own, {digits}up to {off:.1e} of the largest output on {TEST_IMAGES} test images"
            )
        else:
            effect = "cannot read the weights"
        note = f"timm's config cannot say {', '.join(other)}: timm and transformers {effect}; vit reads it all"
        converted = replace(converted, notes=(*converted.notes, note))
    return converted, architecture


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError when config.json by itself says that the model cannot be converted."""
    if "model_type" in config and not timm_layout.is_timm_config(config):
        transformers.family_of(config, where)


def _family(source: Source) -> Callable[[Source, Settings], Converted]:
    tensors, config = source.tensors, source.config
    if any(_ADAPTER.search(name) for name in tensors):
        raise CheckpointError(
            f"{source.where}: an adapter (LoRA or the like), which changes a model and is none; load it on its model "
            "with peft, merge_and_unload(), save that, and convert the result"
        )
    if source.kind == "npz" or google.is_google(tensors):
        if not google.is_google(tensors):
            raise CheckpointError(
                f"{source.where}: no embedding/kernel in it, so these are not weights of a Google ViT"
            )
        return google.convert
    if open_clip.is_open_clip(tensors):
        return open_clip.convert
    if timm_layout.is_timm_config(config):
        return timm_layout.convert
    if "model_type" in config:
        return transformers.convert
    if original.is_original(tensors):
        return original.convert
    if torchvision.is_torchvision(tensors):
        return torchvision.convert
    if any("embeddings.patch_embedding" in name for name in tensors):
        lacks = "the config.json beside it has no model_type" if config else "config.json must lie beside it"
        raise CheckpointError(
            f"{source.where}: these are transformers' names, and {lacks}: that of transformers says how many heads, "
            "which activation and epsilon"
        )
    first = ", ".join(safe(name, 60) for name in list(tensors)[:3])
    raise CheckpointError(f"{source.where}: no Vision Transformer that is known here; it holds {first or 'nothing'}")
