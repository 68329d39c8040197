"""One optimiser step: the model, its optimiser, its averaged weights, and what of them a saved state holds.

Knows batches of tensors; not where they come from, nor files.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn

from vitcli.errors import VitError
from vitcli.machine import memory_free, on_cpu
from vitcli.model import linear
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe
from vitcli.training.augment import batch_transform
from vitcli.training.auto import settled
from vitcli.training.batches import Batch
from vitcli.training.distributed import World
from vitcli.training.faults import one_image_explained, out_of_memory
from vitcli.training.objective import Objective
from vitcli.training.optimizer import create_optimizer
from vitcli.training.precision import HALVES, autocast
from vitcli.training.seeds import reseed
from vitcli.training.sharding import clip, fill, gathered, is_sharded, own, require_shardable, shape_of, shard
from vitcli.training.task import Task

LEAST_SCALE = 1e-4  # of an fp16 loss; each step that overflows halves it, from 65536


class OutOfMemory(VitError):
    """A micro-batch did not fit."""

    def __init__(self, images: int) -> None:
        super().__init__(
            f"{images} images at once do not fit into memory: lower --set micro_batch, or set grad_checkpointing=true"
        )


class CannotCompile(VitError):
    """torch.compile found no compiler, or fails on this model."""


def least_bytes(task: Task, images: int, processes: int = 1) -> int:
    """Memory that a step of so many images takes at the very least: weights, pixels, a few activations of each block.

    `processes` share the weights. Overcommitted memory is refused by a kill, not by an error, so what cannot fit is
    better not asked for.
    """
    weights = sum(parameter.nbytes for parameter in task.model.parameters()) // processes
    pixels = 5 * task.preprocess.in_chans * prod(task.preprocess.size)  # as bytes and as float32
    kept = 0
    if task.vit and not task.recipe.grad_checkpointing:
        kept = 4 * 4 * task.vit.depth * task.vit.num_tokens * task.vit.embed_dim  # norm, q, k and v, in float32
    return weights + images * (pixels + (kept // 2 if task.recipe.amp in HALVES else kept))


def require_room(task: Task, images: int, device: str, processes: int = 1) -> None:
    """Raises OutOfMemory when `least_bytes` are not there."""
    free = memory_free(device)
    if free is not None and least_bytes(task, images, processes) > free:
        raise OutOfMemory(images)


def compile_in_place(model: nn.Module) -> None:
    """Have each block of a Vision Transformer compiled when it is first called, another model as a whole.

    Blocks share what was compiled for the first one, so that it takes seconds.
    """
    for part in model.blocks if isinstance(model, VisionTransformer) else [model]:
        part.compile()


class Learner:
    """A model with its optimiser and averaged weights: what a step changes and what a saved state holds."""

    def __init__(self, task: Task, world: World, micro_batches: int) -> None:
        recipe = settled(task.recipe, str(world.device), world.size)
        self.recipe, self.device, self.micro_batches, self.world = recipe, world.device, micro_batches, world
        self.lr = recipe.lr
        if on_cpu(world.device.type):
            linear.kernel()  # measured before the first step, unless the run has it already
        # oneDNN's and cuDNN's convolutions are fastest with channels last; the patch projection alone gains nothing.
        convolutional = task.vit is None or task.vit.stem is not None
        self.layout = torch.channels_last if convolutional else torch.contiguous_format
        self.sharded = recipe.shard_model and world.size > 1
        if self.sharded:
            require_shardable(recipe, task.model, task.architecture)
            self.model, self.shape = task.model, shape_of(task.model)
        else:
            self.model = task.model.to(world.device).to(memory_format=self.layout)
        self.ema = _averaged(self.model) if recipe.ema_decay else None
        for model in [self.model, *([self.ema] if self.ema else [])] if self.sharded else []:
            if not is_sharded(model):
                shard(model, world)
        self.names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.optimizer = create_optimizer(self.model, recipe)
        self.follow = None if self.ema is None else _Following(self.ema, self.model)
        if recipe.compile:
            for model in {self.model, self.averaged}:
                compile_in_place(model)
        self.parallel: nn.Module = self.model  # DDP's wrapper of it from the first step on
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "fp16")
        self.prepare = batch_transform(recipe, task.preprocess, world.device)
        self.objective = Objective(task, world.device)
        self.task = task

    @property
    def averaged(self) -> nn.Module:
        """The weights that are evaluated and kept."""
        return self.model if self.ema is None else self.ema

    def first_step(self, batches: Iterator[Batch], step: int, lr: float) -> Tensor:
        """`step`, with what smaller bites or a plain model would mend told apart from other errors.

        Raises OutOfMemory and CannotCompile.
        """
        try:
            if self.world.size > 1:
                batches = self._joined(batches, step)
            elif on_cpu(self.device.type):  # a GPU says so itself
                self._require_room()
            return self.step(batches, step, lr)
        except RuntimeError as error:  # of which CUDA's OutOfMemoryError is one, and each of torch.compile's
            if out_of_memory(error):
                raise OutOfMemory(self.recipe.micro_batch) from error
            if self.recipe.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise CannotCompile(safe(str(error).partition("\n")[0])) from error
            raise

    def _joined(self, batches: Iterator[Batch], step: int) -> Iterator[Batch]:
        """`batches`, once every process knows that its first one fits: who fails alone leaves the others waiting.

        A model that is shared out cannot be tried by one process. Raises OutOfMemory in all of them, or in none.
        """
        first, fits = next(batches), True
        before = [buffer.clone() for buffer in self.model.buffers()]
        try:
            if on_cpu(self.device.type):
                self._require_room()
            if not self.sharded:
                self.model.train()
                self._pass(first, step, self.world.rank)
        except (OutOfMemory, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            fits = False
        self.optimizer.zero_grad()
        for buffer, values in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(values)
        if self.world.sum([float(not fits)])[0]:
            raise OutOfMemory(self.recipe.micro_batch)
        if not self.sharded:
            self.parallel = nn.parallel.DistributedDataParallel(
                self.model,
                gradient_as_bucket_view=True,
                static_graph=self.micro_batches == self.world.size,  # passes without a sum of gradients would break it
            )
        return chain([first], batches)

    def _require_room(self) -> None:
        parts = self.world.size if self.sharded else 1
        require_room(self.task, min(self.recipe.micro_batch, len(self.task.data.train)), "cpu", parts)

    def _pass(self, batch: Batch, step: int, index: int) -> Tensor:
        """Forward and backward pass of micro-batch `index`. Returns its share of the mean loss."""
        images, labels, samples = batch
        reseed(self.recipe.seed, "pass", step, index)
        images = self.prepare(images.to(self.device, non_blocking=True)).to(memory_format=self.layout)
        labels = labels.to(self.device, non_blocking=True)
        with autocast(self.recipe.amp, self.device), one_image_explained():
            loss = self.objective(self.parallel, images, labels, samples) / self.micro_batches
        # DDP and FSDP take the mean over processes
        self.scaler.scale(loss * self.world.size).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, batches: Iterator[Batch], step: int, lr: float) -> Tensor:
        """One optimiser step. Returns this process's share of the mean loss, on its device: nobody waits for it.

        But for fp16, whose scale of the loss is looked at, and whose optimiser asks whether a gradient overflowed.
        """
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.parallel.train()
        mine = range(self.world.rank, self.micro_batches, self.world.size)
        total = torch.zeros((), device=self.device)
        for index in mine:
            batch = next(batches)
            # Gradients that are shared out are summed at once: kept whole until the last pass, they would not fit.
            summed = self.world.size == 1 or self.sharded or index == mine[-1]
            with nullcontext() if summed else self.parallel.no_sync():  # type: ignore[operator]
                total += self._pass(batch, step, index)
        if self.recipe.clip_grad and self.sharded:
            clip(self.model.parameters(), self.recipe.clip_grad, self.world)
        elif self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise VitError("fp16 gradients overflow at every step, however small: --set amp=bf16, or a lower --lr")
        self.optimizer.zero_grad()
        if self.follow is not None:
            # The warm-up keeps the first, useless weights from lingering in the average.
            decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
            self.follow(1 - decay)
        return total

    def require_finite(self, step: int) -> None:
        """Raises VitError when a weight is not finite: such a model is never evaluated, exported or saved."""
        parts = [own(parameter.detach()) for parameter in self.model.parameters()]
        norms = torch._foreach_norm([part for part in parts if part.numel()], torch.inf)
        spoilt = float(bool(norms) and not torch.stack(norms).isfinite().all())
        if self.world.sum([spoilt])[0] if self.sharded else spoilt:
            raise VitError(
                f"weights are no longer finite after step {step}: lower --lr; the states saved before it are whole"
            )

    def kept(self) -> nn.Module | None:
        """The weights that are evaluated and kept, whole in the leader's memory; maybe None for the others.

        Called by all processes at once.
        """
        return gathered(self.averaged, self.shape, self.world) if self.sharded else self.averaged

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for parameter, slots in self.optimizer.state.items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{self.names[id(parameter)]}:{slot}"] = torch.as_tensor(value)
        for name, value in self.scaler.state_dict().items():  # empty but for fp16
            tensors[f"scaler.{name}"] = torch.tensor(value, dtype=torch.float64)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `tensors`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        _load(self.model, part("model."))
        if self.ema is not None:
            _load(self.ema, part("ema."))
        if scaler := part("scaler."):
            whole = self.scaler.state_dict()
            self.scaler.load_state_dict({name: type(whole[name])(value.item()) for name, value in scaler.items()})
        parameters = dict(self.model.named_parameters())
        for name, tensor in part("optimizer.").items():
            owner, slot = name.rsplit(":", 1)
            parameter = parameters[owner]
            if tensor.shape != parameter.shape and tensor.numel() != 1:
                raise ValueError(f"{slot} of {owner} has another shape than it")
            # A fused step reads a slot in the order in which the parameter lies in memory.
            like = torch.empty_like(parameter.detach()) if tensor.shape == parameter.shape else tensor
            fill(like, tensor)
            # Adam keeps its step count on the CPU unless fused on a GPU; the slot's own device is the parameter's.
            self.optimizer.state[parameter][slot] = like.to(parameter.device)


def _averaged(model: nn.Module) -> nn.Module:
    return deepcopy(model).requires_grad_(False).eval()


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raises RuntimeError, KeyError or ValueError where `tensors` are not those of `model`."""
    if not is_sharded(model):
        model.load_state_dict(tensors)
        return
    targets = model.state_dict()
    if targets.keys() != tensors.keys():
        raise KeyError("tensors of another model")
    for name, target in targets.items():
        fill(target, tensors[name])


class _Following:
    """average ← average + weight · (model − average); integer buffers are copied.

    torch's AveragedModel would take the first step's weights for the average and name its tensors otherwise, so that
    saved states would not load.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        both = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        pairs = [(own(a), own(m)) for a, m in both]
        self.moving = [(a, m) for a, m in pairs if a.is_floating_point()]
        self.counting = [(a, m) for a, m in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def __call__(self, weight: float) -> None:
        torch._foreach_lerp_([a for a, _ in self.moving], [m for _, m in self.moving], weight)
        if self.counting:
            torch._foreach_copy_([a for a, _ in self.counting], [m for _, m in self.counting])
