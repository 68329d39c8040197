"""Files of tensors are written a tensor at a time, and are the safetensors library's own byte for byte."""

from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from vitcli.checkpoint.tensor_file import tensor_bytes, write_tensors
from vitcli.training.state import Position, save_state


def test_arrays(tmp_path: Path) -> None:
    arrays = {
        "b": np.ones((3, 2), np.float32),
        "a": np.array(3),
        "half": np.arange(3, dtype=np.float16),
        "across": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
        "brain": np.ones(3, ml_dtypes.bfloat16),
        "none": np.empty((0, 5), np.float32),
    }
    theirs = safetensors.numpy.save({n: np.asarray(a, order="C") for n, a in arrays.items()}, {"format": "pt"})
    assert tensor_bytes(arrays, {"format": "pt"}) == theirs
    write_tensors(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    assert (tmp_path / "x.safetensors").read_bytes() == theirs


def test_states(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.b": torch.randn(3, 4, generator=generator).t(),
        "optimizer.a:step": torch.tensor(7.0),
        "scaler.x": torch.tensor(1.5, dtype=torch.float64),
        "model.n": torch.tensor(3),
        "model.bf": torch.randn(5, generator=generator).bfloat16(),
        "model.ü": torch.randn(2, generator=generator).half(),
    }
    content = save_state(tmp_path, Position(3), tensors).read_bytes()
    with safetensors.safe_open(tmp_path / "checkpoints" / "step-00000003.safetensors", "pt") as file:
        metadata = file.metadata()
    assert content == safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}, metadata)
