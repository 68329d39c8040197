"""Exhibits as files: figures, every number as .csv and .npz, one HTML page that links to them."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.errors import VitError
from vitcli.files import write_file
from vitcli.inspection.distance import Distances, draw_distance
from vitcli.inspection.exhibit import Array, Exhibit, plain
from vitcli.inspection.filters import Filters, draw_filters
from vitcli.inspection.look import Inspection
from vitcli.inspection.positions import Similarity
from vitcli.model.config import Size
from vitcli.report.figures import STYLE, WIDE, draw_similarity, figure, save, svg
from vitcli.report.page import Page
from vitcli.text import csv_cell, safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_folder(folder: Path, inspection: Inspection) -> None:
    """Write all of `inspection` into `folder`, which may exist; files of the same names are replaced, each as a whole.

    Raises VitError where the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VitError(f"cannot write to {safe(folder)}: {error.strerror}") from error
    page = Page("Looking inside " + " and ".join(inspection.checkpoints))
    page.facts((title, _described(c)) for title, c in inspection.checkpoints.items())
    if images := inspection.watched:
        page.paragraph(f"Looked with {len(images)} images, from {images[0]} to {images[-1]}.")
    _write_figures_7(folder, inspection, page)
    for exhibit in inspection.exhibits:
        _write_numbers(folder, exhibit)
        _section(page, exhibit, _draw(exhibit.draw(), folder, exhibit.name))
    page.write(folder / "report.html")


def _write_figures_7(folder: Path, inspection: Inspection, page: Page) -> None:
    """The paper's figure 7 of each model of which filters and attention distance were looked at."""
    filters, distances, similarities = (
        inspection.results.get(aspect, {}) for aspect in ("filters", "attention-distance", "posemb")
    )
    titles = [title for title in filters if title in distances]
    for title in titles:
        name = "figure-7" if len(distances) == 1 else f"figure-7-{title}"
        page.section(f"Figure 7 of the paper: {title}")
        drawing = _figure_7_of(filters[title], similarities.get(title), distances[title])
        page.svg(_draw(drawing, folder, name), "")
        page.files([f"{name}.png", f"{name}.svg"])


def _figure_7_of(filters: Filters, similarity: Similarity | None, distances: Distances) -> "Figure":
    name = "the CNN's first filters" if filters.of_cnn else "embedding filters"
    paper = distances.paper
    return figure_7(
        (name, filters.pictures()),
        (similarity.cosines, similarity.grid) if similarity else None,
        ("attention distance", paper.mean, paper.error, distances.uniform),
    )


def figure_7(
    filters: tuple[str, Array],
    similarity: tuple[Array, Size] | None,
    distance: tuple[str, Array, Array, float],
) -> "Figure":
    """Filters, position similarity (cosines (h·w, h·w) and the grid) and attention distance in one picture.

    Each as its own figure takes it; without position embeddings, the other two.
    """
    from matplotlib import rc_context

    drawing = figure(WIDE, 2.9)
    with rc_context(STYLE):
        widths = (1.0, 1.15, 1.15) if similarity else (1.0, 1.15)
        parts = drawing.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
        draw_filters(parts[0], *filters)
        if similarity:
            draw_similarity(parts[1], *similarity, "position similarity")
        draw_distance(parts[-1], *distance)
    return drawing


def _draw(drawing: "Figure", folder: Path, name: str) -> str:
    """Write the figure as .png and .svg, and give the latter's text for the page."""
    save(drawing, folder / f"{name}.png")
    markup = svg(drawing)
    write_file(folder / f"{name}.svg", [markup.encode("utf-8")])
    return markup


def _write_numbers(folder: Path, exhibit: Exhibit) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(exhibit.records.columns)
    for row in exhibit.records.rows:
        writer.writerow([csv_cell(cell, None) if isinstance(cell, str) else plain(cell) for cell in row])
    write_file(folder / f"{exhibit.name}.csv", [text.getvalue().encode("utf-8")])
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, **exhibit.arrays)
    write_file(folder / f"{exhibit.name}.npz", [arrays.getvalue()])


def _section(page: Page, exhibit: Exhibit, markup: str) -> None:
    page.section(exhibit.title)
    page.paragraph(exhibit.words)
    page.svg(markup, "")
    for title, dots in exhibit.dots().items() if exhibit.dots else ():
        page.dots(dots, f"{title}: point at a dot to see its image.")
    for line in exhibit.findings:
        page.paragraph("→ " + line)
    columns = exhibit.table.columns
    page.table(columns, exhibit.table.rows, [name for name in columns[1:] if name != "model"])
    page.files(f"{exhibit.name}.{kind}" for kind in ("png", "svg", "csv", "npz"))


def _described(checkpoint: Checkpoint) -> str:
    vit = checkpoint.vit
    if vit is None:
        return f"{checkpoint.name}: {checkpoint.architecture}"
    sizes = f"{vit.img_size[0]}×{vit.img_size[1]} pixels, {vit.grid[0]}×{vit.grid[1]} patches"
    return f"{checkpoint.name}: {checkpoint.architecture}, {sizes}, width {vit.embed_dim}, {vit.depth} blocks"
