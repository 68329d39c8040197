"""The run folders below a folder, as they stand: what `vit runs` lists. Imports no torch and changes nothing."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitcli.errors import CheckpointError, VitError
from vitcli.files import read_config, read_typed
from vitcli.metrics import Interval, wilson
from vitcli.text import command, safe
from vitcli.training.lock import is_locked
from vitcli.training.log import read_metrics

State = Literal["running", "stopped", "ended", "damaged"]
DEEP = 3  # folders below the one that is named


@dataclass(frozen=True)
class Listed:
    """A run, as its folder tells it."""

    folder: Path
    state: State
    data: str = ""  # name of the data's folder or file
    model: str = ""  # the architecture, or the checkpoint that it began with
    started: str = ""  # ISO 8601
    epoch: float = 0.0  # done
    epochs: float = 0.0  # wanted
    accuracy: float | None = None  # the best on the validation images; of several labels mean average precision
    interval: Interval | None = None  # 95 %, of an accuracy
    go_on: str | None = None  # the command that goes on with it, where it stopped
    error: str | None = None


def runs_below(folder: Path) -> Iterator[Listed]:
    """Every run in `folder` and below, in the order of their paths. Raises VitError where it is no folder."""
    if not folder.is_dir():
        raise VitError(f"{safe(folder)} is no folder; runs lie in runs/ unless --out said otherwise")
    for place in _places(folder, DEEP):
        try:
            yield _listed(place)
        except (VitError, ValueError) as error:
            yield Listed(place, "damaged", error=str(error))


def _places(folder: Path, deep: int) -> Iterator[Path]:
    if (folder / "run.json").is_file():
        yield folder
        return
    if deep:
        try:
            inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return
        for name in inside:
            if not name.startswith("."):
                yield from _places(folder / name, deep - 1)


@dataclass(frozen=True)
class _Recipe:
    epochs: float = 0.0
    patience: int = 0


@dataclass(frozen=True)
class _Start:
    checkpoint: str = ""
    tune: str = "all"


@dataclass(frozen=True)
class _Config:
    """What of run.json is shown."""

    data: str
    recipe: _Recipe
    architecture: str = ""
    start: _Start | None = None
    started: str = "unknown"
    budget: float | None = None
    resume: str | None = None


def _listed(folder: Path) -> Listed:
    try:
        config: _Config = read_typed(_Config, read_config(folder / "run.json"))
    except ValueError as error:
        raise CheckpointError(f"{safe(folder / 'run.json')} is damaged: {error}") from None
    lines = read_metrics(folder)[0] if (folder / "metrics.jsonl").exists() else []
    evaluated = [line for line in lines if line["event"] == "evaluated"]
    best = max(evaluated, key=_score, default=None)
    score = _score(best) if best and best["validation"]["n"] else None
    several = bool(best and best["validation"].get("mean_average_precision") is not None)
    n = best["validation"]["n"] if best else 0
    state: State = "running" if is_locked(folder) else "ended" if _ended(folder, config, lines) else "stopped"
    verb = "finetune" if config.start else "train"
    go_on = config.resume or command("vit", verb, "--resume", folder)
    return Listed(
        folder=folder,
        state=state,
        data=config.data.rstrip("/").rpartition("/")[2],
        model=config.start.checkpoint if config.start else config.architecture,
        started=config.started,
        epoch=float(lines[-1].get("epoch", 0.0)) if lines else 0.0,
        epochs=config.recipe.epochs,
        accuracy=score,
        interval=wilson(round(score * n), n) if score is not None and not several else None,
        go_on=go_on if state == "stopped" else None,
    )


def _score(line: dict[str, Any]) -> float:
    """By which the best epoch is chosen, of a line that was checked."""
    validation = line["validation"]
    found = validation.get("mean_average_precision")
    return float(validation["accuracy"] if found is None else found)


def _ended(folder: Path, config: _Config, lines: list[dict[str, Any]]) -> bool:
    """Whether there is nothing to go on with: the report is written, and the last thing done was the last to do."""
    if not lines or lines[-1]["event"] != "evaluated" or not (folder / "report.html").exists():
        return False
    if config.start and config.start.tune == "head":
        return True
    last = lines[-1]
    return bool(last["step"] == last["total"] or config.budget or config.recipe.patience)
