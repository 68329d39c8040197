"""`vit train`: a model from scratch."""

from vitcli.cli.options import (
    VAL_FRACTION,
    ArchitectureOpt,
    BatchOpt,
    CacheOpt,
    CompileOpt,
    DataOpt,
    DeviceOpt,
    DryRunOpt,
    EpochsOpt,
    FoldersOpt,
    ImgSizeOpt,
    JsonOpt,
    LrOpt,
    MultiLabelOpt,
    OutOpt,
    PatchSizeOpt,
    RecipeOpt,
    ResumeOpt,
    ScoreOpt,
    SeedOpt,
    SetOpt,
    TeacherAnswersOpt,
    TeacherOpt,
    TimeBudgetOpt,
    TrackOpt,
    ValFractionOpt,
    WorkersOpt,
)
from vitcli.cli.settings import AUTO, OF_RESUMPTION, assigned, given, refuse, size, split, typed
from vitcli.errors import UsageError


def train(
    data: DataOpt = None,
    folders: FoldersOpt = None,
    multi_label: MultiLabelOpt = False,
    model: ArchitectureOpt = None,
    recipe: RecipeOpt = None,
    out: OutOpt = None,
    resume: ResumeOpt = None,
    epochs: EpochsOpt = None,
    batch_size: BatchOpt = None,
    lr: LrOpt = None,
    img_size: ImgSizeOpt = None,
    patch_size: PatchSizeOpt = None,
    teacher: TeacherOpt = None,
    teacher_answers: TeacherAnswersOpt = None,
    seed: SeedOpt = None,
    compile_: CompileOpt = False,
    time_budget: TimeBudgetOpt = None,
    val_fraction: ValFractionOpt = VAL_FRACTION,
    cache: CacheOpt = "auto",
    score: ScoreOpt = "auto",
    track: TrackOpt = None,
    set_: SetOpt = None,
    device: DeviceOpt = None,
    workers: WorkersOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Train a Vision Transformer from scratch on your images.

    Leaves a run folder with the best and the last checkpoint and a report. Ctrl-C saves; --resume goes on exactly
    there, and with more --epochs makes the run longer.
    """
    again = resume == AUTO
    if again and out is None:
        raise UsageError("--resume auto goes on with the run in --out, which is missing")
    if resume is not None and not again:
        refuse(typed(train, locals(), *OF_RESUMPTION), "--resume goes on with the run's own settings")
    from vitcli.cli.run import Terms, carried_out, resumed_from

    terms = Terms(score, track or [], device, workers, dry_run, json)
    if resume is not None and not again:
        resumed_from(resume, epochs, data, terms)
        return

    from vitcli.cli.console import data_opened, resolved
    from vitcli.training.keeping import arrangement
    from vitcli.training.plan import plan
    from vitcli.training.recipe import Recipe
    from vitcli.training.run import fitted, scratch_settings
    from vitcli.training.settings import MODEL_SETTINGS

    if data is None:
        raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
    changes, of_model = split(assigned(set_ or []), list(Recipe.__dataclass_fields__), list(MODEL_SETTINGS))
    changes |= given(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, compile=compile_ or None)
    of_model |= given(img_size=size(img_size, "--img-size"), patch_size=size(patch_size, "--patch-size"))
    settings = scratch_settings(
        data,
        model,
        recipe,
        changes,
        of_model,
        val_fraction=val_fraction,
        teacher=teacher,
        teacher_answers=teacher_answers,
        time_budget=time_budget,
        folders=folders,
        multi_label=multi_label,
    )
    several = arrangement(multi_label=multi_label)
    samples = data_opened(data, val_fraction=val_fraction, folders=folders, arrange=several)
    if not (model or recipe):
        settings = fitted(settings, samples)
    planned = plan(
        settings,
        samples,
        out,
        score=score,
        device=device,
        began=terms.began,
        cache=cache,
        again=again,
        resolver=resolved,
    )
    carried_out(planned, terms, terms.view())
