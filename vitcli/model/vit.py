"""The Vision Transformer (Dosovitskiy et al. 2021, section 3.1), next to its equations.

    z_0 = [x_class; x_p^1 E; …; x_p^N E] + E_pos                       (1)
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                                   (2)
    z_l = MLP(LN(z'_l)) + z'_l                                          (3)
    y = LN(z_L^0)                                                       (4)

Parameter names, shapes and numerics are timm's, for every plain-ViT architecture that timm registers. What the paper
does not have is elsewhere: EVA's, DINOv3's and BEiT's blocks in `relatives.py`, a second head in `heads.py`. Knows
tensors only: no files, no network, no terminal.

Legend: B batch, C channels, H W pixels, h w patch grid, N tokens (prefix and patches), D width, K classes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitcli.model.config import SPREAD_EPS, ViTConfig
from vitcli.model.encoder import Gathered
from vitcli.model.heads import AttentionPool, PreLogits, classifier, mean_of_heads
from vitcli.model.relatives import Rotary, blocks
from vitcli.model.stem import Residual, cnn


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each linearly to D: a convolution whose stride is its kernel.

    In a hybrid the patches are cut from the feature map of a CNN, the `backbone`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.backbone = cnn(config.stem, config.in_chans) if config.stem else nn.Identity()
        channels = config.stem.out_channels if config.stem else config.in_chans
        # CLIP's projection has no bias: a norm follows it at once.
        self.proj = nn.Conv2d(
            channels, config.embed_dim, config.patch_size, config.patch_size, bias=not config.pre_norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, h·w, D), row by row."""
        return self.proj(self.backbone(x)).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images (B, C, H, W) → logits (B, K), or the representation (B, num_features) when `config.num_classes` is 0.

    `dropout` follows every dense layer but qkv, and the position embedding (paper, appendix B.1); `drop_path` is the
    stochastic-depth rate of the last block, growing linearly from 0 at the first.
    """

    def __init__(self, config: ViTConfig, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False  # recompute each block in the backward pass instead of keeping its insides
        D = config.embed_dim
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, D)) if config.distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, D)) if config.reg_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_pos_tokens, D)) if config.num_pos_tokens else None
        self.pos_drop = nn.Dropout(dropout)

        def norm(wanted: bool) -> nn.Module:
            return nn.LayerNorm(D, config.norm_eps) if wanted else nn.Identity()

        self.norm_pre = norm(config.pre_norm)
        rates = [drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.rope = Rotary(config) if config.rope else None
        self.blocks = nn.ModuleList(blocks(config, dropout, rates, self.rope))
        self.norm = norm(config.final_norm and not config.norm_after_pool)
        self.attn_pool = AttentionPool(config) if config.global_pool == "map" else None
        self.fc_norm = norm(config.final_norm and config.norm_after_pool)
        self.pre_logits = PreLogits(config) if config.head_hidden else nn.Identity()
        self.head = classifier(config)
        self.head_dist = classifier(config) if config.distilled else None
        initialise(self)

    def forward(self, x: Tensor, *, with_tokens: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C, H, W) → logits (B, K); `with_tokens` also the tokens that enter the last block (B, N, D)."""
        tokens = self._before_last_block(x)
        logits = self.classify(self._last_block_and_pool(tokens))
        return (logits, tokens) if with_tokens else logits

    def representation(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → what the head sees, `pre_logits` (B, num_features)."""
        return self._last_block_and_pool(self._before_last_block(x))

    def signature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) → by what they are recognised as familiar or strange, and logits (B, K).

        The signature (B, 2 D + F): mean, and logarithm of the deviation, of the patch tokens that enter block
        `config.signature_block`, and what the head sees.
        """
        at = self.config.signature_block
        tokens = self._through(self.embed(x), 0, at)
        features = self._last_block_and_pool(self._through(tokens, at, self.config.depth - 1))
        patches = tokens[:, self.config.num_prefix_tokens :]
        spread = (patches.std(dim=1, unbiased=False) + SPREAD_EPS).log()
        return torch.cat([patches.mean(dim=1), spread, features], dim=1), self.classify(features)

    def _before_last_block(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → the tokens that enter the last block (B, N, D)."""
        return self._through(self.embed(x), 0, self.config.depth - 1)

    def _through(self, x: Tensor, first: int, end: int) -> Tensor:
        """Tokens that enter block `first` → those that enter block `end`, both (B, N, D)."""
        for block in list(self.blocks)[first:end]:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing and self.training else block(x)
        return x

    def _last_block_and_pool(self, x: Tensor) -> Tensor:
        """Tokens that enter the last block (B, N, D) → `pre_logits` (B, num_features)."""
        # Only the class token leaves the last block, so only its query, projection and MLP are computed there.
        x = self.blocks[-1](x, queries=self.config.pooled_tokens if self.config.global_pool == "token" else None)
        return self.pool(self.norm(x))

    def embed(self, x: Tensor) -> Tensor:
        """Equation 1: images (B, C, H, W) → tokens z_0 (B, N, D)."""
        if x.shape[-2:] != self.config.img_size:
            raise ValueError(
                f"image is {tuple(x.shape[-2:])}, the model's position embedding is for {self.config.img_size}"
            )
        return self._add_position(self.patch_embed(x))

    def _add_position(self, x: Tensor) -> Tensor:
        """Patches (B, h·w, D) → tokens (B, N, D): prefix tokens in front, position embedding added."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        prefix = [token.expand(x.shape[0], -1, -1) for token in tokens if token is not None]
        if self.pos_embed is None:
            x = torch.cat([*prefix, x], dim=1)
        elif self.config.no_embed_class:
            x = torch.cat([*prefix, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + self.pos_embed
        return self.norm_pre(self.pos_drop(x))

    def pool(self, x: Tensor, trace: Callable[[Gathered], None] | None = None) -> Tensor:
        """Encoded tokens (B, N, D) → `pre_logits` (B, num_features); `trace` is that of an `AttentionPool`."""
        if self.config.global_pool == "token":
            x = x[:, : self.config.pooled_tokens].flatten(1)  # (B, D)
        else:
            if not self.config.pools_prefix:
                x = x[:, self.config.num_prefix_tokens :]
            x = self.attn_pool(x, trace) if self.attn_pool is not None else x.mean(dim=1)
        return self.pre_logits(self.fc_norm(x))

    def classify(self, y: Tensor) -> Tensor:
        """`pre_logits` (B, num_features) → logits (B, K)."""
        return self.head(y) if self.head_dist is None else mean_of_heads(y, self.head, self.head_dist)

    def _stages(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The steps from images to logits by what each gives, in the order of the data."""
        return {
            "stem": self.patch_embed,
            "embedded": self._add_position,
            **{f"blocks.{i}": block for i, block in enumerate(self.blocks)},
            "encoded": self.norm,
            "pre_logits": self.pool,
            "logits": self.classify,
        }

    def intermediates(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The named values on the way from images `x` (B, C, H, W) to logits, every token computed in every block.

        Names, in the order of the data: `stem` (B, h·w, D), `embedded` (B, N, D), `blocks.0` … (B, N, D),
        `encoded` (B, N, D), `pre_logits` (B, num_features), `logits` (B, K). Stops at the last one that is asked for.
        Raises KeyError for an unknown name.
        """
        stages = self._stages()
        wanted = set(names)
        if unknown := wanted - stages.keys():
            raise KeyError(f"no intermediate named {', '.join(sorted(unknown))}; there are {', '.join(stages)}")
        taken: dict[str, Tensor] = {}
        for name, stage in stages.items():
            if len(taken) == len(wanted):
                break
            x = stage(x)
            if name in wanted:
                taken[name] = x
        return taken


@torch.no_grad()
def initialise(model: VisionTransformer) -> None:
    """The authors' initialisation (google-research/vision_transformer, models_vit.py and models_resnet.py).

    Encoder: Xavier-uniform weights, q, k and v each on its own; zero biases, those of the MLPs N(0, 1e-6).
    Convolutions and the pre-training head's hidden layer: LeCun-normal. Position embedding N(0, 0.02). Zero: the class
    token, the head, and the last scale of each ResNet block, so that the block begins as its shortcut.
    Nothing happens on `meta`, where weights from a file follow.
    """
    if model.patch_embed.proj.weight.is_meta:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) or name == "pre_logits.fc":
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.Linear):
            for weight in torch.split(module.weight, model.config.embed_dim) if "kv" in name else [module.weight]:
                nn.init.xavier_uniform_(weight)
        elif isinstance(module, Residual):
            nn.init.zeros_(module.last_norm.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=1e-6) if ".mlp." in name else nn.init.zeros_(module.bias)
    if model.pos_embed is not None:
        nn.init.normal_(model.pos_embed, std=0.02)
    if model.reg_token is not None:
        nn.init.normal_(model.reg_token, std=1e-6)  # else all registers would stay equal
    if model.attn_pool is not None:
        nn.init.normal_(model.attn_pool.latent, std=model.config.embed_dim**-0.5)
    for head in (model.head, model.head_dist):
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)


def seen_by_head(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, C, H, W) → what the head of `model`, ours or timm's, gets to see of them (B, D)."""
    if isinstance(model, VisionTransformer):
        return model.representation(images)
    return model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
