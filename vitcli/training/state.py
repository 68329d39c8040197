"""The state of a run on disk: everything that resuming needs, in safetensors, durable at every instant.

`checkpoints/step-00001000.safetensors` holds tensors (`model.*`, `ema.*`, `optimizer.<parameter>.<slot>`) and, in its
metadata, the scalars. `LATEST.json` names the newest one with its SHA-256 and is written last; the two newest are kept.
Randomness needs no state (see `seeds`). Knows files and tensors, not training.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vitcli.checkpoint.durable import write_file
from vitcli.errors import CheckpointError

KEPT = 2


@dataclass(frozen=True)
class Progress:
    """The scalars of a run's state."""

    step: int  # optimiser steps done
    best_step: int = -1  # of the best validation accuracy so far; -1: none yet
    best_accuracy: float = -1.0
    seconds: float = 0.0  # of work so far, which a time budget counts
    ended_of: int = 0  # the planned number of steps, once the run ended before them (patience, time)


class State(NamedTuple):
    progress: Progress
    tensors: dict[str, Tensor]
    skipped: tuple[str, ...] = ()  # newer states that could not be read, and why


def save_state(run: Path, progress: Progress, tensors: dict[str, Tensor]) -> Path:
    """Write the state durably, then point LATEST at it, then drop what is older than the two newest."""
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{progress.step:08d}.safetensors"
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {"progress": json.dumps(asdict(progress))}
    )
    write_file(path, [content])
    latest = {"file": path.name, "step": progress.step, "sha256": hashlib.sha256(content).hexdigest()}
    write_file(run / "LATEST.json", [json.dumps(latest).encode()])
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_state(run: Path) -> State | None:
    """The newest state that is whole, or None when no state was ever saved.

    Falls back to the older file when LATEST or the newest is damaged. Raises CheckpointError when all are.
    """
    candidates = sorted((run / "checkpoints").glob("step-*.safetensors"), reverse=True)
    digests = _latest_digest(run)
    problems = [f"{name}: missing" for name in digests if name not in {path.name for path in candidates}]
    for path in candidates:
        try:
            return State(*_read(path, digests.get(path.name)), tuple(problems))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            problems.append(f"{path.name}: {error}")
    if problems:
        raise CheckpointError(f"{run}: no saved state can be read ({'; '.join(problems)}); start again in a new folder")
    return None


def _latest_digest(run: Path) -> dict[str, str]:
    try:
        latest = json.loads((run / "LATEST.json").read_bytes())
        return {latest["file"]: latest["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read(path: Path, sha256: str | None) -> tuple[Progress, dict[str, Tensor]]:
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError("SHA-256 differs from LATEST.json")
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        progress = Progress(**json.loads(metadata["progress"]))
        return progress, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
