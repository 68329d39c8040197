"""timm's own layout where `vit predict` cannot read it: pickled weights, as older repositories have them, or weights
under a name that it does not look for. The same checkpoint comes out, safely stored.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.card import use_command
from vitcli.checkpoint.config import parse_config
from vitcli.checkpoint.convert.result import Converted, Settings, Source
from vitcli.checkpoint.weights import require_same_shapes
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.architectures import not_built
from vitcli.model.shapes import weight_shapes


def is_timm_config(config: Mapping[str, Any]) -> bool:
    return "architecture" in config or ("pretrained_cfg" in config and "model_type" not in config)


def convert(source: Source, settings: Settings) -> Converted:
    """Raises CheckpointError for a config that is not one, and for models that are no plain ViT."""
    ready = source.kind == "safetensors" and source.readable
    if (not ready or settings.class_names) and replace(settings, class_names=None) != Settings():
        raise UsageError("--set, --no-head: config.json beside the weights says it all")
    path = Path(source.name)
    found = parse_config(source.config, name=source.name, source="folder", config_path=path, weights_path=path)
    if found.vit is not None:
        shapes = {name: array.shape for name, array in source.tensors.items()}
        require_same_shapes(shapes, weight_shapes(found.vit), source.where)
    if ready and not settings.class_names:
        use = use_command(source.name, classifies=found.why_no_classes is None)
        runs = "" if found.vit else f" runs it, by timm ({not_built(found.architecture)})"
        raise CheckpointError(f"{source.where}: in timm's layout already: {use}{runs}")
    if found.vit is None:
        raise CheckpointError(
            f"{source.where}: not converted: {not_built(found.architecture)}; stored by timm as safetensors it can "
            "predict (timm.models.save_for_hf(…, safe_serialization=True))"
        )
    return Converted(
        "timm, pickled" if source.kind == "pickle" else "timm",
        found.vit,
        source.tensors,
        found.preprocess,
        labels=found.labels,
        label_descriptions=found.label_descriptions,
        notes=found.notes,
        outputs=found.outputs,
    )
