"""Which of several processes does which images: a hash of the name deals them, so nobody has to ask anybody."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vitcli.errors import UsageError
from vitcli.text import safe

MOST = 100_000  # shards


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the images, numbered from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MOST:
            raise UsageError(
                f"shard {self.index}/{self.count}: of n shards, at most {MOST}, the first is 0/n, the last n-1/n"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, name: str) -> bool:
        """Whether the image of that name is one of this shard's."""
        return int.from_bytes(hashlib.blake2b(as_bytes(name), digest_size=8).digest()) % self.count == self.index


def as_bytes(name: str) -> bytes:
    """A name as bytes, different ones for different names, whatever a file system or a manifest holds."""
    return name.encode("utf-8", "surrogatepass")


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """`0/4`, or "auto": what `torchrun`, SLURM or VIT_SHARD says. Raises UsageError."""
    if text == "auto":
        return shard_here(environment)
    return _parsed(text, f"--shard {safe(text, 40)}")


def shard_here(environment: Mapping[str, str] = os.environ) -> Shard:
    """This process's shard: VIT_SHARD, or its place among those that `torchrun` or `srun` started, times a SLURM array.

    Raises UsageError where the environment says nothing.
    """
    if text := environment.get("VIT_SHARD"):
        return _parsed(text, f"VIT_SHARD={safe(text, 40)}")
    inner = _pair(environment, "RANK", "WORLD_SIZE") or _pair(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    outer = _of_array(environment)
    if inner is None and outer is None:
        raise UsageError(
            "--shard alone takes its number from torchrun, SLURM or VIT_SHARD=i/n, and none of them is there: "
            "write --shard i/n"
        )
    (i, n), (j, m) = inner or (0, 1), outer or (0, 1)
    return Shard(j * n + i, m * n)


def torchrun_shard(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """This process's place among several that `torchrun` started; None for one that is alone."""
    found = _pair(environment, "RANK", "WORLD_SIZE")
    return Shard(*found) if found and found[1] > 1 else None


def _parsed(text: str, where: str) -> Shard:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found:
        raise UsageError(f"{where}: write i/n, such as 0/4 for the first of four")
    return Shard(int(found[1]), int(found[2]))


def _pair(environment: Mapping[str, str], index: str, count: str) -> tuple[int, int] | None:
    if count not in environment:
        return None
    return _number(environment, index), _number(environment, count)


def _of_array(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Place and number of a SLURM array's tasks, which may begin anywhere and leave numbers out evenly."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    task, count, first, last = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "MAX")
    )
    step = (last - first) // (count - 1) if count > 1 else 1
    if step < 1 or (task - first) % step or first + step * (count - 1) != last:
        raise UsageError("the numbers of this SLURM array are not evenly spaced: write --shard i/n")
    return (task - first) // step, count


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{name}={safe(text, 40)} is no number: write --shard i/n")
    return int(text)
