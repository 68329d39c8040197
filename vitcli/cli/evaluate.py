"""`vit evaluate`: how good a model is on labelled images, how sure of that one can be, and which of two is better."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitcli.cli.options import (
    ClassNamesOpt,
    CsvOpt,
    DataOpt,
    DeviceOpt,
    EngineOpt,
    EnginePrecisionOpt,
    ExactOpt,
    FoldersOpt,
    JsonOpt,
    MergeOpt,
    MultiLabelOpt,
    PartSizeOpt,
    ShardOpt,
    TogetherOpt,
)
from vitcli.cli.parts import Work, device_here, refuse_shard, shard_into
from vitcli.cli.predict import refuse_batches
from vitcli.cli.settings import refuse
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import safe

if TYPE_CHECKING:
    from vitcli.checkpoint.config import Checkpoint
    from vitcli.inference.evaluate import Evaluation, Scoring, Unreadable
    from vitcli.inference.predict import Model

Split = Literal["train", "val", "test"]
ModelsArg = Annotated[
    list[str] | None,
    typer.Argument(help="A checkpoint, as for vit predict -m; two are compared image by image.", show_default=False),
]
SplitOpt = Annotated[
    Split | None, typer.Option("--split", help="What is scored; by default test, else val, else all there is.")
]
ConfusionOpt = Annotated[
    str | None, typer.Option("--confusion", help="Draw the confusion matrix into this file (.png, .svg, .pdf).")
]
IgnoreOpt = Annotated[
    bool,
    typer.Option("--ignore-unknown-classes", help="Leave out images of classes that the model does not know."),
]
CalibrateOpt = Annotated[
    bool, typer.Option("--calibrate", help="Fit a temperature, store it in the checkpoint, score with it.")
]
CalibrateOnOpt = Annotated[
    Split | None, typer.Option("--calibrate-on", help="Split that --calibrate fits on; val by default.")
]
CopyOpt = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", help="With --calibrate: a new folder for a calibrated copy; with --shard that of the parts."
    ),
]
FewShotOpt = Annotated[
    str | None,
    typer.Option("--few-shot", help="Images a class, as 1,5,10,25: fit a linear map on the model's features instead."),
]
DrawsOpt = Annotated[
    int | None, typer.Option("--seeds", min=1, help="With --few-shot: draws of the images; 5 by default.")
]
KnnOpt = Annotated[
    int | None,
    typer.Option("--knn", min=1, help="Neighbours, as 20: an image's class by the training images most like it."),
]
DEFAULT_SEEDS = 5
PICTURES = (".png", ".svg", ".pdf")
FAILED_SHOWN = 5


def evaluate(
    models: ModelsArg = None,
    data: DataOpt = None,
    folders: FoldersOpt = None,
    split: SplitOpt = None,
    json: JsonOpt = False,
    csv: CsvOpt = False,
    confusion: ConfusionOpt = None,
    ignore_unknown_classes: IgnoreOpt = False,
    calibrate: CalibrateOpt = False,
    calibrate_on: CalibrateOnOpt = None,
    out: CopyOpt = None,
    few_shot: FewShotOpt = None,
    knn: KnnOpt = None,
    seeds: DrawsOpt = None,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "auto",
    batch_size: TogetherOpt = None,
    exact: ExactOpt = False,
    class_names: ClassNamesOpt = None,
    multi_label: MultiLabelOpt = False,
    shard: ShardOpt = None,
    part_size: PartSizeOpt = None,
    merge: MergeOpt = None,
) -> None:
    """Score a model on labelled images, with its uncertainty; two models: which is better.

    Every image takes the path of vit predict. One bad file never stops the rest; the exit code is then 3.
    """
    if data is None:
        raise UsageError("name the labelled images: vit evaluate MODEL --data FOLDER")
    if json and csv:
        raise UsageError("choose one of --json and --csv")
    names: list[str | None] = [*models] if models else [None]
    if len(names) > 2:
        raise UsageError(f"one model, or two to compare, not {len(names)}")
    fitting = {"--calibrate": calibrate, "--calibrate-on": calibrate_on, "--out": out}
    pictures = {"--confusion": confusion}
    refuse_shard(shard, out, part_size, file=False)
    if shard is not None or merge is not None:
        whole: dict[str, object] = {**fitting, "--few-shot": few_shot, "--knn": knn, "two models": len(names) > 1}
        whole |= {"--out": out and not shard, "--batch-size": batch_size and merge}
        whole |= {"--shard and --merge": shard and merge}
        refuse(whole, "--shard and --merge are one after the other, for one model as it is")
    if shard is not None:
        refuse(pictures | {"--json": json, "--csv": csv}, "--shard computes answers, --merge scores them")
    elif not calibrate:
        refuse({"--calibrate-on": calibrate_on, "--out": out}, "these belong to --calibrate")
    if few_shot is None:
        refuse({"--seeds": seeds}, "that belongs to --few-shot")
    if few_shot is not None or knn is not None:
        own: dict[str, object] = {
            "two models": len(names) > 1,
            "--ignore-unknown-classes": ignore_unknown_classes,
            "--exact": exact,
        }
        own |= {"--class-names": class_names, "--multi-label": multi_label}
        refuse(fitting | pictures | own, "--few-shot and --knn learn the data's classes from one model's features")
    if len(names) > 1:
        refuse(fitting | pictures, "two models are compared as they are")
    from vitcli.cli.console import Telling, note
    from vitcli.cli.views.evaluation import show
    from vitcli.inference import calibrate as calibration
    from vitcli.inference import evaluate as scoring
    from vitcli.inference import few_shot as learning
    from vitcli.inference.evaluate import Scoring
    from vitcli.inference.multilabel import LabelEvaluation, evaluate_labels
    from vitcli.inference.predict import load
    from vitcli.inference.stream import Stream

    picture = None if confusion is None else _picture_path(confusion)
    form: Literal["table", "json", "csv"] = "json" if json else "csv" if csv else "table"
    result: calibration.Calibration | scoring.Evaluation | LabelEvaluation | scoring.Pairs | learning.FewShot
    if few_shot is not None or knn is not None:
        stream = Stream(_resolved(names)[0], engine=engine, device=device, precision=precision, output="features")
        refuse_batches(batch_size, stream)
        shots = [] if few_shot is None else _numbers(few_shot)
        with Telling() as told:
            result = learning.few_shot(
                stream, data, shots, neighbours=knn, split=split, folders=folders,
                seeds=DEFAULT_SEEDS if seeds is None else seeds, batch_size=batch_size,
                note=told.note, progress=told.progress,
            )  # fmt: skip
    else:
        checkpoints = _resolved(names, class_names)
        loaded = [
            load(one, engine=engine, device=device_here(device, shard), precision=precision) for one in checkpoints
        ]
        several = [model for model in loaded if model.checkpoint.outputs == "labels"]
        if several:
            asked: dict[str, object] = {**pictures, "two models": len(loaded) > 1}
            name = safe(several[0].checkpoint.name)
            refuse(asked, f"each label of {name} holds by itself (multi-label), and these are for one class an image")
        elif multi_label:
            refuse({"--multi-label": True}, f"{safe(loaded[0].checkpoint.name)} gives one class an image")
        for model in loaded:
            refuse_batches(batch_size, model)
        if shard is not None:
            assert out is not None
            terms = Scoring(ignore_unknown_classes, batch_size, exact, note, None)
            _in_shard(loaded[0], data, split, folders, terms, multi_label, Path(out), shard, part_size)
            return
        with Telling() as told:
            if calibrate:
                result = calibration.calibrate(
                    loaded[0], data, fit_on=calibrate_on or "val", split=split, folders=folders, out=out,
                    batch_size=batch_size, exact=exact, ignore_unknown=ignore_unknown_classes, multi_label=multi_label,
                    note=told.note, progress=told.progress,
                )  # fmt: skip
            elif several:
                result = evaluate_labels(
                    loaded[0], data, split=split, folders=folders, batch_size=batch_size, exact=exact,
                    ignore_unknown=ignore_unknown_classes, multi_label=multi_label, parts=merge, note=told.note,
                    progress=told.progress,
                )  # fmt: skip
            elif len(loaded) == 2:
                result = scoring.pairs(
                    loaded[0], loaded[1], data, split=split, folders=folders,
                    batch_size=batch_size, exact=exact, ignore_unknown=ignore_unknown_classes,
                    note=told.note, progress=told.progress,
                )  # fmt: skip
            else:
                result = scoring.evaluate(
                    loaded[0], data, split=split, folders=folders,
                    batch_size=batch_size, exact=exact, ignore_unknown=ignore_unknown_classes, parts=merge,
                    note=told.note, progress=told.progress,
                )  # fmt: skip
    scored = result.after if isinstance(result, calibration.Calibration) else result
    if picture and isinstance(scored, scoring.Evaluation):
        _draw(scored, picture)
    show(form, result)
    _say_failed(result.failed)


def _in_shard(
    model: "Model",
    data: str,
    split: Split | None,
    folders: str | None,
    scoring: "Scoring",
    multi_label: bool,
    out: Path,
    shard: str,
    size: int | None,
) -> None:
    """The answers to one share of the images into the folder `out`, once all that --merge could refuse is known."""
    from vitcli.inference.evaluate import open_scored
    from vitcli.inference.multilabel import truth_of
    from vitcli.inference.parts import SIZE
    from vitcli.inference.scored_parts import logits_about, logits_form, logits_of
    from vitcli.inference.shards import parse_shard
    from vitcli.inference.stream import sources_of

    scored = open_scored(data, split, folders, note=scoring.note)
    samples, classes = scored.samples, scored.splits.classes
    if model.checkpoint.outputs == "labels":
        truth_of(scoring, model, samples, classes, multi_label)
    else:
        scoring.labels(model, samples, classes)
    compute = partial(logits_of, model, batch_size=scoring.batch_size, exact=scoring.exact)
    work = Work(
        logits_form(model, out), logits_about(model, scoring.exact), sources_of(samples, range(len(samples))),
        lambda source: source.name, compute, "answering", size, SIZE,
    )  # fmt: skip
    shard_into(out, work, parse_shard(shard))


def _picture_path(text: str) -> Path:
    """Where the confusion matrix goes. Raises UsageError before any work is done in vain."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--confusion {safe(text)}: the name must end in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--confusion {safe(text)}: there is no folder {safe(path.parent)}")
    return path


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--few-shot {safe(text)}: write images a class, such as 1,5,10,25") from None


def _resolved(names: "Sequence[str | None]", class_names: str | None = None) -> "list[Checkpoint]":
    """The checkpoints of these names, those without class names with those of a file; of two, one may have its own."""
    from vitcli.checkpoint.naming import named, only_numbered
    from vitcli.cli.console import note, resolved

    found = [resolved(name) for name in names]
    nameless = [one for one in found if only_numbered(one.labels)] or found[:1]
    checkpoints = [named(one, class_names) if one in nameless else one for one in found]
    for checkpoint in checkpoints:
        for line in checkpoint.notes:
            note(line)
        if names == [None]:
            note(checkpoint.why)
    return checkpoints


def _draw(evaluation: "Evaluation", path: Path) -> None:
    """The confusion matrix of the classes that occur, as a label or as an answer."""
    from vitcli.cli.console import note
    from vitcli.report.figures import confusion_figure, save

    measures = evaluation.measures
    rows = measures.confusion
    kept = [i for i, row in enumerate(rows) if any(row) or any(other[i] for other in rows)]
    save(confusion_figure([[rows[i][j] for j in kept] for i in kept], [measures.classes[i].label for i in kept]), path)
    note(f"confusion matrix: {safe(path)}")


def _say_failed(failed: "Sequence[Unreadable]") -> None:
    """Name images that were left out; where there are any, the command ends with the exit code for that."""
    from vitcli.cli.console import note

    for item in failed[:FAILED_SHOWN]:
        note(f"left out: {item.error}")
    if len(failed) > FAILED_SHOWN:
        note(f"left out: {len(failed) - FAILED_SHOWN} more (all are in --json)")
    if failed:
        note(f"{len(failed)} of the images could not be read")
        raise typer.Exit(EXIT_SOME_FAILED)
