"""What a run will do, built and measured before anything is written: `plan`, and `plan_resumption` of the rest."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.data.samples import DataSet
from vitcli.data.split import subset
from vitcli.errors import UsageError
from vitcli.machine import default_device, memory_free, on_cpu
from vitcli.training.auto import moved, worth_compiling
from vitcli.training.budget import Clock
from vitcli.training.build import Resolver, build_task, retuned
from vitcli.training.cache import CacheWish, choose_cache, kept_since, needed_by, reads_again
from vitcli.training.estimate import Estimate, choose_tune, estimate, held_bytes, share_in_time
from vitcli.training.folder import changed_since, follow, next_run_folder, read_config
from vitcli.training.folds import require_scorable
from vitcli.training.keeping import warning
from vitcli.training.recipe import Recipe
from vitcli.training.report import ScoredSplit
from vitcli.training.settings import Settings, suited
from vitcli.training.sharding import require_shardable
from vitcli.training.task import Task
from vitcli.training.train import alone, begun, on_machine, processes, require_same, restarted, resumed


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """What will be done, built and measured. Nothing of it is written yet."""

    settings: Settings
    task: Task
    folder: Path
    device: str
    cost: Estimate | None  # None for a run that goes on
    why: str = ""  # how it was chosen what is trained
    goes_on: bool = False  # in a folder that holds a part of the run already
    notes: tuple[str, ...] = ()  # what should be known before it starts
    cache: str = ""  # where copies of the images are kept, and why there


def plan(
    settings: Settings,
    data: DataSet,
    out: str | Path | None = None,
    *,
    score: ScoredSplit = "auto",
    device: str | None = None,
    began: float | None = None,
    base: Checkpoint | None = None,
    choose: bool = False,
    cache: CacheWish = "auto",
    again: bool = False,
    resolver: Resolver = resolve,
) -> PlannedRun:
    """A fresh run in `out`, or in the next free folder; the same run when `torchrun` restarts it.

    With `again` that is what is left of the run in `out` where there is one, which must be of these settings. With
    `choose` what is trained is up to the measured cost and the time left since `began` (time.monotonic). `cache` is
    where copies of the images are to be kept. `base` and `resolver` as `build_task` takes them.
    """
    if settings.folds and not alone():
        raise UsageError("--folds works in one process; under torchrun choose --tune all alone")
    if out is None and not alone():
        raise UsageError("under torchrun, name the run folder with --out, so that all processes mean the same")
    if settings.budget and settings.recipe.lrs:
        raise UsageError("a recipe that tries learning rates has no time budget; --lr chooses one")
    require_scorable(settings, data, score)
    if settings.recipe.shard_model and alone():
        raise UsageError("shard_model shares the model out among processes: start them with torchrun, or leave it out")
    settings, off = suited(settings, data)
    folder = Path(out) if out else next_run_folder(settings.name)
    place = device or default_device()
    if again and begun(folder):
        require_same(settings, folder, chosen=choose)
        return plan_resumption(*resumed(folder), folder, score=score, device=device, resolver=resolver)
    left_open, settings = settings.recipe, on_machine(settings, place)
    task = build_task(settings, data, base=base, resolver=resolver)
    require_shardable(settings.recipe, task.model, task.architecture)
    why, cost = "", None
    if choose and settings.recipe.lrs:
        why = "its learning rates are for training all of it, from a head of zeros"
    elif choose and not alone():
        why = "several processes train all of it; --tune head fits a head alone"
    elif choose:
        cost = estimate(task, place)
        settings, data, why = _choice(settings, data, cost, place, began)
        task = retuned(task, settings.tune, data)
    if restarted(settings, folder):
        return plan_resumption(*resumed(folder), folder, score=score, device=device, resolver=resolver)
    twice = reads_again(settings, len(data.train))
    kept = choose_cache(cache, needed_by(task, settings), again=twice, processes=processes())
    settings = replace(settings, cache=kept.cache)
    training = settings.tune != "head"
    held = _held(task, place) if training else ""
    if not held:
        cost = cost or estimate(task, place, training=training, processes=processes())
    if training and cost:
        recipe = _as_measured(settings.recipe, left_open, cost, place)
        settings, task = replace(settings, recipe=recipe), replace(task, recipe=recipe)
    slow = moved(settings.recipe, place) if training else None
    notes = tuple(note for note in (slow, off, held, warning(data)) if note)
    return PlannedRun(settings, task, folder, place, cost, why, notes=notes, cache=kept.why)


def _held(task: Task, place: str) -> str:
    """What should be known where a model and what goes with it do not fit into one of several processes; else nothing.

    It is then not measured either.
    """
    count, free = processes(), memory_free(place)
    if on_cpu(place) and free is not None:
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # it is that of all
    recipe = task.recipe
    alone_in_each, shared = (
        held_bytes(replace(task, recipe=replace(recipe, shard_model=one)), count) for one in (False, True)
    )
    if count == 1 or free is None or alone_in_each <= free:
        return ""
    gib = f"{alone_in_each / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free"
    if recipe.shard_model:
        return (
            f"not measured, since one process alone would need {gib}; shared out, each takes {shared / 2**30:.1f} GiB"
        )
    return (
        f"does not fit: each process needs {gib}, before any activation; "
        f"--set shard_model=true takes {shared / 2**30:.1f} GiB of each"
    )


def _as_measured(recipe: Recipe, left_open: Recipe, cost: Estimate, place: str) -> Recipe:
    """`recipe` with what the estimate has shown of what was `left_open`: the micro-batch that fits, and compilation."""
    changes: dict[str, Any] = {}
    if not left_open.micro_batch and alone() and not on_cpu(place):  # several processes have to agree, without a word
        changes |= {"micro_batch": cost.micro_batch}
    if left_open.compile is None and alone():
        changes |= {"compile": worth_compiling(cost.all_seconds, place)}
    return replace(recipe, **changes)


def _choice(
    settings: Settings, data: DataSet, cost: Estimate, place: str, began: float | None
) -> tuple[Settings, DataSet, str]:
    """What is trained, on which data, and why."""
    left = settings.budget and settings.budget - Clock(settings.budget, began).used
    whole = replace(cost, epochs=cost.epochs * max(settings.folds, 1))  # a model for each fold, and that of all
    tune, why = choose_tune(whole, len(data.classes), left, memory_free(place))
    assert settings.start
    settings = replace(settings, start=replace(settings.start, tune=tune))
    if tune == "head" and left is not None:
        settings = replace(settings, share=share_in_time(cost, left))
        data = subset(data, settings.share)
    return settings, data, why


def plan_resumption(
    settings: Settings,
    data: DataSet,
    folder: Path,
    *,
    score: ScoredSplit = "auto",
    device: str | None = None,
    resolver: Resolver = resolve,
) -> PlannedRun:
    """What is left of the run in `folder`, whose `settings` and `data` are those that `resumed` gave."""
    require_scorable(settings, data, score)
    place = device or default_device()
    settings = on_machine(settings, place)
    task = build_task(settings, data, resolver=resolver)
    config = read_config(folder)
    follow(config)
    changed = changed_since(config, place)
    notes = [f"goes on, but not to the same bits: {'; '.join(changed)}"] if changed else []
    if settings.tune != "head" and (slow := moved(settings.recipe, place)):
        notes.append(slow.partition(":")[0] + ", with which this run began; it goes on in them, several times slower")
    kept = kept_since(settings, needed_by(task, settings))
    return PlannedRun(settings, task, folder, place, None, "resumed", True, tuple(notes), kept)
