"""A tiny model whose grid is not square, and images for it."""

import torch
from torch import Tensor

from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer

WIDE = ViTConfig(img_size=(12, 20), patch_size=(4, 4), embed_dim=16, depth=3, num_heads=4, num_classes=5)  # 3×5 patches


def build(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """Weights large enough for attention that is far from even."""
    torch.manual_seed(seed)
    model = VisionTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def images(config: ViTConfig, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.in_chans, *config.img_size, generator=generator)
