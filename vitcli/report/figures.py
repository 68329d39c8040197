"""Figures with matplotlib: fit for a paper's column, colour-blind safe, the same bytes for the same numbers.

Matplotlib's object interface only: no global state, no display. Takes numbers and names from whoever has them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitcli.errors import UsageError
from vitcli.text import safe

if TYPE_CHECKING:
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
        top.legend(loc="upper left")
        bottom.bar(low, [b[2] for b in bins], width, align="edge", color="#999999", edgecolor="white", linewidth=0.5)
        bottom.set(xlabel="probability of the predicted class", ylabel="images")
    return drawing


def similarity_figure(
    panels: Sequence[tuple[npt.NDArray[np.float32], tuple[int, int]]], titles: Sequence[str]
) -> "Figure":
    """Position embeddings (h·w, D) on their grids (h, w): a tile a position, its cosine similarity with all others.

    Figure 7 (centre) of the paper. On grids of more than ten rows or columns every second, third, … tile is shown.
    """
    from matplotlib import rc_context

    drawing = figure(WIDE if len(panels) > 1 else COLUMN, 3.4)
    with rc_context(STYLE):
        parts = drawing.subfigures(1, len(panels), squeeze=False)[0]
        for part, (patches, grid), title in zip(parts, panels, titles, strict=True):
            unit = patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-12)
            tiles = (unit @ unit.T).reshape(*grid, *grid)  # (row, column) of the tile, then of what it is compared with
            rows, columns = (list(range(0, n, -(-n // 10))) for n in grid)
            axes = part.subplots(len(rows), len(columns), squeeze=False)
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    cell = axes[i, j]
                    image = cell.imshow(tiles[row, column], cmap="viridis", vmin=-1, vmax=1, aspect="auto")
                    cell.set(xticks=[], yticks=[])
                    for spine in cell.spines.values():
                        spine.set_visible(False)
                    if i == len(rows) - 1:
                        cell.set_xlabel(str(column + 1), fontsize=6)
                    if j == 0:
                        cell.set_ylabel(str(row + 1), fontsize=6, rotation=0, ha="right", va="center")
            part.suptitle(f"{title}: {grid[0]}×{grid[1]} patches", fontsize=8)
            part.supxlabel("patch column", fontsize=8)
            part.supylabel("patch row", fontsize=8)
        drawing.colorbar(image, ax=axes.ravel().tolist(), label="cosine similarity")
    return drawing


def svg(drawing: "Figure") -> str:
    """The figure as SVG text; the same numbers give the same text."""
    return _bytes(drawing, "svg").decode("utf-8")


def save(drawing: "Figure", path: Path) -> Path:
    """Write the figure as the kind of file that `path` ends with: .png (300 dots an inch), .svg or .pdf."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise UsageError(f"{safe(path)}: a picture's name ends with .png, .svg or .pdf")
    new = path.with_name(f".{path.name}.tmp")
    new.write_bytes(_bytes(drawing, kind))
    return new.replace(path)


def _bytes(drawing: "Figure", kind: str) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(STYLE):
        drawing.savefig(file, format=kind, dpi=300, metadata=undated[kind])
    return file.getvalue()
