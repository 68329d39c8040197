"""Results of `vit evaluate` for several labels an image: a table for people, JSON and CSV for programs."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from vitcli.cli.console import row, stdout, table
from vitcli.inference.calibrate import Calibration
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


CALIBRATED = ("macro_f1", "micro_f1", "exact", "nll")  # what a temperature and other thresholds change


def show_labels(form: str, result: LabelEvaluation, calibration: Calibration | None = None) -> None:
    """`result` on standard output, as a "table", "json" or "csv"; after a `calibration` with what that changed."""
    if form == "json":
        more = calibrated(calibration, CALIBRATED) if calibration else {}
        print(as_json({"schema": "vit.evaluate-labels/1", **document(result), **more}))
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
        if calibration:
            tell_calibrated(facts, calibration)
        console.print(facts)
        console.print()
        before = calibration.before if calibration else None
        print_labels(console, measures, before if isinstance(before, ManyMeasures) else None)


def print_labels(console: Console, measures: ManyMeasures, before: ManyMeasures | None = None) -> None:
    """All measures, then those of each label; on a terminal of many the weakest. `before` stands beside them."""
    overall = table("", "before", "after", right=("before", "after")) if before else table("", "")
    overall.show_header = before is not None
    for name, shown in OVERALL.items():
        row(overall, shown, *(f"{getattr(one, name):.4f}" for one in (before, measures) if one))
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


def tell_calibrated(facts: Table, found: Calibration) -> None:
    """Rows of what was fitted, on what, and where it is stored."""
    row(facts, "calibrated", f"temperature {found.temperature:g}, fitted on {found.split}", style="bold")
    row(facts, "", f"({plural(found.n, 'image')}), stored in {found.folder}")
    if found.familiar:
        row(facts, "familiarity", f"by {plural(found.familiar, 'image')} of {found.split}, stored there, too")


def calibrated(found: Calibration, measures: Iterable[str]) -> dict[str, Any]:
    """What a calibration adds to the JSON of an evaluation; `measures` are those whose values before it are named."""
    before = {name: getattr(found.before, name) for name in measures}
    fitted = {"split": found.split, "n": found.n, "temperature": found.temperature, "familiar": found.familiar}
    return {"calibration": {**fitted, "before": before, "checkpoint": str(found.folder)}}


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
