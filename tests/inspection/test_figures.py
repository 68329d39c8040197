"""The figures of `vit inspect`: whatever they are given, nothing is cut or lies on something else."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vitcli.inspection.distance import distance_figure
from vitcli.inspection.equivariance import equivariance_figure
from vitcli.inspection.filters import filters_figure
from vitcli.inspection.folder import figure_7
from vitcli.inspection.heads import heads_figure
from vitcli.inspection.lens import lens_figure
from vitcli.inspection.locality import fields_figure
from vitcli.inspection.maps import maps_figure
from vitcli.inspection.tokens import norms_figure
from vitcli.report.figures import similarity_figure

LONG = "vit_large_patch14_reg4_dinov2.lvd142m_finetuned_on_photographs_of_birds_and_of_everything_else"


def inspection_figures(layers: int, names: list[str]) -> dict[str, Any]:
    """Every figure of `vit inspect`, of made-up numbers that fill the axes from corner to corner."""
    rng = np.random.default_rng(0)
    means = rng.uniform(0, 90, (layers, 6))
    error, pictures, cosines = np.ones_like(means), rng.uniform(0, 1, (28, 4, 4, 3)), np.eye(16)
    norms, prefix, shares = rng.uniform(1, 50, (2, layers, 4, 4)), rng.uniform(1, 50, (2, layers, 5)), np.zeros((4, 4))
    spotted = np.where(np.eye(4) > 0, 0.4, 0.0)
    moves = rng.uniform(-1, 1, (2, layers + 1, 5))
    stations = ["patches", *(f"block {i + 1}" for i in range(layers))]
    tile = np.zeros((8, 8, 3), np.uint8)
    titles = ["input", *(part for name in names for part in (f"{name}\nrollout", "weights"))]
    distance, similarity = ("attention distance", means, error, 80.0), (cosines, (4, 4))
    return {
        "distance": distance_figure([(name, means, error, 80.0) for name in names]),
        "filters": filters_figure([(name, pictures) for name in names]),
        "figure 7": figure_7(("filters", pictures), similarity, distance),
        "heads": heads_figure([(name, means / 90, means / 90) for name in names]),
        "norms": norms_figure([(name, norms, prefix, shares) for name in names]),
        "artefacts": norms_figure([(name, norms, prefix, spotted) for name in names]),
        "lens": lens_figure([(name, means[:, 0] / 90, means[:, 1] / 90) for name in names]),
        "equivariance": equivariance_figure([(name, *moves, (1, 8, 16, 32, 48)) for name in names]),
        "fields": fields_figure([(name, np.ones((layers + 1, 8, 8)), stations) for name in names]),
        "maps": maps_figure([(f"layer {layers} and {layers}", [tile] * len(titles))] * 2, titles),
        "similarity": similarity_figure([similarity] * len(names), names),
    }


@pytest.mark.parametrize(("layers", "names"), [(12, ["a"]), (2, [LONG]), (24, ["a", "b"]), (12, [LONG, f"{LONG}2"])])
def test_nothing_in_a_figure_is_cut_or_lies_on_something(layers: int, names: list[str]) -> None:
    """Every text is inside the figure, titles and legends lie beside each other and on no axes."""
    for kind, drawing in inspection_figures(layers, names).items():
        FigureCanvasAgg(drawing).draw()  # lays out
        parts = [drawing, *drawing.subfigs]
        axes = {one: one.get_window_extent() for part in parts for one in part.axes}
        texts = [t for t in drawing.findobj(Text) if t.get_visible() and t.get_text().strip()]
        titles = [t for part in parts for t in part.texts] + [one.title for one in axes if one.title.get_text()]
        edge = drawing.bbox
        for text in texts:
            box = text.get_window_extent()
            inside = edge.x0 - 1 <= box.x0 and box.x1 <= edge.x1 + 1 and edge.y0 - 1 <= box.y0 and box.y1 <= edge.y1 + 1
            assert inside or text.axes is None or not box.overlaps(edge), (kind, text.get_text(), box)
        for one, other in combinations([t.get_window_extent() for t in titles], 2):
            assert not one.overlaps(other), kind
        legends = [legend.get_window_extent() for part in parts for legend in part.legends]
        assert not [kind for legend in legends for box in axes.values() if legend.overlaps(box)], kind
        assert not [one for one in axes if one.get_legend()], kind
        for one in axes:
            shown = [t.get_window_extent() for t in one.get_xticklabels() if t.get_text()]
            assert not [kind for a, b in pairwise(shown) if a.overlaps(b)], kind


def test_no_artefacts_are_no_bar_of_one_colour() -> None:
    without, with_some = (inspection_figures(12, ["a"])[kind] for kind in ("norms", "artefacts"))
    assert [sum(len(part.axes) for part in one.subfigs) for one in (without, with_some)] == [2, 3]
    assert "none" in [text.get_text() for text in without.findobj(Text)]
