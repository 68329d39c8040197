"""Exhibits on the terminal: table, sentences and a small picture; or one JSON document."""

from collections.abc import Sequence

from PIL import Image
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vitcli.cli.console import half_blocks, row, stdout, table
from vitcli.inspection.exhibit import Exhibit
from vitcli.inspection.look import Inspection
from vitcli.text import as_json

PICTURE_COLUMNS = 32


def show(exhibits: Sequence[Exhibit]) -> None:
    """Print each exhibit: its title and words, its table beside or above its picture, its findings."""
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


def document(inspection: Inspection) -> None:
    """One JSON document: the exhibits by name, each with its table of all numbers and its small arrays."""
    models = {title: {"name": c.name, "architecture": c.architecture} for title, c in inspection.checkpoints.items()}
    exhibits = {exhibit.name: exhibit.as_dict() for exhibit in inspection.exhibits}
    document = {"schema": "vit.inspect/1", "models": models, "images": inspection.images, "exhibits": exhibits}
    print(as_json(document))


def _table(exhibit: Exhibit) -> Table:
    columns = exhibit.table.columns
    grid = table(*columns, right=tuple(name for name in columns[1:] if name != "model"))
    for line in exhibit.table.rows:
        row(grid, *line)
    return grid


def _picture(console: Console, exhibit: Exhibit) -> Text | None:
    if exhibit.picture is None or not console.is_terminal or console.color_system != "truecolor":
        return None
    pixels = exhibit.picture()
    return half_blocks(Image.fromarray(pixels), min(PICTURE_COLUMNS, max(pixels.shape[:2])))
