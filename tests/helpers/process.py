"""Processes of their own, for what only a process shows: what is imported, signals, standard streams."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**changes: str) -> dict[str, str]:
    """This environment for a process that finds the package and the tests and computes in one thread."""
    found = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **changes}


_PROBE = """
import sys
from vitcli.__main__ import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("\\n".join(sorted({{name.split(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def imported_by(*arguments: object, first: str = "") -> set[str]:
    """Top-level packages imported by `vit ARGUMENTS…` in a process of its own, which runs the Python `first` before."""
    result = python("-c", first + _PROBE.format(arguments=list(map(str, arguments))))
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split("\n"))


def python(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS…` with `changes` to its environment; whether it failed is for the test to say."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=300)
