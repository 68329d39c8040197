"""Pictures small enough for a terminal, (H, W, 3) uint8: a pixel is half a character."""

from collections.abc import Sequence

import numpy as np

from vitcli.cli.exhibits.exhibit import Array


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
