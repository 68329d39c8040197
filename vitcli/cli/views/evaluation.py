"""Results of `vit evaluate`: tables for people, JSON and CSV for programs; and the end of a training run as tables."""

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitcli.cli.console import note, row, stdout, table
from vitcli.cli.views.labels import calibrated, document, print_labels, show_labels, tell_calibrated
from vitcli.inference.calibrate import Calibration
from vitcli.inference.evaluate import Evaluation, Flip, Pairs
from vitcli.inference.few_shot import FewShot
from vitcli.inference.knn import Knn
from vitcli.inference.multilabel import LabelEvaluation
from vitcli.inference.selective import selective
from vitcli.metrics import ClassMeasures, ConfusedPair, Interval, Measures, confused_pairs, mistakes
from vitcli.text import as_json, csv_cell, safe

if TYPE_CHECKING:
    from vitcli.training.report import Outcome

Form = Literal["table", "json", "csv"]
Rows = Iterable[tuple[object, ...]]

CLASSES_SHOWN = 40  # on a terminal, the weakest
PAIRS_SHOWN = 5
FLIPS_SHOWN = 10  # each way
CALIBRATED = ("nll", "brier", "ece")  # what a temperature changes
OVERALL = ("top1", "top5", "balanced_accuracy", "macro_f1", "nll", "brier", "ece")


def show(form: Form, result: Evaluation | LabelEvaluation | Calibration | Pairs | FewShot) -> None:
    """`result` on standard output, in the form that was asked for."""
    scored, calibration = (result.after, result) if isinstance(result, Calibration) else (result, None)
    if isinstance(scored, LabelEvaluation):
        show_labels(form, scored, calibration)
    elif form == "json":
        print(as_json(_document(scored, calibration)))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows(_rows(scored))
    elif isinstance(scored, Evaluation):
        _show_evaluation(scored, calibration)
    elif isinstance(scored, Pairs):
        _show_pairs(scored)
    else:
        _show_few_shot(scored)


def _document(result: Evaluation | Pairs | FewShot, calibration: Calibration | None) -> dict[str, Any]:
    """`result` as what --json prints."""
    if isinstance(result, FewShot):
        return {"schema": "vit.few-shot/1", **asdict(result)}
    if isinstance(result, Pairs):
        first = result.first
        models = [_evaluation(one) for one in (first, result.second)]
        pair = {"paired": asdict(result.paired), "flips": [asdict(flip) for flip in result.flips]}
        return {"schema": "vit.evaluate-two/1", "data": first.data, "split": first.split, "models": models, **pair}
    more = calibrated(calibration, CALIBRATED) if calibration else {}
    return {"schema": "vit.evaluate/1", **_evaluation(result), **more}


def _evaluation(result: Evaluation) -> dict[str, Any]:
    wrong = mistakes(result.probabilities, result.labels, result.classes, result.names)
    return {
        **document(result),
        "selective": asdict(selective(result.probabilities, result.labels)),
        "mistakes": [asdict(one) for one in wrong],
    }


def _rows(result: Evaluation | Pairs | FewShot) -> Rows:
    """`result` as what --csv prints: a header and what is below it."""
    if isinstance(result, FewShot):
        yield "shots", "seed", "accuracy"
        for shots in result.results:
            yield from ((shots.shots, seed, value) for seed, value in enumerate(shots.accuracies))
        if result.knn:
            yield f"knn{result.knn.k}", "plain", result.knn.plain.accuracy
            yield f"knn{result.knn.k}", "weighted", result.knn.weighted.accuracy
    elif isinstance(result, Pairs):
        yield "image", "true", "first", "second", "gained"
        for flip in result.flips:
            texts = (flip.name, flip.true, flip.first, flip.second)
            yield *(csv_cell(text, None) for text in texts), flip.gained
    else:
        yield from _measured(result)


def _measured(result: Evaluation) -> Rows:
    measures = result.measures
    yield "measure", "class", "value"
    yield "n", "", measures.n
    yield from ((name, "", value) for name in OVERALL if (value := getattr(measures, name)) is not None)
    yield "top1_low", "", measures.top1_interval.low
    yield "top1_high", "", measures.top1_interval.high
    for at in selective(result.probabilities, result.labels).at:
        yield f"accuracy_at_{at.coverage:.0%}".rstrip("%"), "", at.accuracy
    for one in measures.classes:
        label = csv_cell(one.label, None)
        values = {"n": one.n, "precision": one.precision, "recall": one.recall, "f1": one.f1}
        yield from ((name, label, "" if value is None else value) for name, value in values.items())


def _show_evaluation(result: Evaluation, calibration: Calibration | None) -> None:
    console = stdout()
    facts = _facts()
    row(facts, "model", result.model)
    row(facts, "data", _described(result, result.measures.n))
    if result.failed:
        row(facts, "", f"without {len(result.failed)} images that could not be read")
    if calibration:
        tell_calibrated(facts, calibration)
    console.print(facts)
    console.print()
    before = calibration.before if calibration else None
    console.print(_measures(result, before if isinstance(before, Measures) else None))
    console.print()
    _print_details(console, result)


def show_outcome(console: Console, outcome: "Outcome") -> None:
    """The held-out result at the end of a run, and where its report lies."""
    result = outcome.evaluation
    console.print()
    console.print(Text(f"{outcome.whose}, {_count(result.measures.n)}", style="bold"))
    if outcome.note:
        console.print(Text(safe(outcome.note), style="dim"))
    if outcome.kept:
        console.print(Text(outcome.kept, style="bold"))
    for line in (*result.notes, *(one.error for one in result.failed[:FLIPS_SHOWN])):
        console.print(Text(safe(line), style="dim"))
    if isinstance(result, LabelEvaluation):
        print_labels(console, result.measures)
    else:
        console.print(_measures(result, None))
        console.print()
        _print_details(console, result)
    console.print(Text(f"report: {safe(outcome.report, None)}", style="dim"))


def _show_pairs(result: Pairs) -> None:
    console, pair = stdout(), result.paired
    facts = _facts()
    row(facts, "A", result.first.model)
    row(facts, "B", result.second.model)
    row(facts, "data", _described(result.first, pair.n))
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


def _show_few_shot(result: FewShot) -> None:
    console = stdout()
    facts = _facts()
    row(facts, "model", f"{result.model}, {result.features} features")
    row(facts, "data", _described(result, result.n) + f", {len(result.classes)} classes")
    if result.results:
        row(facts, "method", "least squares on frozen features (L2 1024, bias 100), images from train")
    console.print(facts)
    if result.knn:
        console.print()
        console.print(_neighbours(result.knn))
    if not result.results:
        return
    console.print()
    draws = len(result.results[0].accuracies)
    grid = table("images a class", "accuracy", "95 % of the mean", f"each of {draws} draws", right=("images a class",))
    for one in result.results:
        each = " ".join(f"{value:.4f}" for value in one.accuracies)
        row(grid, one.shots, f"{one.mean:.4f}", _interval(one.interval) if one.interval else "", each)
    console.print(grid)


def _neighbours(result: Knn) -> Table:
    grid = table(f"{result.k} nearest of {result.images} images", "accuracy", "95 %")
    for name, share in (("a vote each", result.plain), ("weighted by exp(cosine / 0.07)", result.weighted)):
        row(grid, name, f"{share.accuracy:.4f}", _interval(share.interval))
    return grid


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
    for at in selective(result.probabilities, result.labels).at:
        row(grid, f"accuracy, {at.coverage:.0%} surest", *([""] if before else []), f"{at.accuracy:.4f}")
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


def _described(result: Evaluation | FewShot, n: int) -> str:
    split = "" if result.split == "all" else f", {result.split} split"
    return f"{result.data}{split}, {_count(n)}"


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
