"""The CNN of a hybrid as ONNX nodes: `vitcli.model.stem` for inference, its standardised weights as constants.

Knows nothing of tokens. Legend: B batch, C channels, H W cells.
"""

from collections.abc import Mapping

import numpy as np

from vitcli.model.config import Size, StemBlock, StemConfig
from vitcli.onnx.protobuf import Array, GraphWriter

GROUPS = 32  # of every GroupNorm
_NORM_EPS = 1e-5
_STANDARDISE_EPS = 1e-8


class StemWriter:
    """`tensors` are the ViT's; the CNN's names in them begin with `prefix`."""

    def __init__(self, graph: GraphWriter, tensors: Mapping[str, Array], prefix: str) -> None:
        self.graph = graph
        self.tensors = tensors
        self.prefix = prefix
        self.ones = graph.constant(np.ones(GROUPS, np.float32), "group_norm.ones")
        self.zeros = graph.constant(np.zeros(GROUPS, np.float32), "group_norm.zeros")

    def write(self, x: str, stem: StemConfig, size: Size) -> str:
        """Images (B, C, *size) → feature map (B, stem.out_channels, …)."""
        root = f"{self.prefix}stem." if stem.layers else self.prefix
        x, size = self._conv(x, f"{root}conv", size, stride=2)
        x = self.graph.node("Relu", self._norm(x, f"{root}norm", size))
        # After a ReLU no padding can win, whatever its value.
        x = self.graph.node("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=_same(size, 3, 2))
        size = _strided(size, 2)
        for s, stage in enumerate(stem.stages):
            for b, block in enumerate(stage):
                x, size = self._residual(x, f"{self.prefix}stages.{s}.blocks.{b}.", size, block)
        return x

    def _residual(self, x: str, name: str, size: Size, block: StemBlock) -> tuple[str, Size]:
        shortcut = x
        if block.shortcut:
            shortcut, reduced = self._conv(x, f"{name}downsample.conv", size, block.shortcut.stride)
            shortcut = self._norm(shortcut, f"{name}downsample.norm", reduced)
        for i, convolution in enumerate(block.convolutions, start=1):
            if i > 1:
                x = self.graph.node("Relu", x)
            x, size = self._conv(x, f"{name}conv{i}", size, convolution.stride)
            x = self._norm(x, f"{name}norm{i}", size)
        return self.graph.node("Relu", self.graph.node("Add", x, shortcut)), size

    def _conv(self, x: str, name: str, size: Size, stride: int = 1) -> tuple[str, Size]:
        weight = self.tensors[f"{name}.weight"]  # (out, in, k, k)
        filters = weight.reshape(len(weight), -1).astype(np.float64)
        filters -= filters.mean(axis=1, keepdims=True)
        filters /= np.sqrt(filters.var(axis=1, keepdims=True) + _STANDARDISE_EPS)
        constant = self.graph.constant(filters.astype(np.float32).reshape(weight.shape), f"{name}.weight")
        kernel = weight.shape[2]
        pads = _same(size, kernel, stride)
        x = self.graph.node("Conv", x, constant, kernel_shape=(kernel, kernel), strides=(stride, stride), pads=pads)
        return x, _strided(size, stride)

    def _norm(self, x: str, name: str, size: Size) -> str:
        """GroupNorm: an InstanceNormalization over groups, then scale and bias of each channel."""
        graph, channels = self.graph, len(self.tensors[f"{name}.weight"])
        x = graph.node("Reshape", x, graph.ints(0, GROUPS, -1))
        x = graph.node("InstanceNormalization", x, self.ones, self.zeros, epsilon=_NORM_EPS)
        x = graph.node("Reshape", x, graph.ints(0, channels, *size))
        for operator, part in (("Mul", "weight"), ("Add", "bias")):
            per_channel = self.tensors[f"{name}.{part}"].reshape(-1, 1, 1)
            x = graph.node(operator, x, graph.constant(per_channel, f"{name}.{part}"))
        return x


def _strided(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _same(size: Size, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Padding (top, left, bottom, right) so that ⌈size / stride⌉ cells come out; an odd one below and to the right."""
    totals = [
        max((cells - 1) * stride + kernel - side, 0) for cells, side in zip(_strided(size, stride), size, strict=True)
    ]
    before = [total // 2 for total in totals]
    return before[0], before[1], totals[0] - before[0], totals[1] - before[1]
