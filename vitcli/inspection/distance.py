"""Attention distance: how far, in pixels, each head looks (paper, figure 7 right and appendix D.7).

For a query patch: the Euclidean distance between patch positions, weighted by the attention weights; averaged over the
query patches, then over images. Two definitions, for the row and column of the prefix tokens (class token, registers)
are left out, and then weights no longer sum to 1:

    paper         they are taken as they are, as in the authors' code (google-research/vision_transformer, issue 162);
                  attention on the class token shortens the distance
    renormalised  each query's weights on patches are divided by their sum: how far the attention on patches goes

Legend: n heads, N tokens, h w patch grid, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitcli.inspection.aspect import OfBlocks
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, heat, said_of
from vitcli.inspection.observe import Instrument, PerHead, stacked
from vitcli.model.config import ViTConfig
from vitcli.report.figures import COLOURS, is_wide, layer_ticks, legend_below, side_by_side, title_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GLOBAL = 0.8  # share of even attention's distance from which on a head is called global


@dataclass(frozen=True)
class Distances:
    """Attention distances in pixels of the model's input."""

    paper: PerHead
    renormalised: PerHead
    uniform: float  # pixels, of a head that looks everywhere alike: what "global" means at this size


class AttentionDistance(Instrument):
    """Measures both definitions of the distance for every head and image."""

    watches_weights = True

    def __init__(self, config: ViTConfig) -> None:
        self.prefix, self.between = config.num_prefix_tokens, patch_distances(config)
        tokens = config.num_tokens
        # For each query two columns: distance to each key, and 1 for each key that is a patch.
        self._columns = torch.zeros(tokens, tokens, 2)
        self._columns[self.prefix :, self.prefix :, 0] = self.between
        self._columns[self.prefix :, self.prefix :, 1] = 1
        self._paper: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._renormalised: list[list[Tensor]] = [[] for _ in range(config.depth)]

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        sums = torch.bmm(weights.transpose(0, 1), self._columns.to(weights))[self.prefix :]  # (h·w, n, 2)
        distance, mass = sums.unbind(-1)
        self._paper[layer].append(distance.mean(dim=0))
        share = distance / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        self._renormalised[layer].append(share.mean(dim=0))

    def result(self) -> Distances:
        """The distances measured so far, over at least one image."""
        paper, renormalised = (PerHead(stacked(part).double().numpy()) for part in (self._paper, self._renormalised))
        return Distances(paper, renormalised, float(self.between.mean()))


def patch_distances(config: ViTConfig) -> Tensor:
    """Pixels between the positions of every two patches, (h·w, h·w), row by row."""
    (h, w), stride = config.grid, config.stride
    rows, columns = torch.meshgrid(torch.arange(h) * stride[0], torch.arange(w) * stride[1], indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def exhibit(models: Mapping[str, Distances]) -> Exhibit:
    """The distances of `models` by their titles, with the paper's two findings looked for."""
    table = ModelTable(models, "layer", "nearest", "mean", "", "farthest", "renormalised")
    records = ModelTable(models, "layer", "head", "paper", "paper_error", "renormalised", "renormalised_error")
    findings, panels = [], []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, paper=found.paper.values, renormalised=found.renormalised.values)
        mean, error = found.paper.mean, found.paper.error
        even = found.renormalised.mean
        for layer in range(len(mean)):
            of_layer = found.paper.values[:, layer].mean(axis=1)
            spread = f"± {of_layer.std(ddof=1) / len(of_layer) ** 0.5:.2f}" if len(of_layer) > 1 else "-"
            table.add(
                title, str(layer + 1), f"{mean[layer].min():.1f}", f"{mean[layer].mean():.1f}", spread,
                f"{mean[layer].max():.1f}", f"{even[layer].mean():.1f}",
            )  # fmt: skip
            for head in range(mean.shape[1]):
                records.add(
                    title, layer + 1, head + 1, mean[layer, head], error[layer, head],
                    even[layer, head], found.renormalised.error[layer, head],
                )  # fmt: skip
        panels.append((title, mean, error, found.uniform))
        findings += [said_of(title, models) + line for line in _reading(mean, even, found.uniform)]
    first = next(iter(models.values()))
    return Exhibit(
        name="attention-distance",
        title="Attention distance",
        words="Pixels between a patch and the patches that it attends to, weighted by attention; mean of "
        f"{len(first.paper.values)} images, ± one standard error. Nearest, mean and farthest head: attention on the "
        "class token and registers counts as no distance (the paper's code); renormalised: only attention on patches "
        f"counts. Even attention over the image would give {first.uniform:.1f} pixels.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: distance_figure(panels),
        picture=lambda: heat([np.sort(mean, axis=1) / max(mean.max(), 1e-12) for _, mean, _, _ in panels]),
    )


def _reading(mean: Array, renormalised: Array, uniform: float) -> list[str]:
    """The paper's two findings, looked for: global heads in the lowest layer, and growth with depth."""
    wide = renormalised >= GLOBAL * uniform
    heads = renormalised.shape[1]
    lines = [
        f"layer 1: {int(wide[0].sum())} of {heads} heads look at the whole image (renormalised distance at least "
        f"{GLOBAL:.0%} of even attention's); last layer: {int(wide[-1].sum())} of {heads}"
    ]
    for column, values in (("mean", mean.mean(axis=1)), ("renormalised", renormalised.mean(axis=1))):
        if len(values) > 2 and values.std() > 0:
            r = np.corrcoef(np.arange(len(values)), values)[0, 1]
            lines.append(
                f"{column}: from layer 1 to {len(values)} it goes from {values[0]:.1f} to {values[-1]:.1f} pixels "
                f"(correlation with depth {r:+.2f})"
            )
    return lines


def distance_figure(panels: Sequence[tuple[str, Array, Array, float]]) -> "Figure":
    """Draw panels of (title, mean (L, n), standard error (L, n), even attention's distance), all in pixels.

    One dot a head over the layer, as figure 7 (right) of the paper.
    """
    return side_by_side(len(panels), lambda i, part: draw_distance(part, *panels[i]))


def draw_distance(part: Any, title: str, mean: Array, error: Array, uniform: float) -> None:
    """One panel of `distance_figure` in one part of a figure."""
    axes = part.subplots()
    layers = np.arange(1, len(mean) + 1)
    across = np.broadcast_to(layers[:, None], mean.shape)
    errors = None if np.isnan(error).any() else 1.96 * error.ravel()
    axes.errorbar(
        across.ravel(),
        mean.ravel(),
        errors,
        fmt="o",
        markersize=3,
        elinewidth=0.6,
        color=COLOURS[0],
        label="a head" if errors is None else "a head, 95 % interval over images",
    )
    axes.plot(layers, mean.mean(axis=1), color=COLOURS[1], label="mean of the layer")
    axes.axhline(uniform, color="#666666", linestyle="--", linewidth=0.8, label="even attention")
    axes.set(xlabel="layer", ylabel="attention distance, pixels", ylim=(0, None))
    title_part(part, title)
    legend_below(part, axes, columns=3 if is_wide(part) else 1)
    layer_ticks(axes, len(mean))


ASPECT = OfBlocks(name="attention-distance", watch=lambda subject: AttentionDistance(subject.config), show=exhibit)
