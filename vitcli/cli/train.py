"""`vit train`: a model from scratch."""

from dataclasses import replace
from typing import Any

from vitcli.cli.options import (
    VAL_FRACTION,
    ArchitectureOpt,
    BatchOpt,
    CompileOpt,
    DataOpt,
    DeviceOpt,
    DryRunOpt,
    EpochsOpt,
    FoldersOpt,
    ImgSizeOpt,
    JsonOpt,
    LrOpt,
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
    ValFractionOpt,
    WorkersOpt,
)
from vitcli.cli.settings import OF_RESUMPTION, assigned, given, refuse, size, split, typed
from vitcli.errors import UsageError

DEFAULT_ARCHITECTURE = "vit_tiny_patch16_224"


def train(
    data: DataOpt = None,
    folders: FoldersOpt = None,
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
    score: ScoreOpt = "auto",
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
    if resume is not None:
        refuse(typed(train, locals(), *OF_RESUMPTION), "--resume goes on with the run's own settings")
    from vitcli.cli.run import Running, absolute, seconds_or_none

    running = Running(score=score, device=device, workers=workers, dry_run=dry_run, json=json)
    changes = given(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, compile=compile_ or None)
    sizes = given(img_size=size(img_size, "--img-size"), patch_size=size(patch_size, "--patch-size"))
    if resume is not None:
        running.resume(resume, epochs, data)
        return

    from vitcli.training.build import Settings, fitting_model

    if data is None:
        raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
    architecture, model_args, loaded = _model_and_recipe(model, recipe, changes, sizes, assigned(set_ or []))
    settings = Settings(
        architecture,
        model_args,
        data,
        loaded,
        val_fraction,
        teacher=teacher,
        budget=seconds_or_none(time_budget),
        teacher_answers=absolute(teacher_answers),
        folders=folders,
    )
    samples = running.open(settings)
    if not (model or recipe or settings.model_args):
        settings = replace(settings, model_args=fitting_model(samples))
    running.begin(settings, samples, out)


def _model_and_recipe(
    model: str | None, recipe: str | None, changes: dict[str, Any], sizes: dict[str, Any], assignments: dict[str, Any]
) -> tuple[str, dict[str, Any], Any]:
    """Architecture, what differs from it, and the recipe."""
    from vitcli.training.build import MODEL_SETTINGS
    from vitcli.training.recipe import Recipe, load_recipe, override

    loaded = load_recipe(recipe)
    model_args = dict(loaded.model)
    architecture = model or model_args.get("architecture") or DEFAULT_ARCHITECTURE
    if model and model != model_args.get("architecture"):
        model_args = {}  # the recipe's sizes were written for its own architecture
    model_args.pop("architecture", None)
    of_recipe, of_model = split(assignments, list(Recipe.__dataclass_fields__), list(MODEL_SETTINGS))
    chosen = override(loaded.recipe, {**of_recipe, **changes}, "options")
    return architecture, {**model_args, **of_model, **sizes}, chosen
