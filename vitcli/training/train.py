"""`train`: the work of a run, fresh or resumed, in its folder; and how such a folder begins and is gone on with."""

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.data.samples import DataSet, Progress
from vitcli.data.sources import open_data
from vitcli.data.split import subset
from vitcli.errors import DataError, Stopped, UsageError, VitError
from vitcli.machine import default_device
from vitcli.storage.named import absolute, is_address, is_pattern
from vitcli.text import command, safe
from vitcli.training.auto import as_recorded, settled
from vitcli.training.budget import Clock
from vitcli.training.build import build_task
from vitcli.training.cache import Copied
from vitcli.training.distributed import World, join_world
from vitcli.training.estimate import tail
from vitcli.training.events import Event, Shrunk, Tried, Uncompiled
from vitcli.training.faults import explained
from vitcli.training.fit import fit
from vitcli.training.folder import Run, create_run_folder, follow, read_config, went_on, what_is_left, write_config
from vitcli.training.folds import without_fold
from vitcli.training.head import tune_head
from vitcli.training.keeping import arrangement
from vitcli.training.learner import CannotCompile, OutOfMemory
from vitcli.training.lock import locked
from vitcli.training.recipe import smaller_micro_batch
from vitcli.training.settings import Settings
from vitcli.training.state import load_state
from vitcli.training.stop import StopFlag, stop_on_signals
from vitcli.training.task import Task
from vitcli.training.teacher import kept_answers


def open_settings_data(settings: Settings, progress: Progress | None = None) -> DataSet:
    """The data of `settings`, or what it names of them: a share, or all but a fold."""
    data = open_data(
        settings.data,
        val_fraction=settings.val_fraction,
        folders=settings.folders,
        pooled=bool(settings.folds),
        progress=progress,
        arrange=arrangement(
            settings.start.keep if settings.start else (),
            settings.start.keep_ids if settings.start else (),
            multi_label=settings.multi_label,
        ),
    )
    if settings.fold:
        return without_fold(data, settings)
    return data if settings.share == 1 else subset(data, settings.share, settings.share_seed)


def final_data(settings: Settings, data: DataSet) -> DataSet:
    """What the run's checkpoint is trained and validated on: `data`, but for a recipe that tries learning rates.

    After the choice, a validation split that was drawn from the training images is trained on (paper, appendix B.1.1).
    """
    return open_settings_data(replace(settings, val_fraction=0.0)) if settings.recipe.lrs else data


def begin(
    settings: Settings, data: DataSet, folder: Path, *, resume: str | None = None, device: str | None = None
) -> None:
    """Create the run folder of a fresh run. It keeps the data's absolute path: resuming may start elsewhere.

    `resume` is the command that goes on with it, where that is not the run's own; `device` the one to train on.
    """
    own = {"resume": resume} if resume else {}
    settings = on_machine(_anywhere(settings), device or default_device())
    create_run_folder(folder, {**settings.as_dict(), "fingerprint": data.fingerprint, **own}, device)


def on_machine(settings: Settings, device: str) -> Settings:
    """`settings` with what their recipe leaves to the machine decided for `device` and this number of processes."""
    return replace(settings, recipe=settled(settings.recipe, device, processes()))


def _anywhere(settings: Settings) -> Settings:
    return replace(settings, data=absolute(settings.data))


def resumed(
    folder: Path, epochs: float | None = None, data_place: str | None = None, progress: Progress | None = None
) -> tuple[Settings, DataSet]:
    """Settings and data of the run in `folder`; `epochs` above its own make it longer, from its next step on.

    `data_place` is where the data are now, if they moved. Raises UsageError when they are no longer what they were, or
    `epochs` would cut the run short; VitError when run.json is damaged.
    """
    config = read_config(folder)
    settings = _settings(folder, config)
    if epochs is not None and settings.recipe.steps:
        raise UsageError(f"{safe(folder)} is a run of {settings.recipe.steps} steps; --epochs cannot make it longer")
    if epochs is not None and settings.folds:
        raise UsageError(f"{safe(folder)} has folds, which all end with the same epoch; --epochs is for a new run")
    if epochs is not None and epochs < settings.recipe.epochs:
        raise UsageError(f"{safe(folder)} is a run of {settings.recipe.epochs:g} epochs; --resume can only add to them")
    if epochs is not None:
        settings = replace(settings, recipe=replace(settings.recipe, epochs=epochs))
    if data_place is not None:
        settings = _anywhere(replace(settings, data=data_place))
    elif not (is_pattern(settings.data) or is_address(settings.data) or Path(settings.data).exists()):
        raise DataError(f"{safe(settings.data)} does not exist; if the data moved, say where they are with --data")
    data = open_settings_data(settings, progress)
    if data.fingerprint != config.get("fingerprint"):
        if data_place is not None:
            raise UsageError(f"{safe(data_place)} does not hold the data that {safe(folder)} began with")
        raise UsageError(f"the data in {safe(settings.data)} changed since {safe(folder)} began; start a new run")
    return settings, data


def _settings(folder: Path, config: dict[str, Any]) -> Settings:
    try:
        return Settings.from_dict(config)
    except VitError as error:
        raise type(error)(f"{safe(folder)}: {error}{what_is_left(folder)}") from error


def restarted(settings: Settings, folder: Path) -> bool:
    """Whether `torchrun` started this process again after one had died, and `folder` holds the run of `settings`."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not (folder / "run.json").exists():
        return False
    config = read_config(folder)
    found, own = _settings(folder, config), replace(settings, recipe=as_recorded(settings.recipe, config))
    return found == replace(_anywhere(own), cache=found.cache)  # that is chosen by what is free


def begun(folder: Path) -> bool:
    """Whether `folder` holds a run."""
    return (folder / "run.json").exists()


def require_same(settings: Settings, folder: Path, *, chosen: bool = False) -> None:
    """Raises UsageError unless the run in `folder` began with `settings`.

    What the machine decides, and with `chosen` what is trained, may be another; the run may have become longer.
    """
    config = read_config(folder)
    found, own = _settings(folder, config), _anywhere(settings)
    own = replace(own, recipe=as_recorded(own.recipe, config), cache=found.cache)
    if own.recipe.epochs in config.get("extended_from", ()):
        own = replace(own, recipe=replace(own.recipe, epochs=found.recipe.epochs))
    if own.start and found.start:
        start = replace(own.start, img_size=own.start.img_size or found.start.img_size)
        start = replace(start, tune=found.start.tune if chosen else start.tune)
        own = replace(own, start=start, share=found.share if chosen else own.share)
    ours, theirs = own.as_dict(), found.as_dict()
    ours |= {f"recipe.{name}": value for name, value in ours.pop("recipe").items()}
    theirs |= {f"recipe.{name}": value for name, value in theirs.pop("recipe").items()}
    differ = [name.removeprefix("recipe.") for name in theirs if ours.get(name) != theirs[name]]
    if differ:
        raise UsageError(
            f"{safe(folder)} holds a run with another {safe(', '.join(differ[:3]))}: {command('--resume', folder)} "
            "goes on with that, another --out begins this one"
        )


def extend(settings: Settings, folder: Path, device: str | None = None) -> None:
    """Write what a resumed run has new into its run.json: more epochs, where its data are, what it goes on with.

    Of epochs and machine that file keeps what was before.
    """
    with locked(folder):
        config = read_config(folder)
        new = went_on({**config, "data": settings.data}, device)
        before = _settings(folder, config).recipe.epochs
        if settings.recipe.epochs != before:
            new |= {**settings.as_dict(), "extended_from": [*config.get("extended_from", []), before]}
        if new != config:
            write_config(folder, new)


def train(
    settings: Settings,
    data: DataSet,
    folder: Path,
    *,
    task: Task | None = None,
    device: str | None = None,
    workers: int = 0,
    began: float | None = None,
    copied: Copied | None = None,
) -> Iterator[Event]:
    """Train in the run folder `folder`, from its newest saved state when it has one. Yields what happens.

    A run from scratch and a fine-tuning run alike. `task` is what `settings` and `data` were built to, if they were; it
    is built again where the first step shows that the machine needs another recipe. Under `torchrun` every process
    calls this and only the first writes. `began` (time.monotonic) is when a time budget started to run. `copied` has
    the copies of images that several runs share. Raises Stopped after SIGINT, SIGTERM or SIGUSR1 once the state is
    saved.
    """
    clock = Clock(settings.budget, began)
    with join_world(device or default_device()) as world, stop_on_signals() as stop, ExitStack() as stack:
        run = Run(folder, read_config(folder))
        follow(run.config)
        settings = replace(settings, recipe=as_recorded(settings.recipe, run.config))
        task = task and replace(task, recipe=settings.recipe)
        stack.enter_context(explained(run))
        if world.leads:
            stack.enter_context(locked(folder))
        copied = copied or stack.enter_context(Copied())
        # Each process looked for itself at what is free; the leader's choice is the run's.
        settings = replace(settings, cache=_settings(folder, dict(run.config)).cache)
        if settings.recipe.lrs:
            settings, data = yield from _choose_lr(settings, data, run, world, stop, workers, copied)
            task = None
        while True:
            task = copied.task(task or build_task(settings, data), settings)
            if settings.teacher_answers:
                answers = yield from kept_answers(Path(settings.teacher_answers), task, run, world, stop)
                task = replace(task, answers=answers)
            best = (yield from tune_head(task, run, world, stop)) if "head" in settings.tune else -1.0
            if settings.tune == "head":
                return
            clock.tail = tail(task, world.device) if clock.budget else 0.0
            try:
                yield from fit(task, run, world, stop, workers=workers, clock=clock, best=best)
                return
            except OutOfMemory:
                smaller = smaller_micro_batch(settings.recipe)
                if smaller is None or (world.size > 1 and settings.recipe.shard_model):
                    raise
                settings = _again(settings, folder, world, micro_batch=smaller)
                event: Event = Shrunk(smaller)
            except CannotCompile as error:
                if world.size > 1:
                    raise
                settings = _again(settings, folder, world, compile=False)
                event = Uncompiled(str(error))
            task = None
            yield event


def _again(settings: Settings, folder: Path, world: World, **changes: Any) -> Settings:
    """`settings` with a recipe that this machine can follow, which run.json has from now on."""
    if world.leads:
        config = read_config(folder)
        write_config(folder, {**config, "recipe": {**config["recipe"], **changes}})
    return replace(settings, recipe=replace(settings.recipe, **changes))


def _choose_lr(
    settings: Settings, data: DataSet, run: Run, world: World, stop: StopFlag, workers: int, copied: Copied
) -> Generator[Event, None, tuple[Settings, DataSet]]:
    """Train once with each of `recipe.lrs`, each in its own folder; the settings and data of the run that follows.

    That one has the learning rate of the best validation accuracy, and `final_data`.
    """
    found: dict[float, float] = {}
    for lr in settings.recipe.lrs:
        trial = replace(settings, recipe=replace(settings.recipe, lr=lr, lrs=()))
        folder = run.folder / "lr" / f"{lr:g}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            task = copied.task(build_task(trial, data), trial)
            for _ in fit(task, Run(folder, run.config), world, stop, workers=workers):
                pass
        except Stopped as stopped:
            raise Stopped(
                f"stopped while trying lr {lr:g}; to go on: {run.resume_command}", stopped.exit_code
            ) from None
        state = load_state(folder)
        assert state is not None  # a run that ended has one
        found[lr] = state.position.best_accuracy
        yield Tried(lr, found[lr])
    best = max(found, key=lambda lr: found[lr])
    yield Tried(best, found[best], chosen=True)
    if world.leads:
        write_config(run.folder, {**run.config, "tried_lrs": {f"{lr:g}": value for lr, value in found.items()}})
    return replace(settings, recipe=replace(settings.recipe, lr=best, lrs=())), final_data(settings, data)


def leads() -> bool:
    """Whether this process is the one that talks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def alone() -> bool:
    """Whether this process trains without others (no `torchrun`)."""
    return processes() == 1


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
