"""Predictions for people (a table, with the image small beside it where there is colour) and for programs."""

import csv
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.inference.predict import Prediction
from vitcli.text import as_json, csv_cell

Writer = Callable[[Iterable[Prediction], Checkpoint], int]  # returns how many images failed


def writer(form: str) -> Writer:
    """What writes predictions in the `form` json, jsonl, csv or table."""
    return {"json": write_json, "jsonl": write_jsonl, "csv": write_csv, "table": write_table}[form]


def write_jsonl(predictions: Iterable[Prediction], checkpoint: Checkpoint) -> int:
    """One JSON object a line, each as soon as it is known."""
    failed = 0
    for prediction in predictions:
        failed += prediction.error is not None
        print(as_json(_as_dict(prediction)), flush=True)
    return failed


def write_json(predictions: Iterable[Prediction], checkpoint: Checkpoint) -> int:
    """One document, written as it comes, so that a long list takes no memory."""
    head = {
        "schema": "vit.predict/1",
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "outputs": checkpoint.outputs,
    }
    print(as_json(head)[:-1] + ', "predictions": [', end="")
    failed = 0
    for i, prediction in enumerate(predictions):
        failed += prediction.error is not None
        print(",\n" if i else "\n", as_json(_as_dict(prediction)), sep="", end="")
    print("\n]}")
    return failed


def write_csv(predictions: Iterable[Prediction], checkpoint: Checkpoint) -> int:
    """One line for each class of each image, the most probable first."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "rank", "label", "probability", "error"])
    failed = 0
    for prediction in predictions:
        path = csv_cell(prediction.path, None)
        if prediction.error is not None:
            failed += 1
            table.writerow([path, "", "", "", csv_cell(prediction.error, None)])
        for rank, score in enumerate(prediction.labels, start=1):
            table.writerow([path, rank, csv_cell(score.label, None), f"{score.probability:.6f}", ""])
    return failed


def write_table(predictions: Iterable[Prediction], checkpoint: Checkpoint) -> int:
    """For people: bars, and on a terminal with enough colours the image beside them."""
    from rich.table import Table
    from rich.text import Text

    from vitcli.cli.console import shown, stdout

    console = stdout()
    failed = 0
    for prediction in predictions:
        heading = Text(shown(prediction.path), style="bold", overflow="fold")
        if prediction.error is not None:
            failed += 1
            console.print(heading.append(f"  {prediction.error}", style="not bold red"))
            continue
        console.print(heading)
        lines = _bars(prediction)
        if console.is_terminal and console.color_system == "truecolor" and (picture := _picture(prediction)):
            beside = Table.grid(padding=(0, 2))
            beside.add_row(picture, lines)
            console.print(beside)
        else:
            console.print(lines)
    return failed


def _bars(prediction: Prediction, width: int = 20) -> Any:
    """One line a class: share, name, bar."""
    from rich.text import Text

    from vitcli.cli.console import shown

    names = [shown(score.label, 40) for score in prediction.labels]
    lines = Text(no_wrap=True)
    for name, score in zip(names, prediction.labels, strict=True):
        lines.append(f"{score.probability:7.1%}  {name:{max(map(len, names))}}  ")
        lines.append("━" * round(score.probability * width), style="green").append("\n")
    lines.rstrip()
    return lines


def _picture(prediction: Prediction) -> Any:
    from vitcli.cli.console import half_blocks
    from vitcli.errors import ImageError
    from vitcli.images.decode import open_image

    if not Path(prediction.path).is_file():
        return None
    try:
        return half_blocks(open_image(Path(prediction.path)))
    except ImageError:
        return None


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"path": prediction.path, "error": prediction.error}
    scores = [
        {"label": score.label, "probability": round(score.probability, 6), "index": score.index}
        for score in prediction.labels
    ]
    return {"path": prediction.path, "labels": scores}
