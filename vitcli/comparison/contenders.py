"""The models that a comparison knows by short names, for images as small as those of the data; and any of timm's.

ViTs come in two sizes. On images of up to 40 pixels the hybrid is near the larger ViT in parameters, the small ResNet
in multiply–adds; elsewhere the table's columns for parameters, multiply–adds and CPU seconds say what is compared.
"""

from dataclasses import dataclass
from typing import Any

SMALL = 64  # images of at most so many pixels are small: CNNs made for 224 pixels see them enlarged to this
PLAIN_VITS, HYBRIDS = ("vision_transformer", "deit", "eva", "beit"), ("vision_transformer_hybrid",)  # timm's modules


@dataclass(frozen=True)
class Contender:
    architecture: str
    model_args: dict[str, Any]


NAMES = ("vit-small", "vit", "hybrid", "resnet-small")


def contender(name: str, side: int) -> Contender:
    """The model that `name` means for images whose shorter side has `side` pixels."""
    if name in ("vit", "vit-small"):
        patch = 4 if side <= 40 else 8 if side <= 96 else 16
        size = max(round(min(side, 224) / patch), 2) * patch
        width, depth, heads = (128, 6, 4) if name == "vit" else (64, 4, 2)
        if patch == 16:
            width, depth, heads = (192, 12, 3) if name == "vit" else (128, 6, 4)
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        return Contender("vit_tiny_patch16_224", {"img_size": [size] * 2, "patch_size": [patch] * 2, **sizes})
    if name == "hybrid":
        size = 32 if side <= 40 else 64 if side <= 96 else 224
        patch = 1 if size <= 64 else 2
        stem = {"layers": [2, 2], "width": 32}
        return Contender(
            "vit_tiny_r_s16_p8_224",
            {"img_size": [size] * 2, "patch_size": [patch] * 2, "embed_dim": 128, "depth": 4, "num_heads": 4,
             "stem": stem},
        )  # fmt: skip
    size = SMALL if side <= SMALL else 224
    if name == "resnet-small":
        return Contender("resnet18", {"img_size": [size] * 2, "channels": [32, 64, 128, 256]})
    return Contender(name, {"img_size": [size] * 2})


def inductive_bias(name: str) -> int:
    """How much of an image's geometry is built in: 0 in a plain ViT, 1 in a hybrid, 2 in whatever else timm has."""
    from timm.models import is_model_in_modules

    architecture = contender(name, SMALL).architecture
    if is_model_in_modules(architecture, PLAIN_VITS):
        return 0
    return 1 if is_model_in_modules(architecture, HYBRIDS) else 2
