"""Micro-batches onto the device that trains: as bytes, and on a GPU one ahead, beside what it computes."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from vitcli.training.batches import Batch

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def onto(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` with images and labels on `device`; the numbers of the samples stay where they are."""
    if device.type != "cuda":
        return batches
    return _through(batches, torch.cuda.Stream(device), device)  # type: ignore[no-untyped-call]


def _through(batches: Iterator[Batch], beside: torch.cuda.Stream, device: torch.device) -> Iterator[Batch]:
    """Copied in a stream of their own, which the computing one waits for, and not the host."""

    def begin(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        images, labels, samples = batch
        with torch.cuda.stream(beside):
            copies = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            return (*copies, samples), beside.record_event()

    for batch, copied in one_ahead(batches, begin):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for tensor in batch[:2]:
            tensor.record_stream(computing)  # its memory is not to be given away while that still reads it
        yield batch


def one_ahead(items: Iterator[Item], begin: Callable[[Item], Begun]) -> Iterator[Begun]:
    """`begin` of each of `items`, begun while the one before it is still in use.

    What goes wrong with an item is raised in its own turn, when all before it are done with.
    """
    waiting: list[Begun] = []
    while True:
        try:
            upcoming = begin(next(items))
        except StopIteration:
            yield from waiting
            return
        except Exception:
            yield from waiting
            raise
        yield from waiting
        waiting = [upcoming]
