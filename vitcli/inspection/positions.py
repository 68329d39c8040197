"""Position similarity: what the model has learnt of the plane (paper, figure 7 centre).

The position embedding is a list; that near patches have similar rows, and that rows and columns show, is learnt. A
model that turns queries and keys instead has no such list. What the turning implies is shown then: how much of the
product of a query and an equal key is left when each is turned by its patch's place.

Legend: h w patch grid, D width, n heads, d width of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitcli.errors import CheckpointError
from vitcli.inspection.aspect import OfParameters, Subject
from vitcli.inspection.exhibit import Array, Exhibit, Table, arrays_of, said_of
from vitcli.model.config import Size
from vitcli.model.places import angles, learnt_angles
from vitcli.model.resample import cosines, measure_positions
from vitcli.model.vit import VisionTransformer
from vitcli.report.figures import similarity_figure

LACKING = "the model has no learnt position embedding"
NAMES = {
    "neighbours": "patches side by side",
    "same_row": "same row, two or more apart",
    "same_column": "same column, two or more apart",
    "elsewhere": "two or more apart both ways",
    "far": "half the image apart",
    "with_distance": "correlation with distance",
}


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
    turned: bool = False  # there is no position embedding: these are what is left of turned queries and keys


def positions(model: VisionTransformer) -> Similarity:
    """The similarities of `model`'s position embedding, or those that its turning implies.

    Raises CheckpointError when it has neither.
    """
    config = model.config
    if model.pos_embed is not None:
        patches = model.pos_embed.detach()[0, config.num_pos_tokens - config.num_patches :]
    elif model.rope is not None:
        patches = _turned(model)
    else:
        raise CheckpointError(LACKING)
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
        turned=model.pos_embed is None,
    )


def _turned(model: VisionTransformer) -> Tensor:
    """Pointers (h·w, P) whose cosine is the mean over all pairs, heads and layers of cos(angle − other angle)."""
    config, frequencies = model.config, None if model.rope is None else model.rope.freqs
    if frequencies is None:
        turned = angles(config)
    else:
        layers = [
            learnt_angles(config, layer.numpy()) for layer in frequencies.detach().cpu().unbind(1)
        ]  # (n, h·w, d/2) each
        turned = np.concatenate(layers).transpose(1, 0, 2).reshape(config.num_patches, -1)
    return torch.from_numpy(np.concatenate([np.cos(turned), np.sin(turned)], axis=1))


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None


def exhibit(models: Mapping[str, Similarity]) -> Exhibit:
    """The position similarity of `models` by their titles."""
    values = {name: [getattr(found, name) for found in models.values()] for name in NAMES}
    findings = []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, cosines=found.cosines)
        if found.neighbours is not None and found.far is not None:
            more = "more similar" if found.neighbours > found.far else "not more similar"
            what = "as it turns queries and keys, near patches" if found.turned else "near patches"
            findings.append(
                f"{said_of(title, models)}{what} are {more} than far ones: {found.neighbours:.2f} beside, "
                f"{found.far:.2f} half the image away"
            )
        if found.turned:
            findings.append(
                f"{said_of(title, models)}there is no position embedding: nothing of this was learnt as one"
            )
    first = next(iter(models.values()))
    return Exhibit(
        name="position-similarity",
        title="Position similarity",
        words="Cosine similarity of the patches' position embeddings: a tile a patch, in it its similarity with every "
        "other. Of a model that turns queries and keys: the share of their product that is left, if they are equal.",
        table=Table(
            ["mean cosine of", *(models if len(models) > 1 else [""])],
            [[NAMES[name], *("-" if v is None else f"{v:.3f}" for v in line)] for name, line in values.items()],
        ),
        findings=findings,
        records=Table(["what", *models], [[name, *line] for name, line in values.items()]),
        arrays=arrays,
        draw=lambda: similarity_figure([(found.cosines, found.grid) for found in models.values()], list(models)),
        picture=lambda: _small(first.cosines, first.grid),
    )


def _small(similarities: Array, grid: Size) -> Array:
    """Cosines (h·w, h·w) as colours, (H, W, 3): about seven tiles a row, black between them."""
    from matplotlib import colormaps

    h, w = grid
    tiles = similarities.reshape(h, w, h, w)[:: -(-h // 7), :: -(-w // 7)]
    sheet = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan).transpose(0, 2, 1, 3)
    flat = sheet.reshape(sheet.shape[0] * sheet.shape[1], -1)[:-1, :-1]
    colours = colormaps["viridis"]((np.nan_to_num(flat, nan=-1) + 1) / 2)[..., :3]
    colours[np.isnan(flat)] = 0
    return (colours * 255).round().astype(np.uint8)  # type: ignore[no-any-return]


def _lacking(subject: Subject) -> str | None:
    return None if subject.config.num_pos_tokens or subject.config.rope else LACKING


ASPECT = OfParameters(name="posemb", measure=positions, lacking=_lacking, show=exhibit)
