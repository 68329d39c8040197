"""`Exhibit`: one aspect of one or more models as something to show, and what those who make one share.

The terminal, the HTML page, the files and `--json` all show the same exhibits. Models are the keys of a mapping, so one
model and two side by side are one case.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitcli.report.page import Dot
from vitcli.text import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

MAX_INLINE = 10_000  # numbers of an array that a JSON document holds; larger ones are in the files of --out


@dataclass
class Table:
    """Rows below their columns' names."""

    columns: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)


class ModelTable(Table):
    """A table whose last column says which model a row is of, where there are several."""

    def __init__(self, models: Iterable[str], *columns: str) -> None:
        self.several = len(tuple(models)) > 1
        super().__init__([*columns, "model"] if self.several else [*columns])

    def add(self, title: str, *cells: Any) -> None:
        """Add a row of the model called `title`."""
        self.rows.append([*cells, title] if self.several else [*cells])


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One aspect of the models, ready to be shown."""

    name: str  # of its files and in JSON
    title: str
    words: str  # what is measured, in a few sentences
    table: Table  # of text, for the eye: the first column names, the others hold numbers
    findings: Sequence[str] = ()  # sentences
    records: Table  # all the numbers
    arrays: Mapping[str, Array]
    draw: "Callable[[], Figure]"
    picture: Callable[[], Array] | None = None  # (H, W, 3) uint8, small enough for a terminal
    dots: Callable[[], Mapping[str, Sequence[Dot]]] | None = None  # for the page, by the models' titles

    def as_dict(self) -> dict[str, Any]:
        """All but the pictures as JSON can hold it; of the arrays those of at most `MAX_INLINE` numbers."""
        return {
            "findings": list(self.findings),
            "columns": self.records.columns,
            "rows": [[plain(cell) for cell in row] for row in self.records.rows],
            "arrays": {name: _nested(array) for name, array in self.arrays.items() if array.size <= MAX_INLINE},
        }


def plain(value: Any) -> Any:
    """A number as Python's own; None for NaN and infinities, which neither JSON nor a cell of CSV has."""
    return finite(value.item() if isinstance(value, np.generic) else value)


def _nested(array: Any) -> Any:
    return [_nested(part) for part in array] if getattr(array, "ndim", 0) else plain(array)


def arrays_of(title: str, models: Mapping[str, object], **arrays: Array) -> dict[str, Array]:
    """`arrays` by name, with the model's title in front where there are several."""
    return {f"{title}.{name}" if len(models) > 1 else name: array for name, array in arrays.items()}


def said_of(title: str, models: Mapping[str, object]) -> str:
    """How a sentence about the model called `title` begins: with its title where there are several."""
    return f"{title}: " if len(models) > 1 else ""


def heat(maps: Sequence[Array]) -> Array:
    """Maps (L, n) in 0 to 1, side by side, as colours: a layer a line, two pixels high; a head two pixels wide."""
    from matplotlib import colormaps

    parts = []
    for values in maps:
        colours = (colormaps["viridis"](values)[..., :3] * 255).round().astype(np.uint8)
        parts += [colours.repeat(2, axis=0).repeat(2, axis=1), np.zeros((2 * len(values), 2, 3), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)
