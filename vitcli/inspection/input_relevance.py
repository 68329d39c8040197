"""What spoke for a class, by what its logit loses when the picture does: no look inside, any model.

Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365): the way from an image of nothing but the mean
colour to the image is walked in steps; the gradients met on it, times the difference, add up to what the logit gained.
Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): each cell in turn is the mean colour, and the logit's fall is its
own. It is slow, and assumes nothing but that a cell can be judged by itself.

Legend: B batch, C channels, H W pixels, h w cells, K classes.
"""

import torch
from torch import Tensor, nn

from vitcli.inspection.attention_gradients import of_classes
from vitcli.inspection.cells import enlarged, grid_of, summed

STEPS = 16  # on the way from the mean colour to the image
AT_ONCE = 64  # images with a cell less that are computed together


def integrated_gradients(model: nn.Module, x: Tensor, classes: Tensor, steps: int = STEPS) -> Tensor:
    """Images (B, C, H, W) and a class of each (B,) → maps (B, h, w), below 0 where something spoke against it.

    A cell holds the sum of its pixels; all of them sum to the logit's rise from the mean colour to the image, as nearly
    as `steps` allow, less what pixels at an edge that no cell covers have part in.
    """
    total = torch.zeros_like(x)
    for step in range(steps):
        point = (x * ((step + 0.5) / steps)).requires_grad_()
        (gradient,) = torch.autograd.grad(of_classes(model(point), classes), point)
        total += gradient
    return summed(model, (total / steps * x).sum(dim=1), grid_of(model, x))


@torch.no_grad()
def occlusion(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Images (B, C, H, W) and a class of each (B,) → maps (B, h, w): the logit's fall when it is the mean colour."""
    h, w = grid_of(model, x)
    one_each = torch.eye(h * w, device=x.device).view(h * w, h, w)
    kept = 1 - enlarged(model, one_each, (x.shape[-2], x.shape[-1]))  # (h·w, H, W)
    maps = []
    for image, index in zip(x, classes, strict=True):
        whole = model(image[None])[0, index]
        less = torch.cat([model(image * part[:, None])[:, index] for part in torch.split(kept, AT_ONCE)])
        maps.append((whole - less).view(h, w))
    return torch.stack(maps)
