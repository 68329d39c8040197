"""One command line in a forked child with limits, and the judgement of how it ended.

The parent imports everything once and starts no thread: a child forked beside threads inherits locks that nobody will
open again. So whatever computes, the making of the sound files too, happens in children.
"""

import gc
import importlib
import json
import math
import os
import pkgutil
import re
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXIT_CODES = {0, 1, 2, 3, 75, 130}
SECONDS = 5  # of computing
WALL_SECONDS = 200  # more: on a busy machine nearly all of it is waiting
MEMORY = 1 << 30  # bytes more than before the command
ADDRESSES = 4 << 30  # where the child's own allocations fail, for the machine's sake
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SHARES = {"probability", "accuracy", "validation_accuracy"}
# OpenMP and BLAS would start threads as they are imported; nothing may be asked of the network or left in the home.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "NO_COLOR": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # exit code, or minus the signal
    stdout: bytes
    stderr: bytes
    cpu: float  # seconds
    wall: float
    memory: int  # bytes more than a child that does nothing


def warm() -> None:
    """Import all that the commands import, so that a fork has it for nothing."""
    import vitcli

    for module in pkgutil.walk_packages(vitcli.__path__, "vitcli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()
    for thread in threading.enumerate()[1:]:  # matplotlib's, where it had to look for fonts
        thread.join(10)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads after the imports, and a fork is safe beside one only")
    gc.collect()
    gc.freeze()


_LATE = (
    "onnx", "onnxruntime", "timm", "timm.data.auto_augment", "timm.data.random_erasing", "timm.optim", "torch._dynamo",
    "torch.utils.data", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "matplotlib.figure", "rich.table", "rich._emoji_codes", "pydantic.dataclasses",
    "pydantic.type_adapter", "pydantic.plugin._loader", "typer._adapters", "typer._click.decorators",
    "safetensors.numpy", "encodings.utf_8_sig", "importlib.readers", "PIL.Image", "uuid",
)  # fmt: skip


def run(command: str, folder: Path) -> Ended:
    """`vit COMMAND` in the working folder `folder`."""
    return forked(lambda: vit(shlex.split(command)), folder)


def forked(function: Callable[[], object], folder: Path, *, limited: bool = True) -> Ended:
    """`function` in a child, within the limits, as its exit code; an exception is printed and is 1, as in Python."""
    return Child(function, folder, limited=limited).wait()


class Child:
    """A forked child at work on `function` in the working folder `folder`, the leader of its own process group."""

    def __init__(self, function: Callable[[], object], folder: Path, *, limited: bool) -> None:
        self._streams = tuple(os.memfd_create(name) for name in ("stdout", "stderr"))
        self._began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), *self._streams)):
                os.dup2(stream, number)
            os.chdir(folder)
            if limited:
                _limit()
            _exit(function)

    def wait(self) -> Ended:
        _, status, used = os.wait4(self.pid, 0)
        wall = time.monotonic() - self._began
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started and left
        stdout, stderr = map(_content, self._streams)
        memory = (used.ru_maxrss << 10) - _idle_memory()
        return Ended(os.waitstatus_to_exitcode(status), stdout, stderr, used.ru_utime + used.ru_stime, wall, memory)


def vit(arguments: list[str]) -> None:
    """`vit ARGUMENTS` in this process. It starts threads: never in a process that forks."""
    sys.argv = ["vit", *arguments]
    from vitcli.__main__ import main

    main()


def verdict(command: str, ended: Ended, folder: Path) -> str:
    """What went wrong, in words that are equal for equal faults; empty when nothing did."""
    stdout, stderr = (text.decode("utf-8", "surrogateescape") for text in (ended.stdout, ended.stderr))
    if ended.code in (-signal.SIGALRM, -signal.SIGXCPU) or ended.cpu > SECONDS:
        return f"over {SECONDS} s"
    if ended.memory > MEMORY:
        return f"over {MEMORY >> 30} GiB"
    if ended.code < 0:
        return f"killed by {signal.Signals(-ended.code).name}"
    if "Traceback (most recent call last)" in stderr:
        return f"traceback: {_frame(stderr)}"
    if ended.code not in EXIT_CODES:
        return f"exit code {ended.code}"
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        if found := next(filter(_forbidden, text.replace("\r\n", "\n")), None):
            return f"control character U+{ord(found):04X} on {name}"
    if warning := re.search(r"\w+\.py:\d+: (\w*Warning)", stderr):
        return f"Python's {warning[1]} on stderr"
    if ended.code == 1 and not re.search(r"^error: \S", stderr, re.MULTILINE):
        return "exit code 1 without an error"
    if left := next(folder.rglob(".*.tmp"), None):
        return f"left half-written: {left.suffix}"
    if ended.code in (0, 3) and "--json" in command:
        return _absurd(stdout, lines="--jsonl" in command)
    return ""


def _exit(function: Callable[[], object]) -> None:
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _limit() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, min(size, 16 << 20), 0)
    os.close(descriptor)
    return content


def _idle_memory(known: list[int] = []) -> int:  # noqa: B006 (measured once)
    if not known:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        known.append(os.wait4(pid, 0)[2].ru_maxrss << 10)
    return known[0]


def _forbidden(character: str) -> bool:
    """Control characters, C1 ones and bytes that are no UTF-8 included; what turns the direction of text."""
    return character != "\n" and (unicodedata.category(character) in ("Cc", "Cs") or character in BIDI)


def _frame(stderr: str) -> str:
    """`ValueError in read_config (run.py)`: the last exception and our innermost function."""
    ours = re.findall(r'File ".*?/vitcli/([^"]+)", line \d+, in (\S+)', stderr)
    raised = re.findall(r"^([\w.]+)(?:: .*)?$", stderr[stderr.rindex("Traceback") :], re.MULTILINE)
    where = f" in {ours[-1][1]} ({ours[-1][0]})" if ours else ""
    return f"{raised[0] if raised else 'exception'}{where}"


def _absurd(stdout: str, *, lines: bool) -> str:
    """What no reader of JSON output could use: text that is not JSON, numbers that are none, shares beyond 0 to 1."""
    try:
        documents = [
            json.loads(text, parse_constant=_no_number) for text in (stdout.splitlines() if lines else [stdout])
        ]
    except ValueError:
        return "stdout is not valid JSON"
    for key, value in _numbers(documents):
        if not math.isfinite(value):
            return f"{key} is not finite"
        if key in SHARES and not -1e-6 <= value <= 1 + 1e-6:
            return f"{key} is not between 0 and 1"
    return ""


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, float):
        yield key, value


def _no_number(name: str) -> None:
    raise ValueError(name)
