"""After a run: its best checkpoint scored on held-out images through the path of `vit predict`, and report.html.

The page says what was done, how it went, how good the result is, and where it fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitcli.checkpoint.write import store_thresholds
from vitcli.data.samples import DataSet, Samples
from vitcli.errors import ImageError
from vitcli.metrics import Measures, Mistake, mistakes
from vitcli.report.figures import Curve, confusion_figure, curves_figure, reliability_figure, risk_figure, svg
from vitcli.report.page import Page, small_png
from vitcli.text import command, safe
from vitcli.training.folder import read_config
from vitcli.training.keeping import Forgotten, forgotten, in_words
from vitcli.training.log import read_metrics

if TYPE_CHECKING:  # scoring is the end of a run; its start does not wait for this
    from vitcli.inference.evaluate import Evaluation
    from vitcli.inference.multilabel import LabelEvaluation, ManyMeasures

ScoredSplit = Literal["auto", "val", "test", "none"]  # auto: test where there is one
MISTAKES = 24  # pictures of them
POINTS = 400  # of a curve: more cannot be seen
SHOWN = 160  # pixels of a picture's longer side


@dataclass(frozen=True)
class Outcome:
    """How good the best checkpoint of a run is."""

    split: str  # "test", "val" or "folds"
    evaluation: "Evaluation | LabelEvaluation"
    mistakes: tuple[Mistake, ...]  # the most confident first
    report: Path
    note: str = ""  # what should be known about the number
    folds: int = 0  # models whose answers to their own folds these are; 0: they are those of the best checkpoint
    forgotten: Forgotten | None = None  # of the classes that were kept, where images of them were scored
    kept: str = ""  # the same in a line; nothing where none were kept

    @property
    def whose(self) -> str:
        """Who answered what, in a few words."""
        if self.folds:
            return f"{self.folds} models, each on the images that it was trained without"
        return f"best checkpoint on the {self.split} split"

    def samples(self, data: DataSet) -> Samples:
        """The images of `data` that were scored."""
        if self.folds:
            return data.train
        return data.test if self.split == "test" and data.test is not None else data.val


def score_run(folder: Path, data: DataSet, score: ScoredSplit, start: str = "") -> Outcome | None:
    """Evaluate `folder`/best on the split that `score` names, and write the report; None without such a split.

    `start` is the checkpoint that the run began with, by name, which is asked about old classes that were kept.
    """
    split, samples = _split(data, score)
    if samples is None:
        write_report(folder, data, None)
        return None
    note = "" if split == "test" else "the epoch was chosen on the same images, so expect a little less on new ones"
    if data.multi_label:
        from vitcli.inference.multilabel import evaluate_labels

        found = evaluate_labels(folder / "best", samples, data.classes)
        if split == "val":
            note = "epoch and thresholds were chosen on the same images, so expect a little less on new ones"
        outcome = Outcome(split, found, (), folder / "report.html", note)
        write_report(folder, data, outcome)
        return outcome
    from vitcli.inference.evaluate import evaluate

    evaluation = evaluate(folder / "best", samples, data.classes)
    wrong = tuple(mistakes(evaluation.probabilities, evaluation.labels, evaluation.classes, evaluation.names))
    lost = forgotten(start, replace(evaluation, split=split), data) if data.known else None
    kept = in_words(lost, data) if data.known else ""
    outcome = Outcome(split, evaluation, wrong, folder / "report.html", note, forgotten=lost, kept=kept)
    write_report(folder, data, outcome)
    return outcome


def keep_thresholds(folder: Path, data: DataSet) -> None:
    """Put into the checkpoint `folder` the threshold of each label that is best for the validation images."""
    if not data.multi_label or not len(data.val) or not data.val.labels.any():
        return
    from vitcli.inference.multilabel import best_thresholds, evaluate_labels

    found = evaluate_labels(folder, data.val, data.classes)
    store_thresholds(folder, best_thresholds(found.probabilities, found.labels))


def keep_familiarity(folder: Path, data: DataSet) -> None:
    """Put statistics of the validation images into the checkpoint `folder`, where they are enough."""
    from vitcli.checkpoint.resolve import resolve
    from vitcli.inference.familiarity import LEAST_IMAGES, familiarise, store

    if len(data.val) >= LEAST_IMAGES:
        # Of several labels an image none is the one whose mean it would be near.
        labels = np.zeros(len(data.val), np.int64) if data.multi_label else None
        store(folder, familiarise(resolve(str(folder)), data.val, labels=labels, data=data.root.resolve().name))


def _split(data: DataSet, score: ScoredSplit) -> tuple[str, Samples | None]:
    """The images to score on; the test split when it is left to us and there is one."""
    if score == "none":
        return "none", None
    if score == "test" or (score == "auto" and data.test is not None):
        return "test", data.test
    return "val", data.val if len(data.val) else None


def predict_command(folder: Path) -> str:
    """What to type to use the run in `folder`."""
    return f"{command('vit', 'predict', '-m', folder / 'best')} IMAGE…"


def write_report(folder: Path, data: DataSet, outcome: Outcome | None) -> None:
    """report.html of the run in `folder`. What is missing (no outcome, no steps yet) leaves its section out."""
    page = Page(safe(folder.name))
    measures: Any = outcome.evaluation.measures if outcome else None  # of one or of several labels an image
    if outcome:
        split = {"val": "validation images", "folds": f"images, of {outcome.whose}"}.get(outcome.split, "test images")
        if data.multi_label:
            said = f"Mean average precision {measures.mean_average_precision:.4f} on {measures.n} {split}."
        else:
            low, high = measures.top1_interval.low, measures.top1_interval.high
            said = f"Accuracy {measures.top1:.4f} on {measures.n} {split} (95 % interval {low:.4f} to {high:.4f})."
        page.paragraph(said + (f" But {outcome.note}." if outcome.note else ""))
        if outcome.kept:
            page.paragraph(f"{outcome.kept[0].upper()}{outcome.kept[1:]}.")
    page.facts(_facts(read_config(folder), data).items())
    page.section("Use it")
    page.command(predict_command(folder))
    if panels := _curves(read_metrics(folder)[0]):
        page.section("Training")
        page.svg(svg(curves_figure(panels, "epoch")), "The averaged weights are validated after each epoch.")
    if outcome and data.multi_label:
        _label_scores(page, measures)
    elif outcome and measures:
        _scores(page, measures, outcome.evaluation)  # type: ignore[arg-type]
    if outcome and outcome.mistakes:
        page.section("Most confidently wrong")
        page.pictures(_pictures(outcome.mistakes[:MISTAKES], outcome.samples(data)))
    page.write(folder / "report.html")


def _facts(config: Mapping[str, Any], data: DataSet) -> dict[str, str]:
    start = config.get("start")
    return {
        "model": start["checkpoint"] if start else config["architecture"],
        "trained": start["tune"] if start else "from scratch",
        "data": f"{data.root.name}: {len(data.train)} train, {len(data.val)} validation images, "
        f"{len(data.classes)} classes",
        "started": config.get("started", "unknown"),
        "versions": ", ".join(f"{name} {number}" for name, number in config.get("versions", {}).items()),
        "command": command("vit", *config.get("command", ())[1:]),
    }


def _curves(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Curve]]]:
    """Name and curves of each panel, from the lines of metrics.jsonl; none before the first step."""
    steps = [line for line in lines if line.get("event") == "stepped"]
    ends = [line for line in lines if line.get("event") == "evaluated" and line["step"]]
    if not steps:
        return []
    size = -(-len(steps) // POINTS)
    groups = [steps[i : i + size] for i in range(0, len(steps), size)]
    epochs = [group[-1]["epoch"] for group in groups]
    loss: dict[str, Curve] = {"training": (epochs, [sum(s["loss"] for s in g) / len(g) for g in groups])}
    panels = [("loss, nats", loss)]
    validated = [line for line in ends if line["validation"]["n"]]
    if validated:
        at = [line["epoch"] for line in validated]
        loss["validation"] = (at, [line["validation"]["loss"] for line in validated])
        means = [line["validation"].get("mean_average_precision") for line in validated]
        name, key = ("accuracy", "accuracy") if None in means else ("mean average precision", "mean_average_precision")
        panels.append((f"validation {name}", {"": (at, [line["validation"][key] for line in validated])}))
    panels.append(("learning rate", {"": (epochs, [group[-1]["lr"] for group in groups])}))
    return panels


def _scores(page: Page, measures: Measures, evaluation: "Evaluation") -> None:
    from vitcli.inference.selective import selective

    page.section("Scores")
    silent = selective(evaluation.probabilities, evaluation.labels)
    top5 = [] if measures.top5 is None else [("top-5 accuracy", f"{measures.top5:.4f}")]
    page.facts(
        [
            ("top-1 accuracy", f"{measures.top1:.4f}"),
            *top5,
            ("balanced accuracy", f"{measures.balanced_accuracy:.4f}"),
            ("macro F1", f"{measures.macro_f1:.4f}"),
            ("negative log-likelihood", f"{measures.nll:.4f} nats"),
            ("Brier score", f"{measures.brier:.4f}"),
            ("expected calibration error", f"{measures.ece:.4f}"),
            *((f"accuracy at {one.coverage:.0%} coverage", f"{one.accuracy:.4f}") for one in silent.at),
        ]
    )
    labels = [one.label for one in measures.classes]
    page.svg(svg(confusion_figure(measures.confusion, labels)), "Confusion matrix, counts of images.")
    bins = [(b.low, b.high, b.n, b.accuracy) for b in measures.reliability]
    page.svg(
        svg(reliability_figure(bins)), "Reliability: bars on the line mean probabilities to be taken at their word."
    )
    page.svg(
        svg(risk_figure([one.coverage for one in silent.curve], [1 - one.accuracy for one in silent.curve])),
        f"Risk against coverage: how often it is wrong on the images it is surest of (area {silent.aurc:.4f}).",
    )

    page.section("Classes")
    rows = [(c.label, str(c.n), _share(c.precision), _share(c.recall), _share(c.f1)) for c in measures.classes]
    columns = ("class", "images", "precision", "recall", "F1")
    page.table(columns, rows, numbers=columns[1:])


def _label_scores(page: Page, measures: "ManyMeasures") -> None:
    """Of several labels an image."""
    page.section("Scores")
    page.facts(
        [
            ("mean average precision", f"{measures.mean_average_precision:.4f}"),
            ("macro F1", f"{measures.macro_f1:.4f}"),
            ("micro F1", f"{measures.micro_f1:.4f}"),
            ("all labels right", f"{measures.exact:.4f}"),
            ("binary cross-entropy", f"{measures.nll:.4f} nats"),
        ]
    )
    page.section("Labels")
    rows = [
        (
            one.label,
            str(one.n),
            *(_share(v) for v in (one.average_precision, one.threshold, one.precision, one.recall, one.f1)),
        )
        for one in measures.labels
    ]
    columns = ("label", "images", "average precision", "threshold", "precision", "recall", "F1")
    page.table(columns, rows, numbers=columns[1:])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pictures(wrong: Sequence[Mistake], samples: Samples) -> list[tuple[bytes, str]]:
    """The images of `wrong` among `samples`, as PNG, each with what is to be said of it."""
    places = {samples.name(i): i for i in range(len(samples))}
    pictures = []
    for mistake in wrong:
        try:
            picture = small_png(samples.image(places[mistake.name]), SHOWN)
        except ImageError:
            continue  # the file went away since it was scored
        said = f"{mistake.predicted} {mistake.probability:.2f}, is {mistake.true}: {Path(mistake.name).name}"
        pictures.append((picture, said))
    return pictures
