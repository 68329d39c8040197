"""Who else trains with us: PyTorch's own process groups, started by `torchrun` (docs/design.md, 7)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all processes (float64)."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def add(self, tensor: torch.Tensor) -> None:
        """Make `tensor`, which lies on the device, the sum of those of all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


class Told:
    """What each process tells of a step: its share of the loss and numbers of its own, each summed over all processes.

    One collective that runs beside what follows: nobody waits until the sums are asked for. In a world of one the loss
    stays on the device.
    """

    def __init__(self, world: World, loss: Tensor | None, own: list[float]) -> None:
        """`loss` is a scalar; None counts as 0."""
        self.loss, self._sums, self._done = loss, own, None
        if world.size == 1:
            return
        told = torch.tensor(own, dtype=torch.float64).to(world.device, non_blocking=True)
        share = torch.zeros_like(told[:1]) if loss is None else loss.double().reshape(1)
        vector = torch.cat([told, share])
        work = dist.all_reduce(vector, async_op=True)
        assert work is not None
        self._done = _to_host(vector, work.wait)

    def of_all(self) -> list[float]:
        """The numbers, as all processes together have them."""
        return self._sums if self._done is None else self._done()[:-1]

    def loss_of_all(self) -> float:
        """The mean loss, where other processes know a part of it."""
        assert self._done is not None
        return self._done()[-1]


def losses_of(steps: list[Told]) -> list[float]:
    """The mean losses of `steps`: one look at the device for all of them."""
    alone = [step.loss for step in steps if step._done is None and step.loss is not None]
    return torch.stack(alone).tolist() if alone else [step.loss_of_all() for step in steps]


def _to_host(vector: Tensor, finished: Callable[[], object]) -> Callable[[], list[float]]:
    """What gives the numbers in `vector` once its collective has `finished`; on a GPU copied beside its other work."""
    if vector.device.type != "cuda":

        def read() -> list[float]:
            finished()
            return vector.tolist()

        return cache(read)
    beside = _beside(vector.device)
    with torch.cuda.stream(beside):
        finished()  # holds up this stream, not the host
        host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True).copy_(vector, non_blocking=True)
        vector.record_stream(beside)
        copied = beside.record_event()

    def read_copy() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return cache(read_copy)


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream for what needs no waiting for."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that `torchrun` describes in the environment, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=torch.device(device))
        return
    several = device.startswith(("cuda", "xpu"))
    place = torch.device(f"{device.partition(':')[0]}:{os.environ['LOCAL_RANK']}" if several else device)
    if several:
        torch.accelerator.set_device_index(place.index)
    store, rank, size = next(rendezvous("env://"))
    backend = dist.get_default_backend_for_device(place)
    dist.init_process_group(backend, store=PrefixStore(_attempt(), store), rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), size, place)
    finally:
        dist.destroy_process_group()


def _attempt() -> str:
    """Keeps what the processes of a restarted run tell each other apart from what the dead ones did.

    `torchrun` has one store for all its attempts (pytorch issue 135712). Its count of them is the same in all processes
    on one machine only; on several the store must be a new one, which TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes it.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if alone else '0'}"
