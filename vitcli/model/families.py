"""The sizes of published Vision Transformers, once, and how names are made of them. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vitcli.model.config import ViTConfig


class Scale(NamedTuple):
    embed_dim: int  # D
    depth: int  # L
    num_heads: int
    mlp_ratio: float = 4.0


SCALES = {
    # the paper, table 1
    "base": Scale(768, 12, 12),
    "large": Scale(1024, 24, 16),
    "huge": Scale(1280, 32, 16),
    # "How to train your ViT?", arXiv 2106.10270, table 1
    "tiny": Scale(192, 12, 3),
    "small": Scale(384, 12, 6),
    # "Scaling Vision Transformers", arXiv 2106.04560, table 2
    "giant": Scale(1408, 40, 16, 48 / 11),
    "gigantic": Scale(1664, 48, 16, 64 / 13),
    # "Getting ViT in Shape", arXiv 2305.13035; the two smaller ones are timm's after it
    "so400m": Scale(1152, 27, 16, 4304 / 1152),
    "so150m": Scale(896, 18, 14, 2.572),
    "so150m2": Scale(832, 21, 13, 34 / 13),
    # timm's sizes in between
    "wee": Scale(256, 14, 4, 5.0),
    "xsmall": Scale(256, 10, 4),
    "little": Scale(320, 14, 5, 5.6),
    "medium": Scale(512, 12, 8),
    "mediumd": Scale(512, 20, 8),
    "betwixt": Scale(640, 12, 10),
    "base_plus": Scale(896, 12, 14),
    # other giants: SigLIP 2's, RADIO's, DINOv2's
    "giantopt": Scale(1536, 40, 16),
    "giant_radio": Scale(1536, 40, 24),
    "giant_gated": Scale(1536, 40, 24, 16 / 3),  # a gated MLP: two halves of 4096
    # timm's own tests'
    "test6": Scale(64, 6, 2, 3.0),
    "test8": Scale(64, 8, 2, 3.0),
    "test9": Scale(96, 9, 3, 2.0),
}

Members = Mapping[str, Mapping[int, Sequence[int]]]  # scale → patch size → image sizes


def family(pattern: str, members: Members, **differences: Any) -> dict[str, ViTConfig]:
    """One architecture for each name that `pattern` makes of `members`; `differences` are to the paper's ViT."""
    return {
        pattern.format(scale=scale, patch=patch, img=img): replace(
            ViTConfig(img_size=(img, img), patch_size=(patch, patch), **SCALES[scale]._asdict()), **differences
        )
        for scale, patches in members.items()
        for patch, images in patches.items()
        for img in images
    }
