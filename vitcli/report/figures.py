"""Figures with matplotlib: fit for a paper's column, colour-blind safe, the same bytes for the same numbers.

Matplotlib's object interface only: no global state, no display. Takes numbers and names from whoever has them.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitcli.errors import UsageError
from vitcli.files import write_file
from vitcli.text import safe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, WIDE = 3.4, 7.0  # inches: one and two columns of a paper
# Okabe and Ito 2008: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called $x$
    "svg.hashsalt": "vit",
    "svg.fonttype": "path",
    "savefig.facecolor": "white",
}
MAX_NAMED = 30  # classes whose names fit beside a matrix

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that lays out its own axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        return Figure((width, height), layout="constrained")


def fitted(name: str, inches: float, points: float = 8) -> str:
    """`name` as far as it fits into `inches`, its middle left out; beginnings and ends tell models apart."""
    most = max(int(inches * 72 / (0.66 * points)), 3)
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[len(name) - most // 2 :]}"


def width_of(part: Any) -> float:
    """Inches of a figure, or of a part of one."""
    return float(part.bbox.width / part.dpi)


def curves_figure(panels: Sequence[tuple[str, Mapping[str, Curve]]], x_label: str) -> "Figure":
    """Side by side, one panel for each (y label, curves by name)."""
    from matplotlib import rc_context

    drawing = figure(WIDE, 2.3)
    with rc_context(STYLE):
        for axes, (label, curves) in zip(
            np.atleast_1d(drawing.subplots(1, len(panels))),
            panels,
            strict=True,
        ):
            for colour, (name, (x, y)) in zip(COLOURS, curves.items(), strict=False):
                dots = "o" if len(x) <= 30 else None
                axes.plot(x, y, color=colour, label=name, marker=dots, markersize=3)
            axes.set(xlabel=x_label, ylabel=label)
            if len(curves) > 1:
                axes.legend()
    return drawing


def confusion_figure(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> "Figure":
    """Row: the true class, column: the predicted one; colour is the share of the row, numbers are counts."""
    from matplotlib import rc_context

    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(counts)
    named = classes <= MAX_NAMED
    side = min(max(COLUMN, 1.6 + 0.36 * classes), WIDE)
    drawing = figure(side, side * 0.92)
    with rc_context(STYLE):
        axes = drawing.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted class", ylabel="true class")
        if named:
            names = [safe(label, 24) for label in labels]
            axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(classes), names)
        if classes <= 20:
            for row, column in zip(*np.nonzero(counts), strict=True):
                colour = "white" if shares[row, column] > 0.55 else "#222222"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=6.5)
        drawing.colorbar(image, label="share of the true class", shrink=0.8)
    return drawing


def reliability_figure(bins: Sequence[tuple[float, float, int, float | None]]) -> "Figure":
    """(low, high, n, accuracy) of each bin of confidence: what the probabilities promise, and what they keep."""
    from matplotlib import rc_context

    drawing = figure(COLUMN, 3.2)
    with rc_context(STYLE):
        top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        low = [b[0] for b in bins]
        width = [b[1] - b[0] for b in bins]
        kept = [0.0 if b[3] is None else b[3] for b in bins]
        top.bar(low, kept, width, align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.5)
        top.plot([0, 1], [0, 1], color="#666666", linestyle="--", linewidth=0.8, label="perfectly calibrated")
        top.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4)  # above: no bar is there
        bottom.bar(low, [b[2] for b in bins], width, align="edge", color="#999999", edgecolor="white", linewidth=0.5)
        bottom.set(xlabel="probability of the predicted class", ylabel="images")
    return drawing


def risk_figure(coverage: Sequence[float], risk: Sequence[float]) -> "Figure":
    """The share of wrong answers among the images that a model is surest of, against their share of all."""
    from matplotlib import rc_context

    drawing = figure(COLUMN, 2.2)
    with rc_context(STYLE):
        axes = drawing.subplots()
        axes.plot(coverage, risk, color=COLOURS[0])
        axes.set(xlabel="coverage: share of the images answered, the surest first", ylabel="risk: wrong of those")
        axes.set(xlim=(0, 1), ylim=(0, max(*risk, 0.01) * 1.05))
    return drawing


def similarity_figure(panels: Sequence[tuple[npt.NDArray[Any], tuple[int, int]]], titles: Sequence[str]) -> "Figure":
    """Cosines (h·w, h·w) of position embeddings on grids (h, w): a tile a position, its similarity with all others.

    Figure 7 (centre) of the paper. On grids of more than ten rows or columns every second, third, … tile is shown.
    """
    from matplotlib import rc_context

    width = WIDE if len(panels) > 1 else COLUMN
    wide = max(h / w for _, (h, w) in panels)
    drawing = figure(width, min(max(0.75 * width / len(panels) * wide, 1.0), WIDE) + 0.6)
    with rc_context(STYLE):
        parts = drawing.subfigures(1, len(panels), squeeze=False)[0]
        for part, (cosines, grid), title in zip(parts, panels, titles, strict=True):
            size = f": {grid[0]}×{grid[1]} patches"
            draw_similarity(part, cosines, grid, fitted(title, width_of(part) - 0.06 * len(size)) + size)
    return drawing


def draw_similarity(part: Any, cosines: npt.NDArray[Any], grid: tuple[int, int], title: str) -> None:
    """The tiles of `similarity_figure` in one part of a figure."""
    rows, columns = (list(range(0, n, -(-n // 10))) for n in grid)
    tiles = cosines.reshape(*grid, *grid)[np.ix_(rows, columns)]  # (row, column) of the tile, then of the other patch
    axes = part.subplots()
    sheet = mosaic(tiles)
    image = axes.imshow(sheet, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    for places, numbers, set_ticks in (
        (sheet.shape[0], rows, axes.set_yticks),
        (sheet.shape[1], columns, axes.set_xticks),
    ):
        step = (places + GAP) / len(numbers)
        set_ticks([i * step + (step - GAP - 1) / 2 for i in range(len(numbers))], [str(n + 1) for n in numbers])
    axes.tick_params(length=0, labelsize=6)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="patch column", ylabel="patch row", title=title)
    # A bar of its own, as high as the sheet, whatever the grid's shape.
    part.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.04, 1)), label="cosine similarity", ticks=(-1, 0, 1))


def side_by_side(panels: int, draw: Callable[[int, Any], None]) -> "Figure":
    """A figure of two columns' width in which `draw(i, part)` fills the part of panel i."""
    from matplotlib import rc_context

    drawing = figure(WIDE, 3.0)
    with rc_context(STYLE):
        for i, part in enumerate(drawing.subfigures(1, panels, squeeze=False)[0]):
            draw(i, part)
    return drawing


def title_part(part: Any, title: str) -> None:
    """Write `title`, as far as it fits, above one part of a figure."""
    part.suptitle(fitted(title, width_of(part)), fontsize=8)


def legend_below(part: Any, axes: "Axes", columns: int, title: str | None = None) -> None:
    """Put the legend of `axes` below them: inside, every corner is where some model has its points."""
    handles, labels = axes.get_legend_handles_labels()
    part.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=6, title=title, title_fontsize=6,
        columnspacing=1.2,
    )  # fmt: skip


def most_ticks(axes: "Axes") -> int:
    """How many numbers of two digits stand below `axes` without touching each other."""
    return 12 if is_wide(axes.figure) else 6


def layer_ticks(axes: "Axes", layers: int) -> None:
    """Number the layers below `axes`, from 1; every second, third, … where all would not fit."""
    axes.set_xticks(range(1, layers + 1, -(-layers // most_ticks(axes))))


def is_wide(part: Any) -> bool:
    """Whether a part of a figure is wider than one column of a paper."""
    return width_of(part) > COLUMN + 0.2


GAP = 4  # cells between the tiles of a mosaic, whose every value is `CELL` cells wide
CELL = 6


def mosaic(tiles: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Tiles (rows, columns, h, w, …) → one sheet, NaN between them."""
    rows, columns, h, w = tiles.shape[:4]
    high, wide = h * CELL + GAP, w * CELL + GAP
    sheet = np.full((rows * high, columns * wide, *tiles.shape[4:]), np.nan)
    for i in range(rows):
        for j in range(columns):
            large = tiles[i, j].repeat(CELL, axis=0).repeat(CELL, axis=1)
            sheet[i * high : i * high + h * CELL, j * wide : j * wide + w * CELL] = large
    return sheet[:-GAP, :-GAP]


def svg(drawing: "Figure") -> str:
    """The figure as SVG text; the same numbers give the same text."""
    return _bytes(drawing, "svg").decode("utf-8")


def save(drawing: "Figure", path: Path) -> Path:
    """Write the figure as the kind of file that `path` ends with: .png (300 dots an inch), .svg or .pdf."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise UsageError(f"{safe(path)}: a picture's name ends with .png, .svg or .pdf")
    write_file(path, [_bytes(drawing, kind)])
    return path


def _bytes(drawing: "Figure", kind: str) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(STYLE):
        drawing.savefig(file, format=kind, dpi=300, metadata=undated[kind])
    return file.getvalue()
