"""What a comparison consists of: cells, one for each model, share of the data and seed. Kept in study.json.

A cell's name is its folder's; what it needs to know is in the study, so one that was killed goes on from its folder.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vitcli.checkpoint.durable import write_file
from vitcli.errors import UsageError, VitError
from vitcli.text import safe


@dataclass(frozen=True)
class Pretraining:
    """What a model is first trained on: a share of a data set."""

    name: str  # "small", "large", …
    data: str
    share: float
    fingerprint: str = ""  # of the data
    folders: str | None = None  # what its folders are, as `read_splits` takes it


@dataclass(frozen=True)
class Cell:
    """One run: this model, on this share of each class's training images, with this seed for everything random."""

    model: str
    share: float
    seed: int
    pretraining: Pretraining | None = None

    @property
    def name(self) -> str:
        before = f"-after-{self.pretraining.name}" if self.pretraining else ""
        return f"{self.model}-{self.share * 100:g}%{before}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """Everything that decides the result; two studies with the same fields give the same table."""

    data: str
    fingerprint: str  # of the data
    models: Mapping[str, Mapping[str, Any]]  # by name: its `architecture` and `model_args`
    shares: tuple[float, ...]  # rising
    seeds: int
    epochs: float  # on all of the data; smaller shares get more, see `epochs_of`
    most_epochs: float
    recipe: Mapping[str, Any]
    fitted: tuple[str, ...] = ()  # settings of the recipe that each model's image size decides
    pretrainings: tuple[Pretraining, ...] = ()
    finetune_size: float = 1.0  # after pre-training: image size as a multiple of the model's own
    folders: str | None = None  # what the data's folders are, as `read_splits` takes it

    def cells(self) -> Iterator[Cell]:
        """Seed by seed, small shares first: a picture of the whole is there early."""
        for seed in range(self.seeds):
            for share in self.shares:
                for model in self.models:
                    for pretraining in self.pretrainings or (None,):
                        yield Cell(model, share, seed, pretraining)

    def epochs_of(self, share: float) -> float:
        """Epochs / √share, at most `most_epochs`: a small share needs more passes and fewer steps."""
        return min(self.most_epochs, self.epochs / math.sqrt(share))


def write_study(folder: Path, study: Study) -> None:
    """Create `folder` with study.json. An equal study in it goes on; raises UsageError for another one."""
    path = folder / "study.json"
    occupied = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if path.exists():  # looked at last: another process may have begun the same study just now
        if read_study(folder) != study:
            raise UsageError(f"{safe(folder)} holds another study; resume it without changes, or choose another --out")
        return
    if occupied:
        raise UsageError(f"{safe(folder)} is not empty and holds no study; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, [json.dumps(asdict(study), indent=1).encode()])


def read_study(folder: Path) -> Study:
    """Raises VitError when study.json is not one, UsageError when there is none."""
    path = folder / "study.json"
    try:
        found = json.loads(path.read_text("utf-8"))
        if set(found) | {"folders"} != {field.name for field in fields(Study)}:
            raise ValueError("its fields are not those that this version writes")
        found["pretrainings"] = tuple(Pretraining(**one) for one in found["pretrainings"])
        return Study(**{**found, "shares": tuple(found["shares"]), "fitted": tuple(found["fitted"])})
    except FileNotFoundError:
        raise UsageError(f"{safe(folder)} is no study: it has no study.json") from None
    except (ValueError, TypeError, KeyError) as error:
        raise VitError(f"{safe(path)} is damaged: {safe(error)}; start again in a new folder") from None
