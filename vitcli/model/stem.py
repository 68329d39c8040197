"""The CNN of a hybrid: image → feature map, from which the patches are cut (paper, section 3.1).

The authors' ResNet (google-research/vision_transformer, models_resnet.py): weight-standardised convolutions,
GroupNorm instead of batch norm, and the activation after the addition. Names and numerics are timm's port of it: its
standardisation divides by √(σ² + 1e-8), the authors' by σ + 1e-5. Knows nothing of tokens.

Legend: B batch, C channels, H W pixels, then cells of the map.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.model.config import Convolution, StemBlock, StemConfig

GROUPS = 32


def cnn(config: StemConfig, in_chans: int) -> nn.Module:
    """Images (B, C, H, W) → feature map (B, config.out_channels, ⌈H / reduction⌉, ⌈W / reduction⌉)."""
    return ResNet(config, in_chans) if config.layers else Root(in_chans, config.width)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around `x` so that ⌈size / stride⌉ cells come out; an odd one out goes below and to the right."""

    def padding(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return F.pad(x, (*padding(x.shape[-1]), *padding(x.shape[-2])))


class StdConv(nn.Conv2d):
    """A convolution whose every filter has mean 0 and variance 1 (weight standardisation, arXiv 1903.10520)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        # At stride 1 the padding is symmetric, and the convolution's own is faster.
        super().__init__(
            in_channels, out_channels, kernel, stride, padding=kernel // 2 if stride == 1 else 0, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        # (w − μ) / √(σ² + ε) of each filter, in one kernel: the filters as the channels of a single sample
        filters = self.weight.flatten(1)[None]
        weight = F.batch_norm(filters, None, None, training=True, eps=1e-8).view_as(self.weight)
        if self.stride[0] > 1:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, None, self.stride, self.padding)


class GroupNorm(nn.GroupNorm):
    """Mean 0 and variance 1 over the cells and channels of each group of each image (arXiv 1803.08494).

    On a CPU torch 2.14's kernel for bfloat16 with channels last is much slower than sums over whole rows of memory
    (benchmarks/bfloat16.py).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape, dtype and memory format."""
        rows_of_channels = x.is_contiguous(memory_format=torch.channels_last)
        if not (x.dtype == torch.bfloat16 and x.device.type == "cpu" and rows_of_channels):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return self._over_rows(x)

    def _over_rows(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        cells = x.permute(0, 2, 3, 1).view(B, H * W, C)
        size = H * W * C // self.num_groups

        def mean(y: Tensor) -> Tensor:  # (B, H W, C) → (B, groups, 1), in float32
            return y.sum(1, dtype=torch.float32).view(B, self.num_groups, -1).sum(-1, keepdim=True) / size

        mu = mean(cells)
        variance = (mean(cells.square()) - mu.square()).clamp_min(0)
        scale = (variance + self.eps).rsqrt() * self.weight.view(self.num_groups, -1)  # (B, groups, C / groups)
        shift = self.bias.view(self.num_groups, -1) - mu * scale
        scale, shift = (factor.view(B, 1, C).to(x.dtype) for factor in (scale, shift))
        return torch.addcmul(shift, cells, scale).view(B, H, W, C).permute(0, 3, 1, 2)


class Root(nn.Module):
    """A 7×7 convolution of stride 2, then a 3×3 max pool of stride 2."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.conv = StdConv(in_chans, width, 7, stride=2)
        self.norm = GroupNorm(GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, width, ⌈H/4⌉, ⌈W/4⌉)."""
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(pad_same(x, 3, 2), 3, 2)  # after a ReLU no zero of the padding can win


class Residual(nn.Module):
    """Two or three convolutions, each followed by GroupNorm; added to the shortcut, then a ReLU."""

    def __init__(self, block: StemBlock) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if block.shortcut:
            conv, norm = _normed(block.shortcut)
            self.downsample = nn.Sequential(OrderedDict(conv=conv, norm=norm))
        first, second, *third = (_normed(convolution) for convolution in block.convolutions)
        self.conv1, self.norm1 = first
        self.conv2, self.norm2 = second
        self.conv3: StdConv | None = None
        self.norm3: GroupNorm | None = None
        if third:
            self.conv3, self.norm3 = third[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.conv3 and self.norm3:  # a bottleneck
            y = self.norm3(self.conv3(F.relu(y)))
        return F.relu(y + self.downsample(x))

    @property
    def last_norm(self) -> GroupNorm:
        return self.norm3 or self.norm2


def _normed(convolution: Convolution) -> tuple[StdConv, GroupNorm]:
    return StdConv(*convolution), GroupNorm(GROUPS, convolution.outputs)


class ResNet(nn.Module):
    """The root, then stages of residual blocks."""

    def __init__(self, config: StemConfig, in_chans: int) -> None:
        super().__init__()
        self.stem = Root(in_chans, config.width)
        self.stages = nn.Sequential()
        for stage in config.stages:
            blocks = nn.Sequential(*(Residual(block) for block in stage))
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))
