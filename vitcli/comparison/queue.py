"""Who does which cell: any number of processes share a study's folder, and no cell is done twice.

A cell that is done has result.json; one that is being done is locked. A lock dies with its process, so a killed cell is
free again, and what it had trained so far is still in its folder.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.comparison.study import Cell, Study
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import read_config, read_typed, write_file
from vitcli.text import safe
from vitcli.training.lock import locked


def folder_of(study: Path, cell: Cell) -> Path:
    """Where a cell is worked on, in the folder `study`."""
    return study / "cells" / cell.name


def done(study: Path, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell that is finished. Raises VitError when its file is damaged."""
    path = folder_of(study, cell) / "result.json"
    if not os.path.lexists(path):
        return None
    try:
        result = read_config(path)
        if read_typed(_Result, result).pretraining_images is None and cell.pretraining:
            raise ValueError("pretraining_images is missing")
        return result
    except (CheckpointError, ValueError) as error:
        said = str(error).removeprefix(f"{safe(path)}: ")
        raise VitError(f"{safe(path)} is damaged: {said}; remove it, and the cell is done again") from None


@dataclass(frozen=True)
class _Result:
    """What the table is made of."""

    test_accuracy: float
    validation_accuracy: float
    images: int  # of the training split
    failed: int  # images of the test split that could not be read
    cpu_seconds: float
    few_shot: Mapping[str, float]  # images a class → accuracy
    pretraining_images: int | None = None  # of a cell with pre-training

    def __post_init__(self) -> None:
        shares = [self.test_accuracy, *self.few_shot.values()]
        if not all(0 <= share <= 1 for share in shares) or self.cpu_seconds < 0:
            raise ValueError("an accuracy is not between 0 and 1, or the time is below 0")
        if self.images < 1 or self.failed < 0 or (self.pretraining_images or 1) < 1:
            raise ValueError("a number of images is impossible")
        if not all(name.isdecimal() for name in self.few_shot):
            raise ValueError("few_shot must be by numbers of images")


def work_through(
    folder: Path, study: Study, work: Callable[[Cell, Path], Mapping[str, Any]]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Do every cell that is neither done nor being done elsewhere; yields each with its result.

    `work` does a cell in its folder; what it returns is kept as the cell's result.json.
    """
    for cell in study.cells():
        place = folder_of(folder, cell)
        if done(folder, cell) is not None:
            continue
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(locked(place))
            except UsageError:
                continue  # another process is at it
            if (result := done(folder, cell)) is None:  # it was finished between the two looks otherwise
                result = dict(work(cell, place))
                write_file(place / "result.json", [json.dumps(result, allow_nan=False).encode()])
        yield cell, result


def results(folder: Path, study: Study) -> dict[Cell, dict[str, Any]]:
    """The results of the cells that are done, in the order of the study. Raises VitError when one is damaged."""
    found = {cell: done(folder, cell) for cell in study.cells()}
    return {cell: result for cell, result in found.items() if result is not None}
