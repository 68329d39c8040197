"""The run folder: what a run was asked to do, what happened, and where it stands. It explains itself without the tool.

run.json        model, data (with fingerprint), recipe, command, versions
metrics.jsonl   one line a step, one line an evaluation
checkpoints/    states to resume from, LATEST.json names the newest
best/ last/     checkpoints that every command (and timm, and transformers) loads
"""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol

from torch import Tensor

from vitcli import __version__
from vitcli.checkpoint.durable import write_file
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.text import command, safe
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
        if own := self.config.get("resume"):
            return safe(own, None)
        return command("vit", "finetune" if self.config.get("start") else "train", "--resume", self.folder)

    def restore(self, learner: Restorable) -> tuple[Progress, tuple[str, ...]] | None:
        """Load the newest saved state that is whole into `learner`; None for a fresh run. Raises CheckpointError.

        Returns where it stands and which newer states were skipped. The tensors are let go: they are as large as all
        that the learner holds.
        """
        state = load_state(self.folder)
        if state is None:
            return None
        try:
            learner.load(state.tensors)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"the state saved in {safe(self.folder)} is not one of the model and recipe that its run.json names; "
                "was that file changed?"
            ) from error
        return state.progress, state.skipped

    def save(self, progress: Progress, learner: Restorable) -> None:
        """Raises VitError when the folder was removed."""
        _require_there(self.folder)
        save_state(self.folder, progress, learner.tensors())

    def log(self, line: Mapping[str, Any]) -> None:
        """Raises VitError when the folder was removed."""
        _require_there(self.folder)
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


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations in a run's metrics.jsonl, those from before it was resumed too; without the event's name."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [entry for line in lines if (entry := _entry(line)) and entry.pop("event") == "evaluated"]


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
    _require_empty(folder)
    config = {
        **settings,
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **_machine(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _require_empty(folder)  # another run may have begun here just now
            write_config(folder, config)
    except OSError as error:
        raise VitError(f"cannot write to {safe(folder)}: {error.strerror}") from error


def _machine() -> dict[str, Any]:
    """What else decides the bits of a result."""
    versions = {"vitcli": __version__, **{name: version(name) for name in ("torch", "timm", "numpy", "pillow")}}
    return {"versions": versions, "python": platform.python_version(), "processes": int(os.getenv("WORLD_SIZE", "1"))}


def changed_since(config: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was when the run in whose run.json `config` is began."""
    then, now = _flat(config), _flat(_machine())
    return [f"{name} {then[name]} then, {now[name]} now" for name in then if then[name] != now.get(name, then[name])]


def _flat(machine: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: machine[name] for name in ("python", "processes") if name in machine}
    return {**machine.get("versions", {}), **known}


def _require_empty(folder: Path) -> None:
    if folder.exists() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise UsageError(
            f"{safe(folder)} is not empty: resume it with {command('--resume', folder)}, or choose another --out"
        )


LOCK = ".lock"
_LOCKS: dict[Path, IO[str]] = {}  # of this process, which its own locks would not keep out


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run in it, and removes what a killed one left half-written.

    The lock dies with the process, however it dies. A POSIX lock, which forked children do not inherit: data workers
    outlive a killed trainer by seconds.
    """
    place = folder.resolve()
    busy = UsageError(f"another run is at work in {safe(folder)}; wait for it or choose another --out")
    if place in _LOCKS:  # not even opened again: closing the second descriptor would drop the lock
        raise busy
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise busy from None
        _LOCKS[place] = file
        try:
            for leftover in folder.rglob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            del _LOCKS[place]


def removed(folder: Path) -> VitError:
    return VitError(f"{safe(folder)} was removed while its run was at work; nothing of it is left to go on with")


def _require_there(folder: Path) -> None:
    """Raises VitError when a folder that we hold was removed, even if another run has made a new one since."""
    lock = _LOCKS.get(folder.resolve())
    if lock is not None and not os.fstat(lock.fileno()).st_nlink:
        raise removed(folder)


def as_line(event: Any) -> dict[str, Any]:
    """An event as a line of metrics.jsonl."""
    return {"event": type(event).__name__.lower(), **asdict(event)}
