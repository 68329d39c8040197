"""Write a checkpoint folder that this program, timm and transformers load. Imports no torch (see `save` for models).

Whatever dies in between, the folder stays loadable: each file is replaced atomically, and while the two files are of
two moments config.json carries the self-tests of both.

MERGED: A torch model becomes a checkpoint folder, with the self-test that proves it when it is read.

Knows how to take arrays and logits out of a model; what the files look like is in `write`.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitcli.checkpoint.config import Outputs, build_config
from vitcli.checkpoint.layout import CONFIG_NAME, WEIGHTS_NAME
from vitcli.checkpoint.load import selftest_logits
from vitcli.checkpoint.selftest import selftest_entry
from vitcli.checkpoint.tensor_file import Array, StoredType, as_stored, write_tensors
from vitcli.errors import CheckpointError, UsageError
from vitcli.files import read_config, write_file
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Array],
    *,
    architecture: str,
    vit: ViTConfig | None,
    labels: Sequence[str],
    preprocess: Preprocess,
    provenance: Mapping[str, Any],
    dtype: StoredType = "float32",
    selftest_logits: Array | None = None,
    label_descriptions: Mapping[str, str] | None = None,
    timm_args: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    tag: str = "vit",
    license: str | None = None,
    outputs: Outputs = "classes",
) -> None:
    """Write config.json and model.safetensors into `folder`, which is made when it is not there.

    `tensors` are float32 by timm's names. `provenance` says where the weights come from (data, recipe, version: JSON).
    `selftest_logits` (1, K) must be those of the weights as `dtype` stores them, for `selftest_input(preprocess)`.
    `extra` are further keys of config.json's "vit" (`base_model`, `temperature`). `timm_args` as in `build_config`.
    Raises CheckpointError, and then the folder holds what it held before.
    """
    own = {**(extra or {}), "provenance": dict(provenance)}
    if selftest_logits is not None:
        if not np.isfinite(selftest_logits).all():
            raise CheckpointError(f"{safe(folder)}: the model's answers are not finite; its weights are not to be used")
        own["selftest"] = selftest_entry(selftest_logits)
    config = build_config(
        architecture=architecture,
        vit=vit,
        labels=labels,
        preprocess=preprocess,
        label_descriptions=label_descriptions,
        timm_args=timm_args,
        extra=own,
        tag=tag,
        license=license,
        outputs=outputs,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = as_stored(tensors, dtype)
        if before := _selftest_before(folder, own):
            _write_json(folder / CONFIG_NAME, config | {"vit": config["vit"] | {"selftest_before": before}})
        # transformers used to fail without "format"
        write_tensors(folder / WEIGHTS_NAME, arrays, {"format": "pt"})
        _write_json(folder / CONFIG_NAME, config)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was saved") from error


def new_folder(path: str) -> Path:
    """`path` as a folder to write a checkpoint into. Raises UsageError when something is there already."""
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{safe(folder)} is there already and not empty; choose another --out")
    return folder


def _selftest_before(folder: Path, new: Mapping[str, Any]) -> Any:
    """The self-test of the checkpoint about to be replaced; None where it could not be one of the new config."""
    try:
        before = read_config(folder / CONFIG_NAME)["vit"]["selftest"]
        return before if len(before["logits"]) == len(new["selftest"]["logits"]) else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _write_json(path: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, [text.encode("utf-8"), b"\n"])


def save_model(
    folder: Path,
    model: nn.Module,
    *,
    architecture: str,
    labels: Sequence[str],
    preprocess: Preprocess,
    provenance: Mapping[str, Any],
    dtype: StoredType = "float32",
    **more: Any,
) -> None:
    """Write `model` (on any device, in any mode and precision, wrapped or not; it is not changed) into `folder`.

    The self-test logits are computed on the CPU by a copy that holds the weights as `dtype` stores them. `more` goes to
    `write_checkpoint`. Raises CheckpointError.
    """
    plain = copy.deepcopy(_unwrapped(model)).cpu().float().eval()
    tensors = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    rounded = {
        name: torch.from_numpy(array.astype(tensors[name].dtype)) for name, array in as_stored(tensors, dtype).items()
    }
    plain.load_state_dict(rounded, strict=True)
    write_checkpoint(
        folder,
        tensors,
        architecture=architecture,
        vit=plain.config if isinstance(plain, VisionTransformer) else None,
        labels=labels,
        preprocess=preprocess,
        provenance=provenance,
        dtype=dtype,
        selftest_logits=selftest_logits(plain, preprocess),
        **more,
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    for wrapper in ("module", "_orig_mod"):
        inner = getattr(model, wrapper, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return model
