"""Write a checkpoint folder that this program, timm and transformers load, or change one. Imports no torch by itself.

Whatever dies in between, the folder stays loadable: each file is replaced atomically, and while the two files are of
two moments config.json carries the self-tests of both.
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcli.checkpoint.config import FORMAT, Checkpoint, Description, build_config, labels_in
from vitcli.checkpoint.layout import CONFIG_NAME, FAMILIARITY_NAME, WEIGHTS_NAME
from vitcli.checkpoint.naming import only_numbered
from vitcli.checkpoint.selftest import selftest_entry
from vitcli.checkpoint.tensor_file import StoredType, as_stored, write_tensors
from vitcli.checkpoint.weights import stored_files
from vitcli.errors import CheckpointError, UsageError
from vitcli.files import holds_something, open_regular, read_config, write_file
from vitcli.model.shapes import Array
from vitcli.text import safe

if TYPE_CHECKING:
    from torch import nn

BLOCK = 1 << 20  # bytes of weights that are copied at a time


def new_folder(path: str) -> Path:
    """`path` as a folder to write a checkpoint into. Raises UsageError when something is there already."""
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or holds_something(folder)):
        raise UsageError(f"{safe(folder)} is there already and not empty; choose another --out")
    return folder


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Array],
    described: Description,
    *,
    dtype: StoredType = "float32",
    selftest_logits: Array | None = None,
    tag: str = "vit",
) -> None:
    """Write config.json and model.safetensors into `folder`, which is made when it is not there.

    `tensors` are float32 by timm's names. `selftest_logits` (1, K) must be those of the weights as `dtype` stores them,
    for `selftest_input(described.preprocess)`. `tag` is what timm calls these weights. Raises CheckpointError, and then
    the folder holds what it held before.
    """
    measured = {}
    if selftest_logits is not None:
        if not np.isfinite(selftest_logits).all():
            raise CheckpointError(f"{safe(folder)}: the model's answers are not finite; its weights are not to be used")
        measured["selftest"] = selftest_entry(selftest_logits)
    config = build_config(described, measured=measured, tag=tag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = as_stored(tensors, dtype)
        if before := _selftest_before(folder, config["vit"]):
            _write_config(folder, config | {"vit": config["vit"] | {"selftest_before": before}})
        (folder / FAMILIARITY_NAME).unlink(missing_ok=True)  # statistics of the weights that go
        # transformers used to fail without "format"
        write_tensors(folder / WEIGHTS_NAME, arrays, {"format": "pt"})
        _write_config(folder, config)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was saved") from error


def save_model(
    folder: Path,
    model: "nn.Module",
    described: Description,
    *,
    dtype: StoredType = "float32",
    tag: str = "vit",
    own: bool = False,
) -> None:
    """Write `model` (on any device, in any mode and precision, wrapped or not) into `folder`.

    It is not changed, unless it is the caller's `own` copy, of which no other is then made.

    Its ViTConfig is the model's own, whatever `described.vit` says. The self-test logits are computed on the CPU by a
    copy that holds the weights as `dtype` stores them. Raises CheckpointError.
    """
    import torch

    from vitcli.checkpoint.load import selftest_logits
    from vitcli.model.vit import VisionTransformer

    plain = (_unwrapped(model) if own else copy.deepcopy(_unwrapped(model))).cpu().float().eval()
    tensors = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    rounded = {
        name: torch.from_numpy(array.astype(tensors[name].dtype, copy=False))
        for name, array in as_stored(tensors, dtype).items()
    }
    plain.load_state_dict(rounded, strict=True)
    write_checkpoint(
        folder,
        tensors,
        replace(described, vit=plain.config if isinstance(plain, VisionTransformer) else None),
        dtype=dtype,
        selftest_logits=selftest_logits(plain, described.preprocess),
        tag=tag,
    )


def check_writable(checkpoint: Checkpoint, out: Path | None) -> None:
    """Before any work: whether `store_temperature` may write where it is told to. Raises CheckpointError."""
    if checkpoint.exported:
        raise CheckpointError(
            f"{safe(checkpoint.name)} is an exported file, which is not changed: calibrate the checkpoint that it came "
            "from, then export that again"
        )
    if out is not None:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{safe(out)} is there already: name a new folder with --out")
        return
    if checkpoint.source in ("bundled", "hub"):
        place = "bundled with this program" if checkpoint.source == "bundled" else "in the Hub's cache"
        raise CheckpointError(
            f"{safe(checkpoint.name)} is {place}, which nothing writes to; --out FOLDER makes a calibrated copy"
        )
    if not os.access(checkpoint.folder, os.W_OK):
        raise CheckpointError(f"{safe(checkpoint.folder)} is read-only; --out FOLDER makes a calibrated copy")


def store_temperature(checkpoint: Checkpoint, temperature: float, out: Path | None = None) -> Path:
    """Write `temperature` into the checkpoint's config, or into a copy of the checkpoint in the folder `out`.

    Returns the folder, without the statistics of probabilities at another temperature. The config is replaced in one
    piece or not at all. Raises CheckpointError.
    """
    check_writable(checkpoint, out)
    config = read_config(checkpoint.config_path)
    config["vit"] = {"format": FORMAT, **config.get("vit", {}), "temperature": temperature}
    config |= _names(checkpoint, config)
    folder = out or checkpoint.folder
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name, path in stored_files(checkpoint.weights_path).items():
                with open_regular(path) as weights:
                    write_file(out / name, iter(partial(weights.read, BLOCK), b""))
        (folder / FAMILIARITY_NAME).unlink(missing_ok=True)
        _write_config(folder, config)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was stored") from error
    return folder


def store_thresholds(folder: Path, thresholds: Sequence[float]) -> None:
    """Write the `thresholds` (K,) of a multi-label checkpoint into its config, in one piece. Raises CheckpointError."""
    config = read_config(folder / CONFIG_NAME)
    config["vit"] = {"format": FORMAT, **config.get("vit", {}), "thresholds": list(thresholds)}
    try:
        _write_config(folder, config)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was stored") from error


def store_provenance(checkpoint: Checkpoint, more: Mapping[str, Any]) -> None:
    """Add `more` to the provenance of a checkpoint in a folder of ours. Raises CheckpointError."""
    config = read_config(checkpoint.config_path)
    config["vit"]["provenance"] = {**config["vit"].get("provenance", {}), **more}
    try:
        _write_config(checkpoint.folder, config)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or checkpoint.folder)}: {error.strerror}") from error


def _names(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Class names that `config` does not have: of a Hub checkpoint of timm's by its name, or those a user gave it."""
    if not checkpoint.label_ids:
        given = not only_numbered(checkpoint.labels) and only_numbered(labels_in(config))
        return {"label_names": list(checkpoint.labels)} if given else {}
    descriptions = dict(zip(checkpoint.label_ids, checkpoint.labels, strict=True))
    return {"label_names": list(checkpoint.label_ids), "label_descriptions": descriptions}


def _selftest_before(folder: Path, new: Mapping[str, Any]) -> Any:
    """The self-test of the checkpoint about to be replaced; None where it could not be one of the new config."""
    try:
        before = read_config(folder / CONFIG_NAME)["vit"]["selftest"]
        return before if len(before["logits"]) == len(new["selftest"]["logits"]) else None
    except (CheckpointError, KeyError, TypeError):
        return None


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair, which UTF-8 cannot hold, is written as JSON's own escape of it.
    write_file(folder / CONFIG_NAME, [text.encode("utf-8", "backslashreplace"), b"\n"])


def _unwrapped(model: "nn.Module") -> "nn.Module":
    """The model inside DistributedDataParallel and torch.compile."""
    from torch import nn

    for wrapper in ("module", "_orig_mod"):
        inner = getattr(model, wrapper, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(inner)
    return model
