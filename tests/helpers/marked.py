"""Pictures whose class is the colour of one marked cell, and models that have learnt to name it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.inspecting import WIDE
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer

GRID = WIDE.grid  # 3×5 cells of 4 pixels
CONFIG = ViTConfig(
    img_size=WIDE.img_size, patch_size=WIDE.patch_size, embed_dim=24, depth=2, num_heads=2, num_classes=3
)


class Convolutions(nn.Module):
    """A CNN as timm builds them: a feature map, then its mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 12
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU())
        self.head = nn.Linear(12, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def pictures(count: int, seed: int, marks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (B, 3, 12, 20) with `marks` cells, each in another colour; the colours and the cells, both (B, marks)."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, 3, *CONFIG.img_size, generator=generator)
    colours = torch.rand(count, 3, generator=generator).argsort(dim=1)[:, :marks]
    cells = torch.rand(count, GRID[0] * GRID[1], generator=generator).argsort(dim=1)[:, :marks]
    for picture, names, places in zip(x, colours, cells, strict=True):
        for colour, cell in zip(names.tolist(), places.tolist(), strict=True):
            row, column = 4 * (cell // GRID[1]), 4 * (cell % GRID[1])
            picture[colour, row : row + 4, column : column + 4] += 2
    return x, colours, cells


def learnt(model: nn.Module, steps: int = 100) -> nn.Module:
    """`model`, which then names the colour of a marked cell, in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        x, colours, _ = pictures(32, 100 + step)
        F.cross_entropy(model(x), colours[:, 0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, colours, _ = pictures(64, 0)
    with torch.no_grad():
        assert (model(x).argmax(dim=1) == colours[:, 0]).double().mean() > 0.95, "it has learnt nothing"
    return model.eval()


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(CONFIG)


def cnn() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions()
