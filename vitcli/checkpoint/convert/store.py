"""A converted ViT becomes a checkpoint folder, all of it or nothing. With torch: the self-test is computed here."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.convert.names import counted
from vitcli.checkpoint.convert.result import Converted, Source
from vitcli.checkpoint.load import build
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.selftest import selftest_input
from vitcli.checkpoint.tensor_file import StoredType, as_stored
from vitcli.checkpoint.write import save_model
from vitcli.errors import CheckpointError
from vitcli.files import sync_folder, write_file
from vitcli.text import safe

TEST_IMAGES = 4


def store(converted: Converted, architecture: str, source: Source, folder: Path) -> None:
    """Write config.json, model.safetensors and README.md into `folder`, which must be absent or empty.

    They are made in a folder beside it, which takes its name at the end. Raises CheckpointError.
    """
    model = build(
        converted.vit, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in converted.tensors.items()}
    )
    provenance: dict[str, Any] = {
        "converted": {
            "from": source.origin or Path(source.name).name,
            "family": converted.family,
            "dropped": list(counted(converted.dropped)),
            **({} if converted.timm_difference is None else {"timm_difference": converted.timm_difference}),
        }
    }
    staging = folder.with_name(f".{folder.name}.converting")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # of a conversion that was killed
        described = replace(
            converted.described(architecture),
            provenance=provenance,
            base_model=source.origin.partition("@")[0] if source.origin else None,
        )
        save_model(staging, model, described, dtype=_stored(converted, source))
        write_file(staging / "README.md", [model_card(resolve(str(staging)), folder.name, None).encode()])
        staging.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was saved") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def timm_difference(converted: Converted, norm_eps: float) -> float:
    """How far outputs are off when the norms have the epsilon `norm_eps`, which is what timm computes with.

    The largest difference of an output in units of the largest output, on `TEST_IMAGES` images: noise, all black, one
    grey, a ramp from left to right. Of flat images tokens vary little, and there an epsilon counts most.
    """
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in converted.tensors.items()}
    noise = torch.from_numpy(selftest_input(converted.preprocess, 0))  # (1, C, H, W)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (converted.preprocess.mean, converted.preprocess.std))
    ramp = torch.linspace(0, 1, noise.shape[-1]).expand_as(noise)
    shades = [(image - mean) / std for image in (torch.zeros_like(noise), torch.full_like(noise, 0.5), ramp)]
    images = torch.cat([noise, *shades])
    with torch.inference_mode():
        own = build(converted.vit, tensors)(images)
        theirs = build(replace(converted.vit, norm_eps=norm_eps), tensors)(images)
    return float((own - theirs).abs().max() / own.abs().max().clamp(min=1e-12))


def _stored(converted: Converted, source: Source) -> StoredType:
    """The original's type, or float32 where that would round what was made of its weights (a sum of two)."""
    exact = source.stored == "float32" or all(
        np.array_equal(as_stored({name: array}, source.stored)[name].astype(array.dtype), array)
        for name, array in converted.tensors.items()
    )
    return source.stored if exact else "float32"
