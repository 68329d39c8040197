"""timm's own layout with pickled weights, as older repositories have it: the same checkpoint, safely stored."""

from pathlib import Path

from vitcli.checkpoint.card import use_command
from vitcli.checkpoint.config import parse_config
from vitcli.checkpoint.convert.result import Converted, Settings, Source
from vitcli.checkpoint.shapes import weight_shapes
from vitcli.checkpoint.weights import compare
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.architectures import not_built


def is_timm_layout(source: Source) -> bool:
    return "architecture" in source.config or "pretrained_cfg" in source.config


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for a config that is not one, and for models that are no plain ViT."""
    if source.kind != "safetensors" and settings != Settings():
        raise UsageError("--set, --no-head: config.json beside the weights says it all")
    path = Path(source.name)
    found = parse_config(source.config, name=source.name, source="folder", config_path=path, weights_path=path)
    if source.kind == "safetensors":
        command = use_command(source.name, classifies=found.why_no_classes is None)
        runs = "" if found.vit else f" runs it, by timm ({not_built(found.architecture)})"
        raise CheckpointError(f"{source.where}: in timm's layout already: {command}{runs}")
    if found.vit is None:
        raise CheckpointError(
            f"{source.where}: not converted: {not_built(found.architecture)}; stored by timm as safetensors it can "
            "predict (timm.models.save_for_hf(…, safe_serialization=True))"
        )
    compare({name: array.shape for name, array in source.tensors.items()}, weight_shapes(found.vit), source.where)
    return Converted(
        "timm, pickled",
        found.vit,
        source.tensors,
        found.preprocess,
        labels=found.labels,
        label_descriptions=found.label_descriptions,
        notes=found.notes,
        outputs=found.outputs,
    )
