"""What `vit compare` does: from its options to a study, from its cells to the table."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitcli.cli.console import data_opened, note
from vitcli.cli.views import comparison as view
from vitcli.comparison import cells as cell_costs
from vitcli.comparison.cells import Cells, pretraining_sets
from vitcli.comparison.contenders import SMALL, contender
from vitcli.comparison.queue import results, work_through
from vitcli.comparison.report import write_report
from vitcli.comparison.results import Findings, Size
from vitcli.comparison.study import Pretraining, Study, read_study, write_study
from vitcli.errors import UsageError
from vitcli.text import safe
from vitcli.training.folder import locked
from vitcli.training.recipe import FITTED, Recipe, as_dict, load_recipe, override, small_images

WAIT = 5.0  # seconds between two looks at what other processes do


class Comparing:
    """One study in its folder."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study
        self.cells = Cells(study, folder)

    @classmethod
    def fresh(
        cls,
        data: str,
        out: str | None,
        *,
        folders: str | None,
        models: Sequence[str],
        shares: tuple[float, ...],
        seeds: int,
        epochs: float | None,
        most_epochs: float,
        recipe: str | None,
        changes: dict[str, Any],
        pretrainings: tuple[Pretraining, ...],
        finetune_scale: float,
    ) -> "Comparing":
        place = str(Path(data).resolve())
        found = data_opened(place, folders=folders)
        sets = pretraining_sets(pretrainings)
        side = next(iter(sets.values()), found).side
        fit = recipe is None and side <= SMALL
        loaded = _recipe(recipe, changes, side if fit else None)
        if epochs is None:
            epochs = loaded.epochs
        fitted = tuple(name for name in FITTED if fit and name not in changes)
        pretrainings = tuple(replace(one, fingerprint=sets[one.data].fingerprint) for one in pretrainings)
        chosen = {name: asdict(contender(name, side)) for name in models}
        study = Study(
            place, found.fingerprint, chosen, shares, seeds, epochs, most_epochs, as_dict(loaded), fitted,
            pretrainings, finetune_scale, folders,
        )  # fmt: skip
        folder = Path(out) if out else Path("runs") / f"compare-{Path(place).name}"
        return cls(folder, study)

    @classmethod
    def resumed(cls, folder: str) -> "Comparing":
        return cls(Path(folder), read_study(Path(folder)))

    def run(self, form: str, *, workers: int | None, dry_run: bool) -> int:
        """Plan, cells, table. Returns how many test images could not be read."""
        rank = _apart()
        cells = list(self.study.cells())
        if rank == 0 or dry_run:
            costs, done = cell_costs.seconds(self.cells), len(results(self.folder, self.study))
            view.plan(self.study, self.folder, costs, done)
        if dry_run:
            if form == "json":
                view.plan_json(self.study, self.folder, costs, done)
            return 0
        write_study(self.folder, self.study)
        work = partial(self.cells.work, workers=workers)
        sizes = cell_costs.sizes(self.cells)
        for cell, result in work_through(self.folder, self.study, locked, work):
            left = len(cells) - len(results(self.folder, self.study))
            write_report(self.folder, self._findings(sizes))
            note(f"{cell.name}: test accuracy {result['test_accuracy']:.4f}, {left} cells to go")
        while rank == 0 and len(results(self.folder, self.study)) < len(cells):  # those that other processes are at
            time.sleep(WAIT)
            for _ in work_through(self.folder, self.study, locked, work):
                pass
        if rank != 0:
            return 0
        found = self._findings(sizes)
        write_report(self.folder, found)
        view.show(form, self.folder, found)
        return found.failed

    def _findings(self, sizes: Mapping[str, Size]) -> Findings:
        return Findings(self.study, results(self.folder, self.study), sizes)


def shares(text: str, option: str) -> tuple[float, ...]:
    """`1%,10%,100%` → (0.01, 0.1, 1.0), rising. Raises UsageError."""
    try:
        found = sorted(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError:
        found = [0.0]
    if not all(0 < share <= 1 for share in found) or len(set(found)) < len(found):
        raise UsageError(f"{option} {safe(text)}: write different percentages, such as 1%,10%,100%")
    return tuple(found)


def stages(text: str | None, data: str | None, folders: str | None = None) -> tuple[Pretraining, ...]:
    """`small=5%,large=100%` of `data`, or `small=FOLDER,…`. Raises UsageError."""
    found = []
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--pretrain {safe(part)}: write name=5% or name=FOLDER")
        if value.endswith("%"):
            if data is None:
                raise UsageError(f"--pretrain {safe(part)}: a share of what? --pretrain-data is missing")
            found.append(Pretraining(name, str(Path(data).resolve()), shares(value, "--pretrain")[0], folders=folders))
        elif data is not None:
            raise UsageError(f"--pretrain {safe(part)} is a folder; --pretrain-data is for shares")
        else:
            found.append(Pretraining(name, str(Path(value).resolve()), 1.0, folders=folders))
    if len({one.name for one in found}) < len(found):
        raise UsageError(f"--pretrain {safe(text)}: two sets of one name")
    return tuple(found)


def names(text: str) -> list[str]:
    """`vit,resnet18` → its parts. Raises UsageError."""
    found = [name.strip() for name in text.split(",")]
    if "" in found or len(set(found)) < len(found):
        raise UsageError(f"--models {safe(text)}: write different names, such as vit,hybrid,resnet18")
    return found


def _recipe(name: str | None, changes: dict[str, Any], small: int | None) -> Recipe:
    """One recipe for every model, fitted to images of `small` pixels where they are so.

    Raises UsageError for what a study sets itself, or cannot be one for all.
    """
    for setting, instead in {"epochs": "--epochs", "steps": "--epochs", "seed": "--seeds", "lrs": "--set lr"}.items():
        if setting in changes:
            raise UsageError(f"--set {setting}: a study has {instead} for that")
    file = load_recipe(name or "compare")
    if file.model or file.recipe.steps or file.recipe.lrs:
        what = "a [model] part" if file.model else "steps instead of epochs" if file.recipe.steps else "several lrs"
        raise UsageError(f"the recipe {safe(name)} has {what}; a study needs one that suits every model and amount")
    return override(small_images(file.recipe, small) if small else file.recipe, changes, "--set")


def _apart() -> int:
    """This process's rank under `torchrun`, which from here on is forgotten: each process trains by itself."""
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        os.environ.pop(name, None)
    return rank
