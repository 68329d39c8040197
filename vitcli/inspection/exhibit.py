"""`Exhibit`, and what those who make one share.

MERGED: Pictures small enough for a terminal, (H, W, 3) uint8: a pixel is half a character.
The paper's figure 7 in one picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from vitcli.inspection.look import Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitcli.report import inspection as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Array = npt.NDArray[Any]
Models = Mapping[str, Seen]  # what was seen of each model, by its title


@dataclass(frozen=True)
class Exhibit:
    """One aspect of the models. `records` are all the numbers as a table; `picture` is small, for a terminal."""

    name: str
    title: str
    words: str
    columns: list[str]  # the first is text, the others are numbers
    rows: list[list[str]]
    findings: list[str]
    records: tuple[list[str], list[list[Any]]]
    arrays: dict[str, Array]
    draw: "Callable[[], Figure]"
    picture: Callable[[], Array] | None = None  # (H, W, 3) uint8


@dataclass
class Table:
    """Rows that say which model they are of, where there are several."""

    models: Mapping[str, object]
    rows: list[list[Any]] = field(default_factory=list)

    def columns(self, *names: str) -> list[str]:
        return [*names, "model"] if len(self.models) > 1 else list(names)

    def add(self, title: str, *cells: Any) -> None:
        self.rows.append([*cells, title] if len(self.models) > 1 else list(cells))


def arrays_of(title: str, models: Mapping[str, object], **arrays: Array) -> dict[str, Array]:
    """`arrays` by name, with the model's title in front where there are several."""
    return {f"{title}.{name}" if len(models) > 1 else name: array for name, array in arrays.items()}


def said_of(title: str, models: Mapping[str, object]) -> str:
    return f"{title}: " if len(models) > 1 else ""


def heat(maps: Sequence[Array]) -> Array:
    """Maps (L, n) in 0 to 1, side by side, as colours: a layer a line, two pixels high; a head two pixels wide."""
    from matplotlib import colormaps

    parts = []
    for values in maps:
        colours = (colormaps["viridis"](values)[..., :3] * 255).round().astype(np.uint8)
        parts += [colours.repeat(2, axis=0).repeat(2, axis=1), np.zeros((2 * len(values), 2, 3), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def tiles(pictures: Array) -> Array:
    """Pictures (k, P, Q, 3) in 0 to 1 → one picture, seven a row."""
    k, p, q, _ = pictures.shape
    rows = -(-k // 7)
    sheet = np.zeros((rows * (p + 1) - 1, 7 * (q + 1) - 1, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // 7 * (p + 1), i % 7 * (q + 1)
        sheet[top : top + p, left : left + q] = (picture * 255).round()
    return sheet


def similarity(cosines: Array, grid: tuple[int, int]) -> Array:
    from matplotlib import colormaps

    h, w = grid
    tiles = cosines.reshape(h, w, h, w)[:: -(-h // 7), :: -(-w // 7)]
    sheet = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan).transpose(0, 2, 1, 3)
    flat = sheet.reshape(sheet.shape[0] * sheet.shape[1], -1)[:-1, :-1]
    colours = colormaps["viridis"]((np.nan_to_num(flat, nan=-1) + 1) / 2)[..., :3]
    colours[np.isnan(flat)] = 0
    return (colours * 255).round().astype(np.uint8)  # type: ignore[no-any-return]


def figure_7(seen: Seen) -> "Figure":
    """For one model whose filters and distances were looked at; without position embeddings, the other two."""
    assert seen.filters
    assert seen.distance
    similarity = (seen.positions.cosines, seen.positions.grid) if seen.positions else None
    paper = seen.distance.paper
    name = "the CNN's first filters" if seen.filters.of_cnn else "embedding filters"
    distance = ("attention distance", paper.mean, paper.error, seen.distance.uniform)
    return figures.figure_7((name, seen.filters.pictures()), similarity, distance)
