"""Relevance: is what `vit predict --why` shows what a model's answers lean on?

For each image the map of its first class orders the cells; they are taken away and brought back in that order
(`faithfulness`). Beside it an order that is drawn, and how alike the maps of the first and the second class are.

Legend: B batch, C channels, H W pixels, h w cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcli.checkpoint.config import Outputs
from vitcli.errors import UsageError
from vitcli.inspection.aspect import OfAnyModel, Subject
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.inspection.explain import default_method, method_for
from vitcli.inspection.faithfulness import Curves, curves, joined, likeness
from vitcli.model.config import Size
from vitcli.report.figures import COLOURS, legend_below, side_by_side, title_part
from vitcli.text import safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Relevance:
    """How faithful the maps of a model's first answers are, on some images."""

    method: str
    curves: Curves  # by the maps
    drawn: Curves  # by an order that is drawn
    classes: Array  # (images,): rank correlation of the maps of the first and the second class; NaN: a map is even


def relevance(model: nn.Module, batches: Sequence[Tensor], grid: Size, outputs: Outputs = "classes") -> Relevance:
    """How faithful the default method's maps are of `model`, on images (B, C, H, W) cut into a `grid` (h, w)."""
    method = default_method(model)
    explained = method_for(model, method)
    measured: list[tuple[Curves, Curves, Array]] = []
    generator = torch.Generator().manual_seed(0)
    for x in batches:
        with torch.no_grad():
            logits = model(x)
        first, *second = logits.topk(min(2, logits.shape[1]), dim=1).indices.T
        maps, drawn = explained(model, x, first), torch.rand(len(x), *grid, generator=generator).to(x.device)
        alike = likeness(maps, explained(model, x, second[0])) if second else np.full(len(x), np.nan)
        of = partial(curves, model, x, first, grid=grid, outputs=outputs)
        measured.append((of(maps), of(drawn), alike))
    by_maps, by_chance, classes = zip(*measured, strict=True)
    return Relevance(method, joined(by_maps), joined(by_chance), np.concatenate(classes))


def exhibit(models: Mapping[str, Relevance]) -> Exhibit:
    """The relevance of `models` by their titles."""
    table = ModelTable(models, "order", "deletion", "insertion", "gain", "error")
    records = ModelTable(models, "order", "share", "deletion", "insertion")
    findings = []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(
            title, models, deletion=found.curves.deletion, insertion=found.curves.insertion, classes=found.classes
        )
        for order, line in ((found.method, found.curves), ("drawn", found.drawn)):
            deletion, insertion = line.areas
            error = line.gain.std(ddof=1) / len(line.gain) ** 0.5 if len(line.gain) > 1 else np.nan
            table.add(
                title, order, f"{deletion.mean():.3f}", f"{insertion.mean():.3f}", f"{line.gain.mean():+.3f}",
                f"{error:.3f}",
            )  # fmt: skip
            for i, share in enumerate(line.shares):
                records.add(title, order, share, line.deletion[:, i].mean(), line.insertion[:, i].mean())
        better = (found.curves.gain > found.drawn.gain).mean()
        said = f"{said_of(title, models)}on {better:.0%} of the images the map is a better order than a drawn one"
        if not np.isnan(found.classes).all():
            said += f"; rank correlation of the maps of first and second class {np.nanmean(found.classes):.2f}"
        findings.append(said)
    return Exhibit(
        name="relevance",
        title="Relevance",
        words="What becomes of the first answer's probability when the cells that its map (vit predict --why) names "
        "are taken away, the strongest first, and when they are brought back in that order: areas under both curves. "
        "Gain is insertion less deletion, error its standard error; an order that is drawn gains nothing.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: relevance_figure(list(models.items())),
    )


def relevance_figure(panels: Sequence[tuple[str, Relevance]]) -> "Figure":
    """Draw panels of (title, relevance): mean curves by the map, and by a drawn order."""

    def draw(i: int, part: Any) -> None:
        title, found = panels[i]
        axes = part.subplots()
        for line, style, order in ((found.curves, "-", found.method), (found.drawn, ":", "drawn order")):
            axes.plot(line.shares, line.deletion.mean(axis=0), style, color=COLOURS[1], label=f"away, {order}")
            axes.plot(line.shares, line.insertion.mean(axis=0), style, color=COLOURS[0], label=f"back, {order}")
        axes.set(xlabel="share of the cells, strongest first", ylabel="probability of the first answer", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        title_part(part, title)
        legend_below(part, axes, columns=2)

    return side_by_side(len(panels), draw)


def _lacking(subject: Subject) -> str | None:
    return subject.checkpoint.why_no_classes


def _measure(subject: Subject, batches: Sequence[Tensor]) -> Relevance:
    if why := _lacking(subject):
        raise UsageError(f"{safe(subject.title)}: --relevance: {why}")
    return relevance(subject.model, batches, subject.cut.grid, subject.checkpoint.outputs)


ASPECT = OfAnyModel(name="relevance", measure=_measure, show=exhibit, lacking=_lacking, of_data=True)
