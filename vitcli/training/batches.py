"""Samples → micro-batches, in an order that is a function of (seed, epoch). Knows data and transforms, no model."""

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vitcli.data.samples import Sample, Samples
from vitcli.errors import ImageError
from vitcli.training.augment import Transform
from vitcli.training.seeds import epoch_order, reseed
from vitcli.training.stop import SIGNALS

# Images (B, C, H, W) uint8, class indices (B,) or 0 and 1 (B, K), which samples they are (B,).
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """Which images each step sees. An epoch's incomplete last batch is left out."""

    n: int
    micro_batch: int
    micro_batches: int  # per step, over all processes
    steps_per_epoch: int
    seed: int

    @classmethod
    def of(cls, n: int, batch_size: int, micro_batch: int, seed: int) -> "Plan":
        """The plan for n images. Fewer images than a batch: one smaller batch per epoch."""
        if n < batch_size:
            micro_batch = min(micro_batch, n - n % 2 or 1)
            batch_size = n - n % micro_batch
        return cls(n, micro_batch, batch_size // micro_batch, n // batch_size, seed)

    @property
    def batch_size(self) -> int:
        return self.micro_batch * self.micro_batches

    def micro(self, step: int, index: int) -> list[tuple[int, int]]:
        """(epoch, sample) pairs of micro-batch `index` of `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size + index * self.micro_batch
        return [(epoch, int(i)) for i in _order(self.n, self.seed, epoch)[start : start + self.micro_batch]]


_order = lru_cache(maxsize=1)(epoch_order)  # one permutation an epoch instead of one a micro-batch

Item = tuple[Tensor, Any, int]


class _Augmented(Dataset[Item | ImageError]):
    def __init__(self, samples: Samples, transform: Transform, seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __getitem__(self, item: tuple[int, int]) -> Item | ImageError:
        epoch, index = item
        reseed(self.seed, "augment", epoch, index)
        try:
            image = self.transform(Sample(self.samples, index))
        except ImageError as error:
            return error  # raised by a worker it would come with a traceback for a message
        label = self.samples.labels[index]
        return image, label if label.ndim else int(label), index


def _collated(samples: list[Item | ImageError]) -> Batch | ImageError:
    unreadable = next((sample for sample in samples if isinstance(sample, ImageError)), None)
    return unreadable or tuple(default_collate(samples))


def training_batches(
    samples: Samples, transform: Transform, plan: Plan, *, steps: range, rank: int = 0, world: int = 1, workers: int = 0
) -> Generator[Batch, None, None]:
    """This process's micro-batches for `steps`, in order: numbers rank, rank + world, … of each step.

    Closing it ends the workers. Raises ImageError in the place of a micro-batch with an image that cannot be read.
    """
    sampler = (plan.micro(step, index) for step in steps for index in range(rank, plan.micro_batches, world))
    with _signals_deferred():
        loader: Any = iter(
            DataLoader(
                _Augmented(samples, transform, plan.seed),
                batch_sampler=sampler,
                num_workers=workers,
                collate_fn=_collated,
                worker_init_fn=_ignore_signals if workers else None,
                pin_memory=torch.cuda.is_available(),
            )
        )
    try:
        for batch in loader:
            if isinstance(batch, ImageError):
                raise batch
            yield batch
    finally:
        # The traceback of an error keeps the loader alive, and workers that ignore signals would outlast the program.
        if workers:
            loader._shutdown_workers()


def _ignore_signals(_: int) -> None:
    # A signal to the process group must reach the trainer alone, or the workers die before the state is saved.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Holds back the signals that ask a run to stop while workers start, which inherit that until they ignore them.

    One that is not forked imports for seconds before it comes to that.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
