"""`vit finetune`: a trained model learns the classes of new data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.cli.options import (
    VAL_FRACTION,
    BatchOpt,
    ClassesOpt,
    CompileOpt,
    DataOpt,
    DeviceOpt,
    DryRunOpt,
    EpochsOpt,
    FoldersOpt,
    ImgSizeOpt,
    JsonOpt,
    LoraRankOpt,
    LrOpt,
    ModelOpt,
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
    TuneOpt,
    ValFractionOpt,
    WorkersOpt,
)
from vitcli.cli.settings import OF_RESUMPTION, assigned, given, refuse, size, split, typed
from vitcli.errors import UsageError
from vitcli.text import safe

DEFAULT_RANK = 8


def finetune(
    data: DataOpt = None,
    folders: FoldersOpt = None,
    classes: ClassesOpt = None,
    model: ModelOpt = None,
    tune: TuneOpt = "auto",
    lora_rank: LoraRankOpt = None,
    img_size: ImgSizeOpt = None,
    posemb_kernel: PosembKernelOpt = None,
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
    score: ScoreOpt = "auto",
    set_: SetOpt = None,
    device: DeviceOpt = None,
    workers: WorkersOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Fine-tune a trained model on your images: a new head, then the model itself where that pays.

    Shows a plan with its cost first, leaves a run folder with a checkpoint and a report, and says how to use them.
    """
    if resume is not None:
        refuse(typed(finetune, locals(), *OF_RESUMPTION), "--resume goes on with the run's own settings")
    from vitcli.cli.run import Running, absolute, seconds_or_none

    running = Running(score=score, device=device, workers=workers, dry_run=dry_run, json=json)
    changes = given(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, compile=compile_ or None)
    pixels = size(img_size, "--img-size")
    if resume is not None:
        running.resume(resume, epochs, data)
        return

    from vitcli.checkpoint.weights import weights_digest
    from vitcli.cli.console import bytes_shown, resolved
    from vitcli.data.split import subset
    from vitcli.machine import default_device, memory_free
    from vitcli.training.build import Settings, Start, build_task
    from vitcli.training.estimate import choose_tune, estimate, share_in_time
    from vitcli.training.train import alone

    if data is None:
        raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
    if lora_rank is not None and (tune != "lora" or lora_rank < 1):
        raise UsageError("--lora-rank is a positive number and belongs to --tune lora")
    if posemb_kernel is not None and pixels is None:
        raise UsageError("--posemb-kernel resamples for another --img-size; without one it would change nothing")
    if tune == "head" and not alone():
        raise UsageError("--tune head works in one process; under torchrun choose --tune all")
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
    checkpoint = resolved(model)
    if checkpoint.why:
        running.view.say(checkpoint.why)
    name = checkpoint.name if checkpoint.source in ("bundled", "hub") else str(Path(checkpoint.name).resolve())
    with bytes_shown("reading") as tell:
        digest = weights_digest(checkpoint, tell)
    start = Start(
        checkpoint=name if not checkpoint.revision else f"{name}@{checkpoint.revision}",
        sha256=digest,
        tune="all" if tune == "auto" else tune,
        img_size=(pixels[0], pixels[1]) if pixels else None,
        kernel=posemb_kernel or "timm",
        rank=(lora_rank or DEFAULT_RANK) if tune == "lora" else 0,
    )
    chosen = _recipe(recipe, changes, assigned(set_ or []), start.img_size or checkpoint.preprocess.size)
    settings = Settings(
        checkpoint.architecture,
        {},
        data,
        chosen,
        val_fraction,
        start,
        teacher,
        seconds_or_none(time_budget),
        teacher_answers=absolute(teacher_answers),
        folders=folders,
    )
    samples = running.open(settings)
    if classes is not None and classes != len(samples.classes):
        names = ", ".join(samples.classes[:8]) + (", …" if len(samples.classes) > 8 else "")
        raise UsageError(f"--classes {classes}, but {safe(data)} holds {len(samples.classes)}: {safe(names)}")
    why, cost = "", None
    if tune == "auto" and chosen.lrs:
        why = "its learning rates are for training all of it, from a head of zeros"
    elif tune == "auto" and not alone():
        why = "several processes train all of it; a head is solved for by one"
    elif tune == "auto":
        place = device or default_device()
        cost = estimate(build_task(settings, samples), place)
        left = settings.budget and settings.budget - running.used
        auto, why = choose_tune(cost, len(samples.classes), left, memory_free(place))
        settings = replace(settings, start=replace(start, tune=auto))
        if auto == "head" and left is not None:
            settings = replace(settings, share=share_in_time(cost, left))
            samples = subset(samples, settings.share)
    running.begin(settings, samples, out, cost, why)


def _recipe(name: str | None, changes: dict[str, Any], assignments: dict[str, Any], pixels: tuple[int, int]) -> Any:
    """The recipe; the default one is fitted to small images, which random crops would leave with too little."""
    from vitcli.training.recipe import Recipe, load_recipe, override, small_images

    file = load_recipe(name, "finetune")
    if file.model:
        raise UsageError(
            f"the recipe {safe(name)} has a [model] part, but the model of `vit finetune` is its checkpoint"
        )
    loaded = file.recipe
    if name is None and min(pixels) <= 64:
        loaded = small_images(loaded, min(pixels))
    of_recipe, _ = split(assignments, list(Recipe.__dataclass_fields__), [])
    if "epochs" in {**of_recipe, **changes} and "steps" not in of_recipe:
        of_recipe["steps"] = 0  # epochs were asked for
    if "lr" in {**of_recipe, **changes} and "lrs" not in of_recipe:
        of_recipe["lrs"] = []  # this one, no search
    return override(loaded, {**of_recipe, **changes}, "options")
