"""What a comparison consists of: cells, one for each model, share of the data and seed. Kept in study.json.

A cell's name is its folder's; what it needs to know is in the study, so one that was killed goes on from its folder.

Models have short names here, for images as small as those of the data; any other name is timm's. ViTs come in two
sizes. The hybrid is near the larger one in parameters, the small ResNet in multiply–adds (and above 96 pixels in both);
elsewhere the table's columns for parameters, multiply–adds and CPU seconds say what is compared.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import read_config, read_typed, write_file
from vitcli.model.architectures import ARCHITECTURES
from vitcli.storage.records import Cache
from vitcli.text import safe

SMALL = 64  # images of at most so many pixels are small: CNNs made for 224 pixels see them enlarged to this


@dataclass(frozen=True)
class Contender:
    """A model to be built: timm's name of its architecture, and in what it differs from that."""

    architecture: str
    model_args: dict[str, Any]


def contender(name: str, side: int) -> Contender:
    """The model that `name` means for images whose shorter side has `side` pixels."""
    large = side > 96  # where patches have 16 pixels
    if name in ("vit", "vit-small"):
        patch = 16 if large else 8 if side > 40 else 4
        size = max(round(min(side, 224) / patch), 2) * patch
        larger, smaller = ((192, 12, 3), (128, 6, 4)) if large else ((128, 6, 4), (64, 4, 2))
        width, depth, heads = larger if name == "vit" else smaller
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        return Contender("vit_tiny_patch16_224", {"img_size": [size] * 2, "patch_size": [patch] * 2, **sizes})
    size = 32 * min(max(round(side / 32), 1), 7)
    if name == "hybrid":
        width, depth, heads, patch = (192, 9, 3, 2) if large else (128, 4, 4, 1)
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        own = {"img_size": [size] * 2, "patch_size": [patch] * 2, "stem": {"layers": [2, 2], "width": 32}}
        return Contender("vit_tiny_r_s16_p8_224", {**own, **sizes})
    if name == "resnet-small":
        channels = [44, 88, 176, 352] if large else [32, 64, 128, 256]
        return Contender("resnet18", {"img_size": [max(size, SMALL)] * 2, "channels": channels})
    size = SMALL if side <= SMALL else 224
    known = ARCHITECTURES.get(name)
    return Contender(name, {"img_size": [-(-size // patch) * patch for patch in known.stride] if known else [size] * 2})


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
    """Everything that decides the result; two studies with the same fields give the same table.

    So do two that differ in where copies are kept (`goes_on_with`).
    """

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
    cache: Cache = "none"  # where copies of the images are kept, as in a run's settings

    def cells(self) -> Iterator[Cell]:
        """Seed by seed, small shares first: a picture of the whole is there early."""
        for seed in range(self.seeds):
            for share in self.shares:
                for model in self.models:
                    for pretraining in self.pretrainings or (None,):
                        yield Cell(model, share, seed, pretraining)

    def goes_on_with(self, known: "Study") -> bool:
        """Whether cells of this study and of `known`, which was begun before, give one table."""
        return replace(self, cache=known.cache) == known and (self.cache == "none") == (known.cache == "none")

    def epochs_of(self, share: float) -> float:
        """Epochs / √share, at most `most_epochs`: a small share needs more passes and fewer steps."""
        return min(self.most_epochs, self.epochs / math.sqrt(share))


def write_study(folder: Path, study: Study) -> None:
    """Create `folder` with study.json. An equal study in it goes on; raises UsageError for another one."""
    path = folder / "study.json"
    occupied = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if path.exists():  # looked at last: another process may have begun the same study just now
        if not study.goes_on_with(read_study(folder)):
            raise UsageError(f"{safe(folder)} holds another study; resume it without changes, or choose another --out")
        return
    if occupied:
        raise UsageError(f"{safe(folder)} is not empty and holds no study; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, [json.dumps(asdict(study), indent=1).encode()])


def read_study(folder: Path) -> Study:
    """Raises VitError when study.json is not one, UsageError when there is none."""
    path = folder / "study.json"
    if not os.path.lexists(path):
        raise UsageError(f"{safe(folder)} is no study: it has no study.json")
    try:
        found = read_config(path)
        if set(found) | {"folders", "cache"} != {field.name for field in fields(Study)}:
            raise ValueError("its fields are not those that this version writes")
        study = read_typed(Study, found)
        require_possible(study)
        return study
    except (ValueError, CheckpointError) as error:
        said = str(error).removeprefix(f"{safe(path)}: ")
        raise VitError(
            f"{safe(path)} is damaged: {said}; start again in a new folder (each cells/*/run remains a complete run)"
        ) from None


MOST_CELLS = 100_000
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of a cell, which the name of its model begins


def require_possible(study: Study) -> None:
    """Raises ValueError where the fields make no study, each being of its type."""
    for name, chosen in study.models.items():
        if not (_FOLDER.fullmatch(name) and read_typed(_Model, chosen, f"models.{name}").possible):
            raise ValueError(f"models.{safe(name, 40)} is not a model with its image size")
    for stage in study.pretrainings:
        if not stage.name.isidentifier() or len(stage.name) > 100:
            raise ValueError(f"'{safe(stage.name, 40)}' cannot be the name of a pre-training")
    if not study.models or not study.shares:
        raise ValueError("it has no models, or no amounts of data")
    if not all(0 < share <= 1 for share in [*study.shares, *(one.share for one in study.pretrainings)]):
        raise ValueError("a share is not above 0 and at most 1")
    if len(set(study.shares)) < len(study.shares):
        raise ValueError("an amount of data is there twice")
    if not all(0 < epochs <= 1e6 for epochs in (study.epochs, study.most_epochs)):
        raise ValueError("epochs are not above 0 and at most 1e6")
    if not 0 < study.finetune_size <= 8:
        raise ValueError("finetune_size is not above 0 and at most 8")
    cells = study.seeds * len(study.models) * len(study.shares) * max(len(study.pretrainings), 1)
    if not 0 < cells <= MOST_CELLS:
        raise ValueError(f"it has {cells} cells, not 1 to {MOST_CELLS}")


@dataclass(frozen=True)
class _Model:
    architecture: str
    model_args: Mapping[str, Any]

    @property
    def possible(self) -> bool:
        size = self.model_args.get("img_size")
        return isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= 1 << 14 for n in size)
