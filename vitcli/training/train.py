"""`train`: a run from its settings, fresh or resumed. What `vit train` calls, and a Python user too."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.errors import UsageError
from vitcli.text import safe
from vitcli.training.distributed import join_world
from vitcli.training.events import Event
from vitcli.training.fit import fit
from vitcli.training.run import Run, create_run_folder, locked, read_config, write_config
from vitcli.training.start import Settings, build_task, default_device
from vitcli.training.stop import stop_on_signals


def open_settings_data(settings: Settings) -> DataSet:
    return open_data(settings.data, val_fraction=settings.val_fraction)


def begin(settings: Settings, data: DataSet, folder: Path) -> None:
    """Create the run folder of a fresh run. It keeps the data's absolute path: resuming may start elsewhere."""
    settings = replace(settings, data=str(Path(settings.data).resolve()))
    create_run_folder(folder, {**settings.as_dict(), "fingerprint": data.fingerprint})


def resumed(folder: Path, epochs: float | None = None) -> tuple[Settings, DataSet]:
    """Settings and data of the run in `folder`; `epochs` above its own make it longer, from its next step on.

    Raises UsageError when the data are no longer what they were, or `epochs` would cut the run short.
    """
    config = read_config(folder)
    settings = Settings.from_dict(config)
    if epochs is not None and epochs < settings.recipe.epochs:
        raise UsageError(f"{safe(folder)} is a run of {settings.recipe.epochs:g} epochs; --resume can only add to them")
    if epochs is not None:
        settings = replace(settings, recipe=replace(settings.recipe, epochs=epochs))
    data = open_settings_data(settings)
    if data.fingerprint != config["fingerprint"]:
        raise UsageError(f"the data in {safe(settings.data)} changed since {safe(folder)} began; start a new run")
    return settings, data


def extend(settings: Settings, folder: Path) -> None:
    """Write longer settings of a resumed run into its run.json, which keeps what it was before."""
    config = read_config(folder)
    before = config["recipe"]["epochs"]
    if settings.recipe.epochs != before:
        write_config(
            folder, {**config, **settings.as_dict(), "extended_from": [*config.get("extended_from", []), before]}
        )


def train(
    settings: Settings, data: DataSet, folder: Path, *, device: str | None = None, workers: int = 0
) -> Iterator[Event]:
    """Train in the run folder `folder`, from its newest saved state when it has one. Yields what happens.

    Under `torchrun` every process calls this and only the first writes. Raises Stopped after SIGINT, SIGTERM or
    SIGUSR1 once the state is saved.
    """
    with join_world(device or default_device()) as world, stop_on_signals() as stop:
        task = build_task(settings, data)
        run = Run(folder, read_config(folder))
        if world.leads:
            with locked(folder):
                yield from fit(task, run, world, stop, workers=workers)
        else:
            yield from fit(task, run, world, stop, workers=workers)


def default_workers(data: DataSet) -> int:
    """Decoding processes: none for images in memory, else one a core and at most four."""
    return 0 if data.kind == "idx" else min(4, os.cpu_count() or 1)


def leads() -> bool:
    """Whether this process is the one that talks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def alone() -> bool:
    """Whether this process trains without others (no `torchrun`)."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1
