"""`compare`: which kind of model for how much data. Begins a study or goes on with one; prints nothing.

found = compare("photos/", models=["vit", "resnet18"], sizes=[0.1, 1.0], out="study")
print([(point.model, point.images, point.mean) for point in found.points])
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitcli.comparison import FINETUNE_SCALE, MODELS, MOST_EPOCHS, SEEDS, SHARES
from vitcli.comparison.cells import Cells, read_sets
from vitcli.comparison.queue import results, work_through
from vitcli.comparison.report import write_report
from vitcli.comparison.results import Findings, Size
from vitcli.comparison.study import (
    SMALL,
    Cell,
    Pretraining,
    Study,
    contender,
    read_study,
    require_possible,
    write_study,
)
from vitcli.data.samples import Tell
from vitcli.errors import UsageError
from vitcli.machine import default_device
from vitcli.storage.named import absolute, name_of
from vitcli.text import safe
from vitcli.training.cache import CacheWish, Choice, Copied, choose_cache
from vitcli.training.recipe import FITTED, Recipe, as_dict, load_recipe, override, small_images

WAIT = 5.0  # seconds between two looks at what other processes do


def compare(
    data: str | Path,
    *,
    models: Sequence[str] = MODELS,
    sizes: Sequence[float] | None = None,
    seeds: int = SEEDS,
    epochs: float | None = None,
    most_epochs: float = MOST_EPOCHS,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    folders: str | None = None,
    pretrainings: Sequence[Pretraining] = (),
    finetune_scale: float | None = None,
    cache: CacheWish = "auto",
    out: str | Path | None = None,
    workers: int | None = None,
    note: Callable[[str], None] | None = None,
    progress: Tell | None = None,
) -> Findings:
    """Train each of `models` on growing shares of `data`, with several seeds: do you need a ViT, a hybrid or a CNN?

    The study is kept in the folder `out`; where one of the same arguments is there already, it goes on. The arguments
    are those of `begin` and `carry_out`, and so are the errors raised.
    """
    leave_torchrun()
    cells = begin(
        data, models=models, sizes=sizes, seeds=seeds, epochs=epochs, most_epochs=most_epochs, recipe=recipe,
        settings=settings, folders=folders, pretrainings=pretrainings, finetune_scale=finetune_scale, cache=cache,
        out=out, note=note, progress=progress,
    )  # fmt: skip
    return carry_out(cells, workers=workers)


def begin(
    data: str | Path,
    *,
    models: Sequence[str] = MODELS,
    sizes: Sequence[float] | None = None,
    seeds: int = SEEDS,
    epochs: float | None = None,
    most_epochs: float = MOST_EPOCHS,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    folders: str | None = None,
    pretrainings: Sequence[Pretraining] = (),
    finetune_scale: float | None = None,
    cache: CacheWish = "auto",
    out: str | Path | None = None,
    note: Callable[[str], None] | None = None,
    progress: Tell | None = None,
) -> Cells:
    """A study of what is at the place `data`, of which nothing is written yet.

    `models` are short names (see `contenders`) or timm's; `sizes` shares of each class's training images, above 0 and
    up to 1; `epochs` passes over all of the data (None: the recipe's), of which a share s gets 1/√s times as many but
    at most `most_epochs`; `settings` override those of `recipe`. After `pretrainings`, models are fine-tuned at
    `finetune_scale` times their image size. `cache` says where copies of the images are kept, which all cells share.
    `folders` as in `read_splits`. `note` is told what a user should know,
    `progress` what is being done and how far it is. Raises UsageError, and DataError for data without a test split.
    """
    if finetune_scale is not None and not pretrainings:
        raise UsageError("finetune_scale belongs to pretrainings; without any it would change nothing")
    if finetune_scale is not None and not 0 < finetune_scale <= 8:
        raise UsageError(f"--finetune-scale {safe(finetune_scale)}: a number above 0 and up to 8")
    for option, value in (("--epochs", epochs), ("--most-epochs", most_epochs)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} {value:g}: a number above 0")
    place, changes = absolute(str(data)), dict(settings or {})
    stages = tuple(replace(stage, data=absolute(stage.data)) for stage in pretrainings)
    sets = read_sets(place, folders, stages, progress)
    side = next(iter(sets.pretraining.values()), sets.data).side
    fit = recipe is None and side <= SMALL
    chosen = _recipe(recipe, changes, side if fit else None)
    study = Study(
        data=place,
        fingerprint=sets.data.fingerprint,
        models={name: asdict(contender(name, side)) for name in models},
        shares=tuple(sorted(sizes or ((1.0,) if stages else SHARES))),
        seeds=seeds,
        epochs=chosen.epochs if epochs is None else float(epochs),
        most_epochs=float(most_epochs),
        recipe=as_dict(chosen),
        fitted=tuple(name for name in FITTED if fit and name not in changes),
        pretrainings=tuple(replace(stage, fingerprint=sets.pretraining[stage.data].fingerprint) for stage in stages),
        finetune_size=finetune_scale or (FINETUNE_SCALE if stages else 1.0),
        folders=folders,
    )
    try:
        require_possible(study)
    except ValueError as error:
        raise UsageError(f"this cannot be a study: {error}") from None
    folder = Path(out) if out else Path("runs") / f"compare-{name_of(place)}"
    from vitcli.comparison.work import copies_needed

    copies = copies_needed(Cells(study, folder, sets))
    kept = choose_cache(cache, copies, again=True, processes=1)
    study = replace(study, cache=kept.cache)
    if cache == "auto" and (folder / "study.json").exists():
        before = read_study(folder).cache
        study, kept = replace(study, cache=before), Choice(before)
    cells = Cells(study, folder, sets, note=note, progress=progress)
    if kept.why:
        cells.note(f"copies of the images: {kept.why}")
    return cells


def resume(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    pretraining_data: str | Path | None = None,
    note: Callable[[str], None] | None = None,
    progress: Tell | None = None,
) -> Cells:
    """The study in `folder`, to go on with. `data` and `pretraining_data` are where these are now, if they moved.

    Raises UsageError without a study, or when its data have changed; VitError.
    """
    study = read_study(Path(folder))
    drawn_from = {stage.data for stage in study.pretrainings}
    now = {study.data: study.data if data is None else str(data)}
    if pretraining_data is not None:
        if len(drawn_from) != 1:
            many = len(drawn_from)
            raise UsageError(f"--pretrain-data: the models of {safe(folder)} are pre-trained on {many} data sets")
        now[drawn_from.pop()] = str(pretraining_data)
    return Cells(study, Path(folder), now=now, note=note, progress=progress)


def carry_out(cells: Cells, *, workers: int | None = None, wait: bool = True) -> Findings:
    """Train and score whatever is not done yet, with a report after each cell.

    Cells that other processes are at are left to them, and waited for unless told not to `wait`. `workers` processes
    decode images, as many as suit the machine unless given. Stopped or killed, the same call goes on where it was.
    Raises UsageError when the folder holds another study.
    """
    study, folder = cells.study, cells.folder
    write_study(folder, study)
    sizes, total = _sizes(cells), len(list(study.cells()))
    while True:
        with Copied() as copied:
            for cell, result in work_through(folder, study, partial(_work, cells, workers, copied)):
                found = Findings(study, results(folder, study), sizes)
                write_report(folder, found)
                left = total - len(found.cells)
                cells.note(f"{cell.name}: test accuracy {result['test_accuracy']:.4f}, {left} cells to go")
        found = Findings(study, results(folder, study), sizes)
        if not wait:
            return found
        if len(found.cells) == total:
            write_report(folder, found)
            return found
        time.sleep(WAIT)


def _work(cells: Cells, workers: int | None, copied: Copied, cell: Cell, place: Path) -> Mapping[str, Any]:
    from vitcli.comparison.work import Worker

    return Worker(cells, copied).work(cell, place, workers)


def _sizes(cells: Cells) -> Mapping[str, Size]:
    """What the models cost: as it was kept, or counted by building each."""
    found = cells.sizes()
    if found is None:
        from vitcli.comparison.work import model_sizes

        found = model_sizes(cells)
        cells.keep_sizes(found)
    return found


@dataclass(frozen=True)
class Plan:
    """What a study will do, and what that will cost on this machine."""

    folder: Path
    study: Study
    cells: int
    done: int
    seconds: Mapping[str, float]  # by model, of its cells that are not done yet


def plan(cells: Cells) -> Plan:
    """What is left to do. The cost is measured, which takes a while."""
    study, done = cells.study, results(cells.folder, cells.study)
    total = len(list(study.cells()))
    seconds: Mapping[str, float] = {}
    if len(done) < total:
        from vitcli.comparison.work import seconds_left

        seconds = seconds_left(cells)
    return Plan(cells.folder, study, total, len(done), seconds)


def leave_torchrun() -> int:
    """This process's rank under `torchrun`, which from here on is forgotten: each process trains by itself."""
    rank = int(os.environ.get("RANK", "0"))
    if "LOCAL_RANK" in os.environ and default_device() in ("cuda", "xpu"):
        import torch

        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        os.environ.pop(name, None)
    return rank


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
