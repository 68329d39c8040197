"""Filters: the principal components of the patch embedding, as pictures (paper, figure 7 left).

The D filters of the patch projection E are points in the space of patches (C·P·P); their principal components are the
directions in which they differ most. In a hybrid the CNN's first filters stand in for E, which sees no pixels there.

Legend: C channels, P Q height and width of a patch, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vitcli.inspection.aspect import OfParameters
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.model.vit import VisionTransformer
from vitcli.report.figures import fitted, mosaic, side_by_side, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPONENTS = 28  # as many as the paper shows


@dataclass(frozen=True)
class Filters:
    """Principal components of the filters that see pixels, strongest first."""

    components: Array  # (≤ 28, C, P, Q), unit length; the entry that is largest in size is positive
    explained: Array  # share of the variance that each of *all* components explains, falling
    of_cnn: bool  # the CNN's first filters instead of the patch embedding

    def pictures(self) -> Array:
        """RGB in 0 to 1, (≤ 28, P, Q, 3): 0 is middle gray, each component scaled to its largest entry."""
        size = abs(self.components).max(axis=(1, 2, 3), keepdims=True)
        shades = (0.5 + self.components / (2 * size.clip(1e-12))).transpose(0, 2, 3, 1)
        return shades if shades.shape[-1] == 3 else np.repeat(shades.mean(axis=-1, keepdims=True), 3, axis=-1)


def filters(model: VisionTransformer) -> Filters:
    """The components of `model`'s filters, strongest first."""
    stem = next((module for module in model.patch_embed.backbone.modules() if isinstance(module, nn.Conv2d)), None)
    weight = (stem or model.patch_embed.proj).weight.detach().double()  # (D, C, P, Q)
    points = weight.flatten(1)
    _, lengths, directions = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    components = (directions * signs)[:COMPONENTS].unflatten(1, weight.shape[1:])
    variance = lengths**2
    return Filters(components.numpy(), (variance / variance.sum().clamp(min=1e-300)).numpy(), stem is not None)


def exhibit(models: Mapping[str, Filters]) -> Exhibit:
    """The filters of `models` by their titles."""
    table = ModelTable(models, "component", "variance", "up to here")
    records = ModelTable(models, "component", "explained", "cumulative")
    findings, panels = [], []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, components=found.components, explained=found.explained)
        sums = np.cumsum(found.explained)
        for i in [*range(min(5, len(sums))), *(n - 1 for n in (10, 28) if 5 < n <= len(sums))]:
            table.add(title, str(i + 1), f"{found.explained[i]:.1%}", f"{sums[i]:.1%}")
        for i, share in enumerate(found.explained):
            records.add(title, i + 1, share, sums[i])
        what = "the CNN's first filters" if found.of_cnn else "the patch embedding"
        p, q = found.components.shape[2:]
        most = int(np.searchsorted(sums, 0.9)) + 1
        findings.append(f"{said_of(title, models)}{what}, {p}×{q} pixels: {most} components hold 90 % of the variance")
        panels.append((title, found.pictures()))
    return Exhibit(
        name="filters",
        title="Filters",
        words="Principal components of the filters that see pixels, strongest first; middle gray is zero, each scaled "
        "to its largest entry.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: filters_figure(panels),
        picture=lambda: _small(panels[0][1]),
    )


def _small(pictures: Array) -> Array:
    """Pictures (k, P, Q, 3) in 0 to 1 → one picture, seven a row."""
    k, p, q, _ = pictures.shape
    rows = -(-k // 7)
    sheet = np.zeros((rows * (p + 1) - 1, 7 * (q + 1) - 1, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // 7 * (p + 1), i % 7 * (q + 1)
        sheet[top : top + p, left : left + q] = (picture * 255).round()
    return sheet


def filters_figure(panels: Sequence[tuple[str, Array]]) -> "Figure":
    """Draw panels of (title, pictures (k, P, Q, 3) in 0 to 1), in rows of seven."""
    return side_by_side(len(panels), lambda i, part: draw_filters(part, *panels[i]))


def draw_filters(part: Any, title: str, pictures: Array) -> None:
    """One panel of `filters_figure` in one part of a figure."""
    rows = -(-len(pictures) // 7)
    tiles = np.ones((rows * 7, *pictures.shape[1:]))
    tiles[: len(pictures)] = pictures
    sheet = mosaic(tiles.reshape(rows, 7, *pictures.shape[1:]))
    axes = part.subplots()
    axes.imshow(np.nan_to_num(sheet, nan=1.0), interpolation="nearest")  # white between them
    axes.set_axis_off()
    axes.set_title(fitted(title, width_of(part)))


ASPECT = OfParameters(name="filters", measure=filters, show=exhibit)
