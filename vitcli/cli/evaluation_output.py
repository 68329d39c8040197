"""Results of `vit evaluate` in the form that was asked for: tables for people, JSON and CSV for programs."""

import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vitcli.inference.compare import Comparison
from vitcli.inference.evaluate import Evaluation
from vitcli.inference.few_shot import FewShot
from vitcli.metrics import Measures, mistakes
from vitcli.text import as_json, csv_cell

Form = Literal["table", "json", "csv"]

OVERALL = ("top1", "top5", "balanced_accuracy", "macro_f1", "nll", "brier", "ece")


@dataclass(frozen=True)
class Scored:
    """What was scored, in words."""

    data: str  # as the user named it
    split: str  # "test", "val", "train"; "all" where there are no others
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    split: str
    n: int
    temperature: float
    before: Measures  # of the scored split
    folder: Path  # where the temperature is stored


def evaluation(form: Form, result: Evaluation, scored: Scored, calibration: Calibration | None = None) -> None:
    if form == "json":
        _document("vit.evaluate/1", _evaluation(result, scored) | _calibration(calibration))
    elif form == "csv":
        measures = result.measures
        rows: list[tuple[object, ...]] = [("n", "", measures.n)]
        rows += [(name, "", value) for name in OVERALL if (value := getattr(measures, name)) is not None]
        rows += [("top1_low", "", measures.top1_interval.low), ("top1_high", "", measures.top1_interval.high)]
        for one in measures.classes:
            label = csv_cell(one.label, None)
            values = {"n": one.n, "precision": one.precision, "recall": one.recall, "f1": one.f1}
            rows += [(name, label, "" if value is None else value) for name, value in values.items()]
        _table(("measure", "class", "value"), rows)
    else:
        from vitcli.cli.evaluation_view import show_evaluation

        show_evaluation(result, scored, calibration)


def comparison(form: Form, result: Comparison, scored: Scored) -> None:
    if form == "json":
        pair = {"paired": asdict(result.paired), "flips": [asdict(flip) for flip in result.flips]}
        models = [_evaluation(one, scored) for one in (result.first, result.second)]
        _document("vit.evaluate-two/1", {"data": scored.data, "split": scored.split, "models": models, **pair})
    elif form == "csv":
        rows = ((*map(csv_text, (flip.name, flip.true, flip.first, flip.second)), flip.gained) for flip in result.flips)
        _table(("image", "true", "first", "second", "gained"), rows)
    else:
        from vitcli.cli.evaluation_view import show_comparison

        show_comparison(result, scored)


def few_shot(form: Form, result: FewShot, scored: Scored) -> None:
    if form == "json":
        _document("vit.few-shot/1", {"data": scored.data, "split": scored.split, **asdict(result)})
    elif form == "csv":
        rows = ((one.shots, seed, value) for one in result.results for seed, value in enumerate(one.accuracies))
        _table(("shots", "seed", "accuracy"), rows)
    else:
        from vitcli.cli.evaluation_view import show_few_shot

        show_few_shot(result, scored)


def csv_text(value: str) -> str:
    return csv_cell(value, None)


def _evaluation(result: Evaluation, scored: Scored) -> dict[str, Any]:
    wrong = mistakes(result.probabilities, result.labels, result.classes, result.names)
    return {
        "model": result.model,
        "revision": result.revision,
        "data": scored.data,
        "split": scored.split,
        "temperature": result.temperature,
        "notes": result.notes,
        "failed": [asdict(one) for one in result.failed],
        "measures": asdict(result.measures),
        "mistakes": [asdict(one) for one in wrong],
    }


def _calibration(calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return {}
    before = {name: getattr(calibration.before, name) for name in ("nll", "brier", "ece")}
    found = {"split": calibration.split, "n": calibration.n, "temperature": calibration.temperature}
    return {"calibration": {**found, "before": before, "checkpoint": str(calibration.folder)}}


def _document(schema: str, content: dict[str, Any]) -> None:
    print(as_json({"schema": schema, **content}))


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
