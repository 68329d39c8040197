"""The two streams: data on standard output, everything else on standard error. Where rich is set up."""

import os
import sys
from typing import TYPE_CHECKING, Any

from vitcli.text import MAX_SHOWN, safe

if TYPE_CHECKING:  # notes and --json do without
    from rich.console import Console
    from rich.table import Table

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
