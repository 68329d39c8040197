"""After a run: its best checkpoint scored on held-out images through the path of `vit predict`, and report.html."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitcli.data.samples import DataSet, Samples
from vitcli.text import command, safe

if TYPE_CHECKING:  # scoring is the end of a run; its start does not wait for these
    from vitcli.inference.evaluate import Evaluation
    from vitcli.metrics import Mistake


@dataclass(frozen=True)
class Outcome:
    """What the end of a run tells."""

    split: str  # "test" or "val"
    evaluation: "Evaluation"
    mistakes: "tuple[Mistake, ...]"  # the most confident first
    report: Path
    note: str = ""  # what should be known about the number


def score_run(folder: Path, data: DataSet, score: str) -> Outcome | None:
    """Evaluate `folder`/best on the split that `score` names, and write the report; None without such a split."""
    split, samples = _split(data, score)
    if samples is None:
        write_report(folder, data, None)
        return None
    from vitcli.inference.evaluate import evaluate
    from vitcli.metrics import mistakes

    evaluation = evaluate(folder / "best", samples, data.classes)
    wrong = tuple(mistakes(evaluation.probabilities, evaluation.labels, evaluation.classes, evaluation.names))
    note = "" if split == "test" else "the epoch was chosen on the same images, so expect a little less on new ones"
    report = write_report(folder, data, evaluation, wrong, samples, split=split, note=note)
    return Outcome(split, evaluation, wrong, report, note)


def predict_command(folder: Path) -> str:
    return f"{command('vit', 'predict', '-m', folder / 'best')} IMAGE…"


def write_report(
    folder: Path,
    data: DataSet,
    evaluation: "Evaluation | None",
    wrong: "tuple[Mistake, ...]" = (),
    samples: Samples | None = None,
    *,
    split: str = "",
    note: str = "",
) -> Path:
    """report.html of a run folder."""
    config = json.loads((folder / "run.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    places = {} if samples is None else {samples.name(i): i for i in range(len(samples))}
    start = config.get("start")
    facts = {
        "model": start["checkpoint"] if start else config["architecture"],
        "trained": start["tune"] if start else "from scratch",
        "data": f"{data.root.name}: {len(data.train)} train, {len(data.val)} validation images, "
        f"{len(data.classes)} classes",
        "started": config["started"],
        "versions": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
        "command": command("vit", *config["command"][1:]),
    }
    from vitcli.report.run import write_run_report

    return write_run_report(
        folder,
        title=f"{safe(folder.name)}",
        facts=facts,
        metrics_lines=lines,
        measures=evaluation.measures if evaluation else None,
        mistakes=wrong[:24],
        image_of=(lambda name: samples.image(places[name])) if samples is not None else None,
        command=predict_command(folder),
        split="validation" if split == "val" else split,
        note=note,
    )


def _split(data: DataSet, score: str) -> tuple[str, Samples | None]:
    """The images to score on; the test split when it is left to us and there is one."""
    if score == "none":
        return "none", None
    if score == "test" or (score == "auto" and data.test is not None):
        return "test", data.test
    return "val", data.val if len(data.val) else None
