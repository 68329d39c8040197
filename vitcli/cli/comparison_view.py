"""A comparison's plan and results: on the terminal, as JSON or CSV, as figure and HTML page in the study's folder."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vitcli.checkpoint.durable import write_file
from vitcli.cli.console import note, row, stdout, table
from vitcli.comparison.contenders import inductive_bias
from vitcli.comparison.results import Crossover, Point, crossover
from vitcli.comparison.study import Study
from vitcli.report.comparison import accuracy_figure
from vitcli.report.figures import save, svg
from vitcli.report.page import Page
from vitcli.text import csv_cell, safe


@dataclass(frozen=True)
class Size:
    params: int
    macs: int  # multiply–adds for one image


def plan(study: Study, folder: Path, costs: Mapping[str, float], done: int) -> None:
    cells = list(study.cells())
    note(f"study    {safe(folder)}: {len(cells)} cells, {done} of them done")
    note(f"data     {safe(study.data)}")
    note(f"models   {', '.join(safe(model) for model in study.models)}")
    note(f"sizes    {', '.join(f'{share * 100:g}%' for share in study.shares)}")
    for stage in study.pretrainings:
        before = f"{stage.name}: {stage.share * 100:g}% of {safe(stage.data)}"
        note(f"before   {before}, then fine-tuned at {study.finetune_size:g} times the size")
    epochs = ", ".join(f"{study.epochs_of(share):.3g}" for share in study.shares)
    note(f"epochs   {epochs} by size; {study.seeds} seeds")
    for model, seconds in costs.items():
        note(
            f"cost     {model}: about {seconds / 60:.0f} min"
            if seconds < 5400
            else f"cost     {model}: about {seconds / 3600:.1f} h"
        )
    if costs:
        note(f"in all   about {sum(costs.values()) / 3600:.1f} h on this machine, stopped and resumed as you like")


def plan_json(study: Study, folder: Path, costs: Mapping[str, float], done: int) -> None:
    document = {"schema": "vit.compare-plan/1", "folder": str(folder), "study": asdict(study)}
    cells = len(list(study.cells()))
    print(json.dumps({**document, "cells": cells, "done": done, "seconds": dict(costs)}, allow_nan=False))


def show(form: str, study: Study, folder: Path, found: Sequence[Point], sizes: Mapping[str, Size]) -> None:
    crossings = _crossings(study, found)
    _files(study, folder, found, sizes, crossings)
    if form == "json":
        document = {
            "schema": "vit.compare/1",
            "study": asdict(study),
            "models": {name: asdict(size) for name, size in sizes.items()},
            "points": [asdict(point) for point in found],
            "crossovers": [asdict(one) for one in crossings],
        }
        print(json.dumps(document, allow_nan=False))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_records(found, sizes))
    else:
        _table(study, found, sizes)
        for one in crossings:
            stdout().print(Text(f"→ {sentence(one)}"))
        note(f"figure, report.html and results.csv are in {safe(folder)}")


COLUMNS = ("model", "pretraining", "share", "images", "seed", "test_accuracy", "mean", "low", "high", "few_shot_10",
           "parameters", "macs", "cpu_seconds")  # fmt: skip


def _records(found: Sequence[Point], sizes: Mapping[str, Size]) -> list[list[Any]]:
    return [
        [
            csv_cell(p.model), p.pretraining or "", p.share, p.images, seed, accuracy, p.mean,
            p.interval.low if p.interval else "", p.interval.high if p.interval else "", p.few_shot.get("10", ""),
            sizes[p.model].params, sizes[p.model].macs, p.cpu_seconds,
        ]
        for p in found
        for seed, accuracy in enumerate(p.accuracies)
    ]  # fmt: skip


def _rows(study: Study, found: Sequence[Point], sizes: Mapping[str, Size]) -> tuple[list[str], list[list[str]]]:
    """A row a model (and pre-training), a column an amount of data."""
    columns = ["model", "params", "MMACs", "CPU s", *(f"{share * 100:g}%" for share in study.shares)]
    keys = list(dict.fromkeys((p.model, p.pretraining) for p in found))
    rows = []
    for model, before in keys:
        mine = {p.share: p for p in found if (p.model, p.pretraining) == (model, before)}
        cells = [_cell(mine[share]) if share in mine else "-" for share in study.shares]
        size = sizes[model]
        name = f"{model} after {before}" if before else model
        cpu = sum(p.cpu_seconds for p in mine.values())
        rows.append([name, f"{size.params / 1e6:.2f}M", f"{size.macs / 1e6:.0f}", f"{cpu:.0f}", *cells])
    return columns, rows


def _few_shot_rows(study: Study, found: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Few-shot accuracy, a row a model and number of images a class; no rows where no class has so many images."""
    columns = ["few-shot", "images a class", *(f"{share * 100:g}%" for share in study.shares)]
    by_key = {(p.model, p.pretraining, p.share): p.few_shot for p in found}
    rows = []
    for model, before in dict.fromkeys((p.model, p.pretraining) for p in found):
        mine = [by_key.get((model, before, share), {}) for share in study.shares]
        for shots in dict.fromkeys(k for one in mine for k in one):
            name = f"{model} after {before}" if before else model
            rows.append([name, shots, *(f"{one[shots]:.3f}" if shots in one else "-" for one in mine)])
    return columns, rows


def _cell(point: Point) -> str:
    if point.interval is None:
        return f"{point.mean:.3f}"
    return f"{point.mean:.3f}±{(point.interval.high - point.interval.low) / 2:.3f}"


def _table(study: Study, found: Sequence[Point], sizes: Mapping[str, Size]) -> None:
    stdout().print(_grid(*_rows(study, found, sizes)))
    few, lines = _few_shot_rows(study, found)
    if lines:
        stdout().print()
        stdout().print(_grid(few, lines))


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    grid = table(*columns, right=tuple(columns[1:]))
    for line in rows:
        row(grid, *line)
    return grid


def _crossings(study: Study, found: Sequence[Point]) -> list[Crossover]:
    """Does each model, sooner or later, pass those with more inductive bias: a ViT hybrids and CNNs, a hybrid CNNs?

    Only where one training set is behind every column.
    """
    if study.pretrainings or len(study.shares) < 2:
        return []
    return [
        crossover(found, incumbent, challenger)
        for incumbent in study.models
        for challenger in study.models
        if inductive_bias(challenger) < inductive_bias(incumbent)
    ]


def sentence(one: Crossover) -> str:
    if one.images is None and (one.chance is None or one.chance < 0.05):
        return f"{one.challenger} does not pass {one.incumbent}: no crossover seen"
    where = f"at about {one.images:.0f} images" if one.images else "nowhere in the means"
    between = f", 95 % {one.interval.low:.0f} to {one.interval.high:.0f}" if one.interval else ""
    sure = (
        "one seed: no uncertainty" if one.chance is None else f"{one.chance:.0%} of the draws from the intervals cross"
    )
    return f"{one.challenger} passes {one.incumbent} {where}{between}; {sure}"


def _files(
    study: Study, folder: Path, found: Sequence[Point], sizes: Mapping[str, Size], crossings: Sequence[Crossover]
) -> None:
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for p in found:
        name = f"{p.model} after {p.pretraining}" if p.pretraining else p.model
        low, high = (p.interval.low, p.interval.high) if p.interval else (p.mean, p.mean)
        curves.setdefault(name, []).append((p.images, p.mean, low, high))
    drawing = accuracy_figure(curves)
    for kind in ("png", "svg"):
        save(drawing, folder / f"accuracy.{kind}")
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(_records(found, sizes))
    write_file(folder / "results.csv", [text.getvalue().encode()])
    page = Page(f"Which model for how much of {Path(study.data).name}?")
    page.paragraph(
        f"{len(study.models)} models, the same recipe, {study.seeds} seeds; test accuracy with 95 % intervals over the "
        "seeds. The epoch was chosen on validation images; the test images were read only to score that one."
    )
    page.svg(svg(drawing), "Test accuracy and 95 % interval by training images.")
    columns, rows = _rows(study, found, sizes)
    page.table(columns, rows, columns[1:])
    for one in crossings:
        page.paragraph("→ " + sentence(one))
    few, lines = _few_shot_rows(study, found)
    if lines:
        page.table(few, lines, few[1:])
    page.files(["accuracy.png", "accuracy.svg", "results.csv", "study.json"])
    page.write(folder / "report.html")
