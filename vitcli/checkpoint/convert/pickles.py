"""Pickled PyTorch weights, read in a child process with limits; only on request. Knows processes, not models.

`torch.load(weights_only=True)` builds nothing but tensors and plain containers, but it has been broken before
(CVE-2025-32434, CVE-2026-24747). So the child has no token, no home, bounded memory and time, and hands over a
safetensors file, which is checked like any other.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from vitcli.checkpoint.convert.names import Weights
from vitcli.checkpoint.tensor_file import StoredType, opened, read_parts, stored_as
from vitcli.errors import CheckpointError
from vitcli.files import open_regular
from vitcli.text import safe

_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS", "LANG", "LC_ALL")
_CHILD = Path(__file__).with_name("unpickle.py")
_SECONDS = 600


def read_pickle(path: Path) -> tuple[Weights, StoredType, str]:
    """The tensors of the pickle `path` as float32, the type they are stored in, and their key in it ("" at its top).

    Raises CheckpointError with the reason: code in the file, no tensors, a limit, damage.
    """
    with open_regular(path):
        pass  # a FIFO or a device must not reach the child
    with tempfile.TemporaryDirectory(prefix="vit-convert-") as home:
        made = Path(home) / "tensors.safetensors"
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"HOME": home, "TMPDIR": home, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", str(_CHILD), str(path.absolute()), str(made)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{safe(path)}: not read within {_SECONDS} s, and given up") from None
        try:
            answer = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise CheckpointError(
                f"{safe(path)}: the process that reads it ended with {done.returncode}, for want of time or memory, or "
                "because the file is damaged"
            ) from None
        if "error" in answer:
            raise CheckpointError(f"{safe(path)}: {_one_line(answer['error'])}")
        with opened(made, indices=True) as parts:
            kinds = [info.dtype for part in parts for info in part.header.tensors.values() if info.shape]
            return read_parts(parts), stored_as(kinds), answer["container"]


def _one_line(error: str) -> str:
    """torch's advice, on three paragraphs, is for programmers; what it refuses to build is worth knowing."""
    if found := re.search(r"GLOBAL:? ([\w.]+)", error):
        return f"it wants to build {safe(found[1], 80)}, which is code and not weights; save its state_dict() alone"
    if "TorchScript" in error:
        return "a TorchScript archive, which is a program; save its state_dict() and convert that"
    if "Weights only load failed" in error:
        cause = error.partition("WeightsUnpickler error:")[2].split("\n\n")[1:2]
        return f"damaged, or no pickle of weights: {safe(cause[0] if cause else '', 80)}"
    return safe(error.splitlines()[0], 160)
