"""Whole processes measured in turn: seconds of the clock and the processor, and the largest resident memory."""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A child's largest memory counts from its parent's at the fork, so a parent of 10 MiB starts the clock and the command.
LAUNCHER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - start, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    mebibytes: float  # of the largest process
    processor: float  # seconds of it, which a busy machine stretches less than the clock's


def run(command: Sequence[str]) -> Run:
    """Run `command` to its end, output thrown away. Raises CalledProcessError when it fails."""
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return Run(*map(float, launched.stdout.split()))


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[Run]]:
    """A B A B …, after one round that only warms the disk cache."""
    for command in commands.values():
        run(command)
    measured: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            measured[name].append(run(command))
    return measured


def report(measured: dict[str, list[Run]], ours: str, peer: str) -> None:
    """Medians, and the median over the rounds of the ratio ours / peer."""
    for name, runs in measured.items():
        fields = ("seconds", "processor", "mebibytes")
        wall, processor, memory = (statistics.median(getattr(r, f) for r in runs) for f in fields)
        print(f"  {name:34} {wall:7.3f} s   processor {processor:6.3f} s   {memory:6.0f} MiB")
    pairs = list(zip(measured[ours], measured[peer], strict=True))
    walls = [a.seconds / b.seconds for a, b in pairs]
    memory = statistics.median(a.mebibytes / b.mebibytes for a, b in pairs)
    wall = f"{statistics.median(walls):.3f} ({min(walls):.3f} to {max(walls):.3f})"
    processor = statistics.median(a.processor / b.processor for a, b in pairs)
    print(f"  {ours} / {peer}: wall {wall}, processor {processor:.3f}, memory {memory:.2f}", flush=True)
