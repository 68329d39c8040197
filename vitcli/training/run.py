"""A whole run, from what was asked for to its report: `train`, `finetune`, `resume`. The commands show these steps.

settings = finetuning_settings(checkpoint, weights_digest(checkpoint), "photos/", tune="all")
finished = carry_out(plan(settings, open_settings_data(settings), base=checkpoint))  # trains, scores, reports
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.errors import UsageError
from vitcli.machine import default_workers
from vitcli.model.resample import Kernel
from vitcli.training.build import fitting_model
from vitcli.training.cache import CacheWish
from vitcli.training.events import Event
from vitcli.training.folder import read_config
from vitcli.training.keeping import arrangement, kept_classes, require_keepable
from vitcli.training.log import evaluations
from vitcli.training.plan import PlannedRun, plan, plan_resumption
from vitcli.training.recipe import finetuning_recipe, load_recipe, override
from vitcli.training.report import Outcome, ScoredSplit, keep_familiarity, keep_thresholds, score_run
from vitcli.training.settings import MODEL_SETTINGS, FineTuning, Settings, further, suited
from vitcli.training.start import affordable_size, bundled_start
from vitcli.training.track import Trackers, require_trackers
from vitcli.training.train import begin, extend, final_data, leads, open_settings_data, resumed
from vitcli.training.train import train as trained

DEFAULT_ARCHITECTURE = "vit_tiny_patch16_224"
DEFAULT_RANK = 8
Pixels = int | tuple[int, int]  # a square's side, or height and width


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves: its folder, and how good its best checkpoint is."""

    folder: Path
    outcome: Outcome | None  # None where nothing was scored

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation accuracy, a folder that every command takes."""
        return self.folder / "best"

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """What each epoch ended with, as in metrics.jsonl."""
        return evaluations(self.folder)


def train(
    data: str | Path,
    *,
    model: str | None = None,
    img_size: Pixels | None = None,
    patch_size: Pixels | None = None,
    recipe: str | None = None,
    teacher: str | None = None,
    teacher_answers: str | Path | None = None,
    time_budget: float | str | None = None,
    val_fraction: float = Settings.val_fraction,
    folders: str | None = None,
    cache: CacheWish = "auto",
    multi_label: bool = False,
    out: str | Path | None = None,
    score: ScoredSplit = "auto",
    track: Sequence[str] = (),
    device: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    **changes: Any,
) -> FinishedRun:
    """Train a model from scratch on the images in `data`, score it, and leave a run folder with a report.

    The arguments are the options of `vit train`; `time_budget` is in seconds or a text such as "20m", `changes` are
    settings of the recipe or the model (`epochs=10`, `lr=3e-4`, `depth=6`). `on_event` is told of every step and epoch.
    Raises UsageError for what cannot be, DataError for data that cannot be trained on, Stopped after a signal.
    """
    began = time.monotonic()
    sizes = {"img_size": _pair(img_size), "patch_size": _pair(patch_size)}
    of_model = {name: changes.pop(name) for name in MODEL_SETTINGS if name in changes}
    of_model |= {name: list(value) for name, value in sizes.items() if value}
    settings = scratch_settings(
        str(data), model, recipe, changes, of_model, teacher=teacher, teacher_answers=teacher_answers,
        time_budget=time_budget, val_fraction=val_fraction, folders=folders, multi_label=multi_label,
    )  # fmt: skip
    samples = open_settings_data(settings)
    if model is None and recipe is None:
        settings = fitted(settings, samples)
    planned = plan(settings, samples, out, score=score, device=device, began=began, cache=cache)
    return carry_out(planned, score=score, track=track, workers=workers, began=began, on_event=on_event)


def finetune(
    data: str | Path,
    *,
    model: str | None = None,
    tune: Literal["auto", "head", "all", "lora"] = "auto",
    lora_rank: int | None = None,
    img_size: Pixels | None = None,
    posemb_kernel: Kernel | None = None,
    keep_classes: bool = False,
    recipe: str | None = None,
    teacher: str | None = None,
    teacher_answers: str | Path | None = None,
    time_budget: float | str | None = None,
    val_fraction: float = Settings.val_fraction,
    folds: int = 0,
    folders: str | None = None,
    cache: CacheWish = "auto",
    multi_label: bool = False,
    out: str | Path | None = None,
    score: ScoredSplit = "auto",
    track: Sequence[str] = (),
    device: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    **changes: Any,
) -> FinishedRun:
    """Fine-tune the checkpoint `model` on the images in `data`, score it, and leave a run folder with a report.

    Without `model` it is the default one of `resolve`, which among the bundled ones depends on the images, as does the
    image size then. With `folds` it is trained on all images, and so many other models, each trained without a part of
    them, are scored instead. The arguments are the options of `vit finetune`; `time_budget` is in seconds or a text
    such as "20m", `changes` are settings of the recipe (`epochs=3`, `lr=1e-4`). `on_event` is told of every step and
    epoch. Raises UsageError for what cannot be, CheckpointError and DataError for a model and data that cannot be used,
    Stopped after a signal.
    """
    began = time.monotonic()
    named = resolve(model) if model else None
    kept = kept_classes(named, multi_label=multi_label) if keep_classes else arrangement(multi_label=multi_label)
    samples = open_data(data, val_fraction=val_fraction, folders=folders, arrange=kept, pooled=bool(folds))
    checkpoint = named or resolve(bundled=bundled_start(samples))
    settings_of = partial(
        finetuning_settings, checkpoint, weights_digest(checkpoint), str(data), tune=tune, lora_rank=lora_rank,
        posemb_kernel=posemb_kernel, recipe=recipe, changes=changes, teacher=teacher, teacher_answers=teacher_answers,
        time_budget=time_budget, val_fraction=val_fraction, folders=folders, keep_classes=keep_classes,
        multi_label=multi_label, folds=folds,
    )  # fmt: skip
    size = _pair(img_size)
    if named is None and size is None:
        size = affordable_size(suited(settings_of(), samples)[0], samples, checkpoint, device, began)
    planned = plan(
        settings_of(img_size=size), samples, out, score=score, device=device, began=began, base=checkpoint,
        choose=tune == "auto", cache=cache,
    )  # fmt: skip
    return carry_out(planned, score=score, track=track, workers=workers, began=began, on_event=on_event)


def resume(
    folder: str | Path,
    *,
    epochs: float | None = None,
    data: str | Path | None = None,
    score: ScoredSplit = "auto",
    track: Sequence[str] = (),
    device: str | None = None,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> FinishedRun:
    """Go on with the run in `folder` where it stopped, or with more `epochs` after its end; score it and report.

    `data` is where its data are now, if they moved.
    """
    began = time.monotonic()
    settings, samples = resumed(Path(folder), epochs, None if data is None else str(data))
    planned = plan_resumption(settings, samples, Path(folder), score=score, device=device)
    return carry_out(planned, score=score, track=track, workers=workers, began=began, on_event=on_event)


def scratch_settings(
    data: str, model: str | None, recipe: str | None, changes: dict[str, Any], of_model: dict[str, Any], **more: Any
) -> Settings:
    """The settings of a run from scratch: of `recipe` with `changes`, its model or `model` with `of_model`.

    `more` are `teacher`, `teacher_answers`, `time_budget`, `val_fraction` and `folders`, as `train` takes them.
    """
    file = load_recipe(recipe)
    model_args = dict(file.model)
    architecture = model or model_args.get("architecture") or DEFAULT_ARCHITECTURE
    if model and model != model_args.get("architecture"):
        model_args = {}  # the recipe's sizes were written for its own architecture
    model_args.pop("architecture", None)
    chosen = override(file.recipe, changes, "options")
    return Settings(architecture, {**model_args, **of_model}, data, chosen, **further(**more))


def fitted(settings: Settings, data: DataSet) -> Settings:
    """`settings` of a model that nobody chose, fitted to the images of `data` unless something of it was set."""
    return settings if settings.model_args else replace(settings, model_args=fitting_model(data))


def finetuning_settings(
    checkpoint: Checkpoint,
    sha256: str,
    data: str,
    *,
    tune: Literal["auto", "head", "all", "lora"] = "auto",
    lora_rank: int | None = None,
    img_size: tuple[int, int] | None = None,
    posemb_kernel: Kernel | None = None,
    recipe: str | None = None,
    changes: dict[str, Any] | None = None,
    keep_classes: bool = False,
    **more: Any,
) -> Settings:
    """The settings of a run that begins with `checkpoint`, whose weights have the digest `sha256`.

    `auto` stands as `all` in them until `plan` has chosen. `more` as in `scratch_settings`.
    """
    if keep_classes:
        require_keepable(checkpoint)
    if lora_rank is not None and (tune != "lora" or lora_rank < 1):
        raise UsageError("--lora-rank is a positive number and belongs to --tune lora")
    if posemb_kernel is not None and img_size is None:
        raise UsageError("--posemb-kernel resamples for another --img-size; without one it would change nothing")
    name = checkpoint.name if checkpoint.source in ("bundled", "hub") else str(Path(checkpoint.name).resolve())
    start = FineTuning(
        checkpoint=f"{name}@{checkpoint.revision}" if checkpoint.revision else name,
        sha256=sha256,
        tune="all" if tune == "auto" else tune,
        img_size=img_size,
        kernel=posemb_kernel or "timm",
        rank=(lora_rank or DEFAULT_RANK) if tune == "lora" else 0,
        keep=checkpoint.labels if keep_classes else (),
        keep_ids=checkpoint.label_ids if keep_classes else (),
    )
    chosen = finetuning_recipe(recipe, changes or {}, img_size or checkpoint.preprocess.size)
    return Settings(checkpoint.architecture, {}, data, chosen, start=start, **further(**more))


def carry_out(
    planned: PlannedRun,
    *,
    score: ScoredSplit = "auto",
    track: Sequence[str] = (),
    workers: int | None = None,
    began: float | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> FinishedRun:
    """Train as planned, score the best checkpoint on the split that `score` names, and write the report.

    `track` names the trackers that follow (`vitcli.training.track`). `began` (time.monotonic) is when a time budget
    started to run. Under `torchrun` the first process alone scores.
    """
    settings, data, folder = planned.settings, planned.task.data, planned.folder
    require_trackers(track)
    if leads() and planned.goes_on:
        extend(settings, folder, planned.device)
    elif leads():
        begin(settings, data, folder, device=planned.device)
    count = default_workers(data.kind, planned.device) if workers is None else workers
    events = trained(settings, data, folder, task=planned.task, device=planned.device, workers=count, began=began)
    tell = on_event or (lambda event: None)
    if not leads():
        for event in events:
            tell(event)
        return FinishedRun(folder, None)
    with Trackers(track, folder, read_config(folder)) as trackers:
        for event in events:
            tell(event)
            for lost in trackers.tell(event):
                tell(lost)
        outcome = _scored(planned, score, count, on_event)
        for lost in trackers.end(_facts(outcome)):
            tell(lost)
    return FinishedRun(folder, outcome)


def _scored(
    planned: PlannedRun, score: ScoredSplit, workers: int, on_event: Callable[[Event], None] | None
) -> Outcome | None:
    """How good the trained run is: its best checkpoint, or the models of its folds."""
    settings, folder = planned.settings, planned.folder
    if settings.folds and not settings.fold:
        from vitcli.training.cross_validation import scored_by_folds

        return scored_by_folds(planned.task, settings, folder, planned.device, workers, on_event)
    data = final_data(settings, planned.task.data)
    keep_thresholds(folder / "best", data)
    keep_familiarity(folder / "best", data)
    return score_run(folder, data, score, settings.start.checkpoint if settings.start else "")


def _facts(outcome: Outcome | None) -> dict[str, float]:
    """The result by the name of its split, as trackers get it."""
    if outcome is None:
        return {}
    measures: Any = outcome.evaluation.measures  # of one or of several labels an image
    name = "accuracy" if hasattr(measures, "top1") else "mean_average_precision"
    return {f"{outcome.split}/{name}": measures.top1 if name == "accuracy" else measures.mean_average_precision}


def _pair(pixels: Pixels | None) -> tuple[int, int] | None:
    return (pixels, pixels) if isinstance(pixels, int) else pixels
