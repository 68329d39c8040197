"""Exhibits of single images: rollout, attention head by head."""

from typing import TYPE_CHECKING

import numpy as np

from vitcli.cli.exhibits.exhibit import Array, Exhibit, Models, Table, arrays_of
from vitcli.inspection.maps import MASS
from vitcli.report import inspection as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS_DRAWN = 6  # attention maps beside an image
IMAGES_DRAWN = 6


def rollout(models: Models) -> Exhibit:
    table, records = Table(models), Table(models)
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.maps
        assert found
        arrays |= arrays_of(title, models, rollout=found.rollout)
        for picture, weights in zip(seen.mapped, found.rollout, strict=True):
            row, column = np.unravel_index(weights.argmax(), weights.shape)
            table.add(
                title, picture.name, f"{row + 1}, {column + 1}", f"{weights.max() / weights.mean():.2f}",
                f"{_holding(weights):.0%}",
            )  # fmt: skip
            for r, c in np.ndindex(*weights.shape):
                records.add(title, picture.name, r + 1, c + 1, weights[r, c])

    def draw() -> "Figure":
        rows = []
        for i in range(min(IMAGES_DRAWN, len(next(iter(models.values())).mapped))):
            line: list[Array] = []
            for seen in models.values():
                assert seen.maps
                pixels = seen.pixels(i)
                line += [] if line else [pixels]
                line += [figures.lit(pixels, seen.maps.rollout[i]),
                         figures.coloured(seen.maps.rollout[i], pixels.shape[:2])]  # fmt: skip
            rows.append(line)
        titles = ["input", *(name for title in models for name in (_short(title, models, "rollout"), "weights"))]
        return figures.maps_figure(rows, titles)

    def small() -> Array:
        first = next(iter(models.values()))
        assert first.maps
        pixels = first.pixels(0)
        return np.concatenate([pixels, figures.lit(pixels, first.maps.rollout[0])], axis=1)

    return Exhibit(
        "rollout",
        "Attention rollout",
        "How much of each patch reaches what the head reads, through all layers (heads averaged, identity added, rows "
        "normalised, layers multiplied): the strongest patch, its weight over the mean, and the share of patches that "
        f"holds {MASS:.0%}.",
        table.columns("image", "strongest patch", "over mean", f"hold {MASS:.0%}"),
        table.rows,
        [],
        (records.columns("image", "row", "column", "weight"), records.rows),
        arrays,
        draw,
        small,
    )


def attention(models: Models) -> Exhibit:
    table, records = Table(models), Table(models)
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.maps
        assert found
        masks = found.masks()
        arrays |= arrays_of(title, models, attention=found.attention, masks=masks)
        for i, layer in enumerate(found.layers):
            for head in range(found.attention.shape[2]):
                maps = found.attention[:, i, head]
                on_patches = maps.sum(axis=(1, 2)).mean()
                held = masks[:, i, head].mean()
                table.add(title, f"{layer + 1}.{head + 1}", f"{on_patches:.1%}", f"{held:.1%}")
                for j, picture in enumerate(seen.mapped):
                    for r, c in np.ndindex(*maps.shape[1:]):
                        records.add(
                            title,
                            picture.name,
                            layer + 1,
                            head + 1,
                            r + 1,
                            c + 1,
                            maps[j, r, c],
                            masks[j, i, head, r, c],
                        )

    def draw() -> "Figure":
        rows = []
        for i in range(min(IMAGES_DRAWN, len(next(iter(models.values())).mapped))):
            line: list[Array] = []
            for seen in models.values():
                assert seen.maps
                pixels, masks = seen.pixels(i), seen.maps.masks()
                line += [] if line else [pixels]
                for head in range(min(HEADS_DRAWN // len(models), masks.shape[2])):
                    drawn = figures.coloured(seen.maps.attention[i, -1, head], pixels.shape[:2])
                    line.append(figures.outlined(drawn, masks[i, -1, head]))
            rows.append(line)
        titles = ["input"]
        for title, seen in models.items():
            assert seen.maps
            shown = min(HEADS_DRAWN // len(models), seen.maps.attention.shape[2])
            titles += [_short(title, models, f"head {head + 1}") for head in range(shown)]
        return figures.maps_figure(rows, titles)

    first = next(iter(models.values()))
    assert first.maps
    reads = "of the class token" if first.config.class_token else "of the patches, averaged"
    return Exhibit(
        "attention",
        "Attention",
        f"Attention {reads}, head by head: the share that goes to patches, and the share of patches that holds "
        f"{MASS:.0%} of it (outlined). Mean of {len(first.mapped)} images; heads are named layer.head.",
        table.columns("head", "on patches", f"hold {MASS:.0%}"),
        table.rows,
        [],
        (records.columns("image", "layer", "head", "row", "column", "weight", "in_mask"), records.rows),
        arrays,
        draw,
    )


def _short(title: str, models: Models, what: str) -> str:
    return f"{title[:8]} {what}" if len(models) > 1 else what


def _holding(weights: Array) -> float:
    """The smallest share of the patches that holds `MASS` of the weights."""
    falling = np.sort(weights.ravel())[::-1]
    return float((np.searchsorted(np.cumsum(falling), MASS * falling.sum()) + 1) / falling.size)
