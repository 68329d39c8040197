"""The cells of a study: how each is trained and scored. Joins the tasks that a comparison does not know.

MERGED: What a study's models are and its cells will cost: parameters, multiply–adds, seconds measured on this machine.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.cli.console import data_opened, note, progress
from vitcli.comparison.queue import results
from vitcli.comparison.results import Size
from vitcli.comparison.study import Cell, Pretraining, Study
from vitcli.data.samples import DataSet
from vitcli.data.split import subset
from vitcli.errors import DataError, UsageError, VitError
from vitcli.files import open_regular, write_file
from vitcli.inference.few_shot import Features, few_shot, read_features
from vitcli.inference.stream import Stream
from vitcli.machine import default_device, default_workers
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import command, safe
from vitcli.training import train as training
from vitcli.training.build import Settings, Start, build_task, parameters, vit_config
from vitcli.training.estimate import estimate
from vitcli.training.events import Evaluated, Event, Stepped
from vitcli.training.folder import changed_since, read_config
from vitcli.training.recipe import Recipe, override, small_images

SHOTS = (1, 5, 10, 25)


def pretraining_sets(pretrainings: Sequence[Pretraining]) -> dict[str, DataSet]:
    """The data that each stage draws from, by place, read once."""
    places = {one.data: one.folders for one in pretrainings}
    return {place: data_opened(place, folders=folders) for place, folders in places.items()}


class Cells:
    """Those of `study`, whose folder is `folder`.

    Raises DataError without a test split, UsageError when the data are no longer those of the study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.data = data_opened(study.data, folders=study.folders)
        if self.data.test is None:
            raise DataError(f"{safe(study.data)} has no test split; a comparison needs images that no choice has seen")
        self.pretraining = pretraining_sets(study.pretrainings)
        known = [(self.data, study.data, study.fingerprint)]
        known += [(self.pretraining[stage.data], stage.data, stage.fingerprint) for stage in study.pretrainings]
        for data, place, fingerprint in known:
            if data.fingerprint != fingerprint:
                raise UsageError(f"the data in {safe(place)} changed since {safe(folder)} began; start a new study")

    def work(self, cell: Cell, place: Path, workers: int | None = None) -> Mapping[str, Any]:
        """Train the cell's model, score its best checkpoint on the test split, which is read once."""
        spent = _Spent(place)
        result: dict[str, Any] = {}
        start = None
        if cell.pretraining:
            before = self.pretraining_settings(cell)
            data = subset(self.pretraining[before.data], before.share, before.share_seed)
            name = f"{cell.name}, {cell.pretraining.name}"
            best = self._train(before, data, place / "pretraining", name, workers, spent)
            start = Start(
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
        """Its best checkpoint; a run that was interrupted goes on."""
        if not (run / "run.json").exists():
            training.begin(settings, data, run, resume=command("vit", "compare", "--resume", self.folder))
        else:
            config = read_config(run)
            if _as_begun(config, settings) != settings:
                raise VitError(f"{safe(run)} is a run of other settings; remove it, and the cell is done again")
            if changed := changed_since(config):
                note(f"{name}: goes on, but not to the same bits: {'; '.join(changed)}")
            training.extend(settings, run)
        count = default_workers(data.kind, default_device()) if workers is None else workers
        with progress(name) as bar:
            for event in training.train(settings, data, run, workers=count):
                _tell(event, bar)
                if isinstance(event, Evaluated):
                    spent.keep()
        return run / "best"

    def settings(self, cell: Cell, start: Start | None = None) -> Settings:
        """Of the run on the study's data, from `start` where there was pre-training."""
        architecture, model_args = self._model(cell.model)
        recipe = self._recipe(cell.share, cell.seed, model_args["img_size"])
        if start:
            architecture, model_args = cell.model, {}  # the checkpoint's own
        return Settings(
            architecture, model_args, self.study.data, recipe, start=start, share=cell.share, share_seed=cell.seed,
            folders=self.study.folders,
        )  # fmt: skip

    def pretraining_settings(self, cell: Cell) -> Settings:
        """Of the run before it."""
        assert cell.pretraining
        stage, (architecture, model_args) = cell.pretraining, self._model(cell.model)
        recipe = self._recipe(stage.share, cell.seed, model_args["img_size"])
        return Settings(
            architecture, model_args, stage.data, recipe, share=stage.share, share_seed=cell.seed, folders=stage.folders
        )

    def finetune_size(self, model: str) -> tuple[int, int]:
        """Height and width for fine-tuning: the study's multiple of the model's own, in whole patches."""
        architecture, model_args = self._model(model)
        step = max(vit_config(architecture, model_args, 2).stride) if architecture in ARCHITECTURES else 1
        height, width = (
            max(step, round(side * self.study.finetune_size / step) * step) for side in model_args["img_size"]
        )
        return height, width

    def _model(self, name: str) -> tuple[str, dict[str, Any]]:
        """Architecture and what differs from it."""
        chosen = self.study.models[name]
        return chosen["architecture"], dict(chosen["model_args"])

    def _recipe(self, share: float, seed: int, size: Sequence[int]) -> Recipe:
        recipe = override(Recipe(), dict(self.study.recipe), "study.json")
        own = small_images(recipe, min(size))
        recipe = replace(recipe, **{name: getattr(own, name) for name in self.study.fitted})
        return replace(recipe, epochs=self.study.epochs_of(share), seed=seed)

    def _scores(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Accuracy on the test split, and in closed form by images a class, as far as the classes have so many."""
        assert self.data.test is not None
        stream = Stream(checkpoint, engine="torch", output="both")
        both = read_features(stream, self.data.test, range(len(self.data.test)))
        features, logits = np.split(both.x, [-len(self.data.classes)], axis=1)
        fewest = min(self.data.summary().counts["train"])
        few: dict[str, float] = {}
        if shots := [k for k in SHOTS if k <= fewest]:
            known = Features(features, both.labels, both.indices, both.failed)
            stream = Stream(checkpoint, engine="torch", output="features")
            found = few_shot(stream, self.data.classes, self.data.train, known, shots, seeds=3)
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
    """Raises VitError."""
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
    """Of this process and of the decoding processes that have ended."""
    return sum(os.times()[:4])


def _as_begun(config: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings of a run that went on; the machine may have had a smaller micro-batch or no compiler for it."""
    found, own = Settings.from_dict(dict(config)), settings.recipe
    return replace(found, recipe=replace(found.recipe, micro_batch=own.micro_batch, compile=own.compile))


def sizes(cells: Cells) -> dict[str, Size]:
    """Parameters and multiply–adds by model, at the image size that it begins with."""
    found = {}
    for name in cells.study.models:
        task = build_task(cells.settings(Cell(name, 1.0, 0)), cells.data)
        found[name] = Size(parameters(task.model), _macs(task.model, task.preprocess.size))
    return found


def seconds(cells: Cells) -> Mapping[str, float]:
    """By model, of its cells that are not done yet: one pass of each stage is measured, the rest is arithmetic."""
    study, done = cells.study, results(cells.folder, cells.study)
    left: dict[str, float] = {}
    for model in study.models:
        to_do = [cell for cell in study.cells() if cell.model == model and cell not in done]
        if to_do:
            left[model] = _pretraining(cells, to_do) + _training(cells, to_do)
    return left


def _training(cells: Cells, to_do: list[Cell]) -> float:
    settings = cells.settings(to_do[0])
    if cells.study.pretrainings:
        size = list(cells.finetune_size(to_do[0].model))
        settings = replace(settings, model_args={**settings.model_args, "img_size": size})
    return _measured(cells, settings, cells.data, [(cell.share, cell.seed) for cell in to_do])


def _pretraining(cells: Cells, to_do: list[Cell]) -> float:
    total = 0.0
    for place, data in cells.pretraining.items():
        own = [cell for cell in to_do if cell.pretraining and cell.pretraining.data == place]
        if own:
            runs = [(cell.pretraining.share, cell.seed) for cell in own if cell.pretraining]
            total += _measured(cells, cells.pretraining_settings(own[0]), data, runs)
    return total


def _measured(cells: Cells, settings: Settings, data: DataSet, runs: list[tuple[float, int]]) -> float:
    """Seconds of runs, each a share and its seed, of the model in `settings` on `data`."""
    one = estimate(build_task(settings, data), default_device())
    return sum(
        replace(one, epochs=cells.study.epochs_of(share), images=len(subset(data, share, seed).train)).all_seconds
        for share, seed in runs
    )


def _macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply–adds for one image, of ViTs and CNNs alike; `model` is of no use afterwards.

    Nothing is computed: on the meta device torch counts attention, which it does not in the CPU's fused kernel.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops()) // 2
