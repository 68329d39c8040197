"""Conversion and its oracle: what an original computes, what came of it, and how a refusal reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.helpers.originals import edit, shake
from vitcli.checkpoint.convert.recognise import convert
from vitcli.checkpoint.convert.result import Converted, Settings
from vitcli.checkpoint.convert.source import open_source
from vitcli.checkpoint.load import build
from vitcli.checkpoint.tensor_file import write_tensors
from vitcli.errors import CheckpointError

TOLERANCE = 2e-6


def converted(path: Path, settings: Settings | None = None, **options: Any) -> Converted:
    return convert(open_source(str(path), **options), settings)[0]


def run(found: Converted, x: Tensor) -> Tensor:
    model = build(found.vit, {name: torch.from_numpy(array.copy()) for name, array in found.tensors.items()})
    with torch.inference_mode():
        return model(x)


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=tolerance * float(theirs.detach().abs().max()))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


def tiny_timm(name: str = "vit_base_patch16_224", **arguments: Any) -> Any:
    settings = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 3} | arguments
    return shake(timm.create_model(name, **settings))


def numpy_of(model: Any, rename: Callable[[str], str] = str) -> dict[str, np.ndarray[Any, Any]]:
    return {rename(name): tensor.numpy() for name, tensor in model.state_dict().items()}


def write_open_clip(folder: Path, clip: Any, **tower: Any) -> Path:
    """The image tower of transformers' `clip` under open_clip's names, with a config where `tower` is given."""
    tensors: dict[str, Any] = {"logit_scale": np.ones(1, np.float32), "ln_final.weight": np.ones(3, np.float32)}
    vision = {n: t.numpy() for n, t in clip.vision_model.state_dict().items()}
    for name, array in vision.items():
        new = name.replace("encoder.layers.", "transformer.resblocks.").replace("layer_norm", "ln_")
        for theirs, original in {
            "embeddings.class_embedding": "class_embedding",
            "embeddings.patch_embedding.": "conv1.",
            "embeddings.position_embedding.weight": "positional_embedding",
            "pre_layrnorm": "ln_pre",
            "post_layernorm": "ln_post",
            "self_attn.out_proj": "attn.out_proj",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
        }.items():
            new = new.replace(theirs, original)
        if ".self_attn." not in new:
            tensors[f"visual.{new}"] = array
        elif ".q_proj." in new:
            joined = np.concatenate([vision[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            tensors["visual." + new.replace("self_attn.q_proj.", "attn.in_proj_")] = joined
    tensors["visual.proj"] = clip.visual_projection.weight.detach().numpy().T
    write_tensors(folder / "open_clip_model.safetensors", tensors, {})
    if tower:
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
        edit(
            folder / "open_clip_config.json",
            model_cfg={"vision_cfg": tower, "quick_gelu": True},
            preprocess_cfg=preprocess,
        )
    return folder
