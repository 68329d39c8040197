"""metrics.jsonl of a run folder, as it is read again. Imports no torch."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError, VitError
from vitcli.files import open_regular, parse_object, read_typed
from vitcli.text import safe
from vitcli.training.events import Evaluated, HeadFitted, Stepped

MAX_METRICS = 1 << 30  # bytes: ten million steps
MAX_LINE = 1 << 16
_LINES: dict[str, Any] = {"stepped": Stepped, "evaluated": Evaluated, "headfitted": HeadFitted}


def as_line(event: Any) -> dict[str, Any]:
    """An event as a line of metrics.jsonl."""
    return {"event": type(event).__name__.lower(), **asdict(event)}


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.jsonl, each with `event` and `step`, and how many others were damaged.

    A last one that a kill cut off does not count. Raises VitError when it is no file of metrics at all.
    """
    path = folder / "metrics.jsonl"
    entries, damaged = [], 0
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_METRICS:
            raise VitError(f"{safe(path)}: larger than {MAX_METRICS >> 30} GiB; remove it, and the run goes on without")
        while line := file.readline(MAX_LINE):
            try:
                entries.append(_entry(line))
            except (CheckpointError, ValueError):
                damaged += line.endswith(b"\n") or len(line) == MAX_LINE
    return entries, damaged


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The evaluations in a run's metrics.jsonl, those from before it was resumed too; without the event's name."""
    return [entry for entry in read_metrics(folder)[0] if entry.pop("event") == "evaluated"]


def _entry(line: bytes) -> dict[str, Any]:
    entry = parse_object(line, "line")
    read_typed(_Line, entry)
    if kind := _LINES.get(entry["event"]):
        read_typed(kind, entry)
    return entry


@dataclass(frozen=True)
class _Line:
    event: str
    step: int
