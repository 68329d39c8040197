"""A number for each head of each layer, measured on many images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class PerHead:
    """`values` (images, L, n): L layers, n heads."""

    values: Array

    @property
    def mean(self) -> Array:
        """(L, n), over the images."""
        return self.values.mean(axis=0)  # type: ignore[no-any-return]

    @property
    def error(self) -> Array:
        """Standard error of the mean over the images, (L, n); NaN for a single image."""
        images = len(self.values)
        if images < 2:
            return np.full(self.values.shape[1:], np.nan)
        return self.values.std(axis=0, ddof=1) / images**0.5  # type: ignore[no-any-return]
