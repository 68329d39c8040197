"""What a study's models are and its cells will cost: parameters, multiply–adds, seconds measured on this machine."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitcli.cli.cells import Cells
from vitcli.comparison.queue import results
from vitcli.comparison.results import Size
from vitcli.comparison.study import Cell
from vitcli.data.samples import DataSet
from vitcli.data.subset import subset
from vitcli.training.estimate import estimate
from vitcli.training.start import Settings, build_task, default_device, parameters


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
