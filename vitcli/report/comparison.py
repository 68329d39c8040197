"""The figure of `vit compare`: accuracy over the amount of data, one line a model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitcli.report.figures import COLOURS, STYLE, WIDE, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>"


def accuracy_figure(axis: str, curves: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> "Figure":
    """By name: (images, mean accuracy, low, high) of each point; images on a logarithmic axis, which `axis` names.

    Points of the same number of images stand side by side.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import NullLocator

    drawing = figure(WIDE * 0.7, 3.0)
    with rc_context(STYLE):
        axes = drawing.add_subplot()
        for i, (name, points) in enumerate(curves.items()):
            images, mean, low, high = zip(*sorted(points), strict=True)
            beside = 1.03 ** (i - (len(curves) - 1) / 2)  # so that no interval hides another
            spread = [[m - b for m, b in zip(mean, low, strict=True)], [t - m for m, t in zip(mean, high, strict=True)]]
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.errorbar(
                [n * beside for n in images],
                mean,
                spread,
                color=colour,
                marker=marker,
                markersize=4,
                capsize=2,
                elinewidth=0.8,
                label=name,
            )
        axes.set(xscale="log", xlabel=axis, ylabel="test accuracy")
        amounts = sorted({point[0] for points in curves.values() for point in points})
        axes.set_xticks(amounts, [f"{n:.0f}" for n in amounts])
        axes.xaxis.set_minor_locator(NullLocator())
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, 0), min(top, 1.02))  # an interval of two seeds may leave what accuracy can be
        axes.legend()
    return drawing
