"""Puts a run's checkpoint into the package, in float16: how the bundled models got there.

    python benchmarks/bundle.py RUN NAME [best|last]

Writes vitcli/checkpoint/bundled/NAME/; the model card beside the weights is written by hand, with the numbers of
benchmarks/fashion_card.py.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.layout import bundled_folder
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.write import save_model


def provenance_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint says of itself, and what its run, if it is one's, says of versions."""
    run = checkpoint.weights_path.parent.parent / "run.json"
    if not run.exists():
        return dict(checkpoint.provenance)
    config = json.loads(run.read_text("utf-8"))
    return {**checkpoint.provenance, "versions": config["versions"],
            "extended_from": config.get("extended_from", [])}  # fmt: skip


def main() -> None:
    run, name, which = Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or ["best"])[0]
    checkpoint = resolve(str(run / which))
    provenance = provenance_of(checkpoint)
    folder = bundled_folder() / name
    save_model(
        folder,
        load_model(checkpoint),
        replace(checkpoint, provenance=provenance, licence="apache-2.0"),
        dtype="float16",
        tag=name.replace("-", "_"),
    )
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 2**20:.1f} MiB, validation accuracy {provenance['validation_accuracy']:.4f}")


if __name__ == "__main__":
    main()
