"""Processes of their own, for what only a process shows: what is imported, signals, standard streams."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**changes: str) -> dict[str, str]:
    """This environment for a process that finds the package and the tests and computes in one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def python(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS…` with `changes` to its environment; whether it failed is for the test to say."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=300)
