"""A torch model becomes a checkpoint folder, with the self-test that proves it when it is read.

Knows how to take arrays and logits out of a model; what the files look like is in `write`.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcli.checkpoint.load import selftest_logits
from vitcli.checkpoint.tensors import StoredType, as_stored
from vitcli.checkpoint.write import write_checkpoint
from vitcli.images.preprocess import Preprocess
from vitcli.model.vit import VisionTransformer


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
