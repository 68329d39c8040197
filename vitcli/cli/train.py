"""`vit train`: a model from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.cli.options import (
    ArchitectureOpt,
    BatchOpt,
    DataOpt,
    DeviceOpt,
    DryRunOpt,
    EpochsOpt,
    ImgSizeOpt,
    JsonOpt,
    LrOpt,
    OutOpt,
    PatchSizeOpt,
    RecipeOpt,
    ResumeOpt,
    SeedOpt,
    SetOpt,
    ValFractionOpt,
    WorkersOpt,
)
from vitcli.errors import UsageError

DEFAULT_ARCHITECTURE = "vit_tiny_patch16_224"


def train(
    data: DataOpt = None,
    model: ArchitectureOpt = None,
    recipe: RecipeOpt = None,
    out: OutOpt = None,
    resume: ResumeOpt = None,
    epochs: EpochsOpt = None,
    batch_size: BatchOpt = None,
    lr: LrOpt = None,
    img_size: ImgSizeOpt = None,
    patch_size: PatchSizeOpt = None,
    seed: SeedOpt = None,
    val_fraction: ValFractionOpt = 0.1,
    set_: SetOpt = None,
    device: DeviceOpt = None,
    workers: WorkersOpt = None,
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Train a Vision Transformer from scratch on your images.

    Leaves a run folder with the best and the last checkpoint. Ctrl-C saves; --resume goes on exactly there, and with
    more --epochs makes the run longer.
    """
    from vitcli.cli import training_view
    from vitcli.training import train as task
    from vitcli.training.run import next_run_folder
    from vitcli.training.start import Settings, build_task, fitting_model, run_name

    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    sizes = {"img_size": _size(img_size, "--img-size"), "patch_size": _size(patch_size, "--patch-size")}
    changes = {name: value for name, value in changes.items() if value is not None}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if resume is not None:
        own = {"--data": data, "--model": model, "--recipe": recipe, "--out": out, "--set": set_}
        useless = [name for name, value in own.items() if value]
        useless += [f"--{name.replace('_', '-')}" for name in (changes | sizes).keys() - {"epochs"}]
        if useless:
            raise UsageError(f"--resume goes on with the run's own settings; {', '.join(useless)} would change nothing")
        folder = Path(resume)
        settings, samples = task.resumed(folder, epochs)
    else:
        if data is None:
            raise UsageError("--data is missing: a folder of class folders, a manifest, or MNIST-style IDX files")
        settings = _settings(Settings, data, model, recipe, changes, sizes, set_ or [], val_fraction)
        samples = task.open_settings_data(settings)
        if not (model or recipe or settings.model_args):
            settings = replace(settings, model_args=fitting_model(samples))
        if out is None and not task.alone():
            raise UsageError("under torchrun, name the run folder with --out, so that all processes mean the same")
        folder = Path(out) if out else next_run_folder(run_name(settings))
    if workers is None:
        workers = task.default_workers(samples)
    view = training_view.TrainingView(json=json, quiet=not task.leads())
    view.plan(build_task(settings, samples), folder, resumed=resume is not None)
    if dry_run:
        return
    if task.leads():
        if resume is None:
            task.begin(settings, samples, folder)
        else:
            task.extend(settings, folder)
    with view:
        for event in task.train(settings, samples, folder, device=device, workers=workers):
            view.show(event)
    view.finish(folder)


def _settings(
    make: Any,
    data: str,
    model: str | None,
    recipe: str | None,
    changes: dict[str, Any],
    sizes: dict[str, Any],
    assignments: list[str],
    val_fraction: float,
) -> Any:
    """Recipe file, then `--set`, then the options of their own names."""
    from vitcli.training.recipe import Recipe, load_recipe, override
    from vitcli.training.start import MODEL_SETTINGS

    loaded = load_recipe(recipe)
    model_args = dict(loaded.model)
    architecture = model or model_args.get("architecture") or DEFAULT_ARCHITECTURE
    if model and model != model_args.get("architecture"):
        model_args = {}  # the recipe's sizes were written for its own architecture
    model_args.pop("architecture", None)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: write name=value")
        value = _value(text)
        if name in MODEL_SETTINGS:
            model_args[name] = value
        elif name in Recipe.__dataclass_fields__:
            changes = {name: value, **changes}
        else:
            from vitcli.text import did_you_mean, safe

            known = [*Recipe.__dataclass_fields__, *MODEL_SETTINGS]
            raise UsageError(f"--set: no setting '{safe(name)}'.{did_you_mean(name, known)}")
    return make(architecture, {**model_args, **sizes}, data, override(loaded.recipe, changes, "options"), val_fraction)


def _value(text: str) -> Any:
    """A TOML value; bare words are strings."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _size(text: str | None, option: str) -> list[int] | None:
    """`224` or `224x320` (height x width) → [height, width]."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides, default=0) < 1:
        raise UsageError(f"{option} {text}: write one number of pixels, or HEIGHTxWIDTH")
    return sides * 2 if len(sides) == 1 else sides
