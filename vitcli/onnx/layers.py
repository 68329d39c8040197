"""The layers that a ViT's graph is made of: linear ones, in float or 8-bit integers, norms, and changes of shape.

Tokens are (B·N, D) wherever each is on its own, because ONNX's Gemm wants a matrix. Knows no attention and no pooling.

Legend: B batch, N tokens, D width, n heads, d width of a head.
"""

from collections.abc import Mapping

import numpy as np

from vitcli.model.config import Size, ViTConfig
from vitcli.model.shapes import Array
from vitcli.onnx.protobuf import GraphWriter
from vitcli.onnx.quantise import quantise

INPUT = "images"


class LayerWriter:
    """Each method adds the nodes of one layer and gives the name of its result."""

    def __init__(
        self,
        config: ViTConfig,
        tensors: Mapping[str, Array],
        precision: str,
        positions: Mapping[Size, Array] | None = None,
        graph: GraphWriter | None = None,
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.positions = positions or {}
        self.graph = graph or GraphWriter()
        self.int8, self.fp16 = precision == "int8", precision == "fp16"
        self._known_tables: dict[str, tuple[str, str]] = {}  # of cosines and sines
        self._rounded: dict[str, tuple[str, str, str]] = {}  # value → its 8-bit form, scale and zero point

    # ---- linear layers and norms

    def _layer(self, name: str) -> tuple[Array, Array | None]:
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")

    def _output(self, x: str, name: str, scale: str = "", through: Array | None = None) -> str:
        """The linear layer that ends a residual branch, with a constant part of its input and the scale behind it.

        `scale` is the name of a block's layer scale, which may not have one.
        """
        weight, bias = self._layer(name)
        if through is not None:
            bias = weight @ through + (0 if bias is None else bias)
        gamma = self.tensors.get(scale)
        if gamma is not None:
            weight, bias = weight * gamma[:, None], None if bias is None else bias * gamma
        return self._linear(x, name, weight, bias)

    def _linear(self, x: str, name: str, weight: Array, bias: Array | None) -> str:
        """x Wᵀ + b of rows, in 8-bit integers where that was asked for."""
        graph = self.graph
        biases = () if bias is None else (graph.constant(bias, f"{name}.bias"),)
        if not self.int8:
            return graph.node("Gemm", x, graph.constant(weight, f"{name}.weight"), *biases, transB=1)
        rounded, scale, zero_point = self._round(x)
        quantised = quantise(weight)
        scales = graph.node("Mul", scale, graph.constant(quantised.scale, f"{name}.scale"))
        # ONNX Runtime makes one operator of this.
        weight_name = graph.constant(quantised.weight, f"{name}.weight")
        product = graph.node("Cast", graph.node("MatMulInteger", rounded, weight_name, zero_point), to=1)
        product = graph.node("Mul", product, scales)
        return graph.node("Add", product, *biases) if biases else product

    def _round(self, x: str) -> tuple[str, str, str]:
        """`x` as unsigned 8-bit integers with their scale and zero point, once for all layers that read it."""
        if x not in self._rounded:
            outputs = (f"{x}.rounded", f"{x}.scale", f"{x}.zero_point")
            self.graph.nodes("DynamicQuantizeLinear", x, outputs=outputs)
            self._rounded[x] = outputs
        return self._rounded[x]

    def _norm(self, x: str, name: str, factor: float = 1.0) -> str:
        """LayerNorm of the last axis, then times `factor`."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        scale = self.graph.constant(weight * np.float32(factor), f"{name}.weight")
        shift = self.graph.constant(bias * np.float32(factor), f"{name}.bias")
        return self.graph.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=self.config.norm_eps)

    # ---- shapes

    def _first(self, x: str) -> str:
        """(B, N, D) → (B, D), the class token."""
        return self.graph.node("Gather", x, self.graph.scalar(0), axis=1)

    def _images(self, x: str, tokens: int, width: int | None = None) -> str:
        """(B·tokens, width) → (B, tokens, width), D wide unless said otherwise."""
        return self._by_image(x, tokens, width or self.config.embed_dim)

    def _rows(self, x: str) -> str:
        """(B, …) → (B·N, D), or (B, D) where an image has D values."""
        return self.graph.node("Reshape", x, self.graph.ints(-1, self.config.embed_dim))

    def _heads(self, x: str, tokens: int | None = None) -> str:
        """(B·N, D) → (B, N, n, d), of all tokens or of so many an image."""
        config = self.config
        return self._by_image(x, tokens or config.num_tokens, config.num_heads, config.head_dim)

    def _first_rows(self, x: str, tokens: int) -> str:
        """(B·N, D) → (B·tokens, D), the first so many of each image."""
        graph = self.graph
        x = self._images(x, self.config.num_tokens)
        return self._rows(graph.node("Slice", x, graph.ints(0), graph.ints(tokens), graph.ints(1)))

    def _by_image(self, x: str, tokens: int, *rest: int) -> str:
        """(B·tokens, …) → (B, tokens, *rest); how many tokens is known beforehand unless sizes differ."""
        graph = self.graph
        if not self.positions:
            return graph.node("Reshape", x, graph.ints(-1, tokens, *rest))
        batch = graph.node("Shape", INPUT, start=0, end=1)
        return graph.node("Reshape", x, graph.node("Concat", batch, graph.ints(-1, *rest), axis=0))

    def _by_head(self, weight: Array, heads: int) -> Array:
        """Weights (D, D) of keys or values → (n, d, D)."""
        return weight.reshape(heads, self.config.embed_dim // heads, -1)

    def _add(self, x: str, y: str) -> str:
        return self.graph.node("Add", x, y)
