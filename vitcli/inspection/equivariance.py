"""Translation: does the representation move with the image? (the paper's "inductive bias", section 3.1)

The input is shifted by k pixels, round the edge; then a layer that is equivariant gives its features of the unshifted
image, shifted as far. Measured is the cosine of the two at each cell, mean over cells away from the border. Where k is
no multiple of the layer's stride, features are shifted by linear interpolation, which no strided layer can match
exactly. `feature_maps` are what is compared: tokens on their grid, or a CNN's stages.

By construction a convolution scores 1 at strides that divide k, and a ViT without position embeddings scores 1 for
whole patches. Cosines are high anyway where all cells are alike, so `still` says what standing still would score.

Legend: B batch, C channels of the image, F channels of a map, H W pixels, h w cells.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.errors import UsageError
from vitcli.inspection.aspect import OfAnyModel, Subject
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.model.vit import VisionTransformer
from vitcli.report.figures import COLOURS, legend_below, most_ticks, side_by_side, title_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def feature_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Images (B, C, H, W) → maps (B, F, h, w) by name, in the order of the data. Gradients flow.

    Raises UsageError for a timm model that gives no feature maps.
    """
    if not isinstance(model, VisionTransformer):
        return _of_timm(model, x)
    config = model.config
    names = ["stem", *(f"blocks.{i}" for i in range(config.depth))]
    shown = {"stem": "patches"} | {f"blocks.{i}": f"block {i + 1}" for i in range(config.depth)}
    taken = model.intermediates(x, names)
    patches = {
        name: tokens if name == "stem" else tokens[:, config.num_prefix_tokens :] for name, tokens in taken.items()
    }
    return {shown[name]: tokens.transpose(1, 2).unflatten(2, config.grid) for name, tokens in patches.items()}  # type: ignore[no-untyped-call]


def _of_timm(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    if not hasattr(model, "forward_intermediates"):
        raise UsageError(f"{type(model).__name__} of timm gives no feature maps")
    maps = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")  # type: ignore[operator]
    return {f"stage {i}": found for i, found in enumerate(maps)}


def strides(model: nn.Module, x: Tensor, maps: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Pixels between neighbouring cells of each map that `model` makes of `x`, (down, right).

    By timm's own word where it has one: a padded CNN's last cells may lie half outside of the image.
    """
    told = [stage["reduction"] for stage in getattr(model, "feature_info", None) or ()]
    if len(told) == len(maps):
        return {name: (float(r), float(r)) for name, r in zip(maps, told, strict=True)}
    return {name: (x.shape[-2] / found.shape[-2], x.shape[-1] / found.shape[-1]) for name, found in maps.items()}


@dataclass(frozen=True)
class Equivariance:
    """Cosines (layers, shifts), means over images, cells, and the directions right and down; NaN: no cell is inside."""

    layers: tuple[str, ...]
    shifts: tuple[int, ...]  # pixels
    moved: Array  # features of the shifted image, with the shifted features
    still: Array  # features of the shifted image, with the features where they were


@torch.inference_mode()
def equivariance(model: nn.Module, batches: Iterable[Tensor], shifts: Sequence[int]) -> Equivariance:
    """How `model`'s features move with `batches` of images (B, C, H, W), at least one, shifted by `shifts` pixels."""
    totals: dict[str, Array] = {}
    images = 0
    for x in batches:
        before = feature_maps(model, x)
        between = strides(model, x, before)
        for i, pixels in enumerate(shifts):
            for axis in (-1, -2):
                after = feature_maps(model, torch.roll(x, pixels, dims=axis))
                for name, found in after.items():
                    total = totals.setdefault(name, np.zeros((len(shifts), 2)))
                    total[i] += _scores(before[name], found, pixels / between[name][axis], axis) * len(x) / 2
        images += len(x)
    both = np.stack(list(totals.values())) / images  # (layers, shifts, 2)
    return Equivariance(tuple(totals), tuple(shifts), both[..., 0], both[..., 1])


def _scores(before: Tensor, after: Tensor, cells: float, axis: int) -> Array:
    """Cosines of `after` with `before` shifted by `cells`, and with `before` itself; NaN when no cell is inside."""
    inside = [slice(size // 4, size - size // 4) for size in after.shape[-2:]]
    inside[axis] = slice(after.shape[axis] // 4 + math.ceil(cells), after.shape[axis] - after.shape[axis] // 4)
    after = after[..., inside[0], inside[1]]
    if not after.shape[-1] * after.shape[-2]:
        return np.array([np.nan, np.nan])
    expected = (shifted(before, cells, axis), before)
    return np.array([_cosine(after, one[..., inside[0], inside[1]]) for one in expected])


def _cosine(a: Tensor, b: Tensor) -> float:
    """Mean over cells of maps (B, F, h, w). Two cells without any feature, as a ReLU leaves them, are alike."""
    a, b = a.double(), b.double()
    both_empty = (a == 0).all(dim=1) & (b == 0).all(dim=1)
    return F.cosine_similarity(a, b, dim=1).masked_fill(both_empty, 1.0).mean().item()


def shifted(maps: Tensor, cells: float, axis: int) -> Tensor:
    """`maps` moved by `cells` along `axis`, round the edge; between cells by linear interpolation."""
    whole, part = int(cells // 1), cells % 1
    moved = torch.roll(maps, whole, dims=axis)
    return moved if part == 0 else (1 - part) * moved + part * torch.roll(maps, whole + 1, dims=axis)


def usual_shifts(patch: int, size: int) -> list[int]:
    """One pixel, half a patch, one, two and three patches, as far as they are less than half of the image's `size`."""
    return sorted({k for k in (1, patch // 2, patch, 2 * patch, 3 * patch) if 0 < k < size / 2})


def exhibit(models: Mapping[str, Equivariance]) -> Exhibit:
    """The equivariance of `models` by their titles."""
    table = ModelTable(models, "layer", *(f"{shift} px" for shift in next(iter(models.values())).shifts))
    records = ModelTable(models, "layer", "shift", "moved", "still")
    findings = []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, moved=found.moved, still=found.still)
        for i, layer in enumerate(found.layers):
            table.add(title, layer, *(_number(value) for value in found.moved[i]))
            for j, shift in enumerate(found.shifts):
                records.add(title, layer, shift, found.moved[i, j], found.still[i, j])
        for j, shift in enumerate(found.shifts):
            if not np.isnan(found.moved[-1, j]):
                steps = f"{found.layers[0]} {found.moved[0, j]:.2f}, {found.layers[-1]} {found.moved[-1, j]:.2f}"
                still = f"{_number(found.still[0, j])} and {_number(found.still[-1, j])}"
                line = f"{shift} pixel{'s' * (shift > 1)}: {steps}; standing still would be {still}"
                findings.append(said_of(title, models) + line)
    return Exhibit(
        name="equivariance",
        title="Translation",
        words="The image is shifted round the edge; do features move with it? Cosine of the shifted image's features "
        "with the image's features shifted as far, away from the border: 1 is exactly. By shift in pixels, right and "
        "down; for a second model of another image size, by the same share of the image.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: equivariance_figure([(title, f.moved, f.still, f.shifts) for title, f in models.items()]),
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def equivariance_figure(panels: Sequence[tuple[str, Array, Array, Sequence[int]]]) -> "Figure":
    """Draw panels of (title, cosines with features that moved, and that stood still, both (layers, shifts), shifts).

    Shifts are in pixels; what stood still is dotted; NaN, where no cell is inside, is left out.
    """

    def draw(i: int, part: Any) -> None:
        title, moved, still, shifts = panels[i]
        axes = part.subplots()
        layers = range(len(moved))
        for colour, shift, with_it, without in zip(COLOURS, shifts, moved.T, still.T, strict=False):
            axes.plot(layers, with_it, color=colour, marker="o", markersize=3, label=f"{shift} px")
            axes.plot(layers, without, color=colour, linestyle=":", linewidth=0.8)
        axes.set(xlabel="layer", ylabel="cosine", ylim=(np.nanmin([0, *still.flat]), 1.03))
        title_part(part, title)
        columns = 5 if len(panels) == 1 else 3
        legend_below(part, axes, columns, title="moved with the image (dotted: standing still)")
        axes.set_xticks(range(0, len(moved), -(-len(moved) // most_ticks(axes))))

    return side_by_side(len(panels), draw)


def _measure(subject: Subject, batches: Sequence[Tensor]) -> Equivariance:
    size = min(subject.cut.size)
    larger = min(subject.feed.preprocess.size) / size  # the same share of the image for every model
    shifts = [max(1, round(k * larger)) for k in usual_shifts(subject.cut.patch[1], size)]
    return equivariance(subject.model, batches, shifts)


ASPECT = OfAnyModel(name="equivariance", measure=_measure, show=exhibit)
