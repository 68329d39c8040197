"""The two streams: data on standard output, everything else on standard error. Where rich is set up.

MERGED: A bar on standard error while there is a terminal, gone when the work is done.
A picture in the terminal: one character is two pixels, its foreground over its background (half blocks).
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from vitcli.text import MAX_SHOWN, safe

if TYPE_CHECKING:  # notes and --json do without
    from rich.console import Console
    from rich.table import Table
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.hub import verify_blob
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import weight_files
from vitcli.files import OnProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vitcli.data.samples import DataSet
from collections.abc import Iterable

import numpy as np
from PIL import Image
from rich.text import Text

PIPED_WIDTH = 10_000  # a table that is piped is never cut; no terminal breaks its lines


def stdout() -> "Console":
    """For data. Piped: no colour, no wrapping, nothing cut."""
    from rich.console import Console

    return Console(highlight=False, width=PIPED_WIDTH if piped() else None, soft_wrap=piped())


def piped() -> bool:
    """Whether standard output goes to a program or a file."""
    return not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR")


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """External text for standard output; long text is cut on a terminal alone."""
    return safe(value, None if piped() else limit)


def stderr() -> "Console":
    """For notes and progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(line: str) -> None:
    """One dim line on standard error. Plain write: a note must not cost the import of rich's console."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{dim}{line}{plain}", file=sys.stderr)


def table(*columns: str, right: tuple[str, ...] = ()) -> "Table":
    """A plain table; the columns named in `right` hold numbers."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return grid


def row(grid: "Table", *cells: Any, style: str = "") -> None:
    """A row of external strings, none of which is taken for markup or control."""
    from rich.text import Text

    grid.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in cells), style=style or None)


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


def half_blocks(image: Image.Image, columns: int = 20) -> Text:
    """`image` (RGB) at most `columns` characters wide and half as many lines high."""
    scale = columns / max(image.size)
    width, height = max(1, round(image.width * scale)), max(2, round(image.height * scale / 2) * 2)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX).convert("RGB"))
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"{_hex(above)} on {_hex(below)}")
        text.append("\n")
    text.rstrip()
    return text


def _hex(pixel: Iterable[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in pixel)
