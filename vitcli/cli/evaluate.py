"""`vit evaluate`: how good a model is on labelled images, how sure of that one can be, and which of two is better."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitcli.cli.options import (
    CsvOpt,
    DataOpt,
    DeviceOpt,
    EngineOpt,
    EnginePrecisionOpt,
    ExactOpt,
    FoldersOpt,
    JsonOpt,
    TogetherOpt,
)
from vitcli.cli.settings import refuse
from vitcli.errors import EXIT_SOME_FAILED, UsageError

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
    str | None, typer.Option("--out", "-o", help="With --calibrate: a new folder for a calibrated copy.")
]
FewShotOpt = Annotated[
    str | None,
    typer.Option("--few-shot", help="Images a class, as 1,5,10,25: fit a linear map on the model's features instead."),
]
DrawsOpt = Annotated[
    int | None, typer.Option("--seeds", min=1, help="With --few-shot: draws of the images; 5 by default.")
]
DEFAULT_SEEDS = 5


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
    seeds: DrawsOpt = None,
    engine: EngineOpt = "auto",
    device: DeviceOpt = None,
    precision: EnginePrecisionOpt = "fp32",
    batch_size: TogetherOpt = None,
    exact: ExactOpt = False,
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
    if not calibrate:
        refuse({"--calibrate-on": calibrate_on, "--out": out}, "these belong to --calibrate")
    if few_shot is None:
        refuse({"--seeds": seeds}, "that belongs to --few-shot")
    else:
        own = {"two models": len(names) > 1, "--ignore-unknown-classes": ignore_unknown_classes, "--exact": exact}
        refuse(fitting | pictures | own, "--few-shot learns the data's classes from one model's features")
    if len(names) > 1:
        refuse(fitting | pictures, "two models are compared as they are")
    from vitcli.cli.evaluating import Evaluating, picture_path

    job = Evaluating(
        data,
        split,
        folders,
        form="json" if json else "csv" if csv else "table",
        model={"engine": engine, "device": device, "precision": precision},
        scoring={"batch_size": batch_size, "exact": exact, "ignore_unknown": ignore_unknown_classes},
    )
    picture = None if confusion is None else picture_path(confusion)
    if few_shot is not None:
        failed = job.few_shot(names[0], few_shot, DEFAULT_SEEDS if seeds is None else seeds)
    elif calibrate:
        fit_on = calibrate_on or "val"
        failed = job.calibrate(names[0], fit_on, None if out is None else Path(out), picture)
    elif len(names) == 2:
        failed = job.compare(names)
    else:
        failed = job.score(names[0], picture)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
