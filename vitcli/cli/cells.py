"""The cells of a study: how each is trained and scored. Joins the tasks that a comparison does not know."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.durable import write_file
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.progress import progress
from vitcli.comparison.contenders import SMALL, contender
from vitcli.comparison.study import Cell, Study
from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.errors import DataError, UsageError, VitError
from vitcli.inference.few_shot import Features, few_shot, read_features
from vitcli.inference.stream import Stream
from vitcli.model.architectures import ARCHITECTURES
from vitcli.text import safe
from vitcli.training import train as training
from vitcli.training.events import Evaluated, Event, Stepped
from vitcli.training.origin import Start, weights_digest
from vitcli.training.recipe import Recipe, override, small_images
from vitcli.training.run import read_config
from vitcli.training.start import Settings, vit_config

SHOTS = (1, 5, 10, 25)


class Cells:
    """Those of `study`, whose folder is `folder`.

    `side`: pixels of the images that the models are made for, those of pre-training where there is one. Raises
    DataError without a test split, UsageError when the data are no longer those of the study.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.data = open_data(study.data)
        if self.data.test is None:
            raise DataError(f"{safe(study.data)} has no test split; a comparison needs images that no choice has seen")
        self.pretraining = {stage.data: open_data(stage.data) for stage in study.pretrainings}
        known = [(self.data, study.data, study.fingerprint)]
        known += [(self.pretraining[stage.data], stage.data, stage.fingerprint) for stage in study.pretrainings]
        for data, place, fingerprint in known:
            if data.fingerprint != fingerprint:
                raise UsageError(f"the data in {safe(place)} changed since {safe(folder)} began; start a new study")
        first = next(iter(self.pretraining.values()), self.data)
        self.side = min(min(first.train.image(i).size) for i in range(min(16, len(first.train))))

    def work(self, cell: Cell, place: Path, workers: int | None = None) -> Mapping[str, Any]:
        """Train the cell's model, score its best checkpoint on the test split, which is read once."""
        spent = _Spent(place)
        result: dict[str, Any] = {}
        start = None
        if cell.pretraining:
            before = self.pretraining_settings(cell)
            data = training.open_settings_data(before)
            name = f"{cell.name}, {cell.pretraining.name}"
            best = self._train(before, data, place / "pretraining", name, workers, spent)
            start = Start(
                str(best.resolve()), weights_digest(resolve(str(best))), "all", self.finetune_size(cell.model)
            )
            result["pretraining_images"] = len(data.train)
        settings = self.settings(cell, start)
        data = training.open_settings_data(settings)
        best = self._train(settings, data, place / "run", cell.name, workers, spent)
        checkpoint = resolve(str(best))
        return result | {
            "images": len(data.train),
            "validation_accuracy": checkpoint.extra["provenance"]["validation_accuracy"],
            **self._scores(checkpoint),
            "cpu_seconds": spent.seconds,
        }

    def _train(
        self, settings: Settings, data: DataSet, run: Path, name: str, workers: int | None, spent: "_Spent"
    ) -> Path:
        """Its best checkpoint; a run that was interrupted goes on."""
        if not (run / "run.json").exists():
            training.begin(settings, data, run)
        elif _as_begun(read_config(run), settings) != settings:
            raise VitError(f"{safe(run)} is a run of other settings; remove it, and the cell is done again")
        count = training.default_workers(data) if workers is None else workers
        with progress(name) as bar:
            for event in training.train(settings, data, run, workers=count):
                _tell(event, bar)
                if isinstance(event, Evaluated):
                    spent.keep()
        return run / "best"

    def settings(self, cell: Cell, start: Start | None = None) -> Settings:
        """Of the run on the study's data, from `start` where there was pre-training."""
        chosen = contender(cell.model, self.side)
        recipe = self._recipe(cell.share, cell.seed, chosen.model_args["img_size"])
        architecture, model_args = (cell.model, {}) if start else (chosen.architecture, chosen.model_args)
        return Settings(
            architecture, model_args, self.study.data, recipe, start=start, share=cell.share, share_seed=cell.seed
        )

    def pretraining_settings(self, cell: Cell) -> Settings:
        """Of the run before it."""
        assert cell.pretraining
        stage, chosen = cell.pretraining, contender(cell.model, self.side)
        recipe = self._recipe(stage.share, cell.seed, chosen.model_args["img_size"])
        return Settings(
            chosen.architecture, chosen.model_args, stage.data, recipe, share=stage.share, share_seed=cell.seed
        )

    def finetune_size(self, model: str) -> tuple[int, int]:
        """Height and width for fine-tuning: the study's multiple of the model's own, in whole patches."""
        chosen = contender(model, self.side)
        own = ARCHITECTURES.get(chosen.architecture) and vit_config(chosen.architecture, chosen.model_args, 2)
        step = max(own.stride) if own else 1
        height, width = (
            max(step, round(side * self.study.finetune_size / step) * step) for side in chosen.model_args["img_size"]
        )
        return height, width

    def _recipe(self, share: float, seed: int, size: Sequence[int]) -> Recipe:
        recipe = override(Recipe(), dict(self.study.recipe), "study.json")
        if min(size) <= SMALL:  # shifted, not cropped
            recipe = small_images(recipe, min(size))
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
        self.before = float(self.file.read_text("utf-8")) if self.file.exists() else 0.0
        self.began = _cpu_seconds()

    @property
    def seconds(self) -> float:
        return self.before + _cpu_seconds() - self.began

    def keep(self) -> None:
        write_file(self.file, [f"{self.seconds:.3f}".encode()])


def _tell(event: Event, bar: Callable[[int, int], None] | None) -> None:
    if bar and isinstance(event, Stepped | Evaluated):
        bar(event.step, event.total)


def _cpu_seconds() -> float:
    """Of this process and of the decoding processes that have ended."""
    return sum(os.times()[:4])


def _as_begun(config: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings of a run that went on; running out of memory may have made its micro-batch smaller."""
    found = Settings.from_dict(dict(config))
    return replace(found, recipe=replace(found.recipe, micro_batch=settings.recipe.micro_batch))
