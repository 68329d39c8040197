"""File → what a model sees, in one call: decode, then preprocess. Every command reads images with it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess


def load(
    source: Path | bytes, preprocess: Preprocess, *, exact: bool = False, name: str | None = None
) -> npt.NDArray[np.float32]:
    """One image as float32 (C, H, W), normalised. Raises ImageError.

    `exact` gives timm's evaluation transform of the upright image bit for bit (timm itself leaves a photograph lying
    as the sensor lay; here EXIF turns it). Otherwise, unless the image is higher than wide, only the part that the crop
    keeps is resized: faster, and seldom 1 of 255 away (benchmarks/preprocess.py).
    """
    return preprocess(open_image(source, name=name), exact=exact)
