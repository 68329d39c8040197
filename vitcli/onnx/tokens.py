"""The graph of a ViT that ends with its tokens instead of logits: what a model sees, where it sees it.

Legend: B batch, N tokens, P patches, D width.
"""

from collections.abc import Mapping

from vitcli.model.config import ViTConfig
from vitcli.model.shapes import Array
from vitcli.onnx.graph import LAST, OUTPUT, Precision, ViTWriter
from vitcli.onnx.protobuf import OnnxModel


def build_tokens(
    config: ViTConfig, tensors: Mapping[str, Array], what: str, *, precision: Precision = "fp32"
) -> OnnxModel:
    """The graph from `images` (B, C, H, W) to tokens; `what` and their shapes are those of `config.token_shape`."""
    writer = _TokenWriter(config, tensors, precision)
    writer.tokens(what)
    return writer.model("vit-tokens", {OUTPUT: ("batch", *config.token_shape(what))})


class _TokenWriter(ViTWriter):
    def tokens(self, what: str) -> None:
        """Writes everything from `images` to what is asked for. Every token is computed in every block."""
        graph, config = self.graph, self.config
        block = int(what.removeprefix("blocks.")) if what.startswith("blocks.") else None
        x = self.embed(None)
        for i in range(config.depth if block is None else block + 1):
            x = self._mlp(self._attention(x, f"blocks.{i}."), f"blocks.{i}.")
        if block is None and config.final_norm and not config.norm_after_pool:
            x = self._norm(x, "norm")
        x = self._images(x, config.num_tokens)  # (B, N, D)
        if what == "class":
            x = self._first(x)
        elif block is None:
            x = graph.node("Slice", x, graph.ints(config.num_prefix_tokens), graph.ints(LAST), graph.ints(1))
            if what == "mean":
                x = graph.node("ReduceMean", x, graph.ints(1), keepdims=0)
        graph.node("Identity", x, output=OUTPUT)
