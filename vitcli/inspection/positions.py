"""Position similarity: what the model has learnt of the plane (paper, figure 7 centre).

The position embedding is a list; that near patches have similar rows, and that rows and columns show, is learnt.

Legend: h w patch grid, D width.
"""

from dataclasses import dataclass

import numpy as np

from vitcli.errors import CheckpointError
from vitcli.inspection.measurement import Array
from vitcli.model.config import Size
from vitcli.model.resample import cosines, measure_positions
from vitcli.model.vit import VisionTransformer


@dataclass(frozen=True)
class Similarity:
    """Cosine similarities of the patches' position embeddings. None where the grid has no such pair."""

    cosines: Array  # (h·w, h·w)
    grid: Size
    neighbours: float | None  # mean over patches side by side or one above the other
    far: float | None  # mean over patches half the grid apart in one direction
    same_row: float | None  # mean over pairs at least two apart in the same row
    same_column: float | None
    elsewhere: float | None  # mean over pairs at least two apart in both directions
    with_distance: float | None  # correlation of similarity and Euclidean distance on the grid, −1 to 1


def positions(model: VisionTransformer) -> Similarity:
    """Raises CheckpointError when `model` has no position embedding."""
    if model.pos_embed is None:
        raise CheckpointError("the model has no learnt position embedding")
    config = model.config
    patches = model.pos_embed.detach()[0, config.num_pos_tokens - config.num_patches :]
    tiles = cosines(patches).numpy()
    known = measure_positions(patches, config.grid)
    rows, columns = np.divmod(np.arange(config.num_patches), config.grid[1])
    down, right = abs(rows[:, None] - rows), abs(columns[:, None] - columns)
    apart = np.hypot(down, right)
    other = apart > 0
    return Similarity(
        tiles,
        config.grid,
        known.neighbours,
        known.far,
        _mean(tiles[(down == 0) & (right >= 2)]),
        _mean(tiles[(right == 0) & (down >= 2)]),
        _mean(tiles[(down >= 2) & (right >= 2)]),
        float(np.corrcoef(tiles[other], apart[other])[0, 1]) if len(np.unique(apart[other])) > 1 else None,
    )


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None
