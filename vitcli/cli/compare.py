"""`vit compare`: which kind of model for how much data."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitcli.cli.options import CacheOpt, CsvOpt, DataOpt, DryRunOpt, FoldersOpt, JsonOpt, RecipeOpt, SetOpt, WorkersOpt
from vitcli.cli.settings import assigned, refuse, typed
from vitcli.comparison import FINETUNE_SCALE, MODELS, MOST_EPOCHS, SEEDS, SHARES
from vitcli.errors import EXIT_SOME_FAILED, UsageError
from vitcli.text import plural, safe

if TYPE_CHECKING:
    from vitcli.comparison.study import Pretraining

ModelsOpt = Annotated[
    str | None,
    typer.Option(
        "--models",
        "-m",
        help=f"vit-small, vit, hybrid, resnet-small, or names of timm's.  [default: {','.join(MODELS)}]",
    ),
]
SIZES = ",".join(f"{share:.0%}" for share in SHARES)
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
        "--finetune-scale",
        help=f"After --pretrain: image size as a multiple of the model's own.  [default: {FINETUNE_SCALE}]",
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
    cache: CacheOpt = "auto",
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
    from vitcli.cli.console import Telling
    from vitcli.cli.views import comparison as view
    from vitcli.comparison import compare as study

    with Telling() as told:
        if resume is not None:
            own = typed(compare, values, "resume", "data", "pretrain_data", "workers", "dry_run", "json", "csv")
            refuse(own, "--resume goes on with the study's own settings")
            cells = study.resume(
                resume, data=data, pretraining_data=pretrain_data, note=told.note, progress=told.progress
            )
        else:
            if data is None:
                raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
            if pretrain is None and (pretrain_data or pretrain_folders or finetune_scale):
                raise UsageError("--pretrain-data, --pretrain-folders and --finetune-scale belong to --pretrain")
            cells = study.begin(
                data,
                models=names(models) if models else MODELS,
                sizes=shares(sizes, "--sizes") if sizes else None,
                seeds=seeds or SEEDS,
                epochs=epochs,
                most_epochs=MOST_EPOCHS if most_epochs is None else most_epochs,
                recipe=recipe,
                settings=assigned(set_ or []),
                folders=folders,
                pretrainings=stages(pretrain, pretrain_data, pretrain_folders),
                finetune_scale=finetune_scale,
                cache=cache,
                out=out,
                note=told.note,
                progress=told.progress,
            )
        leads = study.leave_torchrun() == 0
        if leads or dry_run:
            plan = study.plan(cells)
            view.show_plan(plan)
            if dry_run:
                if json:
                    view.print_plan(plan)
                return
        found = study.carry_out(cells, workers=workers, wait=leads)
    if not leads:
        return
    form: Literal["table", "json", "csv"] = "json" if json else "csv" if csv else "table"
    view.show(form, cells.folder, found)
    if found.failed:
        unread = plural(found.failed, "test image")
        told.note(f"{unread} could not be read; accuracies are of the others: vit check finds them")
        raise typer.Exit(EXIT_SOME_FAILED)


def shares(text: str, option: str) -> tuple[float, ...]:
    """`1%,10%,100%` → (0.01, 0.1, 1.0), rising. Raises UsageError."""
    try:
        found = sorted(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError:
        found = [0.0]
    if not all(0 < share <= 1 for share in found) or len(set(found)) < len(found):
        raise UsageError(f"{option} {safe(text)}: write different percentages, such as 1%,10%,100%")
    return tuple(found)


def stages(text: str | None, data: str | None, folders: str | None = None) -> "tuple[Pretraining, ...]":
    """`small=5%,large=100%` of `data`, or `small=FOLDER,…`. Raises UsageError."""
    from vitcli.comparison.study import Pretraining
    from vitcli.storage.named import absolute

    found = []
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--pretrain {safe(part)}: write name=5% or name=FOLDER")
        if value.endswith("%"):
            if data is None:
                raise UsageError(f"--pretrain {safe(part)}: a share of what? --pretrain-data is missing")
            found.append(Pretraining(name, absolute(data), shares(value, "--pretrain")[0], folders=folders))
        elif data is not None:
            raise UsageError(f"--pretrain {safe(part)} is a folder; --pretrain-data is for shares")
        else:
            found.append(Pretraining(name, absolute(value), 1.0, folders=folders))
    if len({one.name for one in found}) < len(found):
        raise UsageError(f"--pretrain {safe(text)}: two sets of one name")
    return tuple(found)


def names(text: str) -> list[str]:
    """`vit,resnet18` → its parts. Raises UsageError."""
    found = [name.strip() for name in text.split(",")]
    if "" in found or len(set(found)) < len(found):
        raise UsageError(f"--models {safe(text)}: write different names, such as vit,hybrid,resnet18")
    return found
