"""The head's part of a run: features once, kept in the run folder; a linear head on them; its checkpoint."""

import time
from collections.abc import Generator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vitcli.checkpoint.durable import write_file
from vitcli.checkpoint.header import read_header
from vitcli.checkpoint.tensors import read_tensors
from vitcli.errors import EXIT_STOPPED, CheckpointError, Stopped, UsageError
from vitcli.text import plural, safe
from vitcli.training.distributed import World
from vitcli.training.evaluation import evaluate
from vitcli.training.events import Evaluated, Event, Featured, HeadFitted, Lost
from vitcli.training.export import export
from vitcli.training.head import features, fit_head
from vitcli.training.origin import head_of
from vitcli.training.run import Run, as_line
from vitcli.training.state import load_state
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task


def tune_head(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, float]:
    """Fit the head of `task.model` in place, and export the model. Nothing to do where training went on from there.

    Returns the validation accuracy, -1 when nothing was done.
    Raises Stopped after a signal, and UsageError under `torchrun`.
    """
    if world.size > 1:
        raise UsageError("--tune head works in one process; under torchrun choose --tune all")
    if load_state(run.folder) is not None:
        return -1.0
    began = time.monotonic()
    cache = run.folder / "features.safetensors"
    x: Tensor | None = None
    if cache.exists():
        try:
            x = _kept(cache, len(task.data.train), head_of(task.model).in_features)
        except CheckpointError as error:
            yield Lost(f"{error}; the features are computed again")
    if x is None:
        batches: list[Tensor] = []
        done, samples = 0, task.data.train
        for batch in features(task.model, samples, task.preprocess, world.device):
            batches.append(batch)
            done += len(batch)
            yield Featured(done, len(samples))
            if stop.exit_code:
                raise Stopped(f"stopped at image {done} of {len(samples)}; to go on: {run.resume_command}",
                              stop.exit_code or EXIT_STOPPED)  # fmt: skip
        x = torch.cat(batches)
        write_file(cache, [save({"features": x})])
    labels = torch.from_numpy(task.data.train.labels)
    fitted = fit_head(x, labels, task.classes, task.recipe.seed)
    head = head_of(task.model)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    chosen = [one.accuracy for one in fitted.tried if one.penalty == fitted.penalty]
    event = HeadFitted(fitted.penalty, chosen[0] if chosen else None, time.monotonic() - began)
    _, damaged = run.rewind(-1)  # what a run that was killed before its first step had logged
    if damaged:
        yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
    run.log({**as_line(event), "step": 0})
    yield event
    validation = evaluate(task.model, task, task.data.val, world)
    loss = torch.nn.functional.cross_entropy(x @ fitted.weight.T + fitted.bias, labels).item()
    evaluated = Evaluated(0, 0, 0.0, loss, validation, is_best=True)
    run.log(as_line(evaluated))
    for name in ("last", "best"):
        export(task.model, task, run.folder / name, evaluated)
    yield evaluated
    return validation.accuracy


def _kept(path: Path, images: int, width: int) -> Tensor:
    """The features (images, width) that an earlier part of the run left. Raises CheckpointError for anything else."""
    tensors = read_header(path).tensors
    if set(tensors) != {"features"} or tensors["features"].shape != (images, width):
        raise CheckpointError(f"{safe(path)}: not {images} features of {width} numbers")
    return torch.from_numpy(read_tensors(path)["features"])
