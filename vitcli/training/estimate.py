"""What a run will cost, measured before it starts: a few passes on this machine, and the memory that they keep."""

import math
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitcli.data.samples import Sample
from vitcli.machine import decoding_threads, default_workers, on_cpu, wait_for
from vitcli.training.auto import settled
from vitcli.training.batches import Plan
from vitcli.training.distributed import World
from vitcli.training.faults import one_image_explained, out_of_memory
from vitcli.training.learner import Learner, OutOfMemory, require_room
from vitcli.training.precision import autocast, tensor_cores
from vitcli.training.recipe import smaller_micro_batch
from vitcli.training.settings import Settings, Tune
from vitcli.training.sharding import largest_block
from vitcli.training.task import Task

SLOTS = {"adamw": 2, "adam": 2, "sgd": 1, "muon": 1}  # numbers that the optimiser keeps for each trainable one
ALLOWED = 2 * 3600.0  # seconds that `auto` spends on its own account
ENOUGH_EPOCHS = 3.0  # fewer than that fit into a time budget: the head alone is the better use of it
ENOUGH_IMAGES = 10  # of a class, on average; below it the whole model overfits (docs: transfer)
SLOW = 1.0  # seconds of a step
FIXED = 5.0  # seconds: start, checkpoints
AFTER = 9.0  # seconds from the last step or feature to the end: head, checkpoints, scores, report


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes, as measured on this machine for one model and recipe."""

    forward: float  # seconds an image
    training: float  # seconds an image, forward, backward and optimiser
    memory: int  # bytes: weights, gradients, optimiser, averaged weights, one micro-batch's activations
    epochs: float
    images: int  # of the training split
    held_out: int  # of the validation split
    scored: int  # of the split that is scored at the end
    micro_batch: int = 0  # images a pass that fit; 0: not tried

    @property
    def head_seconds(self) -> float:
        """What `--tune head` takes: one pass over the training images, one over each of the others."""
        return self.forward * (self.images + self.held_out + self.scored) + AFTER

    @property
    def all_seconds(self) -> float:
        """What training takes for all epochs, each with its validation, and the score."""
        epoch = self.training * self.images + self.forward * self.held_out
        return self.epochs * epoch + self.forward * self.scored + FIXED

    def seconds(self, settings: Settings) -> float:
        """What the whole run of `settings` takes, within its time budget."""
        tune = settings.tune
        # Of k folds each model but the last is trained on all but a kth of the images: k passes over all of them.
        seconds = self.head_seconds * ("head" in tune) + self.all_seconds * (tune != "head") * max(settings.folds, 1)
        seconds *= 1 + len(settings.recipe.lrs)
        return min(seconds, settings.budget or seconds)


def estimate(task: Task, device: str, *, training: bool = True, processes: int = 1) -> Estimate:
    """Measure `task` on synthetic images, and its decoding on real ones. The model itself is not changed.

    Without `training` only forward passes: all that a head alone needs. A micro-batch that does not fit into memory is
    made smaller, as the run will make it; raises OutOfMemory when no smaller one is left. Of `processes` that share the
    model out, the memory is that of each.
    """
    task = replace(task, recipe=settled(task.recipe, device))
    try:
        require_room(task, min(task.recipe.micro_batch, len(task.data.train)) if training else 1, device)
        return _measured(task, device, training, processes)
    except (RuntimeError, OutOfMemory) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        smaller = smaller_micro_batch(task.recipe)
        if smaller is None:
            raise OutOfMemory(task.recipe.micro_batch) from error
    smaller_task = replace(task, recipe=replace(task.recipe, micro_batch=smaller))
    return estimate(smaller_task, device, training=training, processes=processes)


def held_bytes(task: Task, processes: int = 1, *, training: bool = True) -> int:
    """Bytes of weights, gradients, optimiser and averaged weights in each of `processes`, without activations.

    Where the recipe shares the model out, each holds a part, and one block whole, with that block's gradients.
    """
    recipe = task.recipe
    total, trainable = sum(p.numel() for p in task.model.parameters()), trainable_parameters(task.model)
    numbers = total + training * (total * bool(recipe.ema_decay) + trainable * (1 + SLOTS[recipe.optimizer]))
    if recipe.shard_model and processes > 1:
        numbers = math.ceil(numbers / processes) + 2 * largest_block(task.model)
    return 4 * numbers


def _measured(task: Task, device: str, training: bool, processes: int) -> Estimate:
    # Compiling takes minutes; what it would gain is left out instead.
    recipe, samples = replace(task.recipe, compile=False), task.data.train
    plan = Plan.of(len(samples), recipe.batch_size, recipe.micro_batch, recipe.seed)
    world = World(device=torch.device(device))
    images = torch.zeros(plan.micro_batch, task.preprocess.in_chans, *task.preprocess.size, dtype=torch.uint8)
    which = torch.zeros(len(images), dtype=torch.long)
    labels = torch.arange(len(images)) % task.classes
    if task.data.multi_label:
        labels = torch.eye(task.classes, dtype=torch.long)[labels]  # (B, K)
    copy = replace(task, recipe=recipe, model=deepcopy(task.model))

    def step(micro_batches: int) -> Callable[[], object]:
        learner = Learner(copy, world, micro_batches)
        return lambda: learner.step(iter([(images, labels, which)] * micro_batches), 0, 0.0)

    kept, per_step = 0, 0.0
    if training:
        kept = _kept_for_backward(copy, images, world.device)
        with tensor_cores(recipe.amp, world.device):
            one = _seconds(step(1), device)
            # Where a step is slow, or is one pass, its optimiser is not worth a measurement of its own.
            micro = one if one > SLOW or plan.micro_batches == 1 else _seconds(step(2), device) - one
        micro = min(max(micro, one / 2), one)  # of one pass; what is left is the optimiser's
        per_step = one - micro + plan.micro_batches * micro

    @torch.inference_mode()
    def forward() -> None:
        copy.model.to(device).eval()(images.float().to(device))

    looked_at = range(min(8, len(samples)))
    begin = time.perf_counter()
    for i in looked_at:
        task.transform(Sample(samples, i))
    decoding = (time.perf_counter() - begin) / len(looked_at)
    threads = decoding_threads(math.prod(task.preprocess.size))
    in_threads = decoding / (1 if task.data.kind == "idx" else threads)  # what is in memory holds the GIL
    in_workers = decoding / max(default_workers(task.data.kind, device), 1)
    step_seconds = per_step / plan.batch_size
    return Estimate(
        forward=_seconds(forward, device) / len(images) + in_threads,
        # A GPU computes while others decode; on a CPU both need the cores.
        training=step_seconds + in_workers if on_cpu(device) else max(step_seconds, in_workers),
        memory=held_bytes(task, processes, training=training) + kept,
        epochs=recipe.total_steps(plan.steps_per_epoch) / plan.steps_per_epoch,
        images=plan.steps_per_epoch * plan.batch_size,
        held_out=len(task.data.val),
        scored=len(task.data.test or task.data.val),
        micro_batch=recipe.micro_batch if training else 0,
    )


def _kept_for_backward(task: Task, images: Tensor, device: torch.device) -> int:
    """Bytes of activations that one micro-batch keeps between forward and backward pass."""
    total, seen = 0, {p.data_ptr() for p in task.model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    model = task.model.to(device).train()
    counting = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with counting, autocast(task.recipe.amp, device), one_image_explained():
        model(images.float().to(device))
    return total


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers of `model` training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tail(task: Task, device: torch.device) -> float:
    """Seconds to keep for what follows the last step: validation, score, checkpoints, report."""
    cost = estimate(task, str(device), training=False)
    return cost.forward * (cost.held_out + cost.scored) + AFTER


def choose_tune(cost: Estimate, classes: int, budget: float | None, free: int | None = None) -> tuple[Tune, str]:
    """What `--tune auto` does, and why in one line. `free`: bytes of memory that the device has left, if known."""
    if free is not None and cost.memory > free:
        gib = f"{cost.memory / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free"
        return "head", f"training all of it takes about {gib}; a smaller --set micro_batch takes less"
    if cost.images < ENOUGH_IMAGES * classes:
        return "head", f"fewer than {ENOUGH_IMAGES} images a class would overfit the whole model"
    together = cost.head_seconds + cost.all_seconds
    if budget is None:
        if together <= ALLOWED:
            return "head+all", f"head first, then all of it: about {minutes(together)}"
        return "head", f"training all of it would take about {minutes(together)}; --tune all does it"
    left = budget - cost.head_seconds
    if left < 0:
        whole = minutes(cost.head_seconds)
        return "head", f"on what fits the time budget: a head on all images would take about {whole}"
    epochs = left / (cost.all_seconds / cost.epochs)
    if epochs >= min(ENOUGH_EPOCHS, cost.epochs):
        return "head+all", f"head first, then about {min(epochs, cost.epochs):.1f} epochs of all of it"
    return "head", f"the time budget leaves {max(epochs, 0):.1f} epochs for all of it, fewer than {ENOUGH_EPOCHS:g}"


def share_in_time(cost: Estimate, budget: float) -> float:
    """The share of the training images on which a head can be fitted and scored in `budget` seconds; at least 1 %."""
    left = budget - AFTER - cost.forward * (cost.held_out + cost.scored)
    return min(1.0, max(0.01, left / (cost.forward * cost.images)))


def minutes(seconds: float) -> str:
    """A time span for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds(work: Callable[[], object], device: str, most: float = 1.0) -> float:
    """Median of up to five calls, or as many as fit into `most` seconds."""
    times: list[float] = []
    while len(times) < 5 and sum(times) < most:
        begin = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
