"""A torch model becomes a checkpoint folder, with the self-test that proves it when it is read.

Knows how to take arrays and logits out of a model; what the files look like is in `write`.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitcli.checkpoint.load import selftest_logits
from vitcli.checkpoint.tensors import StoredType, as_stored
from vitcli.checkpoint.weights import unwrapped
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
    """Write `model` (on any device, in any mode; it is not changed) into `folder`.

    The self-test logits are computed on the CPU by a copy that holds the weights as `dtype` stores them. `more` goes to
    `write_checkpoint`. Raises CheckpointError.
    """
    tensors = {unwrapped(name): tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    plain = copy.deepcopy(getattr(model, "module", model)).cpu().float().eval()
    rounded = {
        name: torch.from_numpy(np.array(a, tensors[name].dtype)) for name, a in as_stored(tensors, dtype).items()
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
