"""What the cells of a study share: its data, read once, its folder, and what its models cost. Imports no torch."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from vitcli.comparison.results import Size
from vitcli.comparison.study import Pretraining, Study
from vitcli.data.samples import DataSet, Tell, require_one_label
from vitcli.data.sources import READING, open_data
from vitcli.errors import CheckpointError, DataError, UsageError, VitError
from vitcli.files import read_config, read_typed, write_file
from vitcli.text import safe

SIZES = "sizes.json"


@dataclass(frozen=True)
class Sets:
    """The data of a study."""

    data: DataSet
    pretraining: Mapping[str, DataSet]  # what each stage before draws from, by place


def read_sets(
    place: str,
    folders: str | None,
    pretrainings: Sequence[Pretraining],
    progress: Tell | None = None,
    now: Mapping[str, str] | None = None,
) -> Sets:
    """The study's data at `place` and those of its `pretrainings`, each read once. Raises DataError.

    `now` has the places of those that moved, by what they were.
    """
    moved, tell = now or {}, progress and partial(progress, READING)
    data = open_data(moved.get(place, place), folders=folders, progress=tell)
    require_one_label(data, "vit compare")
    places = {stage.data: stage.folders for stage in pretrainings}
    before = {one: open_data(moved.get(one, one), folders=own, progress=tell) for one, own in places.items()}
    return Sets(data, before)


class Cells:
    """The cells of the study that is kept in a folder, and the data that they share.

    `note` is told what a user should know, `progress` what is being done and how far it is.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        sets: Sets | None = None,
        *,
        now: Mapping[str, str] | None = None,
        note: Callable[[str], None] | None = None,
        progress: Tell | None = None,
    ) -> None:
        """Reads the data, but for `sets` that were read already; `now` has the places of those that moved.

        Raises DataError without a test split, UsageError when the data are no longer those of the study.
        """
        self.study, self.folder, self._note, self.progress = study, folder, note, progress
        moved = now or {}
        for option, place in [("--data", study.data), *(("--pretrain-data", one.data) for one in study.pretrainings)]:
            here = moved.get(place, place)
            if sets is None and not os.path.exists(here):
                raise DataError(f"{safe(here)} does not exist; if the data moved, say where they are with {option}")
        sets = sets or read_sets(study.data, study.folders, study.pretrainings, progress, moved)
        self.data, self.pretraining = sets.data, sets.pretraining
        if self.data.test is None:
            raise DataError(
                f"{safe(study.data)} has no test split; a comparison needs images that no choice was based on"
            )
        known = [(self.data, study.data, study.fingerprint)]
        known += [(self.pretraining[stage.data], stage.data, stage.fingerprint) for stage in study.pretrainings]
        for data, place, fingerprint in known:
            if data.fingerprint != fingerprint and moved.get(place, place) != place:
                raise UsageError(f"{safe(moved[place])} does not hold the data that {safe(folder)} began with")
            if data.fingerprint != fingerprint:
                raise UsageError(f"the data in {safe(place)} changed since {safe(folder)} began; start a new study")

    def note(self, line: str) -> None:
        """Tell what a user should know."""
        if self._note:
            self._note(line)

    def sizes(self) -> dict[str, Size] | None:
        """What the study's models cost, as it was kept; None where it was not yet. Raises VitError for damage."""
        path = self.folder / SIZES
        if not os.path.lexists(path):
            return None
        try:
            found = read_config(path)
            return {name: read_typed(Size, found.get(name), name) for name in self.study.models}
        except (CheckpointError, ValueError) as error:
            said = str(error).removeprefix(f"{safe(path)}: ")
            raise VitError(f"{safe(path)} is damaged: {said}; remove it, and the models are measured again") from None

    def keep_sizes(self, sizes: Mapping[str, Size]) -> None:
        """For whoever shows the study again, who then need not build its models."""
        content = {name: asdict(size) for name, size in sizes.items()}
        write_file(self.folder / SIZES, [json.dumps(content).encode()])
