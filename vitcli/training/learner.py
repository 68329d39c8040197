"""One optimiser step: the model, its optimiser, its averaged weights, and what of them a saved state holds.

Knows batches of tensors; not where they come from, nor files.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.training.augment import batch_transform
from vitcli.training.distributed import World
from vitcli.training.muon import Muon
from vitcli.training.recipe import Recipe
from vitcli.training.seeds import reseed
from vitcli.training.task import Task


class Learner:
    """A model with its optimiser and averaged weights: what a step changes and what a saved state holds."""

    def __init__(self, task: Task, world: World, micro_batches: int) -> None:
        recipe = task.recipe
        self.recipe, self.device, self.micro_batches, self.world = recipe, world.device, micro_batches, world
        self.lr = recipe.lr
        self.model = task.model.to(world.device)
        self.names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.optimizer = _optimizer(self.model, recipe)
        self.ema = _averaged(self.model) if recipe.ema_decay else None
        self.parallel: nn.Module = self.model
        if world.size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.model)
        self.prepare = batch_transform(recipe, task.preprocess)
        self.mixup = _mixup(recipe, task.classes)

    @property
    def averaged(self) -> nn.Module:
        """The weights that are evaluated and kept."""
        return self.model if self.ema is None else self.ema

    def step(self, batches: Iterator[tuple[Tensor, Tensor]], step: int, lr: float) -> float:
        """One optimiser step. Returns this process's share of the mean loss."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.parallel.train()
        mine = range(self.world.rank, self.micro_batches, self.world.size)
        total = torch.zeros((), device=self.device)
        for index in mine:
            images, labels = next(batches)
            reseed(self.recipe.seed, "pass", step, index)
            with nullcontext() if self.world.size == 1 or index == mine[-1] else self.parallel.no_sync():  # type: ignore[operator]
                images = self.prepare(images).to(self.device)
                loss = self._loss(images, labels.to(self.device)) / self.micro_batches
                (loss * self.world.size).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over processes
            total += loss.detach()
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            # The warm-up keeps the first, useless weights from lingering in the average.
            decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
            _lerp(self.ema, self.model, 1 - decay)
        return total.item()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # soft targets (B, K), label smoothing included
            return F.cross_entropy(self.parallel(images), labels)
        return F.cross_entropy(self.parallel(images), labels, label_smoothing=self.recipe.label_smoothing)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for parameter, slots in self.optimizer.state.items():
            for slot, value in slots.items():
                tensors[f"optimizer.{self.names[id(parameter)]}:{slot}"] = torch.as_tensor(value)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `tensors`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.ema is not None:
            self.ema.load_state_dict(part("ema."))
        parameters = dict(self.model.named_parameters())
        for name, tensor in part("optimizer.").items():
            owner, slot = name.rsplit(":", 1)
            # Adam keeps its step count on the CPU unless fused on a GPU; the slot's own device is the parameter's.
            self.optimizer.state[parameters[owner]][slot] = tensor.to(parameters[owner].device)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Biases, norms and other vectors are not decayed."""
    from timm.optim import create_optimizer_v2

    rates = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":
        return Muon(model, betas=recipe.betas, **rates)
    if recipe.optimizer == "sgd":
        return create_optimizer_v2(model, "momentum", momentum=recipe.betas[0], **rates)  # type: ignore[no-any-return]
    return create_optimizer_v2(model, recipe.optimizer, betas=recipe.betas, fused=True, **rates)  # type: ignore[no-any-return]


def _averaged(model: nn.Module) -> nn.Module:
    return deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def _lerp(average: nn.Module, model: nn.Module, weight: float) -> None:
    """average ← average + weight · (model − average); integer buffers are copied."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    floating = [(a, m) for a, m in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [m for _, m in floating], weight)
    for a, m in pairs:
        if not a.is_floating_point():
            a.copy_(m)


def _mixup(recipe: Recipe, classes: int) -> Any:
    if not (recipe.mixup or recipe.cutmix):
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes)
