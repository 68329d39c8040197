"""`Exhibit`, and what those who make one share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from vitcli.inspection.look import Seen

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
