"""A bar on standard error while there is a terminal, gone when the work is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.hub import OnProgress
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.console import note, stderr
from vitcli.text import safe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def downloads() -> Iterator[OnProgress]:
    """Yields what `resolve` is to tell of its downloads: bars on a terminal, elsewhere a line for each large file."""
    with ExitStack() as stack:
        tell = _bars(stack) if sys.stderr.isatty() else _lines()
        yield tell


def _bars(stack: ExitStack) -> OnProgress:
    """The bars appear with the first download, so that where nothing is downloaded nothing is imported."""
    tasks: dict[str, TaskID] = {}
    shown: list[Progress] = []

    def tell(file: str, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if not shown:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn())
            bars = Progress(*columns, TimeRemainingColumn(compact=True), console=stderr(), transient=True)
            shown.append(stack.enter_context(bars))
        if file not in tasks:
            tasks[file] = shown[0].add_task(f"downloading {safe(file, 60)}", total=total)
        shown[0].update(tasks[file], completed=done, total=total)

    return tell


def _lines() -> OnProgress:
    told: set[str] = set()

    def tell(file: str, done: int, total: int | None) -> None:
        if file not in told and not file.endswith(".json"):
            note(f"downloading {safe(file)}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        told.add(file)

    return tell


def resolved(name: str | None) -> Checkpoint:
    """As `resolve`, whose downloads are shown."""
    with downloads() as tell:
        return resolve(name, progress=tell)


@contextmanager
def progress(name: str = "") -> Iterator[Callable[[int, int], None] | None]:
    """Yields what is to be called with (done, of how many), or None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(compact=True), console=stderr(), transient=True) as bars:
        task = bars.add_task(name)
        yield lambda done, total: bars.update(task, completed=done, total=total)
