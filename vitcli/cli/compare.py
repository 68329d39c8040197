"""`vit compare`: which kind of model for how much data."""

from typing import Annotated

import typer

from vitcli.cli.console import note
from vitcli.cli.options import CsvOpt, DataOpt, DryRunOpt, FoldersOpt, JsonOpt, RecipeOpt, SetOpt, WorkersOpt
from vitcli.cli.settings import assigned, refuse, typed
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import plural, safe

MODELS = "vit-small,vit,hybrid,resnet-small"
SIZES = "1%,3%,10%,30%,100%"
SEEDS, MOST_EPOCHS = 3, 100.0

ModelsOpt = Annotated[
    str | None,
    typer.Option(
        "--models", "-m", help=f"vit-small, vit, hybrid, resnet-small, or names of timm's.  [default: {MODELS}]"
    ),
]
SharesOpt = Annotated[
    str | None, typer.Option("--sizes", help=f"Shares of each class's training images.  [default: {SIZES}]")
]
RepeatsOpt = Annotated[int | None, typer.Option("--seeds", min=1, help=f"Repetitions.  [default: {SEEDS}]")]
StudyEpochsOpt = Annotated[
    float | None,
    typer.Option(
        "--epochs", help="Passes over all of the data; a share s gets 1/√s times as many.  [default: the recipe's, 10]"
    ),
]
MostOpt = Annotated[float | None, typer.Option("--most-epochs", help=f"But never more.  [default: {MOST_EPOCHS:g}]")]
PretrainOpt = Annotated[
    str | None,
    typer.Option(
        "--pretrain", help="Pre-train first: small=5%,large=100% of --pretrain-data, or small=FOLDER,large=FOLDER."
    ),
]
PretrainDataOpt = Annotated[str | None, typer.Option("--pretrain-data", help="What the shares of --pretrain are of.")]
PretrainFoldersOpt = Annotated[
    str | None, typer.Option("--pretrain-folders", help="What --folders is, for the data of --pretrain.")
]
ScaleOpt = Annotated[
    float | None,
    typer.Option(
        "--finetune-scale", help="After --pretrain: image size as a multiple of the model's own.  [default: 1.5]"
    ),
]
StudyOpt = Annotated[
    str | None, typer.Option("--out", "-o", help="Folder of the study; runs/compare-<data> by default.")
]
StudyResumeOpt = Annotated[
    str | None, typer.Option("--resume", help="Folder of a study to go on with, or to show again.")
]


def compare(
    data: DataOpt = None,
    folders: FoldersOpt = None,
    models: ModelsOpt = None,
    sizes: SharesOpt = None,
    seeds: RepeatsOpt = None,
    epochs: StudyEpochsOpt = None,
    most_epochs: MostOpt = None,
    recipe: RecipeOpt = None,
    set_: SetOpt = None,
    pretrain: PretrainOpt = None,
    pretrain_data: PretrainDataOpt = None,
    pretrain_folders: PretrainFoldersOpt = None,
    finetune_scale: ScaleOpt = None,
    out: StudyOpt = None,
    resume: StudyResumeOpt = None,
    workers: WorkersOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
    csv: CsvOpt = False,
) -> None:
    """Train several kinds of model on growing shares of your data: do you need a ViT, a hybrid or a CNN?

    The same recipe for all, several seeds, nested shares. Stopped or killed, it goes on where it was: give the same
    command again, or --resume. Several processes may share a study's folder.
    """
    values = dict(locals())
    if json and csv:
        raise UsageError("--json and --csv are two forms; choose one")
    if dry_run and csv:
        raise UsageError("the plan of --dry-run has no --csv; --json prints it")
    from vitcli.cli.comparing import Comparing, names, shares, stages

    form = "json" if json else "csv" if csv else "table"
    if resume is not None:
        own = typed(compare, values, "resume", "workers", "dry_run", "json", "csv")
        refuse(own, "--resume goes on with the study's own settings")
        _end(Comparing.resumed(resume).run(form, workers=workers, dry_run=dry_run))
        return
    if data is None:
        raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
    if pretrain is None and (pretrain_data or pretrain_folders or finetune_scale):
        raise UsageError("--pretrain-data, --pretrain-folders and --finetune-scale belong to --pretrain")
    if finetune_scale is not None and not 0 < finetune_scale <= 8:
        raise UsageError(f"--finetune-scale {safe(finetune_scale)}: a number above 0 and up to 8")
    for option, value in (("--epochs", epochs), ("--most-epochs", most_epochs)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} {value:g}: a number above 0")
    comparing = Comparing.fresh(
        data,
        out,
        folders=folders,
        models=names(models or MODELS),
        shares=shares(sizes or ("100%" if pretrain else SIZES), "--sizes"),
        seeds=seeds or SEEDS,
        epochs=epochs,
        most_epochs=MOST_EPOCHS if most_epochs is None else most_epochs,
        recipe=recipe,
        changes=assigned(set_ or []),
        pretrainings=stages(pretrain, pretrain_data, pretrain_folders),
        finetune_scale=finetune_scale or (1.5 if pretrain else 1.0),
    )
    _end(comparing.run(form, workers=workers, dry_run=dry_run))


def _end(failed: int) -> None:
    if failed:
        note(f"{plural(failed, 'test image')} could not be read; accuracies are of the others: vit check finds them")
        raise typer.Exit(EXIT_SOME_FAILED)
