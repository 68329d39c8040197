"""The figures of `vit inspect`: figure 7 of the paper, and what else can be seen inside a ViT.

Every function takes one panel for each model, titled, and draws them side by side. Takes arrays, knows no models.

Legend: L layers, n heads, h w patch grid, P Q height and width of a patch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vitcli.report.figures import COLOURS, STYLE, WIDE, draw_similarity, figure, fitted, mosaic, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Panel = tuple[str, Array, Array]  # title and two arrays

HALF = 3.4  # inches: the height of one panel


def distance_figure(panels: Sequence[tuple[str, Array, Array, float]]) -> "Figure":
    """Mean (L, n) and standard error (L, n) of attention distance, and that of even attention, in pixels.

    One dot a head over the layer, as figure 7 (right) of the paper.
    """
    return _side_by_side(len(panels), lambda i, part: _distance(part, *panels[i]))


def filters_figure(panels: Sequence[tuple[str, Array]]) -> "Figure":
    """Pictures (k, P, Q, 3) in 0 to 1, in rows of seven."""
    return _side_by_side(len(panels), lambda i, part: _filters(part, *panels[i]))


def figure_7(
    filters: tuple[str, Array],
    similarity: tuple[Array, tuple[int, int]] | None,
    distance: tuple[str, Array, Array, float],
) -> "Figure":
    """Filters, position similarity (cosines (h·w, h·w) and the grid) and attention distance in one picture."""
    from matplotlib import rc_context

    drawing = figure(WIDE, 2.9)
    with rc_context(STYLE):
        widths = (1.0, 1.15, 1.15) if similarity else (1.0, 1.15)
        parts = drawing.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
        _filters(parts[0], *filters)
        if similarity:
            draw_similarity(parts[1], *similarity, "position similarity")
        _distance(parts[-1], *distance)
    return drawing


def heads_figure(panels: Sequence[Panel]) -> "Figure":
    """Entropy as a share of the greatest (L, n), and the share of attention on prefix tokens (L, n)."""

    def draw(i: int, part: Any) -> None:
        title, entropy, on_prefix = panels[i]
        left, right = part.subplots(1, 2, sharey=True)
        _map(left, entropy, "entropy / greatest", "viridis")
        _map(right, on_prefix, "share on prefix tokens", "viridis")
        left.set(ylabel="layer")
        _title(part, title)

    return _side_by_side(len(panels), draw)


def norms_figure(panels: Sequence[tuple[str, Array, Array, Array]]) -> "Figure":
    """Norms of patches (images, L, h, w), of prefix tokens (images, L, p); how often a patch is an artefact (h, w)."""

    from matplotlib.ticker import LogFormatter

    def draw(i: int, part: Any) -> None:
        title, patches, prefix, places = panels[i]
        left, right = part.subplots(1, 2, width_ratios=(1.5, 1))
        layers = np.arange(1, patches.shape[1] + 1)
        flat = patches.transpose(1, 0, 2, 3).reshape(len(layers), -1)
        low, middle, high = np.quantile(flat, (0.05, 0.5, 0.95), axis=1)
        left.fill_between(layers, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="patches, 5 to 95 %")
        left.plot(layers, middle, color=COLOURS[0], label="patches, median")
        left.plot(layers, flat.max(axis=1), color=COLOURS[1], linestyle=":", label="largest patch")
        for j in range(prefix.shape[2]):
            label = "class token, registers" if j == 0 else None
            left.plot(layers, prefix[:, :, j].mean(axis=0), color=COLOURS[2], linestyle="--", label=label)
        left.set(xlabel="layer", ylabel="norm of the token", yscale="log")
        left.yaxis.set_major_formatter(LogFormatter())
        left.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        _legend(part, left, columns=2)
        _ticks(left, len(layers))
        right.set(xlabel="patch column", ylabel="patch row", xticks=[], yticks=[])
        right.set_title("artefacts,\nlast layer", fontsize=7)
        if places.any():
            image = right.imshow(places, cmap="magma", vmin=0, vmax=float(places.max()))
            bar = part.colorbar(image, ax=right, shrink=0.7)
            bar.set_label("share of images", fontsize=6)
        else:  # a bar of one colour would say nothing
            right.set(aspect=places.shape[0] / places.shape[1], xlim=(0, 1), ylim=(0, 1))
            right.text(0.5, 0.5, "none", ha="center", va="center", fontsize=7)
        _title(part, title)

    return _side_by_side(len(panels), draw)


def lens_figure(panels: Sequence[Panel]) -> "Figure":
    """Agreement with the last layer (L,) and mean probability of its answer (L,)."""

    def draw(i: int, part: Any) -> None:
        title, agrees, confidence = panels[i]
        axes = part.subplots()
        layers = range(1, len(agrees) + 1)
        axes.plot(layers, agrees, color=COLOURS[0], marker="o", markersize=3, label="same answer as the last layer")
        axes.plot(layers, confidence, color=COLOURS[1], marker="s", markersize=3, label="probability of that answer")
        axes.set(xlabel="layer", ylabel="share of the images, probability", ylim=(0, 1.03))
        _title(part, title)
        _legend(part, axes, columns=2 if len(panels) == 1 else 1)
        _ticks(axes, len(agrees))

    return _side_by_side(len(panels), draw)


def maps_figure(rows: Sequence[tuple[str, Sequence[Array]]], titles: Sequence[str]) -> "Figure":
    """Pictures (H, W, 3) uint8, all of one size, in rows with their names, a column a kind of picture."""
    from matplotlib import rc_context

    columns = len(titles)
    height, width = rows[0][1][0].shape[:2]
    side = min(WIDE / columns, 1.2)
    drawing = figure(side * columns, side * height / width * len(rows) + 0.25)
    with rc_context(STYLE):
        cells = drawing.subplots(len(rows), columns, squeeze=False)
        for line, (name, pictures) in zip(cells, rows, strict=True):
            for axes, picture in zip(line, pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(fitted(name, side * height / width, 7), fontsize=7)
        points = 7 if columns < 9 else 6
        for axes, title in zip(cells[0], titles, strict=True):
            axes.set_title("\n".join(fitted(line, side, points) for line in title.split("\n")), fontsize=points)
    return drawing


def lit(pixels: Array, weights: Array) -> Array:
    """An image (H, W, 3) uint8 seen through the map `weights` (h, w), as figure 6 of the paper was drawn.

    Weights over their largest, enlarged to the image (Lanczos), blurred with the patch as radius, stretched to 0 … 1,
    multiplied to the pixels (vision_transformer issue 27).
    """
    height, width = pixels.shape[:2]
    small = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32), mode="F")
    large = small.resize((width, height), Image.Resampling.LANCZOS)
    gray = Image.fromarray((np.asarray(large).clip(0, 1) * 255).round().astype(np.uint8))
    mask = np.asarray(gray.filter(ImageFilter.GaussianBlur(height / len(weights))), np.float64)
    mask = (mask - mask.min()) / max(float(np.ptp(mask)), 1e-12)
    return (pixels * mask[:, :, None]).round().astype(np.uint8)  # type: ignore[no-any-return]


def coloured(weights: Array, size: tuple[int, int]) -> Array:
    """A map (h, w) as colours (H, W, 3) uint8, dark is little; each patch keeps its edges."""
    from matplotlib import colormaps

    shades = weights / max(float(weights.max()), 1e-12)
    colours = (colormaps["viridis"](shades)[..., :3] * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(colours).resize((size[1], size[0]), Image.Resampling.NEAREST))


def over(pixels: Array, weights: Array) -> Array:
    """The map `weights` (h, w) in colours over the gray of an image (H, W, 3) uint8."""
    gray = pixels.mean(axis=2, keepdims=True)
    return (0.4 * gray + 0.6 * coloured(weights, pixels.shape[:2])).round().astype(np.uint8)  # type: ignore[no-any-return]


def outlined(picture: Array, mask: Array) -> Array:
    """A picture (H, W, 3) uint8 with a white line around the patches of `mask` (h, w)."""
    height, width = picture.shape[:2]
    inside = (
        np.asarray(Image.fromarray((mask > 0).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0
    )
    line = max(1, height // 100)
    edge = np.zeros_like(inside)
    for shift in (line, -line):
        for axis in (0, 1):
            edge |= inside & ~np.roll(inside, shift, axis)
    return np.where(edge[:, :, None], np.uint8(255), picture)


def _side_by_side(panels: int, draw: Callable[[int, Any], None]) -> "Figure":
    from matplotlib import rc_context

    drawing = figure(WIDE, 3.0)
    with rc_context(STYLE):
        for i, part in enumerate(drawing.subfigures(1, panels, squeeze=False)[0]):
            draw(i, part)
    return drawing


def _distance(part: Any, title: str, mean: Array, error: Array, uniform: float) -> None:
    axes = part.subplots()
    layers = np.arange(1, len(mean) + 1)
    across = np.broadcast_to(layers[:, None], mean.shape)
    errors = None if np.isnan(error).any() else 1.96 * error.ravel()
    axes.errorbar(
        across.ravel(),
        mean.ravel(),
        errors,
        fmt="o",
        markersize=3,
        elinewidth=0.6,
        color=COLOURS[0],
        label="a head" if errors is None else "a head, 95 % interval over images",
    )
    axes.plot(layers, mean.mean(axis=1), color=COLOURS[1], label="mean of the layer")
    axes.axhline(uniform, color="#666666", linestyle="--", linewidth=0.8, label="even attention")
    axes.set(xlabel="layer", ylabel="attention distance, pixels", ylim=(0, None))
    _title(part, title)
    _legend(part, axes, columns=3 if width_of(part) > HALF + 0.2 else 1)
    _ticks(axes, len(mean))


def _filters(part: Any, title: str, pictures: Array) -> None:
    rows = -(-len(pictures) // 7)
    tiles = np.ones((rows * 7, *pictures.shape[1:]))
    tiles[: len(pictures)] = pictures
    sheet = mosaic(tiles.reshape(rows, 7, *pictures.shape[1:]))
    axes = part.subplots()
    axes.imshow(np.nan_to_num(sheet, nan=1.0), interpolation="nearest")  # white between them
    axes.set_axis_off()
    axes.set_title(fitted(title, width_of(part)))


def _title(part: Any, title: str) -> None:
    part.suptitle(fitted(title, width_of(part)), fontsize=8)


def _legend(part: Any, axes: "Axes", columns: int, title: str | None = None) -> None:
    """Below the axes: inside them, every corner is where some model has its points."""
    handles, labels = axes.get_legend_handles_labels()
    part.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=6, title=title, title_fontsize=6,
        columnspacing=1.2,
    )  # fmt: skip


def _map(axes: "Axes", values: Array, title: str, colours: str) -> None:
    """Layers down, heads across, 0 to 1."""
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=7)
    layers, heads = values.shape
    axes.set(xlabel="head")
    axes.set_xticks(range(0, heads, -(-heads // 12)), [str(i + 1) for i in range(0, heads, -(-heads // 12))])
    axes.set_yticks(range(0, layers, -(-layers // 12)), [str(i + 1) for i in range(0, layers, -(-layers // 12))])
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _ticks(axes: "Axes", layers: int) -> None:
    axes.set_xticks(range(1, layers + 1, -(-layers // _most_ticks(axes))))


def _most_ticks(axes: "Axes") -> int:
    """As many numbers of two digits as stand beside each other without touching."""
    return 12 if width_of(axes.figure) > HALF + 0.2 else 6


def equivariance_figure(panels: Sequence[tuple[str, Array, Array, Sequence[int]]]) -> "Figure":
    """Cosines (layers, shifts) of features that moved with the image, and (dotted) of features that stood still.

    NaN, where no cell is inside, is left out.
    """

    def draw(i: int, part: Any) -> None:
        title, moved, still, shifts = panels[i]
        axes = part.subplots()
        layers = range(len(moved))
        for colour, shift, with_it, without in zip(COLOURS, shifts, moved.T, still.T, strict=False):
            axes.plot(layers, with_it, color=colour, marker="o", markersize=3, label=f"{shift} px")
            axes.plot(layers, without, color=colour, linestyle=":", linewidth=0.8)
        axes.set(xlabel="layer", ylabel="cosine", ylim=(np.nanmin([0, *still.flat]), 1.03))
        _title(part, title)
        _legend(part, axes, columns=5 if len(panels) == 1 else 3, title="moved with the image (dotted: standing still)")
        axes.set_xticks(range(0, len(moved), -(-len(moved) // _most_ticks(axes))))

    return _side_by_side(len(panels), draw)


def fields_figure(panels: Sequence[tuple[str, Array, Sequence[str]]]) -> "Figure":
    """Receptive fields (layers, H, W): up to six layers in a row, a row a model; brightness is the square root."""
    from matplotlib import rc_context

    shown = [np.unique(np.linspace(0, len(layers) - 1, 6).round().astype(int)) for _, _, layers in panels]
    columns = max(map(len, shown))
    height, width = panels[0][1].shape[1:]
    drawing = figure(WIDE, WIDE / columns * height / width * len(panels) + 0.3)
    with rc_context(STYLE):
        cells = drawing.subplots(len(panels), columns, squeeze=False)
        for line, (title, fields, layers), chosen in zip(cells, panels, shown, strict=True):
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for axes, i in zip(line, chosen, strict=False):
                axes.imshow(np.sqrt(fields[i]), cmap="magma", interpolation="nearest")
                axes.set_title(layers[i], fontsize=7)
            line[0].set_ylabel(fitted(title, WIDE / columns * height / width, 7), fontsize=7)
    return drawing
