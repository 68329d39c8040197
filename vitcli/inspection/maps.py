"""Where the model looks in an image: attention of the class token, and rollout (paper, figure 6 and appendix D.8).

Rollout: in each layer heads are averaged, the identity is added for the residual connection and rows are normalised;
the layers are multiplied. The class token's row is the map. A model without a class token has the mean row of its
patches instead, for that is what its head reads.

Legend: C channels, H W pixels, n heads, N tokens, h w patch grid.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from vitcli.images.preprocess import Preprocess
from vitcli.inspection.aspect import OfBlocks
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, heat
from vitcli.inspection.images import Feed, Picture
from vitcli.inspection.observe import Instrument, stacked
from vitcli.model.config import ViTConfig
from vitcli.report.figures import STYLE, WIDE, figure, fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MASS = 0.6  # of a head's attention that its mask holds, as in DINO's visualisation (arXiv 2104.14294)
MAPPED = 8  # images that maps are kept of
HEADS_DRAWN = 12  # attention maps beside an image
IMAGES_DRAWN = 6


@dataclass(frozen=True)
class Mapped:
    """The images that maps are of."""

    pictures: tuple[Picture, ...]
    preprocess: Preprocess

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return [picture.name for picture in self.pictures]

    def pixels(self, i: int) -> Array:
        """Image `i` as the model sees it, in colours (H, W, 3) uint8."""
        return self.pictures[i].pixels(self.preprocess)


@dataclass(frozen=True)
class Rollouts:
    """Rollout of each image, (images, h, w). A row sums to 1 over all tokens, so a map of patches sums to less."""

    rollout: Array
    images: Mapped


@dataclass(frozen=True)
class Maps:
    """Attention in some layers, head by head. A row sums to 1 over all tokens, so a map of patches sums to less."""

    attention: Array  # (images, layers, n, h, w)
    layers: tuple[int, ...]  # those of `attention`, from 0
    images: Mapped
    of_class_token: bool  # otherwise of the patches, averaged

    def masks(self, mass: float = MASS) -> Array:
        """The fewest patches that hold `mass` of a head's attention on patches, as 0 and 1, shaped like `attention`."""
        return fewest(self.attention, mass)


def fewest(maps: Array, mass: float = MASS) -> Array:
    """The fewest patches that hold `mass` of each of `maps` (…, h, w), as 0 and 1."""
    flat = torch.from_numpy(maps).flatten(-2)
    values, order = (flat / flat.sum(dim=-1, keepdim=True)).sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    return torch.zeros_like(flat).scatter(-1, order, (before < mass).to(flat.dtype)).view(maps.shape).numpy()


class _OfFirstImages(Instrument):
    """Keeps maps of the first `most` images that `feed` gives."""

    watches_weights = True

    def __init__(self, config: ViTConfig, feed: Feed, most: int = MAPPED) -> None:
        self.config, self.feed, self.most = config, feed, most

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        if image < self.most:
            self.keep(layer, image, weights)

    def keep(self, layer: int, image: int, weights: Tensor) -> None:
        """Attention weights (n, N, N) of one of the first images."""

    def images(self) -> Mapped:
        """The images that were shown so far, of the first ones."""
        return Mapped(tuple(self.feed.shown[: self.most]), self.feed.preprocess)

    def row(self, weights: Tensor) -> Tensor:
        """What the head reads of `weights` (…, N, N), on the grid: (…, h, w)."""
        prefix = self.config.num_prefix_tokens
        row = weights[..., 0, prefix:] if self.config.class_token else weights[..., prefix:, prefix:].mean(dim=-2)
        return row.reshape(*row.shape[:-1], *self.config.grid).clone()


class Rollout(_OfFirstImages):
    """Of each of the first images it keeps every token's attention to every other."""

    def __init__(self, config: ViTConfig, feed: Feed, most: int = MAPPED) -> None:
        super().__init__(config, feed, most)
        self._joint: list[Tensor] = []  # of each image: the product up to its present layer, (N, N)

    def keep(self, layer: int, image: int, weights: Tensor) -> None:
        step = weights.mean(dim=0) + torch.eye(weights.shape[-1], device=weights.device)
        step = step / step.sum(dim=-1, keepdim=True)
        if layer == 0:
            self._joint.append(step)
        else:
            self._joint[image] = step @ self._joint[image]

    def result(self) -> Rollouts:
        """The rollout of what was seen so far, of at least one image."""
        maps = torch.stack([self.row(joint) for joint in self._joint]).cpu()
        return Rollouts(maps.double().numpy(), self.images())


class AttentionMaps(_OfFirstImages):
    """Of each of the first images it keeps the attention of what the head reads, in the chosen layers, from 0."""

    def __init__(self, config: ViTConfig, layers: Collection[int], feed: Feed, most: int = MAPPED) -> None:
        super().__init__(config, feed, most)
        self.layers = tuple(sorted(layers))
        self._attention: list[list[Tensor]] = [[] for _ in self.layers]

    def keep(self, layer: int, image: int, weights: Tensor) -> None:
        if layer in self.layers:
            self._attention[self.layers.index(layer)].append(self.row(weights))

    def result(self) -> Maps:
        """The attention seen so far, of at least one image."""
        maps = stacked(self._attention)
        return Maps(maps.double().numpy(), self.layers, self.images(), self.config.class_token)


def rollout_exhibit(models: Mapping[str, Rollouts]) -> Exhibit:
    """The rollout of `models` by their titles."""
    table = ModelTable(models, "image", "strongest patch", "over mean", f"hold {MASS:.0%}")
    records = ModelTable(models, "image", "row", "column", "weight")
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, rollout=found.rollout)
        for name, weights in zip(found.images.names, found.rollout, strict=True):
            row, column = np.unravel_index(weights.argmax(), weights.shape)
            table.add(
                title, name, f"{row + 1}, {column + 1}", f"{weights.max() / weights.mean():.2f}",
                f"{fewest(weights).mean():.0%}",
            )  # fmt: skip
            for r, c in np.ndindex(*weights.shape):
                records.add(title, name, r + 1, c + 1, weights[r, c])
    first = next(iter(models.values()))

    def draw() -> "Figure":
        rows = []
        for i in range(min(IMAGES_DRAWN, len(first.images.names))):
            line = [first.images.pixels(i)]
            for found in models.values():
                pixels, weights = found.images.pixels(i), found.rollout[i]
                line += [lit(pixels, weights), coloured(weights, pixels.shape[:2])]
            rows.append(("", line))
        titles = [name for title in models for name in (_above(title, models, "rollout"), "weights")]
        return maps_figure(rows, ["input", *titles])

    def small() -> Array:
        pixels = first.images.pixels(0)
        return np.concatenate([pixels, lit(pixels, first.rollout[0])], axis=1)

    return Exhibit(
        name="rollout",
        title="Attention rollout",
        words="How much of each patch reaches what the head reads, through all layers (heads averaged, identity added, "
        "rows normalised, layers multiplied): the strongest patch, its weight over the mean, and the share of patches "
        f"that holds {MASS:.0%}.",
        table=table,
        records=records,
        arrays=arrays,
        draw=draw,
        picture=small,
    )


def attention_exhibit(models: Mapping[str, Maps]) -> Exhibit:
    """The attention maps of `models` by their titles."""
    table = ModelTable(models, "head", "on patches", f"hold {MASS:.0%}")
    records = ModelTable(models, "image", "layer", "head", "row", "column", "weight", "in_mask")
    arrays: dict[str, Array] = {}
    masks = {title: found.masks() for title, found in models.items()}
    for title, found in models.items():
        arrays |= arrays_of(title, models, attention=found.attention, masks=masks[title])
        for (i, layer), head in product(enumerate(found.layers), range(found.attention.shape[2])):
            maps, held = found.attention[:, i, head], masks[title][:, i, head]
            on_patches = maps.sum(axis=(1, 2)).mean()
            table.add(title, f"{layer + 1}.{head + 1}", f"{on_patches:.1%}", f"{held.mean():.1%}")
            for j, name in enumerate(found.images.names):
                for r, c in np.ndindex(*maps.shape[1:]):
                    records.add(title, name, layer + 1, head + 1, r + 1, c + 1, maps[j, r, c], held[j, r, c])
    first = next(iter(models.values()))
    count = len(first.images.names)
    heads = {title: min(HEADS_DRAWN // len(models), found.attention.shape[2]) for title, found in models.items()}

    def draw() -> "Figure":
        layers = list(zip(*(found.layers for found in models.values()), strict=False))  # one of each model
        rows = []
        for i, (j, layer) in product(range(min(count, max(1, IMAGES_DRAWN // len(layers)))), enumerate(layers)):
            line = [first.images.pixels(i)]
            for title, found in models.items():
                line += [
                    outlined(over(found.images.pixels(i), found.attention[i, j, head]), masks[title][i, j, head])
                    for head in range(heads[title])
                ]
            rows.append((f"layer {' and '.join(str(one + 1) for one in dict.fromkeys(layer))}", line))
        titles = [_above(title, models, f"head {head + 1}") for title in models for head in range(heads[title])]
        return maps_figure(rows, ["input", *titles])

    reads = "of the class token" if first.of_class_token else "of the patches, averaged"
    return Exhibit(
        name="attention",
        title="Attention",
        words=f"Attention {reads}, head by head: the share that goes to patches, and the share of patches that holds "
        f"{MASS:.0%} of it (outlined). Mean of {count} images; heads are named layer.head.",
        table=table,
        records=records,
        arrays=arrays,
        draw=draw,
        picture=lambda: heat([one / max(one.max(), 1e-12) for one in first.attention[0, -1, :4]]),
    )


def _above(title: str, models: Mapping[str, object], what: str) -> str:
    return f"{title}\n{what}" if len(models) > 1 else what


def maps_figure(rows: Sequence[tuple[str, Sequence[Array]]], titles: Sequence[str]) -> "Figure":
    """Draw rows of (name, pictures (H, W, 3) uint8), all of one size, under the `titles` of their columns."""
    from matplotlib import rc_context

    columns = len(titles)
    height, width = rows[0][1][0].shape[:2]
    side = min(WIDE / columns, 1.2)
    drawing = figure(side * columns, side * height / width * len(rows) + 0.25)
    with rc_context(STYLE):
        cells = drawing.subplots(len(rows), columns, squeeze=False)
        for line, (name, pictures) in zip(cells, rows, strict=True):
            for axes, picture in zip(line, pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(fitted(name, side * height / width, 7), fontsize=7)
        points = 7 if columns < 9 else 6
        for axes, title in zip(cells[0], titles, strict=True):
            axes.set_title("\n".join(fitted(line, side, points) for line in title.split("\n")), fontsize=points)
    return drawing


def lit(pixels: Array, weights: Array) -> Array:
    """An image (H, W, 3) uint8 seen through the map `weights` (h, w), as figure 6 of the paper was drawn.

    Weights over their largest, enlarged to the image (Lanczos), blurred with the patch as radius, stretched to 0 … 1,
    multiplied to the pixels (vision_transformer issue 27).
    """
    height, width = pixels.shape[:2]
    small = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32), mode="F")
    large = small.resize((width, height), Image.Resampling.LANCZOS)
    gray = Image.fromarray((np.asarray(large).clip(0, 1) * 255).round().astype(np.uint8))
    mask = np.asarray(gray.filter(ImageFilter.GaussianBlur(height / len(weights))), np.float64)
    mask = (mask - mask.min()) / max(float(np.ptp(mask)), 1e-12)
    return (pixels * mask[:, :, None]).round().astype(np.uint8)  # type: ignore[no-any-return]


def coloured(weights: Array, size: tuple[int, int]) -> Array:
    """A map (h, w) as colours (H, W, 3) uint8, dark is little; each patch keeps its edges."""
    from matplotlib import colormaps

    shades = weights / max(float(weights.max()), 1e-12)
    colours = (colormaps["viridis"](shades)[..., :3] * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(colours).resize((size[1], size[0]), Image.Resampling.NEAREST))


def over(pixels: Array, weights: Array) -> Array:
    """The map `weights` (h, w) in colours over the gray of an image (H, W, 3) uint8."""
    gray = pixels.mean(axis=2, keepdims=True)
    return (0.4 * gray + 0.6 * coloured(weights, pixels.shape[:2])).round().astype(np.uint8)  # type: ignore[no-any-return]


def outlined(picture: Array, mask: Array) -> Array:
    """A picture (H, W, 3) uint8 with a white line around the patches of `mask` (h, w)."""
    height, width = picture.shape[:2]
    inside = (
        np.asarray(Image.fromarray((mask > 0).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0
    )
    line = max(1, height // 100)
    edge = np.zeros_like(inside)
    for shift in (line, -line):
        for axis in (0, 1):
            edge |= inside & ~np.roll(inside, shift, axis)
    return np.where(edge[:, :, None], np.uint8(255), picture)


ROLLOUT = OfBlocks(
    name="rollout", watch=lambda subject: Rollout(subject.config, subject.feed), most=MAPPED, show=rollout_exhibit
)
ATTENTION = OfBlocks(
    name="attention",
    watch=lambda subject: AttentionMaps(subject.config, subject.layers, subject.feed),
    most=MAPPED,
    show=attention_exhibit,
)
