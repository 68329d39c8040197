"""Which family an original belongs to, by what is in it, whatever it is called. With torch only to measure."""

from collections.abc import Callable
from dataclasses import replace

from vitcli.checkpoint.config import build_config
from vitcli.checkpoint.convert import google, open_clip, original, timm_layout, transformers
from vitcli.checkpoint.convert.result import Converted, Settings, Source
from vitcli.checkpoint.convert.shape import nearest_architecture
from vitcli.checkpoint.model_args import other_fields_of
from vitcli.errors import CheckpointError
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import safe

LAST_DIGITS = 1e-4  # of the largest output: not seen in a probability of four digits


def convert(source: Source, settings: Settings | None = None) -> tuple[Converted, str]:
    """`source` as a ViT of ours, and timm's name for its architecture.

    Every weight of the original is in the result or counted as dropped; nothing is made up but the zeros of a bias
    that the original has not. Raises CheckpointError with the reason for what cannot be converted exactly, UsageError
    for settings that contradict the file.
    """
    converted = _family(source)(source, settings or Settings())
    architecture = nearest_architecture(converted.vit)
    build_config(  # what could not be read back is refused here, before anything is written
        architecture=architecture,
        vit=converted.vit,
        labels=converted.labels,
        preprocess=converted.preprocess,
        outputs=converted.outputs,
    )
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


def _family(source: Source) -> Callable[[Source, Settings], Converted]:
    tensors, config = source.tensors, source.config
    if source.kind == "npz" or google.is_google(tensors):
        if not google.is_google(tensors):
            raise CheckpointError(
                f"{source.where}: no embedding/kernel in it, so these are not weights of a Google ViT"
            )
        return google.convert
    if open_clip.is_open_clip(tensors):
        return open_clip.convert
    if timm_layout.is_timm_layout(source):
        return timm_layout.convert
    if "model_type" in config:
        return transformers.convert
    if original.is_original(tensors):
        return original.convert
    if any("embeddings.patch_embedding" in name for name in tensors):
        raise CheckpointError(
            f"{source.where}: written by transformers, whose config.json must lie beside it: it says how many heads, "
            "which activation and epsilon"
        )
    first = ", ".join(safe(name, 60) for name in list(tensors)[:3])
    raise CheckpointError(f"{source.where}: no Vision Transformer that is known here; it holds {first or 'nothing'}")
