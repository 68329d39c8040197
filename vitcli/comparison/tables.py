"""A study's results as rows of text: accuracy, few-shot accuracy, one record a cell; who passes whom as a sentence."""

from collections.abc import Sequence

from vitcli.comparison.results import Crossover, Findings, Point
from vitcli.text import csv_cell

Table = tuple[list[str], list[list[str]]]  # columns, rows


def accuracy_table(found: Findings) -> Table:
    """Test accuracy: a row for each model (and pre-training), a column for each amount of data."""
    columns = ["model", "params", "MMACs", "CPU s", *_shares(found)]
    rows = []
    for (model, before), mine in _by_model(found.points).items():
        size, cpu = found.sizes[model], sum(p.cpu_seconds for p in mine.values())
        cells = [_accuracy(mine[share]) if share in mine else "-" for share in found.study.shares]
        rows.append([named(model, before), f"{size.params / 1e6:.2f}M", f"{size.macs / 1e6:.0f}", f"{cpu:.0f}", *cells])
    return columns, rows


def few_shot_table(found: Findings) -> Table:
    """Few-shot accuracy: a row for each model and number of images a class; none where classes have too few images."""
    columns = ["few-shot", "images a class", *_shares(found)]
    rows = []
    for (model, before), mine in _by_model(found.points).items():
        scores = [mine[share].few_shot if share in mine else {} for share in found.study.shares]
        for shots in dict.fromkeys(k for one in scores for k in one):
            cells = [f"{one[shots]:.3f}" if shots in one else "-" for one in scores]
            rows.append([named(model, before), shots, *cells])
    return columns, rows


def records(found: Findings) -> Table:
    """All results, a row for each cell: for programs."""
    shots = list(dict.fromkeys(k for result in found.cells.values() for k in result["few_shot"]))
    columns = ["model", "pretraining", "pretraining_images", "share", "images", "seed", "test_accuracy",
               "validation_accuracy", *(f"few_shot_{k}" for k in shots),
               "parameters", "macs", "cpu_seconds"]  # fmt: skip
    rows = []
    for cell, result in found.cells.items():
        before = cell.pretraining.name if cell.pretraining else ""
        images = result["pretraining_images"] if cell.pretraining else ""
        size, few_shot = found.sizes[cell.model], [result["few_shot"].get(k, "") for k in shots]
        values = [cell.model, before, images, cell.share, result["images"], cell.seed, result["test_accuracy"],
                  result["validation_accuracy"], *few_shot, size.params, size.macs, result["cpu_seconds"]]  # fmt: skip
        rows.append([csv_cell(value) if isinstance(value, str) else str(value) for value in values])
    return columns, rows


def sentence(one: Crossover) -> str:
    """Whether, where and how surely one model overtakes another."""
    if one.ahead:
        return f"{one.challenger} is ahead of {one.incumbent} at every size"
    if one.images is None and (one.chance is None or one.chance < 0.05):
        return f"{one.challenger} does not pass {one.incumbent}: no crossover seen"
    where = f"at about {one.images:.0f} images" if one.images else "nowhere in the means"
    between = f", 95 % {one.interval.low:.0f} to {one.interval.high:.0f}" if one.interval else ""
    sure = (
        "one seed: no uncertainty" if one.chance is None else f"{one.chance:.0%} of the draws from the intervals cross"
    )
    return f"{one.challenger} passes {one.incumbent} {where}{between}; {sure}"


def named(model: str, pretraining: str | None) -> str:
    """A model, and what it was first trained on, as a row or line is called."""
    return f"{model} after {pretraining}" if pretraining else model


def _by_model(found: Sequence[Point]) -> dict[tuple[str, str | None], dict[float, Point]]:
    """By model and pre-training: its points by share."""
    models: dict[tuple[str, str | None], dict[float, Point]] = {}
    for p in found:
        models.setdefault((p.model, p.pretraining), {})[p.share] = p
    return models


def _shares(found: Findings) -> list[str]:
    return [f"{share * 100:g}%" for share in found.study.shares]


def _accuracy(point: Point) -> str:
    if point.interval is None:
        return f"{point.mean:.3f}"
    return f"{point.mean:.3f}±{(point.interval.high - point.interval.low) / 2:.3f}"
