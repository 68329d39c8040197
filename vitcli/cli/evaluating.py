"""What `vit evaluate` does, one method a mode: open model and data, work with progress, hand the result to the view."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.write import check_writable, store_temperature
from vitcli.cli.console import files_read, note, progress, resolved
from vitcli.cli.predict import refuse_batches
from vitcli.cli.views import evaluation as output
from vitcli.data.layout import quoted
from vitcli.data.samples import Samples, Split, Splits
from vitcli.data.sources import open_splits, scored_split
from vitcli.errors import DataError, UsageError
from vitcli.inference.calibrate import fit_temperature
from vitcli.inference.evaluate import Evaluation, Unreadable, compare, evaluate
from vitcli.inference.few_shot import few_shot
from vitcli.inference.predict import Model, load
from vitcli.inference.stream import Stream
from vitcli.text import safe

PICTURES = (".png", ".svg", ".pdf")
FAILED_SHOWN = 5


class Evaluating:
    """One command. `model` are the arguments of `load`, `scoring` those of `evaluate`. Methods return failures."""

    def __init__(
        self,
        data: str,
        split: Split | None,
        folders: str | None = None,
        *,
        form: output.Form,
        model: dict[str, Any],
        scoring: dict[str, Any],
    ) -> None:
        self.data, self.split, self.folders = data, split, folders
        self.form, self.model, self.scoring = form, model, scoring

    def score(self, name: str | None, picture: Path | None) -> int:
        model = self._load(name)
        splits, scored = self._open(())
        evaluation = self._evaluate(model, splits, scored)
        _draw(evaluation, picture)
        output.evaluation(self.form, evaluation, self._described(splits, scored))
        return _report(evaluation.failed)

    def calibrate(self, name: str | None, fit_on: Split, out: Path | None, picture: Path | None) -> int:
        model = self._load(name)
        check_writable(model.checkpoint, out)
        splits, scored = self._open((fit_on,), used=fit_on)
        if scored == "train" and self.split is None:
            note("scored on train, which is all that is left: a model that learnt from these images looks better there")
        if scored == fit_on:
            others = ", ".join(split for split in splits.named if split != fit_on) or "no other is there"
            raise UsageError(
                f"the temperature is fitted on {fit_on}, so that split cannot be scored: name another with --split or "
                f"--calibrate-on ({others})"
            )
        fitted = self._evaluate(model, splits, fit_on, say=False)
        temperature = fit_temperature(fitted.logits, fitted.labels)
        before = self._evaluate(model, splits, scored)
        after = replace(before, temperature=temperature)
        folder = store_temperature(model.checkpoint, temperature, out)
        _draw(after, picture)
        calibration = output.Calibration(fit_on, len(fitted.labels), temperature, before.measures, folder)
        output.evaluation(self.form, after, self._described(splits, scored), calibration)
        return _report((*fitted.failed, *after.failed))

    def compare(self, names: Sequence[str | None]) -> int:
        models = [self._load(name) for name in names]
        splits, scored = self._open(())
        first, second = (self._evaluate(model, splits, scored) for model in models)
        result = compare(first, second, splits.named[scored].labels.tolist(), splits.classes)
        output.comparison(self.form, result, self._described(splits, scored))
        return _report(dict.fromkeys((*first.failed, *second.failed)))

    def few_shot(self, name: str | None, shots: str, seeds: int) -> int:
        stream = Stream(_resolve(name), **self.model, output="features")
        refuse_batches(self.scoring["batch_size"], stream)
        numbers = _numbers(shots)
        splits, scored = self._open(("train",))
        if scored == "train" and self.split is None:  # nothing else is there, so some of it is held out
            splits, scored = self._open(("train", "val"))
        if scored == "train":
            raise UsageError("--few-shot learns from train, so that split cannot be scored: --split test or val")
        with progress("features") as bar:
            result = few_shot(
                stream,
                splits.classes,
                splits.named["train"],
                splits.named[scored],
                numbers,
                seeds=seeds,
                batch_size=self.scoring["batch_size"],
                progress=bar,
            )
        output.few_shot(self.form, result, self._described(splits, scored))
        return _report(result.failed)

    def _load(self, name: str | None) -> Model:
        model = load(_resolve(name), **self.model)
        refuse_batches(self.scoring["batch_size"], model)
        return model

    def _open(self, wanted: tuple[Split, ...], used: Split | None = None) -> tuple[Splits, Split]:
        """The splits, `wanted` and the one asked for among them, and which of them is scored, rather not one `used`.

        Raises DataError where that would be train for no other reason than that a held-out split cannot be read.
        """
        asked = {*wanted, *([self.split] if self.split else [])}
        with files_read("reading the data") as tell:
            splits = open_splits(self.data, asked, self.folders, progress=tell)
        for line in splits.notes:
            note(line)
        scored = scored_split(splits, self.split, used)
        if scored == "train" and not wanted and self.split is None and splits.kind == "folders" and splits.left_out:
            raise DataError(
                f"{safe(self.data)} has no split but train, since {quoted(splits.left_out)} holds no class folders: "
                "--split train scores the training images"
            )
        return splits, scored

    def _evaluate(self, model: Model, splits: Splits, split: Split, *, say: bool = True) -> Evaluation:
        samples: Samples = splits.named[split]
        if not len(samples):
            raise DataError(f"the {split} split of {safe(splits.root)} holds no images")
        with progress(safe(model.checkpoint.name, 30)) as bar:
            result = evaluate(model, samples, splits.classes, progress=bar, **self.scoring)
        for line in result.notes if say else ():
            note(line)
        trained_on = model.checkpoint.provenance.get("data")
        if say and split == "train" and isinstance(trained_on, dict) and trained_on.get("name") == splits.root.name:
            note(
                f"the model was trained on data called {safe(splits.root.name)}: on images it has seen, it looks better"
            )
        return result

    def _described(self, splits: Splits, split: Split) -> output.Scored:
        whole = split == "train" and len(splits.named) == 1
        return output.Scored(self.data, "all" if whole else split, splits.classes)


def picture_path(text: str) -> Path:
    """Where the confusion matrix goes. Raises UsageError before any work is done in vain."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--confusion {safe(text)}: the name must end in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--confusion {safe(text)}: there is no folder {safe(path.parent)}")
    return path


def _resolve(name: str | None) -> Checkpoint:
    checkpoint = resolved(name)
    for line in checkpoint.notes:
        note(line)
    if name is None:
        note(checkpoint.why)
    return checkpoint


def _draw(evaluation: Evaluation, path: Path | None) -> None:
    """The confusion matrix of the classes that occur, as a label or as an answer."""
    if path is None:
        return
    from vitcli.report.figures import confusion_figure, save

    measures = evaluation.measures
    rows = measures.confusion
    kept = [i for i, row in enumerate(rows) if any(row) or any(other[i] for other in rows)]
    save(confusion_figure([[rows[i][j] for j in kept] for i in kept], [measures.classes[i].label for i in kept]), path)
    note(f"confusion matrix: {safe(path)}")


def _report(failed: "Sequence[Unreadable] | dict[Unreadable, None]") -> int:
    for item in list(failed)[:FAILED_SHOWN]:
        note(f"left out: {item.error}")
    if len(failed) > FAILED_SHOWN:
        note(f"left out: {len(failed) - FAILED_SHOWN} more (all are in --json)")
    if failed:
        note(f"{len(failed)} of the images could not be read")
    return len(failed)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--few-shot {safe(text)}: write images a class, such as 1,5,10,25") from None
