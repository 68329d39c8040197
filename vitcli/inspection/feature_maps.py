"""The feature maps that a model makes of an image, layer by layer: tokens on their grid, or a CNN's stages.

Legend: B batch, C channels of the image, F channels of a map, H W pixels, h w cells.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from vitcli.errors import UsageError
from vitcli.model.vit import VisionTransformer


def feature_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Images (B, C, H, W) → maps (B, F, h, w) by name, in the order of the data. Gradients flow.

    Raises UsageError for a timm model that gives no feature maps.
    """
    if not isinstance(model, VisionTransformer):
        return _of_timm(model, x)
    config = model.config
    names = ["stem", *(f"blocks.{i}" for i in range(config.depth))]
    shown = {"stem": "patches"} | {f"blocks.{i}": f"block {i + 1}" for i in range(config.depth)}
    taken = model.intermediates(x, names)
    patches = {
        name: tokens if name == "stem" else tokens[:, config.num_prefix_tokens :] for name, tokens in taken.items()
    }
    return {shown[name]: tokens.transpose(1, 2).unflatten(2, config.grid) for name, tokens in patches.items()}  # type: ignore[no-untyped-call]


def _of_timm(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    if not hasattr(model, "forward_intermediates"):
        raise UsageError(f"{type(model).__name__} of timm gives no feature maps")
    maps = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")  # type: ignore[operator]
    return {f"stage {i}": found for i, found in enumerate(maps)}


def strides(model: nn.Module, x: Tensor, maps: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Pixels between neighbouring cells of each map that `model` makes of `x`, (down, right).

    By timm's own word where it has one: a padded CNN's last cells may lie half outside of the image.
    """
    told = [stage["reduction"] for stage in getattr(model, "feature_info", None) or ()]
    if len(told) == len(maps):
        return {name: (float(r), float(r)) for name, r in zip(maps, told, strict=True)}
    return {name: (x.shape[-2] / found.shape[-2], x.shape[-1] / found.shape[-1]) for name, found in maps.items()}
