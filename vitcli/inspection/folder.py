"""Exhibits as files: figures, every number as .csv and .npz, one HTML page that links to them."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.cli.views.exhibits import plain
from vitcli.errors import VitError
from vitcli.files import write_file
from vitcli.inspection import exhibit as panel
from vitcli.inspection.exhibit import Exhibit
from vitcli.inspection.look import Seen
from vitcli.report.figures import save, svg
from vitcli.report.page import Page
from vitcli.text import csv_cell, safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_folder(
    folder: Path, checkpoints: Mapping[str, Checkpoint], seen: Mapping[str, Seen], exhibits: Sequence[Exhibit]
) -> None:
    """Write all there is into `folder`, which may exist; files of the same names are replaced, each as a whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VitError(f"cannot write to {safe(folder)}: {error.strerror}") from error
    page = Page("Looking inside " + " and ".join(checkpoints))
    page.facts((title, _described(c)) for title, c in checkpoints.items())
    if seen and (images := next(iter(seen.values())).images):
        page.paragraph(f"Looked with {len(images)} images, from {images[0].name} to {images[-1].name}.")
    for title, one in seen.items():
        if one.filters and one.distance:
            name = "figure-7" if len(seen) == 1 else f"figure-7-{title}"
            page.section(f"Figure 7 of the paper: {title}")
            page.svg(_draw(panel.figure_7(one), folder, name), "")
            page.files([f"{name}.png", f"{name}.svg"])
    for exhibit in exhibits:
        _write_numbers(folder, exhibit)
        _section(page, exhibit, _draw(exhibit.draw(), folder, exhibit.name))
    page.write(folder / "report.html")


def _draw(drawing: "Figure", folder: Path, name: str) -> str:
    """Write the figure as .png and .svg, and give the latter's text for the page."""
    save(drawing, folder / f"{name}.png")
    markup = svg(drawing)
    write_file(folder / f"{name}.svg", [markup.encode("utf-8")])
    return markup


def _write_numbers(folder: Path, exhibit: Exhibit) -> None:
    columns, rows = exhibit.records
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([csv_cell(cell, None) if isinstance(cell, str) else plain(cell) for cell in line] for line in rows)
    write_file(folder / f"{exhibit.name}.csv", [text.getvalue().encode("utf-8")])
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **exhibit.arrays)
    write_file(folder / f"{exhibit.name}.npz", [arrays.getvalue()])


def _section(page: Page, exhibit: Exhibit, markup: str) -> None:
    page.section(exhibit.title)
    page.paragraph(exhibit.words)
    page.svg(markup, "")
    for line in exhibit.findings:
        page.paragraph("→ " + line)
    page.table(exhibit.columns, exhibit.rows, [name for name in exhibit.columns[1:] if name != "model"])
    page.files(f"{exhibit.name}.{kind}" for kind in ("png", "svg", "csv", "npz"))


def _described(checkpoint: Checkpoint) -> str:
    vit = checkpoint.vit
    if vit is None:
        return f"{checkpoint.name}: {checkpoint.architecture}"
    sizes = f"{vit.img_size[0]}×{vit.img_size[1]} pixels, {vit.grid[0]}×{vit.grid[1]} patches"
    return f"{checkpoint.name}: {checkpoint.architecture}, {sizes}, width {vit.embed_dim}, {vit.depth} blocks"
