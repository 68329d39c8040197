"""What a study leaves in its folder for people and other programs: figure, CSV and HTML page."""

import csv
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from vitcli.comparison.results import Findings
from vitcli.comparison.tables import accuracy_table, few_shot_table, named, records, sentence
from vitcli.files import write_file
from vitcli.report.figures import COLOURS, STYLE, WIDE, figure, save, svg
from vitcli.report.page import Page
from vitcli.storage.named import name_of
from vitcli.text import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>"
Curves = dict[str, list[tuple[float, float, float, float]]]  # by name: images, mean accuracy, low, high of each point


def write_report(folder: Path, found: Findings) -> None:
    """accuracy.png and .svg, results.csv and report.html in `folder`."""
    study = found.study
    drawing = accuracy_figure(*_curves(found))
    for kind in ("png", "svg"):
        save(drawing, folder / f"accuracy.{kind}")
    write_file(folder / "results.csv", [as_csv(found).encode()])
    page = Page(f"Which model for how much of {name_of(study.data)}?")
    page.paragraph(
        f"{plural(len(study.models), 'model')}, the same recipe, {plural(study.seeds, 'seed')}; "
        + ("test accuracy with 95 % intervals over the seeds. " if study.seeds > 1 else "test accuracy. ")
        + "The epoch was chosen on validation images; the test images were read once, to score that one."
    )
    for before in study.pretrainings:
        page.paragraph(
            f"After {before.name}: pre-trained on {before.share * 100:g}% of {name_of(before.data)}, then fine-tuned "
            f"at {study.finetune_size:g} times the image size."
        )
    left = len(list(study.cells())) - len(found.cells)
    if left:
        page.paragraph(f"{plural(left, 'cell')} of {len(list(study.cells()))} still to come.")
    page.svg(svg(drawing), "Test accuracy, and its 95 % interval, by number of images.")
    columns, rows = accuracy_table(found)
    page.table(columns, rows, columns[1:])
    for one in found.crossings:
        page.paragraph("→ " + sentence(one))
    columns, rows = few_shot_table(found)
    if rows:
        page.table(columns, rows, columns[1:])
    page.files(["accuracy.png", "accuracy.svg", "results.csv", "study.json"])
    page.write(folder / "report.html")


def as_csv(found: Findings) -> str:
    """A header and a line for each cell."""
    columns, rows = records(found)
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _curves(found: Findings) -> tuple[str, Curves]:
    """What the figure's axis counts (after pre-training on several sets, their images), and its lines."""
    by_pretraining = len(found.study.pretrainings) > 1
    curves: Curves = {}
    for p in found.points:
        if by_pretraining:
            name = p.model if len(found.study.shares) == 1 else f"{p.model}, {p.share * 100:g}%"
        else:
            name = named(p.model, p.pretraining)
        images = p.pretraining_images if by_pretraining and p.pretraining_images else p.images
        low, high = (p.interval.low, p.interval.high) if p.interval else (p.mean, p.mean)
        curves.setdefault(name, []).append((images, p.mean, low, high))
    return "pre-training images" if by_pretraining else "training images", curves


def accuracy_figure(axis: str, curves: Curves) -> "Figure":
    """Accuracy over the amount of data, one line a model; the logarithmic axis of images is called `axis`.

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
