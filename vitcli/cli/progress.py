"""A bar on standard error while there is a terminal, gone when the work is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.checkpoint.blobs import verify_blob
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.header import weight_files
from vitcli.checkpoint.hub import OnProgress
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.console import note, stderr
from vitcli.text import safe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vitcli.data.samples import DataSet

PATIENCE = 1.0  # seconds


@contextmanager
def bytes_shown(verb: str, *, piped: bool = False) -> Iterator[OnProgress]:
    """Yields what is to be told (file, bytes done, bytes in all) of what is done to files, such as "downloading".

    A bar for each file on a terminal; elsewhere, with `piped`, one line for each that is no .json.
    """
    with ExitStack() as stack:
        if sys.stderr.isatty():
            yield _bars(stack, verb)
        else:
            yield _lines(verb) if piped else lambda file, done, total: None


def _bars(stack: ExitStack, verb: str) -> OnProgress:
    """The bars appear with the first file, so that where nothing is done nothing is imported."""
    tasks: dict[str, TaskID] = {}
    shown: list[Progress] = []

    def tell(file: str, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if not shown:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn())
            bars = Progress(*columns, TimeRemainingColumn(compact=True), console=stderr(), transient=True)
            shown.append(stack.enter_context(bars))
        if file not in tasks:
            tasks[file] = shown[0].add_task(f"{verb} {safe(file, 60)}", total=total)
        shown[0].update(tasks[file], completed=done, total=total)

    return tell


def _lines(verb: str) -> OnProgress:
    told: set[str] = set()

    def tell(file: str, done: int, total: int | None) -> None:
        if file not in told and not file.endswith(".json"):
            note(f"{verb} {safe(file)}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        told.add(file)

    return tell


def downloads() -> AbstractContextManager[OnProgress]:
    """Yields what is to be told of downloads."""
    return bytes_shown("downloading", piped=True)


def resolved(name: str | None, *, verify: bool = True) -> Checkpoint:
    """As `resolve`, whose downloads are shown, as is the comparison with the Hub's digests that reading would do first.

    Without `verify` for who does not read the weights.
    """
    with downloads() as tell:
        checkpoint = resolve(name, progress=tell)
    if verify and checkpoint.source == "hub":
        with bytes_shown("checking") as tell:
            for file in weight_files(checkpoint.weights_path):
                verify_blob(file, checkpoint.name, tell)
    return checkpoint


@contextmanager
def files_read(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what is to be called with (files read, of how many).

    A bar on a terminal; elsewhere one line once it takes longer than anybody waits without wondering.
    """
    with progress(name) as bar:
        began, told = time.monotonic(), False

        def tell(done: int, total: int) -> None:
            nonlocal told
            if bar:
                bar(done, total)
            elif not told and time.monotonic() - began >= PATIENCE:
                note(f"{name}: {total} files")
                told = True

        yield tell


def data_opened(path: str | Path, **options: Any) -> "DataSet":
    """As `open_data`, which may read every file; that is shown."""
    from vitcli.data.sources import open_data

    with files_read("reading the data") as tell:
        return open_data(path, progress=tell, **options)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal what is being done, for work whose end is not known."""
    if not sys.stderr.isatty():
        yield
        return
    with stderr().status(safe(what)):
        yield


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
