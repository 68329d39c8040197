"""Accuracy and loss of a model on labelled samples, through the preprocessing that its checkpoint will carry."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.data.samples import Samples
from vitcli.training.distributed import World
from vitcli.training.task import Task

BATCH = 128


@dataclass(frozen=True)
class Evaluation:
    n: int
    accuracy: float
    loss: float  # mean negative log-likelihood, nats


@torch.inference_mode()
def evaluate(model: nn.Module, task: Task, samples: Samples, world: World) -> Evaluation:
    """The whole split, shared between the processes without padding: no image counts twice."""
    model.eval()
    n = correct = loss = 0.0
    for images, labels in _batches(task, samples, world):
        logits = model(images)
        n += len(labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    n, correct, loss = world.sum([n, correct, loss])
    return Evaluation(int(n), correct / max(n, 1), loss / max(n, 1))


def _batches(task: Task, samples: Samples, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    mine = range(world.rank, len(samples), world.size)
    for start in range(0, len(mine), BATCH):
        indices = mine[start : start + BATCH]
        images = torch.stack([torch.from_numpy(task.preprocess(samples.image(i))) for i in indices])
        yield images.to(world.device), torch.from_numpy(samples.labels[list(indices)]).to(world.device)
