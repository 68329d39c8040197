"""Exhibits of single images: rollout, attention head by head."""

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from vitcli.inspection import exhibit as small
from vitcli.inspection.exhibit import Array, Exhibit, Models, Table, arrays_of
from vitcli.inspection.maps import MASS, fewest
from vitcli.report import inspection as figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS_DRAWN = 12  # attention maps beside an image
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
                f"{fewest(weights).mean():.0%}",
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
            rows.append(("", line))
        titles = ["input", *(name for title in models for name in (_short(title, models, "rollout"), "weights"))]
        return figures.maps_figure(rows, titles)

    def small_pictures() -> Array:
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
        small_pictures,
    )


def attention(models: Models) -> Exhibit:
    table, records = Table(models), Table(models)
    arrays: dict[str, Array] = {}
    looks = {title: seen.maps for title, seen in models.items() if seen.maps}
    masks = {title: found.masks() for title, found in looks.items()}
    for title, found in looks.items():
        arrays |= arrays_of(title, models, attention=found.attention, masks=masks[title])
        for i, layer in enumerate(found.layers):
            for head in range(found.attention.shape[2]):
                maps = found.attention[:, i, head]
                on_patches = maps.sum(axis=(1, 2)).mean()
                held = masks[title][:, i, head].mean()
                table.add(title, f"{layer + 1}.{head + 1}", f"{on_patches:.1%}", f"{held:.1%}")
                for j, picture in enumerate(models[title].mapped):
                    for r, c in np.ndindex(*maps.shape[1:]):
                        records.add(
                            title,
                            picture.name,
                            layer + 1,
                            head + 1,
                            r + 1,
                            c + 1,
                            maps[j, r, c],
                            masks[title][j, i, head, r, c],
                        )

    first = next(iter(models.values()))
    assert first.maps
    heads = {title: min(HEADS_DRAWN // len(models), found.attention.shape[2]) for title, found in looks.items()}

    def draw() -> "Figure":
        layers = list(zip(*(found.layers for found in looks.values()), strict=False))  # one of each model
        images = min(len(first.mapped), max(1, IMAGES_DRAWN // len(layers)))
        rows = []
        for i, (j, layer) in product(range(images), enumerate(layers)):
            line = [first.pixels(i)]
            for title, found in looks.items():
                pixels = models[title].pixels(i)
                line += [
                    figures.outlined(figures.over(pixels, found.attention[i, j, head]), masks[title][i, j, head])
                    for head in range(heads[title])
                ]
            rows.append((f"layer {' and '.join(str(one + 1) for one in dict.fromkeys(layer))}", line))
        titles = [_short(title, models, f"head {head + 1}") for title in models for head in range(heads[title])]
        return figures.maps_figure(rows, ["input", *titles])

    def small_maps() -> Array:
        assert first.maps
        return small.heat([one / max(one.max(), 1e-12) for one in first.maps.attention[0, -1, :4]])

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
        small_maps,
    )


def _short(title: str, models: Models, what: str) -> str:
    return f"{title}\n{what}" if len(models) > 1 else what
