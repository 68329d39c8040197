"""Work on the cells of a study: how each is trained and scored, and what that costs and will cost."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.comparison.cells import Cells
from vitcli.comparison.queue import results
from vitcli.comparison.results import Size
from vitcli.comparison.study import SMALL, Cell, contender
from vitcli.data.samples import DataSet
from vitcli.data.split import subset
from vitcli.errors import VitError
from vitcli.files import open_regular, write_file
from vitcli.images.preprocess import Preprocess
from vitcli.inference.few_shot import Features, few_shot_of, read_features
from vitcli.inference.stream import Stream
from vitcli.machine import default_device, default_workers
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import command, safe
from vitcli.training import train as training
from vitcli.training.auto import OF_THE_MACHINE
from vitcli.training.build import build_task, parameters, vit_config
from vitcli.training.cache import Copied, Needed, needed
from vitcli.training.estimate import estimate
from vitcli.training.events import Evaluated, Event, Stepped
from vitcli.training.folder import changed_since, read_config
from vitcli.training.recipe import Recipe, override, small_images
from vitcli.training.settings import FineTuning, Settings

SHOTS = (1, 5, 10, 25)
PLAIN_VITS, HYBRIDS = ("vision_transformer", "deit", "eva", "beit"), ("vision_transformer_hybrid",)  # timm's modules


class Worker:
    """Does the cells of a study; `copied` has the copies of images that they share."""

    def __init__(self, cells: Cells, copied: Copied | None = None) -> None:
        self.copied = copied
        self.cells, self.study, self.data, self.pretraining = cells, cells.study, cells.data, cells.pretraining

    def work(self, cell: Cell, place: Path, workers: int | None = None) -> Mapping[str, Any]:
        """Train the model of `cell` in the folder `place`, score its best checkpoint on the test split, read once.

        `workers` processes decode images, as many as suit the machine unless given. Returns what result.json holds.
        """
        spent = _Spent(place)
        result: dict[str, Any] = {}
        start = None
        if cell.pretraining:
            before = self.pretraining_settings(cell)
            data = subset(self.pretraining[before.data], before.share, before.share_seed)
            name = f"{cell.name}, {cell.pretraining.name}"
            best = self._train(before, data, place / "pretraining", name, workers, spent)
            start = FineTuning(
                str(best.resolve()), weights_digest(resolve(str(best))), "all", self.finetune_size(cell.model)
            )
            result["pretraining_images"] = len(data.train)
        settings = self.settings(cell, start)
        data = subset(self.data, cell.share, cell.seed)
        best = self._train(settings, data, place / "run", cell.name, workers, spent)
        cpu_seconds = spent.seconds  # of training: scoring costs every model about the same
        checkpoint = resolve(str(best))
        return result | {
            "images": len(data.train),
            "validation_accuracy": checkpoint.provenance["validation_accuracy"],
            **self._scores(checkpoint),
            "cpu_seconds": cpu_seconds,
        }

    def _train(
        self, settings: Settings, data: DataSet, run: Path, name: str, workers: int | None, spent: "_Spent"
    ) -> Path:
        """Do the run in the folder `run`, or go on with one that was interrupted. Returns its best checkpoint."""
        if not (run / "run.json").exists():
            training.begin(settings, data, run, resume=command("vit", "compare", "--resume", self.cells.folder))
        else:
            config = read_config(run)
            if _as_begun(config, settings) != settings:
                raise VitError(f"{safe(run)} holds a run with other settings; remove it, and the cell is done again")
            if changed := changed_since(config):
                self.cells.note(f"{name}: goes on, but not to the same bits: {'; '.join(changed)}")
            training.extend(settings, run)
        count = default_workers(data.kind, default_device()) if workers is None else workers
        bar = self.cells.progress and partial(self.cells.progress, name)
        for event in training.train(settings, data, run, workers=count, copied=self.copied):
            _tell(event, bar)
            if isinstance(event, Evaluated):
                spent.keep()
        return run / "best"

    def settings(self, cell: Cell, start: FineTuning | None = None) -> Settings:
        """What a cell's run on the study's data is to do, from `start` where there was pre-training."""
        architecture, model_args = self._model(cell.model)
        recipe = self._recipe(cell.share, cell.seed, model_args["img_size"])
        if start:
            architecture, model_args = cell.model, {}  # the checkpoint's own
        return Settings(
            architecture, model_args, self.study.data, recipe, start=start, share=cell.share, share_seed=cell.seed,
            folders=self.study.folders, cache=self.study.cache,
        )  # fmt: skip

    def pretraining_settings(self, cell: Cell) -> Settings:
        """What the pre-training of a cell is to do."""
        assert cell.pretraining
        stage, (architecture, model_args) = cell.pretraining, self._model(cell.model)
        recipe = self._recipe(stage.share, cell.seed, model_args["img_size"])
        return Settings(
            architecture, model_args, stage.data, recipe, share=stage.share, share_seed=cell.seed,
            folders=stage.folders, cache=self.study.cache,
        )  # fmt: skip

    def finetune_size(self, model: str) -> tuple[int, int]:
        """Height and width for fine-tuning: the study's multiple of the model's own, in whole patches."""
        architecture, model_args = self._model(model)
        step = max(vit_config(architecture, model_args, 2).stride) if architecture in ARCHITECTURES else 1
        height, width = (
            max(step, round(side * self.study.finetune_size / step) * step) for side in model_args["img_size"]
        )
        return height, width

    def _model(self, name: str) -> tuple[str, dict[str, Any]]:
        """A contender's architecture, and the arguments in which it differs from that."""
        chosen = self.study.models[name]
        return chosen["architecture"], dict(chosen["model_args"])

    def _recipe(self, share: float, seed: int, size: Sequence[int]) -> Recipe:
        """The study's recipe for a run on `share` of the data, fitted to images of `size` (height and width)."""
        recipe = override(Recipe(), dict(self.study.recipe), "study.json")
        own = small_images(recipe, min(size))
        recipe = replace(recipe, **{name: getattr(own, name) for name in self.study.fitted})
        return replace(recipe, epochs=self.study.epochs_of(share), seed=seed)

    def _scores(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Accuracy on the test split, and in closed form by images a class, as far as the classes have so many."""
        assert self.data.test is not None
        stream = Stream(checkpoint, engine="torch", precision="fp32", output="both")
        both = read_features(stream, self.data.test, range(len(self.data.test)))
        features, logits = np.split(both.x, [-len(self.data.classes)], axis=1)
        fewest = min(self.data.counts["train"])
        few: dict[str, float] = {}
        if shots := [k for k in SHOTS if k <= fewest]:
            known = Features(features, both.labels, both.indices, both.failed)
            stream = Stream(checkpoint, engine="torch", precision="fp32", output="features")
            found = few_shot_of(stream, self.data.classes, self.data.train, known, shots, seeds=3)
            few = {str(one.shots): one.mean for one in found.results}
        accuracy = float((logits.argmax(axis=1) == both.labels).mean())
        return {"test_accuracy": accuracy, "failed": len(both.failed), "few_shot": few}


class _Spent:
    """CPU seconds of a cell; what a killed process had spent counts up to its last epoch."""

    def __init__(self, place: Path) -> None:
        self.file = place / "cpu_seconds"
        self.before = _seconds_in(self.file) if self.file.exists() else 0.0
        self.began = _cpu_seconds()

    @property
    def seconds(self) -> float:
        return self.before + _cpu_seconds() - self.began

    def keep(self) -> None:
        write_file(self.file, [f"{self.seconds:.3f}".encode()])


def _seconds_in(file: Path) -> float:
    """The seconds that `_Spent` kept. Raises VitError when they are none."""
    try:
        with open_regular(file) as opened:
            value = float(opened.read(40))
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise VitError(f"{safe(file)} is damaged; remove it, and the cell's CPU time counts from now on")
    return value


def _tell(event: Event, bar: Callable[[int, int], None] | None) -> None:
    if bar and isinstance(event, Stepped | Evaluated):
        bar(event.step, event.total)


def _cpu_seconds() -> float:
    """Seconds that this process has computed, and the decoding processes that have ended."""
    return sum(os.times()[:4])


def _as_begun(config: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings of a run that went on, without what the machine has decided for it or where copies are kept."""
    found, own = Settings.from_dict(dict(config)), settings.recipe
    recipe = replace(found.recipe, **{name: getattr(own, name) for name in OF_THE_MACHINE})
    return replace(found, cache=settings.cache, recipe=recipe)


def model_sizes(cells: Cells) -> dict[str, Size]:
    """Parameters and multiply–adds by model, at the image size that it begins with."""
    found = {}
    for name in cells.study.models:
        task = build_task(Worker(cells).settings(Cell(name, 1.0, 0)), cells.data)
        params = parameters(task.model)
        found[name] = Size(params, _macs(task.model, task.preprocess.size), _inductive_bias(name))
    return found


def copies_needed(cells: Cells) -> list[Needed]:
    """The copies of images that all cells together read, those of models of one size counted once."""
    worker = Worker(cells)
    found: dict[tuple[str, tuple[int, int], float], list[Needed]] = {}

    def need(place: str, data: DataSet, size: Sequence[int], crop_scale: float) -> None:
        key = place, (size[0], size[1]), crop_scale
        found[key] = needed(data, Preprocess(key[1]), crop_scale)

    for model in cells.study.models:
        settings = worker.settings(Cell(model, 1.0, 0))
        own, crop_scale = settings.model_args["img_size"], settings.recipe.crop_scale
        need(cells.study.data, cells.data, worker.finetune_size(model) if cells.pretraining else own, crop_scale)
        for place, data in cells.pretraining.items():
            need(place, data, own, crop_scale)
    return [one for part in found.values() for one in part]


def _inductive_bias(name: str) -> int:
    from timm.models import is_model_in_modules

    architecture = contender(name, SMALL).architecture
    if is_model_in_modules(architecture, PLAIN_VITS):
        return 0
    return 1 if is_model_in_modules(architecture, HYBRIDS) else 2


def seconds_left(cells: Cells) -> Mapping[str, float]:
    """By model, what its cells that are not done yet will take here: a pass of each stage is measured, then scaled."""
    study, done = cells.study, results(cells.folder, cells.study)
    left: dict[str, float] = {}
    for model in study.models:
        to_do = [cell for cell in study.cells() if cell.model == model and cell not in done]
        if to_do:
            left[model] = _pretraining(cells, to_do) + _training(cells, to_do)
    return left


def _training(cells: Cells, to_do: list[Cell]) -> float:
    worker = Worker(cells)
    settings = worker.settings(to_do[0])
    if cells.study.pretrainings:
        size = list(worker.finetune_size(to_do[0].model))
        settings = replace(settings, model_args={**settings.model_args, "img_size": size})
    return _measured(cells, settings, cells.data, [(cell.share, cell.seed) for cell in to_do])


def _pretraining(cells: Cells, to_do: list[Cell]) -> float:
    total = 0.0
    for place, data in cells.pretraining.items():
        own = [cell for cell in to_do if cell.pretraining and cell.pretraining.data == place]
        if own:
            runs = [(cell.pretraining.share, cell.seed) for cell in own if cell.pretraining]
            total += _measured(cells, Worker(cells).pretraining_settings(own[0]), data, runs)
    return total


def _measured(cells: Cells, settings: Settings, data: DataSet, runs: list[tuple[float, int]]) -> float:
    """Seconds of runs, each a share and its seed, of the model in `settings` on `data`."""
    one = estimate(build_task(training.on_machine(settings, default_device()), data), default_device())
    return sum(
        replace(one, epochs=cells.study.epochs_of(share), images=len(subset(data, share, seed).train)).all_seconds
        for share, seed in runs
    )


def _macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply–adds for one image, of ViTs and CNNs alike; `model` is of no use afterwards.

    Nothing is computed: on the meta device torch counts attention, which it does not in the CPU's fused kernel.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().requires_grad_(False).to("meta")(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops()) // 2
