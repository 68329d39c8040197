"""What a checkpoint is, from its config and its weights' header: no torch, no weight is read, whatever its size.

Legend: C channels, H W pixels, h w patch grid, N tokens, D width, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.tensor_file import Header, read_header, weight_files
from vitcli.checkpoint.weights import check_shapes, unwrapped
from vitcli.errors import CheckpointError
from vitcli.model.config import ViTConfig
from vitcli.model.cost import cost
from vitcli.text import safe


@dataclass(frozen=True)
class Stage:
    """One station on the way from pixels to logits, in the order of the data."""

    name: str
    shape: tuple[int, ...]  # of what leaves it, for one image
    params: int
    macs: int  # multiply–adds for one image


@dataclass(frozen=True)
class Overview:
    """What a checkpoint is; `stages` is empty for a model that is not a plain ViT."""

    checkpoint: Checkpoint
    params: int
    bytes: int  # of the weights' files
    stored: tuple[str, ...]  # number types in the file
    licence: str | None
    stages: tuple[Stage, ...]
    odd: tuple[str, ...]  # lines about what does not fit together

    @property
    def macs(self) -> int:
        """Multiply–adds for one image."""
        return sum(stage.macs for stage in self.stages)


def overview(checkpoint: Checkpoint) -> Overview:
    """What `checkpoint` is. What does not fit together becomes `odd`.

    Raises CheckpointError only when config or header cannot be read at all, and for an ONNX file.
    """
    if checkpoint.exported:
        raise CheckpointError(f"{checkpoint.name}: an ONNX file; inspect the checkpoint that it was made from")
    header = read_header(checkpoint.weights_path)
    return Overview(
        checkpoint,
        header.parameters,
        sum(file.stat().st_size for file in weight_files(checkpoint.weights_path)),
        tuple(sorted({info.dtype for info in header.tensors.values()})),
        checkpoint.licence,
        tuple(_stages(checkpoint.vit)) if checkpoint.vit else (),
        tuple(_odd(checkpoint, header)),
    )


def _stages(vit: ViTConfig) -> Iterator[Stage]:
    parts = {stage.name: stage for stage in cost(vit).stages}
    D, N = vit.embed_dim, vit.num_tokens
    shapes: dict[str, tuple[int, ...]] = {
        **({"cnn": (vit.stem.out_channels, *vit.feature_size)} if vit.stem else {}),
        "patches": (vit.num_patches, D),
        "position": (N, D),
        "attention": (N, D),
        "mlp": (N, D),
        "head": (vit.num_classes or vit.num_features,),
    }
    yield Stage("image", (vit.in_chans, *vit.img_size), 0, 0)
    for name, shape in shapes.items():
        yield Stage(name, shape, parts[name].params, parts[name].macs)


def _odd(checkpoint: Checkpoint, header: Header) -> Iterator[str]:
    yield from checkpoint.notes
    vit = checkpoint.vit
    if vit is None:
        yield f"{checkpoint.architecture} is not a plain Vision Transformer; only this page can be shown of it"
        return
    try:
        names = unwrapped(header.tensors, safe(checkpoint.weights_path))
        shapes = {plain: header.tensors[name].shape for name, plain in names.items()}
        check_shapes(shapes, checkpoint, resample=False)
    except CheckpointError as error:
        yield str(error)
    if len(kinds := {info.dtype for info in header.tensors.values() if prod(info.shape) > 1}) > 1:
        yield f"weights are stored in {len(kinds)} number types: {', '.join(sorted(kinds))}"
    if checkpoint.preprocess.size != vit.img_size:
        size, wants = checkpoint.preprocess.size, vit.img_size
        yield f"images are prepared at {size[0]}×{size[1]} pixels, the model is for {wants[0]}×{wants[1]}"
    if left := [s % p for s, p in zip(vit.feature_size, vit.patch_size, strict=True) if s % p]:
        yield f"the patches do not fill the image: {max(left)} pixels at an edge are never seen"
    if vit.num_classes and not checkpoint.labels:
        yield "the classes have no names"
