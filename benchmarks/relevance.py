"""How faithful the methods of `vit predict --why` are: curves, classes told apart, sanity, cost.

    python benchmarks/relevance.py MODEL DATA [--count 128] [--methods gradient-rollout,legrad]

Images of DATA's held-out split; what is explained is the model's first answer, right or wrong.

deletion, insertion  area under the probability of the class while cells are taken away or brought back, the strongest
                     first; a cell that is away is the mean colour. Gain: insertion − deletion, ± its standard error.
classes              rank correlation of the maps of the first and the second class (32 images); 1: not of the class.
halves               two pictures beside each other in one (32): the share of such pairs in which the map of the left
                     picture's class lies further to the left than that of the right picture's class; chance is 50 %.
random weights       rank correlation with the map of a model whose head, upper half, or all parameters are shuffled
                     (16 images; Adebayo et al. 2018, arXiv 1810.03292); a map of what the model learnt goes to 0.
cost                 processor time of a map of one image on one thread, over the mean of a forward pass of the same
                     torch model and image before and one after it, without gradients; the median of 21 such.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitcli.checkpoint.load import load_any
from vitcli.checkpoint.resolve import resolve
from vitcli.inspection.cells import grid_of
from vitcli.inspection.explain import METHODS, OF_ATTENTION, Method
from vitcli.inspection.faithfulness import curves, likeness
from vitcli.inspection.images import pictures_of
from vitcli.model.vit import VisionTransformer

BATCH = 16


def rollout(model: VisionTransformer, x: Tensor, classes: Tensor) -> Tensor:
    """Plain attention rollout (paper, appendix D.8), which knows no class."""
    rows = []
    with torch.no_grad():
        tokens = model.embed(x)
        for block in model.blocks:
            rows.append(block.attn.weights(block.norm1(tokens)).mean(dim=1) + torch.eye(tokens.shape[1]))
            tokens = block(tokens)
        row = torch.eye(tokens.shape[1])[None, :1]
        for step in reversed(rows):
            row = row @ (step / 2)
    return row[:, 0, model.config.num_prefix_tokens :].unflatten(1, model.config.grid)


def nothing(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """An order that knows nothing."""
    return torch.rand(len(x), *grid_of(model, x), generator=torch.Generator().manual_seed(1))


def middle(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """From the middle of the picture outwards."""
    h, w = grid_of(model, x)
    rows, columns = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    return -(rows[:, None] ** 2 + columns**2).expand(len(x), h, w)


def maps_of(method: Method, model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    parts = zip(x.split(BATCH), classes.split(BATCH), strict=True)
    return torch.cat([method(model, images, which).detach() for images, which in parts])


def halves(method: Method, model: nn.Module, x: Tensor, classes: Tensor, pairs: int) -> float:
    """See "halves" above."""
    width = x.shape[-1]
    inner = x[..., width // 4 : width // 4 + width // 2]
    left = [i for i in range(0, len(x) - 1, 2) if classes[i] != classes[i + 1]][:pairs]
    right = [i + 1 for i in left]
    both = torch.cat([inner[left], inner[right]], dim=-1)
    sides = []
    for of in (classes[left], classes[right]):
        found = maps_of(method, model, both, of).clamp(min=0)
        at = torch.linspace(0, 1, found.shape[-1])
        sides.append((found.sum(dim=1) * at).sum(dim=1) / found.sum(dim=(1, 2)).clamp(min=1e-12))
    difference = sides[1] - sides[0]
    return float(((difference > 1e-6).float() + 0.5 * (difference.abs() <= 1e-6).float()).mean())


def shuffled(model: nn.Module, wanted: Callable[[str], bool]) -> nn.Module:
    """A copy whose parameters of the wanted names are shuffled, each in itself."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in other.named_parameters():
        if wanted(name):
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def randomised(model: nn.Module) -> dict[str, nn.Module]:
    head = ("head.", "fc_norm.", "norm.", "classifier.", "fc.")
    depth = model.config.depth if isinstance(model, VisionTransformer) else 0
    upper = (*head, *(f"blocks.{i}." for i in range(depth // 2, depth)))
    found = {"head": shuffled(model, lambda name: name.startswith(head))}
    if depth:
        found["upper half"] = shuffled(model, lambda name: name.startswith(upper))
    return found | {"all": shuffled(model, lambda name: True)}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def forward(model: nn.Module, x: Tensor) -> None:
    model(x)


def cost(method: Method, model: nn.Module, x: Tensor, classes: Tensor, rounds: int) -> float:
    """A map's time over a forward pass's, taken one after the other: the median of the ratios."""
    ratios = []
    for _ in range(rounds):
        before, taken, after = (
            seconds(call)
            for call in (partial(forward, model, x), partial(method, model, x, classes), partial(forward, model, x))
        )
        ratios.append(2 * taken / (before + after))
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--methods")
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = resolve(given.model)
    model = load_any(checkpoint).requires_grad_(False)
    pictures = pictures_of(checkpoint, None, given.data, given.count)
    x = torch.stack([torch.from_numpy(picture.load(checkpoint.preprocess)) for picture in pictures])
    with torch.inference_mode():
        logits = torch.cat([model(images) for images in x.split(BATCH)])
    first, second = logits.clone().topk(2, dim=1).indices.T.contiguous()
    methods: dict[str, Method] = {"nothing": nothing, "middle": middle, "rollout": rollout, **METHODS}
    if not isinstance(model, VisionTransformer):
        methods = {name: method for name, method in methods.items() if name not in ("rollout", *OF_ATTENTION)}
    wanted = given.methods.split(",") if given.methods else list(methods)
    others = randomised(model)
    print(f"{checkpoint.name}, {len(x)} images")
    print(f"| method | deletion | insertion | gain | classes | halves | {' | '.join(others)} | × forward |")
    for name in wanted:
        method = methods[name]
        maps = maps_of(method, model, x, first)
        found = curves(model, x, first, maps, grid_of(model, x), outputs=checkpoint.outputs)
        deletion, insertion = found.areas
        error = found.gain.std(ddof=1) / len(x) ** 0.5
        classes = likeness(maps[:32], maps_of(method, model, x[:32], second[:32]))
        after = [likeness(maps[:16], maps_of(method, other, x[:16], first[:16])) for other in others.values()]
        rounds = 5 if name in ("occlusion", "integrated-gradients") else 21
        times = cost(method, model, x[:1], first[:1], rounds)
        print(
            f"| {name} | {deletion.mean():.3f} | {insertion.mean():.3f} | {found.gain.mean():.3f} ± {error:.3f} "
            f"| {np.nanmean(classes):.2f} | {halves(method, model, x, first, 32):.0%} "
            f"| {' | '.join(f'{np.nanmean(one):.2f}' for one in after)} | {times:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
