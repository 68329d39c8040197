"""The paper's figure 7 in one picture."""

from typing import TYPE_CHECKING

from vitcli.inspection.look import Seen
from vitcli.report import inspection as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_7(seen: Seen) -> "Figure":
    """For one model whose filters and distances were looked at; without position embeddings, the other two."""
    assert seen.filters
    assert seen.distance
    similarity = (seen.positions.cosines, seen.positions.grid) if seen.positions else None
    paper = seen.distance.paper
    name = "the CNN's first filters" if seen.filters.of_cnn else "embedding filters"
    distance = ("attention distance", paper.mean, paper.error, seen.distance.uniform)
    return figures.figure_7((name, seen.filters.pictures()), similarity, distance)
