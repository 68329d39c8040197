"""Small checkpoints for tests, made without torch: random weights of the right shapes, and files that lie."""

import json
import struct
from collections.abc import Mapping
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vitcli.checkpoint.config import Description
from vitcli.checkpoint.write import write_checkpoint
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import architecture
from vitcli.model.config import ViTConfig
from vitcli.model.shapes import weight_shapes

ARCHITECTURE = "vit_tiny_patch16_224"
TINY = replace(architecture(ARCHITECTURE), img_size=(64, 64), embed_dim=48, depth=2, num_classes=3)
LABELS = ("cat", "dog", "bird")
PREPROCESS = Preprocess(size=(64, 64), crop_pct=0.95, mean=(0.5,) * 3, std=(0.5,) * 3)


def random_tensors(vit: ViTConfig = TINY, seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Weights that hide nothing: no zero head, norms near one."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in weight_shapes(vit).items():
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        tensors[name] = values + 1 if "norm" in name and name.endswith("weight") else values
    return tensors


def write_tiny(folder: Path, vit: ViTConfig = TINY, seed: int = 0, **more: Any) -> Path:
    """A checkpoint folder of `vit` with random weights; `more` are fields of its Description, or go to the writer."""
    said: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "labels": LABELS if vit.num_classes == 3 else [f"label {i}" for i in range(vit.num_classes)],
        "preprocess": replace(PREPROCESS, size=vit.img_size),
        "provenance": {"made_by": "a test"},
    }
    names = {field.name for field in fields(Description)}
    said |= {name: value for name, value in more.items() if name in names}
    arguments = {name: value for name, value in more.items() if name not in names}
    write_checkpoint(folder, random_tensors(vit, seed), Description(vit=vit, **said), **arguments)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json: `model_args__img_size=[1, 1]` reaches inside, `...=DELETED` takes away."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *outer, last = key.split("__")
        level = config
        for step in outer:
            level = level[step]
        if value is DELETED:
            del level[last]
        else:
            level[last] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


DELETED = object()


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a .safetensors file whose header may say anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, dtype: str = "F32", stop: int | None = None) -> dict[str, Any]:
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}[dtype]
    stop = start + prod(shape) * size if stop is None else stop
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
