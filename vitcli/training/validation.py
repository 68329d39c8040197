"""Accuracy and loss of a model on labelled samples, through the preprocessing that its checkpoint will carry."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.data.samples import Samples
from vitcli.images.preprocess import Preprocess
from vitcli.machine import decoding_threads, on_cpu
from vitcli.training.distributed import World
from vitcli.training.events import Validation
from vitcli.training.precision import autocast
from vitcli.training.sharding import is_sharded
from vitcli.training.task import Task

BATCH = 64


@torch.no_grad()  # not inference_mode, whose tensors a model that is shared out could not train with afterwards
def validate(model: nn.Module, task: Task, samples: Samples, world: World) -> Validation:
    """`model` on the whole split `samples`, shared between the processes without padding: no image counts twice.

    In the precision of the training, and on an accelerator in its batches.
    """
    model.eval()
    answers = _answers(model, task, samples, world)
    if task.data.multi_label:
        return _of_labels(answers, samples, world)
    right, lost, seen = [torch.zeros((), device=world.device)], [torch.zeros((), device=world.device)], 0
    for logits, indices in answers:
        seen += len(indices)
        labels = torch.from_numpy(samples.labels[indices]).to(world.device, non_blocking=True)
        right.append((logits.argmax(dim=1) == labels).sum())
        lost.append(F.cross_entropy(logits, labels, reduction="sum"))
    n, correct, loss = world.sum([float(seen), *(sum(torch.stack(each).tolist()) for each in (right, lost))])
    return Validation(int(n), correct / max(n, 1), loss / max(n, 1))


def _answers(model: nn.Module, task: Task, samples: Samples, world: World) -> Iterator[tuple[Tensor, list[int]]]:
    """Logits (B, K), float32, of the samples that are this process's, and their indices."""
    recipe, mine = task.recipe, range(world.rank, len(samples), world.size)
    size = BATCH if on_cpu(world.device.type) else max(BATCH, recipe.micro_batch)
    for pixels, indices in batches(samples, mine, task.preprocess, size):
        with autocast(recipe.amp, world.device):
            logits = model(pixels.to(world.device, non_blocking=True))
        yield logits.float(), indices
    if is_sharded(model):  # all compute it equally often
        most = math.ceil(math.ceil(len(samples) / world.size) / size) - math.ceil(len(mine) / size)
        for _ in range(most):
            with autocast(recipe.amp, world.device):
                model(torch.zeros(1, task.preprocess.in_chans, *task.preprocess.size, device=world.device))


def _of_labels(answers: Iterator[tuple[Tensor, list[int]]], samples: Samples, world: World) -> Validation:
    """Of several labels an image: a ranking cannot be put together from parts, so all processes get all logits."""
    from vitcli.inference.multilabel import average_precision  # with what predicts, for which no start waits

    if not len(samples):
        return Validation(0, 0.0, 0.0)
    shared = torch.zeros(samples.labels.shape, device=world.device)  # (N, K)
    for logits, indices in answers:
        shared[indices] = logits
    world.add(shared)
    logits, labels = shared.cpu(), torch.from_numpy(samples.labels)  # (N, K) both
    loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum").item() / len(labels)
    exact = ((logits > 0) == labels.bool()).all(dim=1).float().mean().item()
    each = [average_precision(logits[:, k].numpy(), samples.labels[:, k]) for k in range(logits.shape[1])]
    present = [one for one in each if one is not None]
    return Validation(len(labels), exact, loss, sum(present) / max(len(present), 1))


def batches(
    samples: Samples, indices: Sequence[int], preprocess: Preprocess, size: int = BATCH, *, reduced: bool = False
) -> Iterator[tuple[Tensor, list[int]]]:
    """Samples `indices` as `predict` sees them: float32 (B, C, H, W) and their indices, decoded one batch ahead.

    `reduced`: as training does, no larger than needed.
    """

    def load(i: int) -> Tensor:
        seen = preprocess.normalised(samples.reduced(i, preprocess)) if reduced else samples.load(i, preprocess)
        return torch.from_numpy(seen)

    with ThreadPoolExecutor(decoding_threads(math.prod(preprocess.size))) as threads:

        def begin(start: int) -> tuple[list[int], Iterator[Tensor]]:
            chosen = list(indices[start : start + size])
            return chosen, threads.map(load, chosen)

        ahead = begin(0)
        for start in range(0, len(indices), size):
            (chosen, images), ahead = ahead, begin(start + size)
            yield torch.stack(list(images)), chosen
