"""A converted ViT becomes a checkpoint folder, all of it or nothing. With torch: the self-test is computed here."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.convert.names import counted
from vitcli.checkpoint.convert.result import Converted, Source
from vitcli.checkpoint.durable import sync_folder, write_file
from vitcli.checkpoint.load import build
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.save import save_model
from vitcli.errors import CheckpointError
from vitcli.text import safe


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
        }
    }
    staging = folder.with_name(f".{folder.name}.converting")
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # of a conversion that was killed
        save_model(
            staging,
            model,
            architecture=architecture,
            labels=converted.labels,
            label_descriptions=converted.label_descriptions,
            preprocess=converted.preprocess,
            provenance=provenance,
            dtype=source.stored,
            extra={"base_model": source.origin.partition("@")[0]} if source.origin else None,
        )
        write_file(staging / "README.md", [model_card(resolve(str(staging)), folder.name, None).encode()])
        staging.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was saved") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
