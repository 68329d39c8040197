"""Results of `vit evaluate` for several labels an image: a table for people, JSON and CSV for programs."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from vitcli.cli.console import row, stdout, table
from vitcli.inference.evaluate import Evaluation
from vitcli.inference.multilabel import LabelEvaluation, ManyMeasures
from vitcli.text import as_json, csv_cell, plural

LABELS_SHOWN = 40  # on a terminal, the weakest
OVERALL = {
    "mean_average_precision": "mean average precision",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "exact": "all labels right",
    "nll": "binary cross-entropy",
}


def show_labels(form: str, result: LabelEvaluation) -> None:
    """`result` on standard output, as a "table", "json" or "csv"."""
    if form == "json":
        print(as_json({"schema": "vit.evaluate-labels/1", **document(result)}))
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(_rows(result.measures))
    else:
        console, measures = stdout(), result.measures
        facts = table("", "")
        facts.show_header = False
        row(facts, "model", result.model)
        split = "" if result.split == "all" else f", {result.split} split"
        row(facts, "data", f"{result.data}{split}, {plural(measures.n, 'image')}, several labels each")
        if result.failed:
            row(facts, "", f"without {len(result.failed)} images that could not be read")
        console.print(facts)
        console.print()
        print_labels(console, measures)


def print_labels(console: Console, measures: ManyMeasures) -> None:
    """All measures, then those of each label; on a terminal of many the weakest."""
    overall = table("", "")
    overall.show_header = False
    for name, shown in OVERALL.items():
        row(overall, shown, f"{getattr(measures, name):.4f}")
    console.print(overall)
    console.print()
    console.print(_each(console, measures))


def _each(console: Console, measures: ManyMeasures) -> Table:
    present = [one for one in measures.labels if one.n]
    if console.is_terminal and len(present) > LABELS_SHOWN:
        present = sorted(present, key=lambda one: one.average_precision or 0.0)[:LABELS_SHOWN]
    numbers = ("images", "AP", "threshold", "precision", "recall", "F1")
    grid = table("label", *numbers, right=numbers)
    for one in present:
        values = (one.average_precision, one.threshold, one.precision, one.recall, one.f1)
        row(grid, one.label, one.n, *("-" if value is None else f"{value:.4f}" for value in values))
    return grid


def document(result: Evaluation | LabelEvaluation) -> dict[str, Any]:
    """What every evaluation says in JSON: of what, and how good."""
    return {
        "model": result.model,
        "revision": result.revision,
        "data": result.data,
        "split": result.split,
        "temperature": result.temperature,
        "notes": result.notes,
        "failed": [asdict(one) for one in result.failed],
        "measures": asdict(result.measures),
    }


def _rows(measures: ManyMeasures) -> Iterable[tuple[object, ...]]:
    yield "measure", "label", "value"
    yield "n", "", measures.n
    yield from ((name, "", getattr(measures, name)) for name in OVERALL)
    for one in measures.labels:
        values = {name: value for name, value in asdict(one).items() if name != "label"}
        label = csv_cell(one.label, None)
        yield from ((name, label, "" if value is None else value) for name, value in values.items())
