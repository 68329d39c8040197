"""A limit on wall-clock time: the schedule follows the clock as well as the steps, and the run ends in time.

A run with a budget is not reproducible bit by bit: how many steps it makes depends on the machine.
"""

import time

from vitcli.errors import UsageError
from vitcli.text import safe


class Clock:
    """How much of `budget` seconds is used, counted from `began` (time.monotonic), with `before` used by earlier parts.

    `tail` seconds are set aside for what follows the last step.
    """

    def __init__(self, budget: float | None, began: float | None = None, before: float = 0.0) -> None:
        self.budget, self.before, self.tail = budget, before, 0.0
        self.began = time.monotonic() if began is None else began

    @property
    def used(self) -> float:
        """Seconds since the beginning, with those of earlier parts."""
        return self.before + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """The used share of the time for steps; 0 without a budget, 1 and more when it is over."""
        if self.budget is None:
            return 0.0
        return self.used / max(self.budget - self.tail, 1e-3)


def seconds(text: str) -> float:
    """`90`, `90s`, `20m`, `1.5h` → seconds. Raises UsageError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"'{safe(text)}' is no time span: write 90s, 20m or 1.5h")
    return value
