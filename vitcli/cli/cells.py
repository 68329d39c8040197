"""The cells of a study: how each is trained, scored and estimated. Joins the tasks that a comparison does not know."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitcli.checkpoint.resolve import resolve
from vitcli.cli import comparison_view as view
from vitcli.cli.progress import progress
from vitcli.comparison.contenders import SMALL, contender
from vitcli.comparison.queue import results
from vitcli.comparison.study import Cell, Study
from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.data.subset import subset
from vitcli.errors import DataError, UsageError, VitError
from vitcli.inference.evaluate import evaluate
from vitcli.inference.few_shot import few_shot
from vitcli.inference.stream import Stream
from vitcli.text import safe
from vitcli.training import train as training
from vitcli.training.estimate import estimate
from vitcli.training.events import Evaluated, Event, Stepped
from vitcli.training.origin import Start, weights_digest
from vitcli.training.recipe import Recipe, override, small_images
from vitcli.training.run import read_config
from vitcli.training.start import Settings, build_task, default_device, parameters

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
        if self.data.fingerprint != study.fingerprint:
            raise UsageError(f"the data in {safe(study.data)} changed since {safe(folder)} began; start a new study")
        first = open_data(study.pretrainings[0].data) if study.pretrainings else self.data
        self.side = min(min(first.train.image(i).size) for i in range(min(16, len(first.train))))

    def work(self, cell: Cell, place: Path, workers: int | None = None) -> Mapping[str, Any]:
        """Train the cell's model, score its best checkpoint on the test split, once."""
        began = _cpu_seconds()
        start = self._pretrained(cell, place, workers) if cell.pretraining else None
        settings = self._settings(cell, start)
        data = training.open_settings_data(settings)
        best = self._train(settings, data, place / "run", cell.name, workers)
        spent = _cpu_seconds() - began
        assert self.data.test is not None
        evaluation = evaluate(best, self.data.test, self.data.classes)
        return {
            "images": len(data.train),
            "test_accuracy": evaluation.measures.top1,
            "failed": len(evaluation.failed),
            "validation_accuracy": resolve(str(best)).extra["provenance"]["validation_accuracy"],
            "few_shot": self._few_shot(best),
            "cpu_seconds": spent,
        }

    def _train(self, settings: Settings, data: DataSet, run: Path, name: str, workers: int | None) -> Path:
        """Its best checkpoint; a run that was interrupted goes on."""
        if not (run / "run.json").exists():
            training.begin(settings, data, run)
        elif _as_begun(read_config(run), settings) != settings:
            raise VitError(f"{safe(run)} is a run of other settings; remove it, and the cell is done again")
        count = training.default_workers(data) if workers is None else workers
        with progress(name) as bar:
            for event in training.train(settings, data, run, workers=count):
                _tell(event, bar)
        return run / "best"

    def _settings(self, cell: Cell, start: Start | None = None) -> Settings:
        chosen = contender(cell.model, self.side)
        recipe = self._recipe(cell, chosen.model_args["img_size"])
        if start:
            return Settings(
                cell.model, {}, self.study.data, recipe, start=start, share=cell.share, share_seed=cell.seed
            )
        return Settings(
            chosen.architecture, chosen.model_args, self.study.data, recipe, share=cell.share, share_seed=cell.seed
        )

    def _recipe(self, cell: Cell, size: Sequence[int]) -> Recipe:
        recipe = override(Recipe(), dict(self.study.recipe), "study.json")
        if min(size) <= SMALL:  # shifted, not cropped
            recipe = small_images(recipe, min(size))
        return replace(recipe, epochs=self.study.epochs_of(cell.share), seed=cell.seed)

    def _pretrained(self, cell: Cell, place: Path, workers: int | None) -> Start:
        """The cell's model trained on its pre-training data; where fine-tuning begins."""
        assert cell.pretraining
        stage = cell.pretraining
        chosen = contender(cell.model, self.side)
        recipe = replace(self._recipe(cell, chosen.model_args["img_size"]), epochs=self.study.epochs_of(stage.share))
        settings = Settings(
            chosen.architecture, chosen.model_args, stage.data, recipe, share=stage.share, share_seed=cell.seed
        )
        run = place / "pretraining"
        best = self._train(settings, training.open_settings_data(settings), run, f"{cell.name}, {stage.name}", workers)
        height, width = chosen.model_args["img_size"]
        step = _stride(resolve(str(best)))
        size = tuple(max(step, round(side * self.study.finetune_size / step) * step) for side in (height, width))
        return Start(str(best.resolve()), weights_digest(resolve(str(best))), "all", (size[0], size[1]))

    def _few_shot(self, best: Path) -> dict[str, float]:
        """Closed-form accuracy on the test split by images a class, as far as the classes have so many."""
        assert self.data.test is not None
        fewest = min(self.data.summary().counts["train"])
        shots = [k for k in SHOTS if k <= fewest]
        if not shots:
            return {}
        stream = Stream(resolve(str(best)), head=False)
        found = few_shot(stream, self.data.classes, self.data.train, self.data.test, shots, seeds=3)
        return {str(one.shots): one.mean for one in found.results}

    def models(self) -> dict[str, view.Size]:
        """Parameters and multiply–adds by model."""
        found = {}
        for name in self.study.models:
            task = build_task(self._settings(Cell(name, 1.0, 0)), self.data)
            found[name] = view.Size(parameters(task.model), _macs(task.model, task.preprocess.size))
        return found

    def costs(self) -> dict[str, float]:
        """Estimated seconds of the cells of each model that are not done yet, measured on this machine."""
        costs: dict[str, float] = {}
        finished = set(results(self.folder, self.study))
        for name in self.study.models:
            left = [cell for cell in self.study.cells() if cell.model == name and cell not in finished]
            if not left:
                continue
            full = estimate(build_task(self._settings(Cell(name, 1.0, 0)), self.data), default_device())
            for cell in left:
                images = len(subset(self.data, cell.share, cell.seed).train)
                cost = replace(full, epochs=self.study.epochs_of(cell.share), images=images).all_seconds
                if cell.pretraining:
                    cost *= 2  # at a guess: the other data set is not opened for an estimate
                costs[name] = costs.get(name, 0.0) + cost
        return costs


def _stride(checkpoint: Any) -> int:
    """Pixels that an image's side must be a multiple of."""
    return max(checkpoint.vit.stride) if checkpoint.vit else 1


def _tell(event: Event, bar: Callable[[int, int], None] | None) -> None:
    if bar and isinstance(event, Stepped | Evaluated):
        bar(event.step, event.total)


def _macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply–adds for one image, of ViTs and CNNs alike; `model` is of no use afterwards.

    Nothing is computed: on the meta device torch counts attention, which it does not in the CPU's fused kernel.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops()) // 2


def _cpu_seconds() -> float:
    """Of this process and of the decoding processes that have ended."""
    return sum(os.times()[:4])


def _as_begun(config: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings of a run that went on; running out of memory may have made its micro-batch smaller."""
    found = Settings.from_dict(dict(config))
    return replace(found, recipe=replace(found.recipe, micro_batch=settings.recipe.micro_batch))
