"""The models that a comparison knows by short names, for images as small as those of the data; and any of timm's.

ViTs come in two sizes. The hybrid is near the larger one in parameters, the small ResNet in multiply–adds (and above 96
pixels in both); elsewhere the table's columns for parameters, multiply–adds and CPU seconds say what is compared.
"""

from dataclasses import dataclass
from typing import Any

SMALL = 64  # images of at most so many pixels are small: CNNs made for 224 pixels see them enlarged to this
PLAIN_VITS, HYBRIDS = ("vision_transformer", "deit", "eva", "beit"), ("vision_transformer_hybrid",)  # timm's modules


@dataclass(frozen=True)
class Contender:
    """A model to be built: timm's name of its architecture, and in what it differs from that."""

    architecture: str
    model_args: dict[str, Any]


def contender(name: str, side: int) -> Contender:
    """The model that `name` means for images whose shorter side has `side` pixels."""
    large = side > 96  # where patches have 16 pixels
    if name in ("vit", "vit-small"):
        patch = 16 if large else 8 if side > 40 else 4
        size = max(round(min(side, 224) / patch), 2) * patch
        larger, smaller = ((192, 12, 3), (128, 6, 4)) if large else ((128, 6, 4), (64, 4, 2))
        width, depth, heads = larger if name == "vit" else smaller
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        return Contender("vit_tiny_patch16_224", {"img_size": [size] * 2, "patch_size": [patch] * 2, **sizes})
    size = 32 * min(max(round(side / 32), 1), 7)
    if name == "hybrid":
        width, depth, heads, patch = (192, 9, 3, 2) if large else (128, 4, 4, 1)
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        own = {"img_size": [size] * 2, "patch_size": [patch] * 2, "stem": {"layers": [2, 2], "width": 32}}
        return Contender("vit_tiny_r_s16_p8_224", {**own, **sizes})
    if name == "resnet-small":
        channels = [44, 88, 176, 352] if large else [32, 64, 128, 256]
        return Contender("resnet18", {"img_size": [max(size, SMALL)] * 2, "channels": channels})
    return Contender(name, {"img_size": [SMALL if side <= SMALL else 224] * 2})


def inductive_bias(name: str) -> int:
    """How much of an image's geometry is built in: 0 in a plain ViT, 1 in a hybrid, 2 in whatever else timm has."""
    from timm.models import is_model_in_modules

    architecture = contender(name, SMALL).architecture
    if is_model_in_modules(architecture, PLAIN_VITS):
        return 0
    return 1 if is_model_in_modules(architecture, HYBRIDS) else 2
