"""What spoke for a class, by Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

Of the last features that lie on a grid: each feature is weighted with the mean of its gradient over the grid, and what
is negative in the weighted sum is left out. In a CNN that is its last feature map. In a ViT it is the patch tokens as
the last block's attention sees them, for what leaves that block besides the class token is never read.

Legend: B batch, C channels, H W pixels, F features, h w cells, N tokens, D width, K classes.
"""

import torch
from torch import Tensor, nn

from vitcli.inspection.attention_gradients import of_classes, on_grid
from vitcli.inspection.cells import last_map
from vitcli.model.encoder import Attention
from vitcli.model.vit import VisionTransformer


def gradcam(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Images (B, C, H, W) and a class of each (B,) → maps (B, h, w), nowhere negative.

    Raises UsageError for a model of timm's without a last feature map.
    """
    return _of_tokens(model, x, classes) if isinstance(model, VisionTransformer) else _of_map(model, x, classes)


def _of_tokens(model: VisionTransformer, x: Tensor, classes: Tensor) -> Tensor:
    config, seen = model.config, list[Tensor]()

    def attend(attention: Attention, y: Tensor, queries: int | None) -> Tensor:
        seen.append(y.detach().requires_grad_())
        return attention(seen[0], queries)  # type: ignore[no-any-return]

    with torch.no_grad():
        tokens = model.embed(x)
        for block in list(model.blocks)[:-1]:
            tokens = block(tokens)
    read = model.blocks[-1](tokens, config.pooled_tokens if config.global_pool == "token" else None, attend)
    logits = model.classify(model.pool(model.norm(read)))
    (gradient,) = torch.autograd.grad(of_classes(logits, classes), seen)
    weights = gradient[:, config.num_prefix_tokens :].mean(dim=1, keepdim=True)
    return on_grid(model, (weights * seen[0].detach()).sum(dim=2).clamp(min=0))


def _of_map(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    with torch.no_grad():
        features, axis = last_map(model, x)
    logits = model.forward_head(features.requires_grad_())  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(of_classes(logits, classes), features)
    places = (2, 3) if axis == 1 else (1, 2)
    return (gradient.mean(dim=places, keepdim=True) * features.detach()).sum(dim=axis).clamp(min=0)
