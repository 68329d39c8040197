"""The state of a run on disk: everything that resuming needs, in safetensors, durable at every instant.

`checkpoints/step-00001000.safetensors` holds tensors (`model.*`, `ema.*`, `optimizer.<parameter>.<slot>`) and, in its
metadata, the scalars. `LATEST.json` names the newest one with its SHA-256 and is written last; the two newest are kept.
Randomness needs no state (see `seeds`). Knows files and tensors, not training.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitcli.checkpoint.tensor_file import header_bytes, laid_out
from vitcli.errors import CheckpointError
from vitcli.files import open_regular, parse_object, read_config, read_typed, write_file
from vitcli.text import safe
from vitcli.training.sharding import whole

KEPT = 2
_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True)
class Position:
    """How far a run has come: the scalars of its state."""

    step: int  # optimiser steps done
    best_step: int = -1  # of the best validation accuracy so far; -1: none yet
    best_accuracy: float = -1.0
    seconds: float = 0.0  # of work so far, which a time budget counts
    ended_of: int = 0  # the planned number of steps, once the run ended before them (patience, time)

    def __post_init__(self) -> None:
        if self.step < 0 or not -1 <= self.best_step <= self.step or self.ended_of < 0 or self.seconds < 0:
            raise ValueError("a step, or the time, that cannot be")
        if not -1 <= self.best_accuracy <= 1:
            raise ValueError(f"an accuracy of {self.best_accuracy:g}")


class State(NamedTuple):
    """What a saved state holds, read whole."""

    position: Position
    tensors: dict[str, Tensor]
    skipped: tuple[str, ...] = ()  # newer states that could not be read, and why


def save_state(run: Path, position: Position, tensors: dict[str, Tensor]) -> Path:
    """Write the state durably, then point LATEST at it, then drop what is older than the two newest."""
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{position.step:08d}.safetensors"
    digest = hashlib.sha256()
    write_file(path, _digested(_content(tensors, {"progress": json.dumps(asdict(position))}), digest))
    latest = {"file": path.name, "step": position.step, "sha256": digest.hexdigest()}
    write_file(run / "LATEST.json", [json.dumps(latest).encode()])
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def take_part(tensors: dict[str, Tensor]) -> None:
    """What the other processes do while the leader saves `tensors` that are shared out."""
    for name in in_order(tensors):
        whole(tensors[name])


def in_order(tensors: dict[str, Tensor]) -> list[str]:
    """The names as a file has them."""
    return laid_out({name: _KINDS[tensor.dtype] for name, tensor in tensors.items()})


def _content(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a .safetensors file, a tensor at a time: what is shared out is whole for no longer than that."""
    infos = {name: (_KINDS[tensors[name].dtype], tuple(tensors[name].shape)) for name in in_order(tensors)}
    yield header_bytes(infos, metadata)
    for name in infos:
        tensor = whole(tensors[name]).detach().cpu().contiguous()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _digested(chunks: Iterator[bytes | memoryview], digest: Any) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def load_state(run: Path, most: int | None = None) -> State | None:
    """The newest state that is whole, or None when no state was ever saved. No file above `most` bytes is read.

    Falls back to the older file when LATEST or the newest is damaged. Raises CheckpointError when all are.
    """
    candidates = sorted((run / "checkpoints").glob("step-*.safetensors"), reverse=True)
    digests = _latest_digest(run)
    problems = [f"{name}: missing" for name in digests if name not in {path.name for path in candidates}]
    for path in candidates:
        try:
            return State(*_read(path, digests.get(path.name), most), tuple(problems))
        except (SafetensorError, CheckpointError, OSError, ValueError, KeyError) as error:
            said = str(error).removeprefix(f"{safe(path)}: ")
            problems.append(f"{safe(path.name)}: {safe(said)}")
    if problems:
        raise CheckpointError(
            f"{safe(run)}: no saved state can be read ({'; '.join(problems)}); start again in a new folder"
        )
    return None


@dataclass(frozen=True)
class _Latest:
    file: str
    sha256: str


def _latest_digest(run: Path) -> dict[str, str]:
    try:
        latest = read_typed(_Latest, read_config(run / "LATEST.json"))
    except (CheckpointError, ValueError):  # the newest file is then taken at its word
        return {}
    return {safe(latest.file): latest.sha256}


def _read(path: Path, sha256: str | None, most: int | None) -> tuple[Position, dict[str, Tensor]]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"{size} bytes, more than the state of this run can have")
        if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
            raise ValueError("SHA-256 differs from LATEST.json")
    with safe_open(path, framework="pt") as state:
        metadata: dict[str, str] = state.metadata() or {}
        position = read_typed(Position, parse_object(metadata.get("progress", "").encode(), "progress"))
        tensors = {name: state.get_tensor(name).clone() for name in state.keys()}  # noqa: SIM118 (not a dict)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"NaN or infinity in {safe(broken[0], 80)}")
    return position, tensors
