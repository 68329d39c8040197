"""The terminal: data on standard output, notes and the progress of long work on standard error.

Imports nothing heavy. Rich comes with the first table, picture or bar that is drawn, and what reads checkpoints or
data with the first that is read.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.text import MAX_SHOWN, as_json, safe

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

    from vitcli.checkpoint.config import Checkpoint
    from vitcli.data.samples import DataSet
    from vitcli.files import OnProgress

PIPED_WIDTH = 10_000  # characters: a table that is piped is never cut; no terminal breaks its lines
PATIENCE = 1.0  # seconds that anybody waits without wondering


def document(content: Any) -> None:
    """`content` on standard output as the one JSON document that `--json` asks for."""
    print(as_json(content))


def stdout() -> "Console":
    """The console for data. Piped: no colour, no wrapping, nothing cut."""
    from rich.console import Console

    return Console(highlight=False, width=PIPED_WIDTH if piped() else None, soft_wrap=piped())


def stderr() -> "Console":
    """The console for progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def piped() -> bool:
    """Whether standard output goes to a program or a file."""
    return not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR")


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """External text for standard output; only on a terminal is long text cut."""
    return safe(value, None if piped() else limit)


def note(line: str) -> None:
    """One dim line on standard error."""
    _write(line, "\x1b[2m")


def complain(line: str) -> None:
    """One red line on standard error: why the command ends."""
    _write(line, "\x1b[31m")


def _write(line: str, style: str) -> None:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"{style}{line}\x1b[0m" if coloured else line, file=sys.stderr)


def table(*columns: str, right: tuple[str, ...] = ()) -> "Table":
    """A plain table; the columns named in `right` hold numbers."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return grid


def row(grid: "Table", *cells: Any, style: str = "") -> None:
    """Add a row of external strings to `grid`, none of which is taken for markup or control."""
    from rich.text import Text

    grid.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in cells), style=style or None)


def pictures_shown() -> bool:
    """Whether standard output is a terminal that small pictures can be drawn in."""
    console = stdout()
    return console.is_terminal and console.color_system == "truecolor"


def half_blocks(image: "Image.Image", columns: int = 20) -> "Text":
    """`image` (RGB) at most `columns` characters wide and half as many lines high.

    One character is two pixels, its foreground over its background.
    """
    import numpy as np
    from PIL import Image
    from rich.text import Text

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


@contextmanager
def progress(name: str = "") -> Iterator[Callable[[int, int], None] | None]:
    """Yields a function to call with (done, of how many), or None where nobody would see the bar."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(compact=True), console=stderr(), transient=True) as bars:
        task = bars.add_task(name)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows on a terminal what is being done, for work that cannot say how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    with stderr().status(safe(what)):
        yield


@contextmanager
def files_read(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (files read, of how many).

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


@contextmanager
def bytes_shown(verb: str, *, piped: bool = False) -> "Iterator[OnProgress]":
    """Yields a function to call with (file, bytes done, bytes in all) while files are "downloading" or the like.

    A bar for each file on a terminal; elsewhere, with `piped`, one line for each that is no .json.
    """
    with ExitStack() as stack:
        if sys.stderr.isatty():
            yield _bars(stack, verb)
        else:
            yield _lines(verb) if piped else lambda file, done, total: None


def _bars(stack: ExitStack, verb: str) -> "OnProgress":
    """The bars appear with the first file, so that where nothing is done nothing is imported."""
    tasks: dict[str, TaskID] = {}
    begun: list[Progress] = []

    def tell(file: str, done: int, total: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if not begun:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn())
            bars = Progress(*columns, TimeRemainingColumn(compact=True), console=stderr(), transient=True)
            begun.append(stack.enter_context(bars))
        if file not in tasks:
            tasks[file] = begun[0].add_task(f"{verb} {safe(file, 60)}", total=total)
        begun[0].update(tasks[file], completed=done, total=total)

    return tell


def _lines(verb: str) -> "OnProgress":
    told: set[str] = set()

    def tell(file: str, done: int, total: int | None) -> None:
        if file not in told and not file.endswith(".json"):
            note(f"{verb} {safe(file)}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        told.add(file)

    return tell


def downloads() -> "AbstractContextManager[OnProgress]":
    """Yields a function to call with (file, bytes done, bytes in all) while files are downloaded."""
    return bytes_shown("downloading", piped=True)


def resolved(name: str | None, *, verify: bool = True, **options: Any) -> "Checkpoint":
    """The checkpoint that `checkpoint.resolve` finds for `name` with its `options`; a download is shown.

    So is the comparison with the Hub's digests, which reading the weights would make first; `verify=False` is for
    callers that do not read them.
    """
    from vitcli.checkpoint.hub import verify_blob
    from vitcli.checkpoint.resolve import resolve
    from vitcli.checkpoint.tensor_file import weight_files

    with downloads() as tell:
        checkpoint = resolve(name, progress=tell, **options)
    if verify and checkpoint.source == "hub":
        with bytes_shown("checking") as tell:
            for file in weight_files(checkpoint.weights_path):
                verify_blob(file, checkpoint.name, tell)
    return checkpoint


def data_opened(path: str | Path, **options: Any) -> "DataSet":
    """The data set that `data.sources.open_data` reads at `path`; it may read every file, and that is shown."""
    from vitcli.data.sources import open_data

    with files_read("reading the data") as tell:
        return open_data(path, progress=tell, **options)


class Telling:
    """What a task tells while it works: a bar for what it is at, gone once that is done or a note comes."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._what: str | None = None
        self._bar: Callable[[int, int], None] | None = None

    def __enter__(self) -> "Telling":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`; another `what` gets another bar."""
        from vitcli.data.sources import READING

        if what != self._what and done < total:
            self._close()
            self._bar = self._open.enter_context(files_read(what) if what == READING else progress(what))
            self._what = what
        if self._bar and what == self._what:
            self._bar(done, total)
        if done >= total:
            self._close()

    def note(self, line: str) -> None:
        """One dim line on standard error."""
        self._close()
        note(line)

    def _close(self) -> None:
        self._open.close()
        self._what = self._bar = None
