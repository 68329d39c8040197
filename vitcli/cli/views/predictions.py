"""Predictions for people (a table, with the image small beside it where there is colour) and for programs."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.layout import ALIASES
from vitcli.inference.predict import STRANGE, Prediction, as_dict, document_head
from vitcli.text import as_json, csv_cell, safe, some

if TYPE_CHECKING:
    from vitcli.inspection.explain import Explanation


@dataclass(frozen=True)
class Explained(Prediction):
    """A prediction, what in the image spoke for a class, and the file that shows it."""

    why: "Explanation | None" = None
    method: str = ""
    file: Path | None = None

    @property
    def picture(self) -> str:
        """The file as text; empty where nothing could be drawn."""
        return str(self.file) if self.why and self.why.error is None else ""


@dataclass(frozen=True)
class Described:
    """What predictions that were kept say of their model."""

    name: str
    revision: str | None
    outputs: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """Of what model predictions are, and what each of them says beside its classes."""

    checkpoint: "Checkpoint | Described"
    data: str | None  # of the held-out images by which familiarity is measured; None: nothing is known of it
    rejects: bool = False
    sets: float | None = None  # how often the truth is in the set of classes
    why: bool = False  # what spoke for a class is drawn
    page: Path | None = None  # the page of what is drawn

    @property
    def columns(self) -> list[str]:
        """Those of CSV that are not always there."""
        asked = {"familiarity": self.data is not None, "unknown": self.rejects, "set": self.sets is not None,
                 "why": self.why}  # fmt: skip
        return [name for name, there in asked.items() if there]


Writer = Callable[[Iterable[Prediction], Said], int]  # returns how many images failed
WHY_COLUMNS = 40  # of a picture and its map


def writer(form: str) -> Writer:
    """What writes predictions in the `form` json, jsonl, csv or table."""
    return {"json": write_json, "jsonl": write_jsonl, "csv": write_csv, "table": write_table}[form]


def write_jsonl(predictions: Iterable[Prediction], said: Said) -> int:
    """One JSON object a line, each as soon as it is known."""
    failed = 0
    for prediction in predictions:
        failed += prediction.error is not None
        print(as_json(_as_dict(prediction)), flush=True)
    return failed


def write_json(predictions: Iterable[Prediction], said: Said) -> int:
    """One document, written as it comes, so that a long list takes no memory."""
    model = said.checkpoint
    head = document_head(model.name, model.revision, model.outputs, said.sets)
    head |= {"page": said.page and str(said.page)} if said.why else {}
    print(as_json(head)[:-1] + ', "predictions": [', end="")
    failed = 0
    for i, prediction in enumerate(predictions):
        failed += prediction.error is not None
        print(",\n" if i else "\n", as_json(_as_dict(prediction)), sep="", end="")
    print("\n]}")
    return failed


def write_csv(predictions: Iterable[Prediction], said: Said) -> int:
    """One line for each class of each image, the most probable first."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "rank", "label", "probability", "error", *said.columns])
    failed = 0
    for prediction in predictions:
        path = csv_cell(prediction.path, None)
        if prediction.error is not None:
            failed += 1
            table.writerow([path, "", "", "", csv_cell(prediction.error, None), *("" for _ in said.columns)])
        more = [_cell(prediction, name) for name in said.columns]
        if not prediction.labels and prediction.error is None:  # no label holds, which is an answer
            table.writerow([path, "", "", "", "", *more])
        for rank, score in enumerate(prediction.labels, start=1):
            table.writerow([path, rank, csv_cell(score.label, None), f"{score.probability:.6f}", "", *more])
    return failed


def _cell(prediction: Prediction, name: str) -> str:
    """Familiarity, unknown, set or why as text; the names of a set as a JSON list, whatever is in them."""
    if name == "why":
        return csv_cell(prediction.picture, None) if isinstance(prediction, Explained) else ""
    value = getattr(prediction, name)
    if isinstance(value, tuple):
        return csv_cell(as_json([score.label for score in value]), None)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.6f}"


def write_table(predictions: Iterable[Prediction], said: Said) -> int:
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
        lines = Text("unknown", style="bold") if prediction.unknown else _bars(prediction)
        if not prediction.labels:
            lines = Text("no label is above its threshold", style="dim")
        for line in _remarks(prediction, said):
            lines.append("\n").append(line)
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


def _remarks(prediction: Prediction, said: Said) -> Iterator[Any]:
    """What is said under the bars: the set, that an image is like nothing the model knows, and where to see why."""
    from rich.text import Text

    from vitcli.cli.console import shown

    if prediction.set is not None and not prediction.unknown:
        names = ", ".join(shown(score.label, 40) for score in prediction.set) or "no class is likely enough"
        yield Text(f"{said.sets:.4g} of the time it is one of: {names}" if prediction.set else names)
    if prediction.familiarity is not None and prediction.familiarity < STRANGE:
        yield Text(strange(said), style="dim")
    if isinstance(prediction, Explained) and prediction.why and prediction.picture:
        yield Text(f"what spoke for {shown(prediction.why.label, 40)}: {shown(prediction.picture)}", style="dim")


def strange(said: Said) -> str:
    """The line for an image that is less familiar than nearly all of the model's own."""
    name, known = said.checkpoint.name, some(said.checkpoint.labels, 3)
    more = [other for other in ("photo-vit", "imagenet") if name not in (other, ALIASES.get(other))]
    hint = f"; more is known to {' and '.join(f'-m {other}' for other in more)}" if more else ""
    return f"trained on {safe(said.data or 'other images', 60)} ({known}), and this looks like none of it{hint}"


def _picture(prediction: Prediction) -> Any:
    from vitcli.cli.console import half_blocks
    from vitcli.errors import ImageError
    from vitcli.images.decode import open_image
    from vitcli.images.find import where

    if isinstance(prediction, Explained) and prediction.why and prediction.picture:
        return half_blocks(prediction.why.picture(), WHY_COLUMNS)
    try:
        return half_blocks(open_image(where(prediction.path)))
    except ImageError:
        return None


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    own = as_dict(prediction)
    if isinstance(prediction, Explained) and (why := prediction.why):
        own["why"] = {"label": why.label, "index": why.index, "method": prediction.method,
                      "file": prediction.picture or None}  # fmt: skip
    return own
