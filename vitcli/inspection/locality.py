"""Locality: how far information travels, and what is left when the picture's order is destroyed.

Effective receptive field (Luo et al. 2016, arXiv 1701.04128): the gradient of one cell's features, projected on a
random direction, to the input; where its mass lies says which pixels the cell has heard of. Shuffling and dropping
patches of the input (Naseer et al. 2021, arXiv 2105.10497) shows how much an answer depends on them: ViT and CNN get
the same broken pictures, each in its own size.

Legend: B batch, C channels of the image, H W pixels, h w cells, K classes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.inspection.aspect import OfAnyModel, Subject
from vitcli.inspection.equivariance import feature_maps
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.report.figures import STYLE, WIDE, figure, fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DROPS = (0.25, 0.5, 0.75)  # share of the patches
TILES = (2, 4, 7)  # a shuffled picture is cut into so many rows and columns


@dataclass(frozen=True)
class Locality:
    """How far the middle cell of each layer hears, and how often the answer survives a broken picture."""

    layers: tuple[str, ...]
    fields: Array  # (layers, H, W), each of sum 1: where the middle cell's gradient to the input lies
    radius: Array  # (layers,) pixels around the cell's centre that hold half of the mass
    uniform: float  # that radius if all pixels counted alike
    shuffled: dict[int, float]  # rows and columns → share of images whose answer stays
    dropped: dict[float, float]  # share of patches → share of images whose answer stays


def locality(
    model: nn.Module, batches: Sequence[Tensor], grid: tuple[int, int], *, answers: bool = True, seed: int = 0
) -> Locality:
    """The locality of `model` on `batches` of images (B, C, H, W), at least one; dropped are cells of a `grid` (h, w).

    Without `answers`, for a model that has no classes, nothing is broken: `shuffled` and `dropped` are empty.
    """
    layers, fields = _fields(model, batches, seed)
    same = _answers(model, batches, grid, seed) if answers else {}
    radius = np.array([half_mass(field) for field in fields])
    return Locality(
        layers, fields, radius, half_mass(np.ones(fields.shape[1:])),
        {tiles: same[f"tiles {tiles}"] for tiles in TILES if f"tiles {tiles}" in same},
        {share: same[f"drop {share}"] for share in DROPS if f"drop {share}" in same},
    )  # fmt: skip


def _fields(model: nn.Module, batches: Sequence[Tensor], seed: int) -> tuple[tuple[str, ...], Array]:
    """Names of the layers, mean gradient fields (layers, H, W)."""
    total: dict[str, Tensor] = {}
    for x in batches:
        x = x.detach().clone().requires_grad_()
        for name, found in feature_maps(model, x).items():
            generator = torch.Generator().manual_seed(seed)
            direction = torch.randn(found.shape[1], generator=generator).to(found)
            row, column = found.shape[-2] // 2, found.shape[-1] // 2
            heard = (found[:, :, row, column] @ direction).sum()
            (gradient,) = torch.autograd.grad(heard, x, retain_graph=True)
            size = gradient.double().norm(dim=1)  # (B, H, W)
            field = (size / size.sum(dim=(1, 2), keepdim=True).clamp(min=1e-300)).sum(dim=0).cpu()
            total[name] = total[name] + field if name in total else field
    fields = torch.stack(list(total.values())).numpy()
    return tuple(total), fields / fields.sum(axis=(1, 2), keepdims=True)


def half_mass(field: Array) -> float:
    """The radius in pixels around its own centre of mass that holds half of `field` (H, W).

    Where the middle cell's centre lies depends on a CNN's padding; where its field's does needs no such knowledge.
    """
    rows, columns = np.indices(field.shape)
    row, column = ((of * field).sum() / field.sum() for of in (rows, columns))
    away = np.hypot(rows - row, columns - column).ravel()
    order = np.argsort(away, kind="stable")
    held = np.cumsum(field.ravel()[order])
    return float(away[order][np.searchsorted(held, held[-1] / 2)])


@torch.inference_mode()
def _answers(model: nn.Module, batches: Sequence[Tensor], grid: tuple[int, int], seed: int) -> dict[str, float]:
    """How often the answer to a broken picture is that to the whole one, by kind of breakage.

    Each kind draws from a generator of its own: models of other image sizes get the same permutations and holes.
    """
    same: dict[str, int] = {}
    images = 0
    draws: defaultdict[str, torch.Generator] = defaultdict(lambda: torch.Generator().manual_seed(seed))
    for x in batches:
        answer = model(x).argmax(dim=1)
        broken = {f"tiles {n}": shuffle(x, n, draws[f"tiles {n}"]) for n in TILES if min(x.shape[-2:]) >= n}
        broken |= {f"drop {share}": drop(x, grid, share, draws[f"drop {share}"]) for share in DROPS}
        for kind, pictures in broken.items():
            same[kind] = same.get(kind, 0) + int((model(pictures).argmax(dim=1) == answer).sum())
        images += len(x)
    return {kind: count / images for kind, count in same.items()}


def shuffle(x: Tensor, tiles: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) cut into `tiles` rows and columns that change places; what is left at the edges stays."""
    B, C, H, W = x.shape
    h, w = H // tiles, W // tiles
    inside = x[:, :, : h * tiles, : w * tiles].reshape(B, C, tiles, h, tiles, w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.stack([torch.randperm(tiles * tiles, generator=generator) for _ in range(B)]).to(x.device)
    mixed = inside[torch.arange(B, device=x.device)[:, None], order].view(B, tiles, tiles, C, h, w)
    result = x.clone()
    result[:, :, : h * tiles, : w * tiles] = mixed.permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * tiles, w * tiles)
    return result


def drop(x: Tensor, grid: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) in which `share` of the cells of a `grid` are the mean colour (0 after normalisation)."""
    B, (h, w) = len(x), grid
    ranks = torch.rand(B, h * w, generator=generator).argsort(dim=1).argsort(dim=1).to(x.device)
    kept = (ranks >= round(share * h * w)).to(x).view(B, 1, h, w)
    return x * F.interpolate(kept, size=x.shape[-2:], mode="nearest-exact")


def exhibit(models: Mapping[str, Locality]) -> Exhibit:
    """The locality of `models` by their titles."""
    table = ModelTable(models, "layer", "radius", "of uniform")
    records = ModelTable(models, "layer", "radius", "breakage", "answers_kept")
    findings = []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, fields=found.fields)
        for layer, radius in zip(found.layers, found.radius, strict=True):
            table.add(title, layer, f"{radius:.1f}", f"{radius / found.uniform:.2f}")
            records.add(title, layer, radius, "", "")
        for what, shares in (("shuffled", found.shuffled), ("dropped", found.dropped)):
            for kind, share in shares.items():
                records.add(title, what, "", kind, share)
        shuffled = ", ".join(f"{n}×{n} {share:.0%}" for n, share in found.shuffled.items())
        dropped = ", ".join(f"{n:.0%} {share:.0%}" for n, share in found.dropped.items())
        if shuffled or dropped:
            findings.append(
                f"{said_of(title, models)}the answer stays when the picture is cut and shuffled: {shuffled}; when "
                f"patches are gone: {dropped}"
            )
    return Exhibit(
        name="locality",
        title="Locality",
        words="Effective receptive field of the middle cell: the radius in pixels around the field's own centre that "
        "holds half of its gradient to the input, and its share of the radius if all pixels counted alike.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: fields_figure([(title, f.fields, f.layers) for title, f in models.items()]),
    )


def fields_figure(panels: Sequence[tuple[str, Array, Sequence[str]]]) -> "Figure":
    """Draw a row for each (title, receptive fields (layers, H, W), names of the layers), with up to six layers.

    Brightness is the square root.
    """
    from matplotlib import rc_context

    shown = [np.unique(np.linspace(0, len(layers) - 1, 6).round().astype(int)) for _, _, layers in panels]
    columns = max(map(len, shown))
    height, width = panels[0][1].shape[1:]
    drawing = figure(WIDE, WIDE / columns * height / width * len(panels) + 0.3)
    with rc_context(STYLE):
        cells = drawing.subplots(len(panels), columns, squeeze=False)
        for line, (title, fields, layers), chosen in zip(cells, panels, shown, strict=True):
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for axes, i in zip(line, chosen, strict=False):
                axes.imshow(np.sqrt(fields[i]), cmap="magma", interpolation="nearest")
                axes.set_title(layers[i], fontsize=7)
            line[0].set_ylabel(fitted(title, WIDE / columns * height / width, 7), fontsize=7)
    return drawing


def _measure(subject: Subject, batches: Sequence[Tensor]) -> Locality:
    return locality(subject.model, batches, subject.cut.grid, answers=not subject.checkpoint.why_no_classes)


ASPECT = OfAnyModel(name="locality", measure=_measure, show=exhibit)
