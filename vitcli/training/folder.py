"""The run folder: what a run was asked to do, what happened, where it stands, and what it has learned.

It explains itself without the tool:

run.json        model, data (with fingerprint), recipe, command, versions
metrics.jsonl   one line a step, one line an evaluation
checkpoints/    states to resume from, LATEST.json names the newest
best/ last/     checkpoints that every command (and timm, and transformers) loads
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from vitcli.checkpoint.config import Description
from vitcli.checkpoint.write import save_model
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import holds_something, read_typed, write_file
from vitcli.files import read_config as read_json
from vitcli.machine import what_decides_bits
from vitcli.model import linear
from vitcli.text import command, safe
from vitcli.training.events import Evaluated
from vitcli.training.lock import LOCK, locked, require_there
from vitcli.training.log import as_line, read_metrics
from vitcli.training.lora import merged
from vitcli.training.recipe import as_dict
from vitcli.training.state import Position, State, load_state, save_state
from vitcli.training.task import Task


@dataclass(frozen=True)
class Run:
    """A locked run folder. Only the leading process writes; every process reads."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        if own := self.config.get("resume"):
            return safe(own, None)
        return command("vit", "finetune" if self.config.get("start") else "train", "--resume", self.folder)

    def newest(self, most: int) -> State | None:
        """The newest saved state that is whole, None for a fresh run. No file above `most` bytes is read.

        Raises CheckpointError when none of several is whole.
        """
        try:
            return load_state(self.folder, most)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{what_is_left(self.folder)}") from error

    def save(self, position: Position, tensors: dict[str, Tensor]) -> None:
        """Keep the state to resume from. Raises VitError when the folder was removed."""
        require_there(self.folder)
        save_state(self.folder, position, tensors)

    def log(self, event: Any, **more: Any) -> None:
        """Add `event` to metrics.jsonl. Raises VitError when the folder was removed."""
        require_there(self.folder)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**as_line(event), **more}) + "\n")

    def keep(self, model: nn.Module, task: Task, event: Evaluated, *, own: bool = False) -> None:
        """Write `model` as it stands at `event` to last/, and to best/ when none was better; `own`: it may change."""
        for name in ["last", "best"] if event.is_best else ["last"]:
            _write_checkpoint(model, task, self.folder / name, event, own)

    def rewind(self, step: int) -> tuple[list[float], int]:
        """Drop the metrics of steps that a resumed run will do again.

        Returns the losses since the last evaluation, and how many damaged lines were dropped as well.
        """
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return [], 0
        lines, damaged = read_metrics(self.folder)
        kept = [entry for entry in lines if entry["step"] <= step]
        write_file(path, ["".join(json.dumps(entry) + "\n" for entry in kept).encode()])
        evaluated = [i for i, entry in enumerate(kept) if entry["event"] == "evaluated"]
        since = kept[evaluated[-1] + 1 if evaluated else 0 :]
        return [entry["loss"] for entry in since if entry["event"] == "stepped"], damaged


def _write_checkpoint(model: nn.Module, task: Task, folder: Path, event: Evaluated, own: bool) -> None:
    """`model` as it stands at `event`, with class names, preprocessing and where it comes from."""
    provenance = {
        "trained_by": "vit finetune" if "base_model" in task.origin else "vit train",
        **task.origin,
        "step": event.step,
        "epoch": round(event.epoch, 4),
        "validation_accuracy": event.validation.accuracy,
        **({"validation_map": event.validation.mean_average_precision} if task.data.multi_label else {}),
        "validation_images": event.validation.n,
        "data": {"name": task.data.root.name, "fingerprint": task.data.fingerprint, "images": len(task.data.train)},
        "recipe": as_dict(task.recipe),
    }
    described = Description(
        architecture=task.architecture,
        labels=task.data.classes,
        outputs="labels" if task.data.multi_label else "classes",
        preprocess=task.preprocess,
        provenance=provenance,
        timm_args={} if task.vit else task.model_args,
    )
    save_model(folder, merged(model, own=own), described, own=own)


@dataclass(frozen=True)
class About:
    """What run.json says beside the settings. An older version may have written less."""

    fingerprint: str | None = None  # of the data
    command: tuple[str, ...] = ()
    started: str = "unknown"
    resume: str | None = None  # the command that goes on with the run, where that is not the run's own
    versions: Mapping[str, str | None] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    linear: Literal["torch", "onednn"] = "onednn"  # what multiplies on a CPU; an older version knew no other
    extended_from: tuple[float, ...] = ()
    went_on_with: tuple[str, ...] = ()  # what was not as at the beginning, each time that it was resumed


def read_config(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder, what is in `About` checked. Raises UsageError when there is none."""
    path = folder / "run.json"
    if not os.path.lexists(path):
        raise UsageError(f"{safe(folder)} is no run folder: it has no run.json")
    try:
        config = read_json(path)
        read_typed(About, config)
    except (CheckpointError, ValueError) as error:
        said = str(error).removeprefix(f"{safe(path)}: ")
        raise VitError(f"{safe(path)} is damaged: {said}; start again in a new folder{what_is_left(folder)}") from error
    return config


def what_is_left(folder: Path) -> str:
    """How to use what a run that cannot go on has trained so far; nothing before its first epoch ended."""
    names = [name for name in ("best", "last") if (folder / name / "model.safetensors").exists()]
    return f". What it has learned is whole: {command('vit', 'predict', '-m', folder / names[0])}" if names else ""


def follow(config: Mapping[str, Any]) -> None:
    """Compute from now on as the run in whose run.json `config` is began."""
    linear.use(config.get("linear", About.linear))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    write_file(folder / "run.json", [json.dumps(config, indent=1).encode()])


def next_run_folder(name: str) -> Path:
    """`runs/<name>-<n>` with the least n that is free."""
    n = 1
    while (folder := Path("runs") / f"{name}-{n}").exists():
        n += 1
    return folder


def create_run_folder(folder: Path, settings: Mapping[str, Any], device: str | None = None) -> None:
    """A new run folder with its run.json. Raises UsageError when it is not empty, VitError when it cannot be made.

    `device` is the one that will train; what the machine has by default.
    """
    _require_empty(folder)
    config = {
        **settings,
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **what_decides_bits(device),
        "linear": linear.kernel(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _require_empty(folder)  # another run may have begun here just now
            write_config(folder, config)
    except OSError as error:
        raise VitError(f"cannot write to {safe(folder)}: {error.strerror}") from error


def changed_since(config: Mapping[str, Any], device: str | None = None) -> list[str]:
    """What is no longer as it was when the run in whose run.json `config` is began, or was not at a part of it."""
    earlier = [f"a part of it had {safe(one)}" for one in config.get("went_on_with", ())]
    return earlier + [f"{name} {then} then, {now} now" for name, then, now in _differences(config, device)]


def went_on(config: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
    """`config` with what is not as at the beginning: the parts of a run that follow are not of its machine."""
    now = [f"{name} {now}" for name, _, now in _differences(config, device)]
    known = list(dict.fromkeys([*config.get("went_on_with", ()), *now]))
    return {**config, "went_on_with": known} if known else dict(config)


def _differences(config: Mapping[str, Any], device: str | None) -> list[tuple[str, str, str]]:
    """Name, value in run.json, value now. What an older version did not write down is not compared."""
    machine = what_decides_bits(device)
    then, now = _flat(config, machine), _flat(machine, machine)
    names = [name for name in {**then, **now} if name in then or _group(name, config)]
    return [
        (name, then.get(name, "not set"), now.get(name, "not set")) for name in names if then.get(name) != now.get(name)
    ]


def _flat(found: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, str]:
    """`versions` and `environment` are groups; the names are those of `machine`."""
    flat: dict[str, str] = {}
    for name in machine:
        value = found.get(name)
        flat |= value if isinstance(value, dict) else {} if value is None else {name: value}
    return {name: safe(value, 80) for name, value in flat.items()}


def _group(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the absence of `name` in run.json means that it was not set; else it was not looked at."""
    return name.isupper() and "environment" in config


def _require_empty(folder: Path) -> None:
    if holds_something(folder, LOCK):
        raise UsageError(
            f"{safe(folder)} is not empty: resume it with {command('--resume', folder)}, or choose another --out"
        )
