"""Who else trains with us: PyTorch's own process groups, started by `torchrun` (docs/design.md, 7)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
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


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that `torchrun` describes in the environment, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=torch.device(device))
        return
    place = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") else device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if place.type == "cuda" else "gloo"
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
