"""Whole processes measured in turn: wall seconds and the largest resident memory. Used by the predict_* benchmarks."""

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    seconds: float
    mebibytes: float  # of the largest process


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Run `command` to its end, output thrown away. Raises CalledProcessError when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(time.perf_counter() - start, usage.ru_maxrss / 1024)


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
        wall, memory = (statistics.median(getattr(r, f) for r in runs) for f in ("seconds", "mebibytes"))
        print(f"  {name:34} {wall:7.3f} s   {memory:6.0f} MiB")
    pairs = list(zip(measured[ours], measured[peer], strict=True))
    walls = [a.seconds / b.seconds for a, b in pairs]
    memory = statistics.median(a.mebibytes / b.mebibytes for a, b in pairs)
    wall = f"{statistics.median(walls):.3f} ({min(walls):.3f} to {max(walls):.3f})"
    print(f"  {ours} / {peer}: wall {wall}, memory {memory:.2f}", flush=True)
