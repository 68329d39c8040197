"""A checkpoint for another image size, grid or patch size (paper, section 3.2), and what that did to its positions.

Knows checkpoints and tensors; writes nothing. Imports torch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.load import build, resize_addends
from vitcli.checkpoint.tensor_file import read_header
from vitcli.checkpoint.weights import read_weights, stored_grid
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import not_built
from vitcli.model.config import Size
from vitcli.model.resample import (
    Kernel,
    Positions,
    cosines,
    measure_positions,
    resample_patch_embed,
    resample_pos_embed,
)
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe


@dataclass(frozen=True)
class Resized:
    """A model at its new size, with the report on it."""

    model: VisionTransformer
    preprocess: Preprocess
    kernel: Kernel
    before: Positions | None  # None: the model has no position embedding
    after: Positions | None
    round_trip: float | None  # ‖there and back − original‖ / ‖original‖ of the patches' embeddings
    patch_before: Size
    tiles: tuple[Tensor, Tensor] | None  # cosines (h·w, h·w) of the patches' embeddings before and after, for pictures


def resize(
    checkpoint: Checkpoint,
    *,
    img_size: Size | None = None,
    grid: Size | None = None,
    patch_size: Size | None = None,
    from_grid: Size | None = None,
    kernel: Kernel = "timm",
) -> Resized:
    """`checkpoint` for `img_size` pixels or for a `grid` of patches, with patches of `patch_size`.

    `from_grid` is the stored position embedding's grid where neither the file nor its being square tells. Raises
    UsageError for what does not go together, CheckpointError for a model that cannot be resized.
    """
    vit = checkpoint.vit
    if vit is None:
        if any("pos" in name for name in read_header(checkpoint.weights_path).tensors):
            raise CheckpointError(
                f"{safe(checkpoint.name)}: {not_built(checkpoint.architecture)}, and only theirs have position "
                "embeddings that are resized"
            )
        raise CheckpointError(f"{safe(checkpoint.name)}: {checkpoint.architecture} has no position embedding to resize")
    if vit.rope and not vit.num_pos_tokens and not patch_size:
        raise UsageError(
            f"{safe(checkpoint.name)} has no position embedding, and none is needed: it turns queries and keys by "
            "their places, at any image size. To train it at another: `vit finetune --img-size`; for a file that takes "
            "another: `vit export --img-size`"
        )
    if patch_size and vit.stem:
        raise UsageError("a hybrid's patches are cells of its CNN's feature map; their size cannot be changed")
    target = replace(vit, patch_size=patch_size or vit.patch_size)
    if grid:
        img_size = grid[0] * target.stride[0], grid[1] * target.stride[1]
    target = replace(target, img_size=img_size or vit.img_size)
    if min(target.grid) < 1:
        raise UsageError(f"{_by(target.img_size)} pixels are less than one patch of {_by(target.stride)}")
    if target.img_size != (target.grid[0] * target.stride[0], target.grid[1] * target.stride[1]):
        raise UsageError(f"{_by(target.img_size)} pixels are not a multiple of the patch's {_by(target.stride)}")
    tensors = {name: torch.from_numpy(a) for name, a in read_weights(checkpoint, img_size=vit.img_size).items()}
    if target.patch_size != vit.patch_size:
        name = "patch_embed.proj.weight"
        tensors[name] = resample_patch_embed(tensors[name], target.patch_size)
    if vit.rel_pos_bias and target.grid != vit.grid:
        resize_addends(tensors, vit, target)
    before = after = tiles = round_trip = None
    if (pos := tensors.get("pos_embed")) is not None:
        prefix = vit.num_pos_tokens - vit.num_patches
        source = _source_grid(checkpoint, pos.shape[1] - prefix, from_grid)
        new = resample_pos_embed(pos, source, target.grid, prefix, kernel)
        back = resample_pos_embed(new, target.grid, source, prefix, kernel)
        before = measure_positions(pos[0, prefix:], source)
        after = measure_positions(new[0, prefix:], target.grid)
        original = pos[:, prefix:]
        round_trip = float((back[:, prefix:] - original).norm() / original.norm().clamp(min=1e-12))
        tiles = cosines(pos[0, prefix:]), cosines(new[0, prefix:])
        tensors["pos_embed"] = new
    preprocess = replace(checkpoint.preprocess, size=target.img_size)
    return Resized(build(target, tensors), preprocess, kernel, before, after, round_trip, vit.patch_size, tiles)


def _source_grid(checkpoint: Checkpoint, patches: int, said: Size | None) -> Size:
    if said is None:
        assert checkpoint.vit is not None
        return stored_grid(checkpoint, patches + checkpoint.vit.num_pos_tokens - checkpoint.vit.num_patches)
    if said[0] * said[1] != patches:
        raise UsageError(f"--from-grid {_by(said)}, but the checkpoint has position embeddings for {patches} patches")
    return said


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"
