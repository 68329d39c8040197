"""What is said of places inside the attention, as numbers: angles that turn queries and keys, and relative places.

A head's query and key of width d are d/2 pairs of numbers, and each pair is turned like a pointer by an angle that the
patch's place gives. The product of a turned query and a turned key then knows how far apart their patches lie, and no
position embedding is needed (RoFormer, arXiv 2104.09864). Arithmetic and rounding are timm's. Imports no torch.

Legend: h w patch grid, N tokens (prefix and patches), d width of a head, n heads.
"""

from typing import Any

import numpy as np

from vitcli.model.config import RopeConfig, Size, ViTConfig

Array = np.ndarray[Any, np.dtype[np.float32]]


def angles(config: ViTConfig) -> Array:
    """Angles (h·w, d/2) in radians of every pair of every patch; not for learnt frequencies."""
    rope, quarter = config.rope, config.head_dim // 4
    assert rope is not None
    steps = np.arange(quarter, dtype=np.float32)
    if rope.kind == "dinov3":
        periods = np.float32(rope.temperature) ** (np.float32(2) * steps / np.float32(config.head_dim // 2))
        turned = np.float32(2 * np.pi) * coordinates(rope, config.grid)[:, :, None] / periods
    else:
        frequencies = np.float32(1) / np.float32(rope.temperature) ** (steps / np.float32(quarter))
        turned = coordinates(rope, config.grid)[:, :, None] * frequencies
    return turned.reshape(config.num_patches, -1).astype(np.float32)


def learnt_angles(config: ViTConfig, frequencies: Array) -> Array:
    """Angles (n, h·w, d/2) of the heads of a block whose learnt `frequencies` are (2, n, d/2)."""
    assert config.rope is not None
    first, second = coordinates(config.rope, config.grid).T[:, None, :, None]  # (1, h·w, 1) each
    return first * frequencies[0][:, None] + second * frequencies[1][:, None]


def coordinates(rope: RopeConfig, grid: Size) -> Array:
    """Where each patch lies, (h·w, 2): rows and columns, in the order of the angles."""
    axes = []
    for axis, size in enumerate(grid):
        if rope.kind == "dinov3":
            places = (np.arange(size, dtype=np.float32) + np.float32(0.5 + rope.offset)) / np.float32(size)
            places = np.float32(2) * places - np.float32(1)
        else:
            places = np.arange(size, dtype=np.float32) + np.float32(rope.offset)
        if rope.reference:
            places = places / np.float32(size) * np.float32(rope.reference[axis])
        axes.append(places)
    rows, columns = np.meshgrid(*axes, indexing="ij")
    pair = (columns, rows) if rope.columns_first else (rows, columns)
    return np.stack([one.ravel() for one in pair], axis=1).astype(np.float32)


def tables(config: ViTConfig, turned: Array) -> tuple[Array, Array]:
    """Cosines and sines (…, N, d/2) of the angles `turned` (…, h·w, d/2) for every token.

    Tokens in front of the patches are turned by nothing.
    """
    turned = np.pad(turned, [(0, 0)] * (turned.ndim - 2) + [(config.num_prefix_tokens, 0), (0, 0)])
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def relative_places(grid: Size) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """For each query and key, of class token and patches, the row of BEiT's table with their addend: (N, N).

    A row for each distance in rows and columns, then one each for the class token's query, its key, and both.
    """
    h, w = grid
    rows, columns = np.divmod(np.arange(h * w), w)
    down = rows[:, None] - rows + h - 1
    right = columns[:, None] - columns + w - 1
    distances = (2 * h - 1) * (2 * w - 1)
    places = np.empty((h * w + 1, h * w + 1), np.int64)
    places[1:, 1:] = down * (2 * w - 1) + right
    places[0], places[:, 0], places[0, 0] = distances, distances + 1, distances + 2
    return places
