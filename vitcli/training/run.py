"""The run folder: what a run was asked to do, what happened, and where it stands. It explains itself without the tool.

run.json        model, data (with fingerprint), recipe, command, versions
metrics.jsonl   one line a step, one line an evaluation
checkpoints/    states to resume from, LATEST.json names the newest
best/ last/     checkpoints that every command (and timm, and transformers) loads
"""

import fcntl
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vitcli import __version__
from vitcli.checkpoint.durable import write_file
from vitcli.errors import UsageError, VitError
from vitcli.text import safe
from vitcli.training.state import Progress, load_state, save_state


class Restorable(Protocol):
    """What a run saves and restores (a `Learner`)."""

    def tensors(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Run:
    """A locked run folder. Only the leading process writes; every process reads."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def resume_command(self) -> str:
        return f"vit {'finetune' if self.config.get('start') else 'train'} --resume {safe(self.folder)}"

    def restore(self, learner: Restorable) -> Progress | None:
        """Load the newest saved state into `learner`; None for a fresh run."""
        state = load_state(self.folder)
        if state is None:
            return None
        progress, tensors = state
        learner.load(tensors)
        return progress

    def save(self, progress: Progress, learner: Restorable) -> None:
        save_state(self.folder, progress, learner.tensors())

    def log(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> list[float]:
        """Drop the metrics of steps that a resumed run will do again. Returns the losses since the last evaluation."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        kept = [
            entry for line in path.read_text("utf-8").splitlines() if (entry := _entry(line)) and entry["step"] <= step
        ]
        write_file(path, ["".join(json.dumps(entry) + "\n" for entry in kept).encode()])
        evaluated = [i for i, entry in enumerate(kept) if entry["event"] == "evaluated"]
        return [entry["loss"] for entry in kept[evaluated[-1] + 1 if evaluated else 0 :]]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None  # a line cut off by a kill


def read_config(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder. Raises UsageError when there is none."""
    try:
        config = json.loads((folder / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{safe(folder)} is no run folder: it has no run.json") from None
    except ValueError as error:
        raise VitError(f"{safe(folder)}/run.json is damaged: {error}; start again in a new folder") from error
    return dict(config)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_file(folder / "run.json", [json.dumps(config, indent=1).encode()])


def next_run_folder(name: str) -> Path:
    """`runs/<name>-<n>` with the least n that is free."""
    n = 1
    while (folder := Path("runs") / f"{name}-{n}").exists():
        n += 1
    return folder


def create_run_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """A new run folder with its run.json. Raises UsageError when it is not empty, VitError when it cannot be made."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{safe(folder)} is not empty: resume it with --resume {safe(folder)}, or choose another --out"
        )
    config = {
        **settings,
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"vitcli": __version__, **{name: version(name) for name in ("torch", "timm", "numpy", "pillow")}},
        "python": platform.python_version(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)
    except OSError as error:
        raise VitError(f"cannot write to {safe(folder)}: {error.strerror}") from error


_LOCKED: set[Path] = set()  # by this process, which its own lock would not keep out


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run in it. The lock dies with the process, however it dies.

    A POSIX lock, which forked children do not inherit: data workers outlive a killed trainer by seconds.
    """
    place = folder.resolve()
    with (folder / ".lock").open("w") as file:
        try:
            if place in _LOCKED:
                raise BlockingIOError
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another run is at work in {safe(folder)}; wait for it or choose another --out") from None
        _LOCKED.add(place)
        try:
            yield
        finally:
            _LOCKED.discard(place)


def disk_free(folder: Path) -> int:
    """Bytes free where the run writes."""
    return shutil.disk_usage(folder).free


def as_line(event: Any) -> dict[str, Any]:
    """An event as a line of metrics.jsonl."""
    return {"event": type(event).__name__.lower(), **asdict(event)}
