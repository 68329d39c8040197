"""`--tune head`: the trunk's features once, then a linear classifier on them (`logistic`).

A run keeps the features in its folder, so that one that was interrupted computes them once. They stay on the device
that computed them.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vitcli.checkpoint.tensor_file import read_header, read_tensors
from vitcli.data.samples import Samples, Stored
from vitcli.data.split import together
from vitcli.errors import CheckpointError, Stopped
from vitcli.files import write_file
from vitcli.images.preprocess import Preprocess
from vitcli.model.vit import seen_by_head
from vitcli.text import plural, safe
from vitcli.training.build import heads_of
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Event, Featured, HeadFitted, Lost
from vitcli.training.folder import Run
from vitcli.training.logistic import ALONE, fit_head, mean_loss
from vitcli.training.state import load_state
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import batches, validate


@torch.inference_mode()
def features(
    model: nn.Module, samples: Samples, preprocess: Preprocess, device: torch.device, mine: range | None = None
) -> Iterator[Tensor]:
    """What the head sees of each sample, or of those called `mine`, in order, as float32 batches (B, D) on `device`."""
    model.eval().to(device)
    for pixels, _ in batches(samples, mine or range(len(samples)), preprocess, reduced=True):
        yield seen_by_head(model, pixels.to(device)).float()


def group_keys(samples: Stored) -> list[bytes] | None:
    """What keeps the images of a group together, (N,); None where there are no groups."""
    if samples.groups is None:
        return None
    return together([i.to_bytes(8, "little") for i in range(len(samples))], samples.groups)


def tune_head(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, float]:
    """Fit the head of `task.model` in place, and keep the model. Nothing to do where training went on from there.

    Under `torchrun` each process computes and holds the features of its share of the images; they solve together, and
    the first alone writes the checkpoint. Returns the validation accuracy, -1 when nothing was done. Raises Stopped
    after a signal.
    """
    if load_state(run.folder) is not None:
        return -1.0
    began = time.monotonic()
    x = yield from _kept_features(task, run, world, stop)
    labels = torch.from_numpy(task.data.train.labels)
    heads = heads_of(task.model)
    keys, kept = group_keys(task.data.train), _kept_rows(heads, task.data.known)
    fitted = fit_head(x, labels, task.classes, task.recipe.seed, keys, kept, world)
    with torch.no_grad():
        for head, weight in zip(heads, fitted.weight.chunk(len(heads), dim=1), strict=True):
            head.weight.copy_(weight * len(heads))  # their mean is the model's answer
            head.bias.copy_(fitted.bias)
    chosen = [one.accuracy for one in fitted.tried if one.penalty == fitted.penalty]
    event = HeadFitted(fitted.penalty, chosen[0] if chosen else None, time.monotonic() - began)
    if world.leads:
        _, damaged = run.rewind(-1)  # what a run that was killed before its first step had logged
        if damaged:
            yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
        run.log(event, step=0)
    yield event
    exact = replace(task, recipe=replace(task.recipe, amp="fp32"))  # as its features are
    validation = validate(task.model, exact, task.data.val, world)
    loss = mean_loss(x, labels, fitted, world)
    evaluated = Evaluated(0, 0, 0.0, loss, validation, is_best=True)
    if world.leads:
        run.log(evaluated)
        run.keep(task.model, task, evaluated)
    world.barrier()  # what the leader has kept is there for all
    yield evaluated
    return validation.score


def _kept_rows(heads: list[nn.Linear], known: int) -> tuple[Tensor, Tensor] | None:
    """Rows and biases of the `known` first classes, of the heads together; None where no class is known."""
    if not known:
        return None
    with torch.no_grad():
        weight = torch.cat([head.weight[:known] / len(heads) for head in heads], dim=1).float().cpu()
        return weight, torch.stack([head.bias[:known] for head in heads]).mean(dim=0).float().cpu()


def _kept_features(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, Tensor]:
    """What the head sees of this process's training images (n, D), on its device.

    As an earlier part of the run left them, or computed and kept.
    """
    samples = task.data.train
    mine = range(world.rank, len(samples), world.size)
    width = sum(head.in_features for head in heads_of(task.model))
    if _features_file(run.folder, world).exists():
        try:
            return stored_features(task, run.folder, world).to(world.device)
        except CheckpointError as error:
            yield Lost(f"{error}; the features are computed again")
    x = torch.empty(len(mine), width, device=world.device)
    done = 0
    for part in features(task.model, samples, task.preprocess, world.device, mine):
        x[done : done + len(part)] = part
        done += len(part)
        yield Featured(done, len(mine))
        if stop.exit_code:
            raise Stopped(f"stopped at image {done} of {len(mine)}; to go on: {run.resume_command}", stop.exit_code)
    store_features(x, run.folder, world)
    return x


def _features_file(folder: Path, world: World) -> Path:
    """In the run folder; of several processes each has its own."""
    share = f"-{world.rank}-of-{world.size}" if world.size > 1 else ""
    return folder / f"features{share}.safetensors"


def store_features(x: Tensor, folder: Path, world: World = ALONE) -> None:
    """Keep features (n, D) for `stored_features`."""
    write_file(_features_file(folder, world), [save({"features": x.cpu()})])


def stored_features(task: Task, folder: Path, world: World = ALONE) -> Tensor:
    """The features (n, D) of this process's training images that `tune_head` left in the run folder `folder`.

    Raises CheckpointError for anything else.
    """
    path = _features_file(folder, world)
    images = len(range(world.rank, len(task.data.train), world.size))
    width = sum(head.in_features for head in heads_of(task.model))
    tensors = read_header(path).tensors
    if set(tensors) != {"features"} or tensors["features"].shape != (images, width):
        raise CheckpointError(f"{safe(path)}: not {images} features of {width} numbers")
    return torch.from_numpy(read_tensors(path)["features"])
