"""`vit finetune`: a trained model learns the classes of new data."""

from dataclasses import replace
from functools import partial
from typing import Any

from vitcli.cli.options import (
    VAL_FRACTION,
    BatchOpt,
    CacheOpt,
    ClassesOpt,
    CompileOpt,
    DataOpt,
    DeviceOpt,
    DryRunOpt,
    EpochsOpt,
    FoldersOpt,
    FoldsOpt,
    ImgSizeOpt,
    JsonOpt,
    KeepClassesOpt,
    LoraRankOpt,
    LrOpt,
    ModelOpt,
    MultiLabelOpt,
    OutOpt,
    PosembKernelOpt,
    RecipeOpt,
    ResumeOpt,
    ScoreOpt,
    SeedOpt,
    SetOpt,
    TeacherAnswersOpt,
    TeacherOpt,
    TimeBudgetOpt,
    TrackOpt,
    TuneOpt,
    ValFractionOpt,
    WorkersOpt,
)
from vitcli.cli.settings import AUTO, OF_RESUMPTION, assigned, given, refuse, size, split, typed
from vitcli.errors import UsageError
from vitcli.text import safe


def finetune(
    data: DataOpt = None,
    folders: FoldersOpt = None,
    multi_label: MultiLabelOpt = False,
    classes: ClassesOpt = None,
    model: ModelOpt = None,
    tune: TuneOpt = "auto",
    lora_rank: LoraRankOpt = None,
    img_size: ImgSizeOpt = None,
    posemb_kernel: PosembKernelOpt = None,
    keep_classes: KeepClassesOpt = False,
    recipe: RecipeOpt = None,
    out: OutOpt = None,
    resume: ResumeOpt = None,
    epochs: EpochsOpt = None,
    batch_size: BatchOpt = None,
    lr: LrOpt = None,
    teacher: TeacherOpt = None,
    teacher_answers: TeacherAnswersOpt = None,
    seed: SeedOpt = None,
    compile_: CompileOpt = False,
    time_budget: TimeBudgetOpt = None,
    val_fraction: ValFractionOpt = VAL_FRACTION,
    folds: FoldsOpt = None,
    cache: CacheOpt = "auto",
    score: ScoreOpt = "auto",
    track: TrackOpt = None,
    set_: SetOpt = None,
    device: DeviceOpt = None,
    workers: WorkersOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Fine-tune a trained model on your images: a new head, then the model itself where that pays.

    Shows a plan with its cost first, leaves a run folder with a checkpoint and a report, and says how to use them.
    """
    again = resume == AUTO
    if again and out is None:
        raise UsageError("--resume auto goes on with the run in --out, which is missing")
    if resume is not None and not again:
        refuse(typed(finetune, locals(), *OF_RESUMPTION), "--resume goes on with the run's own settings")
    from vitcli.cli.run import Terms, carried_out, resumed_from

    terms = Terms(score, track or [], device, workers, dry_run, json)
    pixels = size(img_size, "--img-size")
    if resume is not None and not again:
        resumed_from(resume, epochs, data, terms)
        return

    from vitcli.checkpoint.weights import weights_digest
    from vitcli.cli.console import bytes_shown, data_opened, resolved
    from vitcli.training.keeping import arrangement, kept_classes
    from vitcli.training.plan import plan
    from vitcli.training.recipe import Recipe
    from vitcli.training.run import finetuning_settings
    from vitcli.training.settings import suited
    from vitcli.training.start import affordable_size, better_start, bundled_start

    if data is None:
        raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
    if folds is not None:
        unheld = {"--val-fraction": val_fraction != VAL_FRACTION, "--score": score != "auto"}
        refuse(unheld, "--folds scores every image, by a model trained without it")
    if tune == "head":
        unused: dict[str, Any] = {"--recipe": recipe, "--epochs": epochs, "--batch-size": batch_size, "--lr": lr}
        unused |= {
            "--teacher": teacher,
            "--teacher-answers": teacher_answers,
            "--time-budget": time_budget,
            "--set": set_,
            "--compile": compile_,
        }
        refuse(unused, "--tune head solves for one layer, on features computed once")
    view = terms.view()
    named = resolved(model) if model else None  # a wrong name is told before the data are read
    kept = kept_classes(named, multi_label=multi_label) if keep_classes else arrangement(multi_label=multi_label)
    samples = data_opened(data, val_fraction=val_fraction, folders=folders, arrange=kept, pooled=folds is not None)
    if classes is not None and classes != len(samples.classes):
        names = ", ".join(samples.classes[:8]) + (", …" if len(samples.classes) > 8 else "")
        raise UsageError(f"--classes {classes}, but {safe(data)} holds {len(samples.classes)}: {safe(names)}")
    checkpoint = named or resolved(None, bundled=bundled_start(samples))
    if checkpoint.why:
        view.say(checkpoint.why)
    with bytes_shown("reading") as tell:
        digest = weights_digest(checkpoint, tell)
    changes, _ = split(assigned(set_ or []), list(Recipe.__dataclass_fields__), [])
    changes |= given(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, compile=compile_ or None)
    settings_of = partial(
        finetuning_settings,
        checkpoint,
        digest,
        data,
        tune=tune,
        lora_rank=lora_rank,
        posemb_kernel=posemb_kernel,
        recipe=recipe,
        changes=changes,
        val_fraction=val_fraction,
        teacher=teacher,
        teacher_answers=teacher_answers,
        time_budget=time_budget,
        folders=folders,
        keep_classes=keep_classes,
        multi_label=multi_label,
        folds=folds or 0,
    )
    chosen = (pixels[0], pixels[1]) if pixels else None
    if not named and not chosen:
        chosen = affordable_size(suited(settings_of(), samples)[0], samples, checkpoint, device, terms.began)
    planned = plan(
        settings_of(img_size=chosen), samples, out, score=score, device=device, began=terms.began, base=checkpoint,
        choose=tune == "auto", cache=cache, again=again, resolver=resolved,
    )  # fmt: skip
    if not named and (better := better_start(checkpoint, samples)):
        planned = replace(planned, notes=(*planned.notes, better))
    carried_out(planned, terms, view)
