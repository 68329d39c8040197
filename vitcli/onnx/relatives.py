"""What attention is told of places, as nodes: queries and keys that are turned, and addends to their scores.

The tables of cosines and sines follow from the grid, so they are constants. Pairs that stand beside each other in a
head are laid half a head apart, in the rows of the weights: turning is then one exchange of halves, and the products of
queries and keys are the same.

Legend: B batch, N tokens (prefix and patches), M queries, D width, n heads, d width of a head.
"""

from dataclasses import replace

import numpy as np

from vitcli.model.config import ViTConfig
from vitcli.model.places import angles, learnt_angles, relative_places, tables
from vitcli.model.shapes import Array
from vitcli.onnx.layers import LayerWriter


class RelatedWriter(LayerWriter):
    """Each method adds the nodes of one part of an attention and gives the name of its result."""

    _span: tuple[str, str] = ("", "")  # first and last row of the grid at hand, where there are several grids

    def _qkv(self, name: str) -> tuple[list[Array], list[Array | None]]:
        """Weights (D, D) and biases (D,) of q, k and v; those of q with the factor 1/√d, which with a norm it has."""
        config, tensors = self.config, self.tensors
        biases: list[Array | None]
        if config.qkv == "split":
            weights = [tensors[f"{name}{part}_proj.weight"] for part in "qkv"]
            biases = [tensors.get(f"{name}{part}_proj.bias") for part in "qkv"]
        else:
            weight, bias = self._layer(f"{name}qkv")
            weights = np.split(weight, 3)
            biases = [None] * 3 if bias is None else [*np.split(bias, 3)]
            if config.qkv == "bias_apart":
                biases = [tensors.get(f"{name}q_bias"), None, tensors.get(f"{name}v_bias")]
        if not config.qk_norm:
            factor = np.float32(config.head_dim**-0.5)
            weights[0] = weights[0] * factor
            biases[0] = None if biases[0] is None else biases[0] * factor
        if config.rope and not config.rope.half:
            for part in (0, 1):
                weights[part] = self._pairs_apart(weights[part])
                bias = biases[part]
                biases[part] = None if bias is None else self._pairs_apart(bias)
        return weights, biases

    def _pairs_apart(self, rows: Array) -> Array:
        """Rows (D, …) of queries or keys: of each head first the even ones, then the odd ones."""
        by_head = rows.reshape(self.config.num_heads, self.config.head_dim // 2, 2, -1)
        return by_head.swapaxes(1, 2).reshape(rows.shape)

    def _turned(self, x: str, block: str) -> str:
        """Queries or keys (B, N, n, d) of all tokens, turned by their places: a cos − b sin, b cos + a sin."""
        graph = self.graph
        cos, sin = self._tables(block)
        a, b = graph.nodes("Split", x, outputs=(f"{x}.a", f"{x}.b"), axis=-1, num_outputs=2)
        across = graph.node("Mul", graph.node("Concat", b, a, axis=-1), sin)
        return graph.node("Add", graph.node("Mul", x, cos), across)

    def _tables(self, block: str) -> tuple[str, str]:
        """Cosines, and sines with the sign that their half needs, (1, N, 1 or n, d), of the grid at hand."""
        frequencies = self.tensors.get("rope.freqs")  # (2, L, n, d/2)
        name = "rope" if frequencies is None else f"{block}rope"
        if name not in self._known_tables:
            cosines, sines = [], []
            for config in self._at_grids():
                if frequencies is None:
                    turned = angles(config)
                else:
                    turned = learnt_angles(config, frequencies[:, int(block.split(".")[1])])
                cos, sin = tables(config, turned)
                cosines.append(_by_token(np.concatenate([cos, cos], axis=-1)))
                sines.append(_by_token(np.concatenate([-sin, sin], axis=-1)))
            self._known_tables[name] = self._of_grid(cosines, f"{name}.cos"), self._of_grid(sines, f"{name}.sin")
        return self._known_tables[name]

    def _at_grids(self) -> list[ViTConfig]:
        """The model at each of its image sizes."""
        (p, q), grids = self.config.patch_size, list(self.positions) or [self.config.grid]
        return [replace(self.config, img_size=(h * p, w * q)) for h, w in grids]

    def _of_grid(self, arrays: list[Array], name: str) -> str:
        """The one of the tables (1, prefix + h·w, …) of several grids that is for the grid at hand."""
        graph, prefix = self.graph, self.config.num_prefix_tokens
        if not self.positions:
            return graph.constant(arrays[0], name)
        patches = graph.constant(np.concatenate([one[:, prefix:] for one in arrays], axis=1), f"{name}.patches")
        chosen = graph.node("Slice", patches, *self._span, graph.ints(1))
        if not prefix:
            return chosen
        return graph.node("Concat", graph.constant(arrays[0][:, :prefix], f"{name}.prefix"), chosen, axis=1)

    def _addend(self, name: str, queries: int | None) -> str:
        """What is added to the scores of the first `queries` tokens, (n, M, N), by the distance of query and key."""
        graph = self.graph
        places = relative_places(self.config.grid)[:queries]
        table = graph.constant(
            np.ascontiguousarray(self.tensors[f"{name}relative_position_bias_table"].T), f"{name}relative_position_bias"
        )
        return graph.node("Gather", table, graph.constant(places, f"places_{queries or 'all'}"), axis=1)


def _by_token(table: Array) -> Array:
    """(N, d) or (n, N, d) → (1, N, 1 or n, d)."""
    return (table[None] if table.ndim == 2 else table).swapaxes(0, 1)[None]
