"""File → what a model sees, in one call: decode, then preprocess. Every command reads images with it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitcli.images.decode import MAX_PIXELS, decode
from vitcli.images.preprocess import Preprocess


def load(
    source: Path | bytes,
    preprocess: Preprocess,
    *,
    exact: bool = False,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.float32]:
    """One image as float32 (C, H, W), normalised. Raises ImageError.

    `exact` gives timm's evaluation transform bit for bit. Otherwise large JPEGs are decoded at a reduced scale, several
    times faster and at most 0.25 of 255 away on average (benchmarks/preprocess.py).
    """
    decoded = decode(source, name=name, fast_for=None if exact else preprocess, max_pixels=max_pixels)
    return preprocess(decoded.image, exact=exact, extent=decoded.extent)
