"""The feature maps that a model makes of an image, layer by layer: tokens on their grid, or a CNN's stages.

Legend: B batch, C channels of the image, F channels of a map, H W pixels, h w cells.
"""

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


def stride(model_input: Tensor, found: Tensor) -> tuple[float, float]:
    """Pixels between neighbouring cells, (down, right)."""
    return model_input.shape[-2] / found.shape[-2], model_input.shape[-1] / found.shape[-1]
