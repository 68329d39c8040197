"""Measures as tables for people: one model, two models, few-shot, and the end of a training run.

MERGED: Results of `vit evaluate` in the form that was asked for: tables for people, JSON and CSV for programs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitcli.cli.console import note, row, stdout, table
from vitcli.inference.evaluate import Comparison, Evaluation, Flip
from vitcli.inference.few_shot import FewShot
from vitcli.metrics import ClassMeasures, ConfusedPair, Interval, Measures, confused_pairs
from vitcli.text import safe

if TYPE_CHECKING:
    pass
    from vitcli.training.report import Outcome
import csv
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vitcli.metrics import mistakes
from vitcli.text import as_json, csv_cell

CLASSES_SHOWN = 40  # on a terminal, the weakest
PAIRS_SHOWN = 5
FLIPS_SHOWN = 10  # each way


def show_evaluation(result: Evaluation, scored: "Scored", calibration: "Calibration | None") -> None:
    console = stdout()
    facts = _facts()
    row(facts, "model", result.model)
    row(facts, "data", _described(scored, result.measures.n))
    if result.failed:
        row(facts, "", f"without {len(result.failed)} images that could not be read")
    if calibration:
        row(
            facts, "calibrated", f"temperature {calibration.temperature:g}, fitted on {calibration.split}", style="bold"
        )
        row(facts, "", f"({calibration.n} images), stored in {calibration.folder}")
    console.print(facts)
    console.print()
    console.print(_measures(result, calibration.before if calibration else None))
    console.print()
    _print_details(console, result)


def show_outcome(console: Console, outcome: "Outcome") -> None:
    """The held-out result at the end of a run, and where its report lies."""
    result = outcome.evaluation
    console.print()
    console.print(Text(f"best checkpoint on the {outcome.split} split, {_count(result.measures.n)}", style="bold"))
    if outcome.note:
        console.print(Text(safe(outcome.note), style="dim"))
    for line in (*result.notes, *(one.error for one in result.failed[:FLIPS_SHOWN])):
        console.print(Text(safe(line), style="dim"))
    console.print(_measures(result, None))
    console.print()
    _print_details(console, result)
    console.print(Text(f"report: {safe(outcome.report, None)}", style="dim"))


def show_comparison(result: Comparison, scored: "Scored") -> None:
    console, pair = stdout(), result.paired
    facts = _facts()
    row(facts, "A", result.first.model)
    row(facts, "B", result.second.model)
    row(facts, "data", _described(scored, pair.n))
    console.print(facts)
    console.print()
    both = table("", "A", "B", right=("A", "B"))
    for name, values in zip(
        *([key for key, _ in _lines(result.first.measures)], _columns(result.first, result.second)), strict=True
    ):
        row(both, name, *values)
    row(both, "right, and the other is not", pair.only_first, pair.only_second)
    console.print(both)
    console.print()
    sure = (
        "" if pair.interval.low <= 0 <= pair.interval.high else f", so {'B' if pair.difference > 0 else 'A'} is better"
    )
    console.print(Text(f"B − A    {pair.difference:+.4f}, 95 % {_signed(pair.interval)}{sure}"))
    console.print(Text(f"McNemar  exact p = {pair.p_value:.3g}"))
    for title, flips in (
        ("only B is right", [flip for flip in result.flips if flip.gained]),
        ("only A is right", [flip for flip in result.flips if not flip.gained]),
    ):
        _print_flips(console, title, flips)


def show_few_shot(result: FewShot, scored: "Scored") -> None:
    console = stdout()
    facts = _facts()
    row(facts, "model", f"{result.model}, {result.features} features")
    row(facts, "data", _described(scored, result.n) + f", {len(result.classes)} classes")
    row(facts, "method", "least squares on frozen features (L2 1024, bias 100), images from train")
    console.print(facts)
    console.print()
    draws = len(result.results[0].accuracies)
    grid = table("images a class", "accuracy", "95 % of the mean", f"each of {draws} draws", right=("images a class",))
    for one in result.results:
        each = " ".join(f"{value:.4f}" for value in one.accuracies)
        row(grid, one.shots, f"{one.mean:.4f}", _interval(one.interval) if one.interval else "", each)
    console.print(grid)


def _print_details(console: Console, result: Evaluation) -> None:
    """Each class, and which are taken for which."""
    present = [one for one in result.measures.classes if one.n]
    shown = present
    if console.is_terminal and len(present) > CLASSES_SHOWN:
        shown = sorted(present, key=lambda one: one.f1 or 0.0)[:CLASSES_SHOWN]
        console.print(Text(f"the {CLASSES_SHOWN} weakest of {len(present)} classes (all: --csv, --json)", style="dim"))
    console.print(_classes(shown))
    pairs = confused_pairs(result.probabilities, result.labels, result.classes, result.names)
    if pairs:
        console.print()
        console.print(_confused(pairs[:PAIRS_SHOWN]))


def _measures(result: Evaluation, before: Measures | None) -> Table:
    grid = table("", "before", "after", right=("before", "after")) if before else _facts()
    old = dict(_lines(before)) if before else {}
    for name, value in _lines(result.measures):
        row(grid, name, *([old[name]] if before else []), value)
    if result.temperature != 1 and not before:
        row(grid, "", f"probabilities are calibrated, temperature {result.temperature:g}", style="dim")
    return grid


def _lines(measures: Measures) -> list[tuple[str, str]]:
    lines = [("top-1 accuracy", f"{measures.top1:.4f}"), ("  95 % interval", _interval(measures.top1_interval))]
    if measures.top5 is not None:
        lines.append(("top-5 accuracy", f"{measures.top5:.4f}"))
    lines += [("balanced accuracy", f"{measures.balanced_accuracy:.4f}"), ("macro F1", f"{measures.macro_f1:.4f}")]
    lines += [("NLL", f"{measures.nll:.4f}"), ("Brier score", f"{measures.brier:.4f}")]
    return [*lines, ("calibration error", f"{measures.ece:.4f}")]


def _columns(first: Evaluation, second: Evaluation) -> list[tuple[str, str]]:
    """The values of `_lines`, of both models; the second may lack one (top-5 of few classes)."""
    other = dict(_lines(second.measures))
    return [(value, other.get(name, "")) for name, value in _lines(first.measures)]


def _classes(classes: Sequence[ClassMeasures]) -> Table:
    numbers = ("images", "precision", "recall", "F1")
    grid = table("class", *numbers, right=numbers)
    for one in classes:
        row(grid, one.label, one.n, *(_share(value) for value in (one.precision, one.recall, one.f1)))
    return grid


def _confused(pairs: Sequence[ConfusedPair]) -> Table:
    grid = table("images of", "taken for", "times", "such as", right=("times",))
    for pair in pairs:
        row(grid, pair.true, pair.predicted, pair.n, _short(pair.names[0]))
    return grid


def _print_flips(console: Console, title: str, flips: Sequence[Flip]) -> None:
    if not flips:
        return
    console.print()
    grid = table(title, "is", "A says", "B says")
    for flip in flips[:FLIPS_SHOWN]:
        row(grid, _short(flip.name), flip.true, flip.first, flip.second)
    console.print(grid)
    if len(flips) > FLIPS_SHOWN:
        note(f"{len(flips) - FLIPS_SHOWN} more (all: --csv, --json)")


def _facts() -> Table:
    grid = table("", "")
    grid.show_header = False
    return grid


def _described(scored: "Scored", n: int) -> str:
    split = "" if scored.split == "all" else f", {scored.split} split"
    return f"{scored.data}{split}, {_count(n)}"


def _count(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


def _interval(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"


def _signed(interval: Interval) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _share(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(name: str) -> str:
    """A file name with its folder; the whole path is in --json."""
    return "/".join(name.split("/")[-2:])


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
        pass

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
        pass

        show_comparison(result, scored)


def few_shot(form: Form, result: FewShot, scored: Scored) -> None:
    if form == "json":
        _document("vit.few-shot/1", {"data": scored.data, "split": scored.split, **asdict(result)})
    elif form == "csv":
        rows = ((one.shots, seed, value) for one in result.results for seed, value in enumerate(one.accuracies))
        _table(("shots", "seed", "accuracy"), rows)
    else:
        pass

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
