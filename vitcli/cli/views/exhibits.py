"""Exhibits on the terminal: table, sentences and a small picture; or one JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vitcli.checkpoint.config import Checkpoint
from vitcli.cli.console import half_blocks, row, stdout, table
from vitcli.inspection.exhibit import Exhibit
from vitcli.text import as_json, finite

MAX_INLINE = 10_000  # numbers of an array that --json prints; larger ones are in the files of --out
PICTURE_COLUMNS = 32


def show(exhibits: Sequence[Exhibit]) -> None:
    console = stdout()
    for i, exhibit in enumerate(exhibits):
        if i:
            console.print()
        console.print(Text(exhibit.title, style="bold"))
        console.print(Text(exhibit.words, style="dim"))
        body = _table(exhibit)
        picture = _picture(console, exhibit)
        if picture is not None and console.measure(body).maximum + 2 + PICTURE_COLUMNS <= console.width:
            beside = Table.grid(padding=(0, 4))
            beside.add_row(body, picture)
            console.print(beside)
        else:
            console.print(body if picture is None else Group(body, picture))
        for line in exhibit.findings:
            console.print(Text(f"→ {line}"))


def document(checkpoints: Mapping[str, Checkpoint], images: Sequence[str], exhibits: Sequence[Exhibit]) -> None:
    """One JSON document: `exhibits` by name, each with its table of all numbers and its small arrays."""
    found = {exhibit.name: _as_dict(exhibit) for exhibit in exhibits}
    models = {title: {"name": c.name, "architecture": c.architecture} for title, c in checkpoints.items()}
    document = {"schema": "vit.inspect/1", "models": models, "images": images, "exhibits": found}
    print(as_json(document))


def _as_dict(exhibit: Exhibit) -> dict[str, Any]:
    columns, rows = exhibit.records
    return {
        "findings": exhibit.findings,
        "columns": columns,
        "rows": [[plain(cell) for cell in line] for line in rows],
        "arrays": {name: _nested(a) for name, a in exhibit.arrays.items() if a.size <= MAX_INLINE},
    }


def plain(value: Any) -> Any:
    """A number as Python's own; None for NaN and infinities, which neither JSON nor a cell of CSV has."""
    return finite(value.item() if isinstance(value, np.generic) else value)


def _nested(array: Any) -> Any:
    return [_nested(part) for part in array] if getattr(array, "ndim", 0) else plain(array)


def _table(exhibit: Exhibit) -> Table:
    grid = table(*exhibit.columns, right=tuple(name for name in exhibit.columns[1:] if name != "model"))
    for line in exhibit.rows:
        row(grid, *line)
    return grid


def _picture(console: Console, exhibit: Exhibit) -> Text | None:
    if exhibit.picture is None or not console.is_terminal or console.color_system != "truecolor":
        return None
    pixels = exhibit.picture()
    return half_blocks(Image.fromarray(pixels), min(PICTURE_COLUMNS, max(pixels.shape[:2])))
