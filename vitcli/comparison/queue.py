"""Who does which cell: any number of processes share a study's folder, and no cell is done twice.

A cell that is done has result.json; one that is being done is locked. A lock dies with its process, so a killed cell is
free again, and what it had trained so far is still in its folder.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from vitcli.checkpoint.durable import write_file
from vitcli.comparison.study import Cell, Study
from vitcli.errors import UsageError, VitError
from vitcli.text import safe

Lock = Callable[[Path], AbstractContextManager[None]]  # raises UsageError when another process holds the folder
Work = Callable[[Cell, Path], Mapping[str, Any]]  # does a cell in its folder; what it gives becomes result.json


def folder_of(study: Path, cell: Cell) -> Path:
    return study / "cells" / cell.name


def done(study: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell that is finished. Raises VitError when its file is damaged."""
    path = folder_of(study, cell) / "result.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise VitError(f"{safe(path)} is damaged: {safe(error)}; remove it, and the cell is done again") from None


def work_through(folder: Path, study: Study, lock: Lock, work: Work) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Do every cell that is neither done nor being done elsewhere; yields each with its result."""
    for cell in study.cells():
        place = folder_of(folder, cell)
        if done(folder, cell) is not None:
            continue
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(lock(place))
            except UsageError:
                continue  # another process is at it
            if (result := done(folder, cell)) is None:  # it was finished between the two looks otherwise
                result = dict(work(cell, place))
                write_file(place / "result.json", [json.dumps(result, allow_nan=False).encode()])
        yield cell, result


def results(folder: Path, study: Study) -> dict[Cell, dict[str, Any]]:
    """Those of the cells that are done."""
    found = {cell: done(folder, cell) for cell in study.cells()}
    return {cell: result for cell, result in found.items() if result is not None}
