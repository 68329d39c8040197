"""A ViT as an ONNX graph, written straight from its config and weights: no torch, no tracing.

The graph computes what `vitcli.model.vit` does, rearranged where that is exact in real numbers and faster:

- q's factor 1/√d, layer scale and (on request) the normalisation of pixels go into the weights beside them.
- A key's bias adds the same to all scores of a query, which softmax ignores, unless keys are normed or turned. A
  value's bias comes out of the average as it went in, so it goes into the bias of the projection, unless a norm stands
  before that.
- The last block computes only what the pooling needs. A single query (class token, attention pooling) needs neither
  keys nor values of its own: q·(Wk y) = (Wkᵀ q)·y, and Wv multiplies the average. Tokens that will be averaged are
  averaged before the MLP's second layer.

Standard operators only, so that others can read an export; ONNX Runtime's own (attention, skip-layer-norm) measured
no faster. Knows no files and no engine.

Legend: B batch, C channels, H W pixels, h w patch grid, N tokens, M pooled tokens, D width, n heads, d width of a
head, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vitcli.images.preprocess import Preprocess
from vitcli.model.config import SPREAD_EPS, Size, ViTConfig
from vitcli.model.shapes import Array
from vitcli.onnx.layers import INPUT
from vitcli.onnx.protobuf import FLOAT16, FLOAT32, GraphWriter, OnnxModel
from vitcli.onnx.relatives import RelatedWriter
from vitcli.onnx.stem import StemWriter

Precision = Literal["fp32", "int8"]

OUTPUT, SHARES, SIGNATURE = "logits", "probabilities", "signature"
LAST = (1 << 63) - 1  # the end of an axis, whatever its length


def build(
    config: ViTConfig,
    tensors: Mapping[str, Array],
    *,
    precision: Precision | Literal["fp16"] = "fp32",
    pixels_of: Preprocess | None = None,
    positions: Mapping[Size, Array] | None = None,
    softmax: float | None = None,
    sigmoid: bool = False,
    signature: bool = False,
    graph: GraphWriter | None = None,
) -> OnnxModel:
    """The graph from `images` (B, C, H, W) to `logits` (B, K), float32, for any B.

    `tensors` are float32 under timm's names, with the shapes of `config`; most are used as they are, not copied.
    "int8" rounds the weights of the encoder's linear layers per output channel, and their inputs as they come with one
    scale for the whole batch; patches, head and what is computed once per image stay in float32. "fp16" computes and
    stores everything between input and output in float16. With `softmax`, a temperature, the output is `probabilities`
    (B, K). With `signature` that of each image is a second output, (B, 2 D + F), as `VisionTransformer.signature` gives
    it. With `pixels_of` the images are pixels from 0 to 255, and the normalisation is part of the graph.
    `positions` are the position embeddings (1, prefix + h·w, D) of several grids (h, w): the graph then takes images of
    each of these sizes, and fails for others. `graph` is written to, a new one unless it is given.
    """
    writer = ViTWriter(config, tensors, precision, positions, graph)
    writer.signing = signature
    writer.head(writer.encode(writer.embed(pixels_of)), softmax, sigmoid)
    outputs = {OUTPUT if softmax is None else SHARES: ("batch", config.num_classes or config.num_features)}
    return writer.model("vit", outputs | ({SIGNATURE: ("batch", config.signature_width)} if signature else {}))


class ViTWriter(RelatedWriter):
    """Each method adds the nodes of one part of the model and gives the name of its result."""

    signing = False  # whether the graph gives each image's signature, too
    _seen: Sequence[str] = ()  # its parts

    def model(self, name: str, outputs: Mapping[str, tuple[int | str, ...]]) -> OnnxModel:
        """All that was written, with these outputs and their shapes."""
        size = ("height", "width") if self.positions else self.config.img_size
        return self.graph.model(
            name=name, inputs={INPUT: ("batch", self.config.in_chans, *size)}, outputs=dict(outputs)
        )

    def embed(self, pixels_of: Preprocess | None) -> str:
        """Equation 1 of the paper: images (B, C, H, W) → tokens z_0 (B·N, D)."""
        graph, config, D = self.graph, self.config, self.config.embed_dim
        weight, bias = self._layer("patch_embed.proj")
        x = INPUT
        if pixels_of:
            scale, shift = _normalisation(pixels_of)
            # A CNN's padding is the zero after normalisation, and float16 has too few digits for both at once.
            if config.stem or self.fp16:
                x = graph.node("Mul", x, graph.constant(scale, "pixels.scale"))
                x = graph.node("Add", x, graph.constant(shift, "pixels.shift"))
            else:
                bias = (weight * shift).sum(axis=(1, 2, 3)) + (0 if bias is None else bias)
                weight = weight * scale
        if self.fp16:
            x, graph.half = graph.node("Cast", x, to=FLOAT16), True
        if config.stem:
            x = StemWriter(graph, self.tensors, "patch_embed.backbone.").write(x, config.stem, config.img_size)
        kernel = graph.constant(weight, "patch_embed.proj.weight")
        x = graph.node("Conv", x, kernel, kernel_shape=config.patch_size, strides=config.patch_size)  # (B, D, h, w)
        grid = graph.node("Shape", x, start=2, end=4) if self.positions else ""
        x = graph.node("Reshape", x, graph.ints(0, D, -1 if self.positions else config.num_patches))
        x = graph.node("Transpose", x, perm=(0, 2, 1))  # (B, h·w, D)

        names = [name for name in ("cls_token", "dist_token", "reg_token") if name in self.tensors]
        prefix = np.concatenate([np.zeros((1, 0, D), np.float32), *(self.tensors[name] for name in names)], axis=1)
        patches = np.zeros((1, 1, D), np.float32) if bias is None else bias.reshape(1, 1, D)
        if self.positions and not config.no_embed_class:
            prefix = prefix + next(iter(self.positions.values()))[:, : config.num_prefix_tokens]
        elif "pos_embed" in self.tensors and not self.positions:
            position = self.tensors["pos_embed"]  # (1, N or h·w, D)
            patches = patches + position[:, -config.num_patches :]
            if not config.no_embed_class:
                prefix = prefix + position[:, : config.num_prefix_tokens]
        x = graph.node("Add", x, graph.constant(patches, "patch_embed.offset"))
        if self.positions:
            self._span = self._rows_of(grid)
        if self.positions and (config.num_pos_tokens or not config.rope):  # what is turned knows the grid by that
            x = graph.node("Add", x, self._position())
        if names:
            batch = graph.node("Shape", INPUT, start=0, end=1)
            shape = graph.node("Concat", batch, graph.ints(*prefix.shape[1:]), axis=0)
            tokens = graph.node("Expand", graph.constant(prefix, "prefix_tokens"), shape)
            x = graph.node("Concat", tokens, x, axis=1)  # (B, N, D)
        x = self._rows(x)
        return self._norm(x, "norm_pre") if config.pre_norm else x

    def _rows_of(self, grid: str) -> tuple[str, str]:
        """First and last row of the `grid` (h, w) at hand among the patches of all grids; none if it is unknown."""
        graph, sizes = self.graph, np.array([*self.positions], np.int64)  # (S, 2)
        ends = np.cumsum(sizes.prod(axis=1))
        same = graph.node("Equal", graph.constant(sizes, "pos_embed.grids"), grid)
        same = graph.node("ReduceMin", graph.node("Cast", same, to=7), graph.ints(1), keepdims=0)  # (S,), 0 or 1
        which = graph.node("ArgMax", same, axis=0, keepdims=1)  # (1,)
        known = graph.node("ReduceMax", same, graph.ints(0), keepdims=1)
        start = graph.node("Gather", graph.constant(ends - sizes.prod(axis=1), "pos_embed.starts"), which)
        end = graph.node("Gather", graph.constant(ends, "pos_embed.ends"), which)
        return start, graph.node("Mul", end, known)

    def _position(self) -> str:
        """Position embeddings (1, h·w, D) of the patches for the grid at hand; none, (1, 0, D), if it is unknown."""
        tables = [table[:, -h * w :] for (h, w), table in self.positions.items()]
        table = self.graph.constant(np.concatenate(tables, axis=1), "pos_embed.patches")  # (1, Σ h·w, D)
        return self.graph.node("Slice", table, *self._span, self.graph.ints(1))

    def encode(self, x: str) -> str:
        """Tokens z_0 (B·N, D) → the representation y (B, D): encoded, pooled and normalised."""
        config, last = self.config, f"blocks.{self.config.depth - 1}."
        for i in range(config.depth):
            if self.signing and i == config.signature_block:
                self._seen = self._mean_and_spread(x)
            if i < config.depth - 1:
                x = self._mlp(self._attention(x, f"blocks.{i}."), f"blocks.{i}.")
        if config.global_pool == "token":
            x = self._final_norm(self._mlp(self._class_attention(x, last), last))
            return self.graph.node("Reshape", x, self.graph.ints(-1, 2 * config.embed_dim)) if config.distilled else x
        x = self._attention(x, last)
        if config.global_pool == "avg" and config.norm_after_pool:
            x = self._without_prefix(x)
            hidden = self._mean(self._hidden(x, last), self.tensors[f"{last}mlp.fc2.weight"].shape[1])
            x = self._mean(x, config.embed_dim)
            self.int8 = False  # one row per image from here on: nothing to gain
            return self._final_norm(self._add(x, self._output(hidden, f"{last}mlp.fc2", self._scale(last, 2))))
        x = self._without_prefix(self._mlp(x, last))
        self.int8 = False
        if not config.norm_after_pool:
            x = self._final_norm(x)
        x = self._mean(x, config.embed_dim) if config.global_pool == "avg" else self._attention_pool(x)
        return self._final_norm(x) if config.norm_after_pool else x

    def _mean_and_spread(self, x: str) -> list[str]:
        """Tokens (B·N, D) → mean and logarithm of the deviation of an image's patches, each (B, D), in float32."""
        graph, config = self.graph, self.config
        half, graph.half = graph.half, False
        x = self._images(x, config.num_tokens)
        if half:
            x = graph.node("Cast", x, to=FLOAT32)
        span = graph.ints(config.num_prefix_tokens), graph.ints(LAST)
        patches = graph.node("Slice", x, *span, graph.ints(1)) if config.num_prefix_tokens else x
        mean = graph.node("ReduceMean", patches, graph.ints(1), keepdims=1)
        apart = graph.node("Sub", patches, mean)
        variance = graph.node("ReduceMean", graph.node("Mul", apart, apart), graph.ints(1), keepdims=0)
        spread = graph.node("Add", graph.node("Sqrt", variance), graph.scalar(SPREAD_EPS))
        graph.half = half
        return [graph.node("Reshape", mean, graph.ints(-1, config.embed_dim)), graph.node("Log", spread)]

    def head(self, y: str, softmax: float | None, sigmoid: bool) -> None:
        """y (B, D) → logits (B, K), or their softmax at that temperature; what would enter the head when K is 0."""
        config, graph = self.config, self.graph
        if config.head_hidden:
            hidden = self._linear(y, "pre_logits.fc", *self._layer("pre_logits.fc"))
            y = graph.node("Tanh" if config.head_act == "tanh" else "Gelu", hidden)
        if self.signing:
            seen = graph.node("Cast", y, to=FLOAT32) if self.fp16 else y
            graph.node("Concat", *self._seen, seen, axis=1, output=SIGNATURE)
        if config.num_classes:
            weight, bias = self._layer("head")
            if config.distilled:  # the mean of two heads' answers is that of one head to both tokens
                other, other_bias = self._layer("head_dist")
                assert bias is not None
                assert other_bias is not None
                weight = (np.concatenate([weight, other], axis=1) / 2).astype(np.float32)
                bias = ((bias + other_bias) / 2).astype(np.float32)
            y = self._linear(y, "head", weight, bias)
        if self.fp16:
            y, graph.half = graph.node("Cast", y, to=FLOAT32), False
        if softmax is None:
            graph.node("Identity", y, output=OUTPUT)
        else:
            y = graph.node("Div", y, graph.constant(np.array(softmax, np.float32), "temperature"))
            if sigmoid:
                graph.node("Sigmoid", y, output=SHARES)
            else:
                graph.node("Softmax", y, axis=-1, output=SHARES)

    # ---- attention

    def _attention(self, x: str, block: str, queries: int | None = None) -> str:
        """Equation 2: (B·N, D) → (B·M, D), of all tokens or of each image's first `queries`."""
        graph, config, name = self.graph, self.config, f"{block}attn."
        (wq, wk, wv), (bq, bk, bv) = self._qkv(name)
        y = self._norm(x, f"{block}norm1")
        asking = self._first_rows(y, queries) if queries else y
        q = self._heads(self._linear(asking, f"{name}q", wq, bq), queries)
        k = self._heads(self._linear(y, f"{name}k", wk, bk if config.qk_norm or config.rope else None))
        v = self._heads(self._linear(y, f"{name}v", wv, bv if config.attn_norm else None))  # (B, N, n, d)
        if config.qk_norm:
            q = self._norm(q, f"{name}q_norm", factor=config.head_dim**-0.5)
            k = self._norm(k, f"{name}k_norm")
        if config.rope:  # what is asked for alone lies in front of the patches and is not turned
            q, k = q if queries else self._turned(q, block), self._turned(k, block)
        q = graph.node("Transpose", q, perm=(0, 2, 1, 3))  # (B, n, M, d)
        k = graph.node("Transpose", k, perm=(0, 2, 3, 1))  # (B, n, d, N)
        v = graph.node("Transpose", v, perm=(0, 2, 1, 3))
        scores = graph.node("MatMul", q, k)
        if config.rel_pos_bias:
            scores = self._add(scores, self._addend(name, queries))
        weights = graph.node("Softmax", scores, axis=-1)
        mixed = self._rows(graph.node("Transpose", graph.node("MatMul", weights, v), perm=(0, 2, 1, 3)))  # (B·M, D)
        if config.attn_norm:
            mixed, bv = self._norm(mixed, f"{name}norm"), None
        x = self._first_rows(x, queries) if queries else x
        return self._add(x, self._output(mixed, f"{name}proj", self._scale(block, 1), through=bv))

    def _class_attention(self, x: str, block: str) -> str:
        """Equation 2 for the class token alone: (B·N, D) → (B, D); of a distilled model's two tokens (B·2, D)."""
        graph, config, name = self.graph, self.config, f"{block}attn."
        if config.qk_norm or config.related or config.distilled:  # keys are more than a product with tokens
            return self._attention(x, block, config.pooled_tokens)
        (wq, wk, wv), (bq, _, bv) = self._qkv(name)
        y = self._images(self._norm(x, f"{block}norm1"), config.num_tokens)
        self.int8 = False  # one row per image from here on: nothing to gain
        q = self._linear(self._first(y), f"{name}q", wq, bq)
        q = graph.node("Reshape", q, graph.ints(-1, config.num_heads, 1, config.head_dim))
        key = self._by_head(wk, config.num_heads)
        q = graph.node("MatMul", q, graph.constant(key, f"{name}k.weight"))  # Wkᵀ q, (B, n, 1, D)
        q = graph.node("Reshape", q, graph.ints(-1, config.num_heads, config.embed_dim))
        mixed = self._one_query(q, y, wv, name, config.num_heads)
        x = self._first(self._images(x, config.num_tokens))
        return self._add(x, self._output(mixed, f"{name}proj", self._scale(block, 1), through=bv))

    def _attention_pool(self, x: str) -> str:
        """A learned query, the same for all images, attends to the pooled tokens: (B·M, D) → (B, D)."""
        config = self.config
        tensors = self.tensors
        wk, wv = np.split(tensors["attn_pool.kv.weight"], 2)
        _, bv = np.split(tensors["attn_pool.kv.bias"], 2)
        q = tensors["attn_pool.q.weight"] @ tensors["attn_pool.latent"][0, 0] + tensors["attn_pool.q.bias"]
        heads = config.pool_heads
        q *= np.float32((config.embed_dim // heads) ** -0.5)
        query = np.einsum("nd,ndD->nD", q.reshape(heads, -1), self._by_head(wk, heads))[None]  # Wkᵀ q, (1, n, D)
        query_name = self.graph.constant(query, "attn_pool.query")
        mixed = self._one_query(query_name, self._images(x, self._pooled), wv, "attn_pool.", heads)
        return self._mlp(self._output(mixed, "attn_pool.proj", through=bv), "attn_pool.", norm="norm")

    def _one_query(self, query: str, tokens: str, value: Array, name: str, heads: int) -> str:
        """One query per head, in the space of the tokens: (B or 1, n, D) and (B, N, D) → values (B, D)."""
        graph, config = self.graph, self.config
        scores = graph.node("MatMul", query, graph.node("Transpose", tokens, perm=(0, 2, 1)))  # (B, n, N)
        mean = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), tokens)  # (B, n, D)
        mean = graph.node("Reshape", mean, graph.ints(-1, heads, 1, config.embed_dim))
        by_head = graph.constant(self._by_head(value, heads).transpose(0, 2, 1), f"{name}v.weight")
        return self._rows(graph.node("MatMul", mean, by_head))  # (B, n, 1, d) → (B, D)

    # ---- pooling

    def _final_norm(self, x: str) -> str:
        if not self.config.final_norm:
            return x
        return self._norm(x, "fc_norm" if self.config.norm_after_pool else "norm")

    @property
    def _pooled(self) -> int:
        """M, the tokens of an image that are pooled by an average or by attention."""
        return self.config.num_patches + self.config.num_prefix_tokens * self.config.pools_prefix

    def _without_prefix(self, x: str) -> str:
        """(B·N, D) → (B·M, D)"""
        graph, config = self.graph, self.config
        if self._pooled == config.num_tokens:
            return x
        x = self._images(x, config.num_tokens)
        span = graph.ints(config.num_prefix_tokens), graph.ints(LAST if self.positions else config.num_tokens)
        return self._rows(graph.node("Slice", x, *span, graph.ints(1)))

    def _mean(self, x: str, width: int) -> str:
        """(B·M, width) → (B, width)"""
        return self.graph.node("ReduceMean", self._images(x, self._pooled, width), self.graph.ints(1), keepdims=0)

    # ---- MLP

    def _mlp(self, x: str, block: str, norm: str = "norm2") -> str:
        """Equation 3, on rows of D."""
        return self._add(x, self._output(self._hidden(x, block, norm), f"{block}mlp.fc2", self._scale(block, 2)))

    def _scale(self, block: str, branch: Literal[1, 2]) -> str:
        """The name that the layer scale of a block's first or second branch would have."""
        return f"{block}gamma_{branch}" if self.config.related else f"{block}ls{branch}.gamma"

    def _hidden(self, x: str, block: str, norm: str = "norm2") -> str:
        """The MLP up to its second layer: (rows, D) → (rows, hidden)."""
        config, inside = self.config, block.startswith("blocks.")
        y = self._norm(x, f"{block}{norm}")
        if config.gated and inside:
            hidden = self._gate(y, block)
        else:
            hidden = self._linear(y, f"{block}mlp.fc1", *self._layer(f"{block}mlp.fc1"))
            if config.act == "quick_gelu":
                hidden = self._gated(hidden, 1.702)
            else:
                approximate = "tanh" if config.act == "gelu_tanh" else "none"
                hidden = self.graph.node("Gelu", hidden, approximate=approximate)
        return self._norm(hidden, f"{block}mlp.norm") if config.mlp_norm and inside else hidden

    def _gate(self, y: str, block: str) -> str:
        """SiLU(gate) · value: (rows, D) → (rows, hidden)."""
        if self.config.mlp == "swiglu_split":
            layers = [self._layer(f"{block}mlp.fc1_g"), self._layer(f"{block}mlp.fc1_x")]
        else:
            weight, bias = self._layer(f"{block}mlp.fc1")
            biases = (None, None) if bias is None else np.split(bias, 2)
            layers = [*zip(np.split(weight, 2), biases, strict=True)]
        gate, up = (
            self._linear(y, f"{block}mlp.{what}", *one) for what, one in zip(("gate", "up"), layers, strict=True)
        )
        return self.graph.node("Mul", self._gated(gate, 1.0), up)

    def _gated(self, x: str, slope: float) -> str:
        """x · σ(slope x)"""
        steep = x if slope == 1 else self.graph.node("Mul", x, self.graph.scalar(slope))
        return self.graph.node("Mul", x, self.graph.node("Sigmoid", steep))


def _normalisation(preprocess: Preprocess) -> tuple[Array, Array]:
    """Factor and addend, each (C, 1, 1), that normalise pixels from 0 to 255."""
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
