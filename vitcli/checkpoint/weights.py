"""A checkpoint's weights, proven to be those its config describes, as float32 arrays. Imports no torch.

Everything is settled from the header before the first byte of a weight is read: a config that asks for a trillion
parameters fails here, without an allocation. Of other models than plain ViTs only timm's source text is asked, without
importing timm, which takes seconds: enough to refuse a config that names another model than its weights are of;
whatever passes is built and compared.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.hub import verify_blob
from vitcli.checkpoint.imagenet import timm_folder
from vitcli.checkpoint.layout import INDEX_NAME, WEIGHTS_NAME
from vitcli.checkpoint.tensor_file import (
    StoredType,
    check_finite,
    opened,
    read_header,
    read_parts,
    stored_as,
    weight_files,
)
from vitcli.errors import CheckpointError
from vitcli.files import OnProgress, open_regular
from vitcli.model.config import Size
from vitcli.model.shapes import Array, Shape, weight_shapes
from vitcli.text import safe

_ENTRY = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_IMPORT = re.compile(r"^\s*from (?:\.|timm\.models\.)(\w+) import", re.MULTILINE)


@cache
def architectures() -> dict[str, Path]:
    """Name of each architecture → the file that defines it; empty where timm's source is not to be found."""
    folder = timm_folder()
    files = sorted((folder / "models").glob("*.py")) if folder else []
    return {name: file for file in files for name in _ENTRY.findall(_text(file))}


def foreign(architecture: str, names: Iterable[str]) -> list[str]:
    """The parts of a model that the weights `names` begin with and that `architecture`'s source never mentions.

    A part's name stands in the source of its model, or in that of a model this is made from; numbers are put behind it
    (`layer1`), so that they do not count.
    """
    file = architectures().get(architecture)
    if file is None:
        return []
    text = "".join(map(_text, _with_imports(file)))
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    return [part for part in parts if (stem := part.rstrip("0123456789").rstrip("_")) and stem not in text]


def _with_imports(file: Path) -> list[Path]:
    """`file` and those of timm's models that it imports, directly or not."""
    found = [file]
    for one in found:  # which grows
        for name in _IMPORT.findall(_text(one)):
            other = one.with_name(f"{name}.py")
            if other.is_file() and other not in found:
                found.append(other)
    return found


@cache
def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace")


MAX_LISTED = 10
_WRAPPERS = ("module.", "timm_model.")  # DistributedDataParallel and AveragedModel; transformers' TimmWrapper
# torch.compile, FSDP, activation checkpointing and DeepSpeed, which may wrap a part of the model, too
_INSIDE = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.)+")


def read_weights(checkpoint: Checkpoint, *, img_size: Size | None = None) -> dict[str, Array]:
    """Name → array, exactly the names and shapes of `checkpoint.vit` (all names for a model that is not a plain ViT).

    With `img_size` the position embedding may be of another grid (`stored_grid` tells which); the caller resamples.
    Raises CheckpointError listing missing, unexpected and mismatched weights, and whatever `read_tensors` refuses.
    """
    path = checkpoint.weights_path
    if checkpoint.exported:
        raise CheckpointError(f"{safe(path)}: an ONNX file can only predict; give the checkpoint it was made from")
    if checkpoint.source == "hub":
        for file in weight_files(path):
            verify_blob(file, checkpoint.name)
    with opened(path) as parts:
        names = unwrapped([name for part in parts for name in part.header.tensors], safe(path))
        if checkpoint.vit is None and (parts_of_others := foreign(checkpoint.architecture, names.values())):
            shown = _listed(parts_of_others)
            raise CheckpointError(
                f"{safe(path)}: the weights are not those of the config: {checkpoint.architecture} has no {shown}"
            )
        if checkpoint.vit:
            stored = {name: info.shape for part in parts for name, info in part.header.tensors.items()}
            check_shapes({new: stored[old] for old, new in names.items()}, checkpoint, resample=img_size is not None)
        arrays = read_parts(parts)
        tensors = {new: arrays[old] for old, new in names.items()}
    check_finite(tensors, path)
    return tensors


def weights_digest(checkpoint: Checkpoint, progress: OnProgress | None = None) -> str:
    """SHA-256 of the checkpoint's file of weights, or of its several files one after the other."""
    digest = hashlib.sha256()
    for one in weight_files(checkpoint.weights_path):
        with open_regular(one) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                if progress:
                    progress(one.name, file.tell(), os.fstat(file.fileno()).st_size)
    return digest.hexdigest()


def stored_files(path: Path) -> dict[str, Path]:
    """The files behind the weights `path`, by the names that a copy of their checkpoint gives them."""
    files = weight_files(path)
    return {WEIGHTS_NAME: path} if files == (path,) else {INDEX_NAME: path, **{file.name: file for file in files}}


def stored_type(checkpoint: Checkpoint) -> StoredType:
    """The type to write a changed copy of `checkpoint` in: half precision where all of its weights are."""
    return stored_as(info.dtype for info in read_header(checkpoint.weights_path).tensors.values())


def unwrapped(stored: Iterable[str], where: str) -> dict[str, str]:
    """Stored name → the model's own, without what wrappers around a model or a part of it add to its names.

    The count of AveragedModel, which is no weight, is left out. Raises CheckpointError when two names become one.
    """
    found: dict[str, str] = {}
    for name in stored:
        plain = _INSIDE.sub(r"\1", name)
        while plain.startswith(_WRAPPERS):
            plain = plain.partition(".")[2]
        if plain != "n_averaged":
            found[name] = plain
    if len(set(found.values())) < len(found):
        names = list(found.values())
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"{where}: {safe(twice, 80)} is there twice, with and without the prefix of a wrapper")
    return found


def check_shapes(shapes: Mapping[str, Shape], checkpoint: Checkpoint, *, resample: bool) -> None:
    """Compare the file's names and shapes with what the config means."""
    vit, where = checkpoint.vit, safe(checkpoint.weights_path)
    assert vit is not None
    expected = weight_shapes(vit)
    head, wanted = shapes.get("head.weight"), expected.get("head.weight")
    if head and wanted and len(head) == 2 and head[0] != wanted[0] and head[1] == wanted[1]:
        raise CheckpointError(f"{where}: the config says {vit.num_classes} classes, head.weight has {head[0]}")
    pos = shapes.get("pos_embed")
    if pos and vit.num_pos_tokens and len(pos) == 3 and pos[::2] == (1, vit.embed_dim):
        grid = stored_grid(checkpoint, pos[1])
        if resample:
            expected["pos_embed"] = pos
        elif grid != vit.grid:
            size = "x".join(str(cells * stride) for cells, stride in zip(grid, vit.stride, strict=True))
            raise CheckpointError(
                f"{where}: the position embedding is for a grid of {grid[0]}×{grid[1]}, the config's "
                f"{vit.img_size[0]}×{vit.img_size[1]} pixels make {vit.grid[0]}×{vit.grid[1]}; correct the config "
                f"to {size} pixels, or ask for resampling with --img-size"
            )
    require_same_shapes(shapes, expected, where)


def stored_grid(checkpoint: Checkpoint, rows: int) -> Size:
    """The grid of a position embedding with `rows` rows: as the checkpoint says, else its config's, else square.

    Raises CheckpointError when none of these has as many patches.
    """
    vit = checkpoint.vit
    assert vit is not None
    patches = rows - (vit.num_pos_tokens - vit.num_patches)
    side = math.isqrt(max(patches, 0))
    for grid in ([checkpoint.grid] if checkpoint.grid else []) + [vit.grid, (side, side)]:
        if grid[0] * grid[1] == patches:
            return grid
    raise CheckpointError(
        f"{safe(checkpoint.weights_path)}: a position embedding of {patches} patches is not square and the config's "
        f"grid is {vit.grid[0]}×{vit.grid[1]}"
    )


def require_same_shapes(shapes: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raises CheckpointError listing what is missing, unexpected, and of another shape, ten names each."""
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    other = [
        f"{name} {shapes[name]} instead of {expected[name]}"
        for name in expected
        if name in shapes and shapes[name] != expected[name]
    ]
    problems = [("missing", missing), ("not of this model", unexpected), ("of another shape", other)]
    text = "; ".join(f"{what}: {_listed(names)}" for what, names in problems if names)
    if text:
        raise CheckpointError(f"{where}: the weights are not those of the config. {text}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(safe(name, 80) for name in names[:MAX_LISTED]) + more
