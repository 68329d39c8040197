"""Which of many images show the same picture: resized, recompressed, a little brighter. Knows thumbnails only.

A picture is a 16×16 gray thumbnail without its mean and scale, so brightness and contrast do not count. Two are the
same when their correlation is at least 0.995, which pictures of two things of one kind seldom reach. Candidates come
from signs of fixed random projections, so that no picture is compared with all others.

Legend: N images, F = 256 values of a thumbnail.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 16
ALIKE = 0.995  # correlation
FLAT = 4.0  # standard deviation in gray levels below which a picture shows nothing to compare
TABLES, BITS = 8, 24  # a pair of correlation 0.995 agrees in all 24 bits of one of 8 tables in 99.9 % of all cases
LARGEST = 2000  # pictures with the same bits: more are not compared pairwise

Thumbnails = npt.NDArray[np.float32]


def thumbnail(image: Image.Image) -> npt.NDArray[np.float32] | None:
    """RGB image → its unit vector (F,); None for one that is nearly flat."""
    gray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    if gray.std() < FLAT:
        return None
    centred = gray - gray.mean()
    return (centred / np.linalg.norm(centred)).astype(np.float32)  # type: ignore[no-any-return]


def pairs(vectors: Thumbnails) -> Iterator[tuple[int, int]]:
    """Pairs i < j of the same picture among `vectors` (N, F), each once."""
    found: set[tuple[int, int]] = set()
    projections = np.random.default_rng(0).normal(size=(vectors.shape[1], TABLES * BITS)).astype(np.float32)
    weights = (1 << np.arange(BITS)).astype(np.int64)
    for table in range(TABLES):
        bits = vectors @ projections[:, table * BITS : (table + 1) * BITS] > 0  # (N, BITS)
        keys = bits @ weights
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for members in np.split(order, edges):
            if 1 < len(members) <= LARGEST:
                group = vectors[members]
                rows, columns = np.nonzero(np.triu(group @ group.T >= ALIKE, k=1))
                found.update(
                    (int(min(a, b)), int(max(a, b))) for a, b in zip(members[rows], members[columns], strict=True)
                )
    yield from sorted(found)
