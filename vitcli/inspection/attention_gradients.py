"""What spoke for a class, by the attention weights and the gradient of the class's logit with respect to them.

Gradient rollout (Chefer, Gur and Wolf 2021, arXiv 2103.15679): in each layer weights times gradient, without what is
negative, averaged over the heads, say how much of one token moved into another on the class's behalf; the layers are
chained as in plain rollout. LeGrad (Bousselham et al. 2024, arXiv 2404.03214): every layer is asked through the model's
own norm and head, and what the answer's gradient says of that layer's weights is added up.

The fused kernel stays on: it never has the weights in memory, but their gradient is that of what a head gathered, times
the values. The weights of one layer exist at a time.

Legend: B batch, C channels, H W pixels, h w patch grid, N tokens, M of them that are read, n heads, d width, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vitcli.model.encoder import Attention, Gathered
from vitcli.model.vit import VisionTransformer


def gradient_rollout(model: VisionTransformer, x: Tensor, classes: Tensor) -> Tensor:
    """Images (B, C, H, W) and a class of each (B,) → maps (B, h, w), nowhere negative."""
    config, layers = model.config, list[Gathered]()
    tokens = model.embed(x).detach().requires_grad_()
    for i, block in enumerate(model.blocks):
        reads = config.global_pool == "token" and i == config.depth - 1
        tokens = block(tokens, config.pooled_tokens if reads else None, partial(_traced, layers.append))
    logits = model.classify(model.pool(model.norm(tokens), layers.append))
    gradients = torch.autograd.grad(of_classes(logits, classes), [layer.heads for layer in layers])
    if config.global_pool == "map":  # the query that pools is no token
        row = _moved(layers.pop(), gradients[len(layers)]).mean(dim=1, keepdim=True)
    else:
        row = _pooled(model, len(x)).to(x)
    for layer, gradient in zip(reversed(layers), reversed(gradients[: len(layers)]), strict=True):
        moved = _moved(layer, gradient)
        row = row + row[:, :, : moved.shape[1]] @ moved
    return on_grid(model, row[:, 0])


def legrad(model: VisionTransformer, x: Tensor, classes: Tensor) -> Tensor:
    """Images (B, C, H, W) and a class of each (B,) → maps (B, h, w), nowhere negative."""
    layers = list[Gathered]()
    answers = []
    tokens = model.embed(x).detach().requires_grad_()
    for block in model.blocks:
        left = block(tokens, None, partial(_traced, layers.append))
        answers.append(of_classes(model.classify(model.pool(model.norm(left))), classes))
        tokens = left.detach().requires_grad_()
    gradients = torch.autograd.grad(torch.stack(answers).sum(), [layer.heads for layer in layers])
    spoke = torch.stack([
        _of_weights(layer, gradient).clamp(min=0).mean(dim=1).sum(dim=1)
        for layer, gradient in zip(layers, gradients, strict=True)
    ])  # fmt: skip
    return on_grid(model, spoke.mean(dim=0))


def of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits (B, K) of each image's own class, of `classes` (B,), summed: its gradient is that of each image."""
    return logits.gather(1, classes[:, None]).sum()


def on_grid(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """A number for each token (B, N) → the patches' (B, h, w)."""
    return tokens[:, model.config.num_prefix_tokens :].unflatten(1, model.config.grid)  # type: ignore[no-untyped-call,no-any-return]


def _traced(trace: Callable[[Gathered], None], attention: Attention, x: Tensor, queries: int | None) -> Tensor:
    return attention.traced(x, trace, queries)


def _pooled(model: VisionTransformer, images: int) -> Tensor:
    """How much of each token the head reads, (images, 1, N), of sum 1."""
    config = model.config
    row = torch.zeros(config.num_tokens)
    if config.global_pool == "token":
        row[: config.pooled_tokens] = 1
    else:
        row[0 if config.pools_prefix else config.num_prefix_tokens :] = 1
    return (row / row.sum()).expand(images, 1, -1)


def _of_weights(layer: Gathered, gradient: Tensor) -> Tensor:
    """The gradient (B, n, M, d) of what the heads gathered → that of their weights (B, n, M, N)."""
    return gradient @ layer.values.detach().transpose(-2, -1)


@torch.no_grad()
def _moved(layer: Gathered, gradient: Tensor) -> Tensor:
    """How much of each token moved into each of those that are read, on the class's behalf, (B, M, N)."""
    return (layer.weights() * _of_weights(layer, gradient)).clamp(min=0).mean(dim=1)
