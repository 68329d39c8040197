"""A model whose weights, gradients and optimiser's numbers are shared out among the processes (torch's FSDP2).

Each block of a Vision Transformer is put together from everybody's parts when it is computed, and taken apart again.
What is saved is whole: one tensor after the other is gathered and written, so that nobody holds a second copy. torch's
part of this takes as long to import as a third of torch, so it is known here by what it can do.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from vitcli.errors import UsageError
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe
from vitcli.training.distributed import World
from vitcli.training.recipe import Recipe


def require_shardable(recipe: Recipe, model: nn.Module, architecture: str) -> None:
    """Raises UsageError for what a model that is shared out cannot be trained with."""
    if not recipe.shard_model:
        return
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"shard_model is for Vision Transformers, not for {safe(architecture)}")
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        raise UsageError(
            f"shard_model: {safe(architecture)} has batch normalisation, whose statistics nobody would share"
        )
    if recipe.optimizer == "muon":
        raise UsageError(
            "shard_model takes matrices apart, and muon orthogonalises whole ones: --set optimizer=adamw, or without it"
        )
    if recipe.amp == "fp16":
        raise UsageError(
            "shard_model: the scale of fp16 gradients would be each process's own: --set amp=bf16, or fp32"
        )


def shard(model: nn.Module, world: World) -> None:
    """Share out `model`, in place, and move it to the device of `world`, block by block: it is never whole there.

    Called by all processes, with the same weights in each.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    blocks = list(model.blocks) if isinstance(model, VisionTransformer) else []
    owners = [{id(parameter) for parameter in block.parameters()} for block in blocks]
    if sum(map(len, owners)) == len(set().union(*owners)):  # a parameter of several blocks stays with the whole
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `model` is shared out, so that all processes have to compute it together."""
    return hasattr(model, "set_reshard_after_forward")


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; a tensor that is not shared out, itself."""
    return tensor.to_local() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from all processes' parts, which all call this at once; one that is not, itself."""
    return tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def _is_shared(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copy the whole `values` into `target`, of which each process has a part. Raises ValueError for another shape."""
    if target.shape != values.shape:
        raise ValueError(f"values of shape {tuple(values.shape)} for {tuple(target.shape)}")
    if not _is_shared(target):
        target.copy_(values)
        return
    mesh: Any = target.device_mesh  # type: ignore[attr-defined]
    parts, rank = (
        values.chunk(mesh.size(), dim=0),
        mesh.get_local_rank(),
    )  # as fully_shard divides: the last may be none
    if rank < len(parts):
        own(target).copy_(parts[rank])


def shape_of(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters have no memory, to be filled with gathered ones; its buffers are real."""
    bare = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return deepcopy(model, bare)


def gathered(model: nn.Module, shape: nn.Module, world: World) -> nn.Module | None:
    """`model` as one, in the leader's memory of the CPU; None for the others. Called by all processes at once."""
    found = {}
    for name, tensor in model.state_dict().items():
        one = whole(tensor)
        if world.leads:
            found[name] = one.detach().to("cpu", copy=True)
    if not world.leads:
        return None
    plain = shape_of(shape)
    plain.load_state_dict(found, assign=True)
    return plain


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], most: float, world: World) -> None:
    """Scale the gradients so that their norm, over all processes' parts, is at most `most`; nobody waits for it."""
    gradients = [own(parameter.grad) for parameter in parameters if parameter.grad is not None]
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    world.add(squares)
    torch._foreach_mul_(gradients, (most / (squares.sqrt() + 1e-6)).clamp(max=1.0))


def largest_block(model: nn.Module) -> int:
    """How many numbers the largest block has, or all that is no block: what is whole at once."""
    blocks: Any = model.blocks if isinstance(model, VisionTransformer) else []
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(sizes)
    return int(max([*sizes, rest]))
