"""What a Vision Transformer is, as a frozen dataclass. Imports no torch: every command may read it.

Field names and meanings are timm's (`timm.models.vision_transformer.VisionTransformer`), so that a checkpoint's
`model_args` and ours are one vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Size = tuple[int, int]  # (height, width)
SPREAD_EPS = 1e-3  # added to a deviation before its logarithm is taken: flat images have none

GlobalPool = Literal["token", "avg", "map"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
# The class of timm's that has such a model, whose names its weights and settings have: VisionTransformer, Eva, Beit,
# VisionTransformerDistilled
Layout = Literal["vit", "eva", "beit", "distilled"]


class Convolution(NamedTuple):
    """Of a stem's block; a GroupNorm follows it."""

    inputs: int  # channels
    outputs: int
    kernel: int
    stride: int = 1


class StemBlock(NamedTuple):
    """A residual block: its convolutions, and the one of its shortcut where the width changes."""

    convolutions: tuple[Convolution, ...]
    shortcut: Convolution | None


@dataclass(frozen=True)
class StemConfig:
    """A CNN between image and patches (paper, section 3.1 "Hybrid Architecture"): the authors' ResNetV2.

    Its root is a 7×7 convolution and a max pool, each of stride 2; then come stages of residual blocks, each stage
    after the first halving the map and doubling the width. No stages: the root alone (R+Ti/16). The authors' blocks
    are bottlenecks; `basic` ones are two 3×3 convolutions (ResNet-18's, arXiv 1512.03385).
    """

    layers: tuple[int, ...] = (3, 4, 9)  # blocks per stage
    width: int = 64  # channels of the root, a multiple of 32 (the groups of each GroupNorm)
    block: Literal["bottleneck", "basic"] = "bottleneck"

    @property
    def reduction(self) -> int:
        """Pixels between neighbouring cells of the feature map."""
        return 4 << max(len(self.layers) - 1, 0)

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels that leave each stage."""
        return tuple(4 * self.width << i for i in range(len(self.layers)))

    @property
    def out_channels(self) -> int:
        """Channels of the feature map that is cut into patches."""
        return self.stage_widths[-1] if self.layers else self.width

    @property
    def stages(self) -> list[list[StemBlock]]:
        """The blocks of each stage, in the order of the data."""
        stages, channels = [], self.width
        for i, (blocks, width) in enumerate(zip(self.layers, self.stage_widths, strict=True)):
            stages.append([self._block(channels, width, stride=1 if i == 0 else 2)])
            stages[-1] += (self._block(width, width) for _ in range(blocks - 1))
            channels = width
        return stages

    def _block(self, inputs: int, outputs: int, stride: int = 1) -> StemBlock:
        convolutions: tuple[Convolution, ...] = (
            Convolution(inputs, outputs, 3, stride),
            Convolution(outputs, outputs, 3),
        )
        if self.block == "bottleneck":
            inner = outputs // 4
            convolutions = (
                Convolution(inputs, inner, 1),
                Convolution(inner, inner, 3, stride),
                Convolution(inner, outputs, 1),
            )
        return StemBlock(convolutions, None if inputs == outputs else Convolution(inputs, outputs, 1, stride))


@dataclass(frozen=True)
class RopeConfig:
    """How queries and keys are turned by their patches' places (RoFormer, arXiv 2104.09864, on a plane).

    `cat`: angles are row and column times frequencies that fall from 1 to almost 1 / `temperature` (EVA-02, Perception
    Encoder). `dinov3`: rows and columns are centred and scaled to −1 … 1 first, whatever the grid, and frequencies are
    2π to 2π / `temperature`. `mixed`: each head of each block has learnt frequencies for rows and columns together
    (RoPE-ViT, arXiv 2403.13298). Class token and registers are not turned.
    """

    kind: Literal["cat", "dinov3", "mixed"] = "cat"
    temperature: float = 10000.0
    reference: Size | None = None  # rows and columns are counted as on this grid, however many there are
    offset: float = 0.0  # of the first row and column
    columns_first: bool = False  # the first half of the angles is the columns', not the rows'
    half: bool = False  # a pair that is turned is (i, i + d/2) of a head; else (2i, 2i + 1)


@dataclass(frozen=True)
class ViTConfig:
    """Shape and arithmetic of one Vision Transformer. Defaults: ViT-B/16 at 224 (paper, table 1)."""

    img_size: Size = (224, 224)  # pixels
    patch_size: Size = (16, 16)  # pixels; with a stem: cells of its feature map
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the representation y itself comes out
    embed_dim: int = 768  # D
    depth: int = 12  # L
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True  # of the attention projection and both MLP layers
    qk_norm: bool = False
    init_values: float | None = None  # layer scale
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False  # position embedding for patches only
    pos_embed: Literal["learn", "none"] = "learn"
    pre_norm: bool = False  # LayerNorm before the encoder (CLIP); the patch projection then has no bias
    final_norm: bool = True
    fc_norm: bool | None = None  # norm after pooling instead of before; None: with average pooling
    global_pool: GlobalPool = "token"
    pool_include_prefix: bool = False
    norm_eps: float = 1e-6
    act: Activation = "gelu"
    mlp: Literal["mlp", "swiglu", "swiglu_split"] = "mlp"  # split: gate and value are two layers, not halves of one
    head_hidden: int | None = None  # pre-training head (paper, section 3.1): one hidden layer of this width
    head_act: Literal["tanh", "gelu"] = "tanh"
    stem: StemConfig | None = None
    # What the paper's ViT does not have: `relatives.py`
    layout: Layout = "vit"
    # One layer; one whose biases stand apart; three layers. The last two have no bias of the keys.
    qkv: Literal["fused", "bias_apart", "split"] = "fused"
    rope: RopeConfig | None = None
    rel_pos_bias: bool = False  # a learnt addend to each attention score, by the distance in rows and columns (BEiT)
    attn_norm: bool = False  # LayerNorm of what the heads gather, before the projection
    mlp_norm: bool = False  # LayerNorm before the MLP's second layer
    mlp_align: int = 0  # the hidden width of a split gated MLP is rounded up to a multiple of this
    attn_pool_num_heads: int | None = None  # of attention pooling; None: as the encoder
    attn_pool_mlp_ratio: float | None = None

    @property
    def related(self) -> bool:
        """Whether blocks are those of EVA and BEiT, not the paper's."""
        return self.layout in ("eva", "beit")

    @property
    def distilled(self) -> bool:
        """Whether a second token with a head of its own stands beside the class token (DeiT, arXiv 2012.12877)."""
        return self.layout == "distilled"

    @property
    def stride(self) -> Size:
        """Pixels between neighbouring tokens, (vertical, horizontal)."""
        reduction = self.stem.reduction if self.stem else 1
        return self.patch_size[0] * reduction, self.patch_size[1] * reduction

    @property
    def feature_size(self) -> Size:
        """What is cut into patches, (height, width): pixels, or with a stem the cells of its feature map."""
        reduction = self.stem.reduction if self.stem else 1  # each stride pads to a whole cell, so the map rounds up
        return -(-self.img_size[0] // reduction), -(-self.img_size[1] // reduction)

    @property
    def grid(self) -> Size:
        """Patches, (rows h, columns w). What is left at the bottom and right edge belongs to no patch."""
        return self.feature_size[0] // self.patch_size[0], self.feature_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token, a distilled model's second one, registers."""
        return int(self.class_token) + self.distilled + self.reg_tokens

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches

    @property
    def num_pos_tokens(self) -> int:
        """Rows of the position embedding."""
        if self.pos_embed == "none":
            return 0
        return self.num_patches if self.no_embed_class else self.num_tokens

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def gated(self) -> bool:
        """Whether half of what the MLP's first layer gives is a gate for the other half."""
        return self.mlp != "mlp"

    @property
    def mlp_dim(self) -> int:
        """Width of what the MLP's first layer gives, a gate included."""
        hidden = int(self.embed_dim * self.mlp_ratio)
        if self.mlp == "swiglu_split" and self.mlp_align:
            hidden += -hidden % self.mlp_align
        # `mlp_ratio` counts the gate in timm's VisionTransformer, and not in its other classes.
        return 2 * hidden if self.gated and self.related else hidden

    @property
    def mlp_hidden(self) -> int:
        """Width of what enters the MLP's second layer."""
        return self.mlp_dim // 2 if self.gated else self.mlp_dim

    @property
    def pool_heads(self) -> int:
        return self.attn_pool_num_heads or self.num_heads

    @property
    def pool_mlp_dim(self) -> int:
        return int(self.embed_dim * (self.attn_pool_mlp_ratio or self.mlp_ratio))

    @property
    def pools_prefix(self) -> bool:
        """Whether tokens in front of the patches are pooled, too: on request, and by EVA's attention pooling."""
        return self.pool_include_prefix or (self.layout == "eva" and self.global_pool == "map")

    @property
    def pooled_tokens(self) -> int:
        """Tokens that leave the encoder where no average and no attention pools them."""
        return 2 if self.distilled else 1

    @property
    def norm_after_pool(self) -> bool:
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def num_features(self) -> int:
        """Width of `pre_logits`, the head's input."""
        return self.head_hidden or self.embed_dim * self.pooled_tokens

    def token_shape(self, what: str) -> tuple[int, ...]:
        """Shape of a value on the way to the logits, for one image.

        `pre_logits` is what the head sees (num_features,); `class` the encoded class token (D,), `mean` the mean of the
        encoded patches (D,), `patches` all of these (P, D), row by row; `blocks.0` … what leaves that block, the prefix
        tokens in front (N, D). Raises ValueError for anything else, and for the class token of a model without one.
        """
        if what == "pre_logits":
            return (self.num_features,)
        if what == "class" and not self.class_token:
            raise ValueError("the model has no class token")
        if what in ("class", "mean"):
            return (self.embed_dim,)
        if what == "patches":
            return self.num_patches, self.embed_dim
        if what in {f"blocks.{i}" for i in range(self.depth)}:
            return self.num_tokens, self.embed_dim
        raise ValueError(f"there are pre_logits, class, mean, patches, and blocks.0 to blocks.{self.depth - 1}")

    @property
    def signature_block(self) -> int:
        """Number of the block whose incoming tokens an image's signature is made of: two thirds up.

        There they tell most strangers (docs/evaluation.md); higher up they know little but the classes.
        """
        return min(2 * self.depth // 3, self.depth - 1)

    @property
    def signature_width(self) -> int:
        """Numbers of an image's signature (`VisionTransformer.signature`)."""
        return 2 * self.embed_dim + self.num_features
