"""How long the tokens' vectors are after each block, and where artefacts sit.

Large ViTs turn a few patches of plain background into registers of their own: their norm is many times that of the
others and they say little about their place (Darcet et al. 2024, arXiv 2309.16588). Those authors cut at a fixed norm
for one model; here an artefact is a patch whose norm is more than `FACTOR` times the median of its image and layer.

Legend: B batch, N tokens, D width, h w patch grid, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitcli.inspection.aspect import OfBlocks
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.inspection.observe import Instrument
from vitcli.model.config import ViTConfig
from vitcli.report.figures import COLOURS, layer_ticks, legend_below, side_by_side, title_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTOR = 3.0


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of tokens after each block."""

    patches: Array  # (images, L, h, w)
    prefix: Array  # (images, L, class token and registers)

    @property
    def artefacts(self) -> Array:
        """Which patches are artefacts, as 0 and 1, (images, L, h, w)."""
        median = np.median(self.patches, axis=(2, 3), keepdims=True)
        return (self.patches > FACTOR * median).astype(np.float64)

    @property
    def places(self) -> Array:
        """How often each patch is an artefact, (L, h, w)."""
        return self.artefacts.mean(axis=0)  # type: ignore[no-any-return]


class TokenNorms(Instrument):
    """Measures the norm of every token after every block."""

    def __init__(self, config: ViTConfig) -> None:
        self.config = config
        self._norms: list[list[Tensor]] = [[] for _ in range(config.depth)]

    def tokens(self, layer: int, tokens: Tensor) -> None:
        self._norms[layer].append(tokens.norm(dim=-1).cpu())

    def result(self) -> Norms:
        """The norms measured so far, over at least one image."""
        norms = torch.stack([torch.cat(layer) for layer in self._norms], dim=1).double()  # (images, L, N)
        prefix = self.config.num_prefix_tokens
        return Norms(
            norms[..., prefix:].reshape(*norms.shape[:2], *self.config.grid).numpy(), norms[..., :prefix].numpy()
        )


def exhibit(models: Mapping[str, Norms]) -> Exhibit:
    """The tokens of `models` by their titles."""
    table = ModelTable(models, "layer", "median", "95 %", "largest", "first prefix", "artefacts")
    records = ModelTable(models, "layer", "row", "column", "mean_norm", "share_artefact")
    findings, panels = [], []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, patches=found.patches, prefix=found.prefix)
        artefacts, places = found.artefacts, found.places
        for layer in range(found.patches.shape[1]):
            norms, prefix = found.patches[:, layer], found.prefix[:, layer]
            first = f"{prefix[:, 0].mean():.1f}" if prefix.shape[1] else "-"
            table.add(
                title, str(layer + 1), f"{np.median(norms):.1f}", f"{np.quantile(norms, 0.95):.1f}",
                f"{norms.max():.1f}", first, f"{artefacts[:, layer].mean():.2%}",
            )  # fmt: skip
            for row, column in np.ndindex(*places.shape[1:]):
                records.add(
                    title, layer + 1, row + 1, column + 1, norms[:, row, column].mean(), places[layer, row, column]
                )
        findings.append(said_of(title, models) + _most_artefacts(artefacts))
        panels.append((title, found.patches, found.prefix, places[-1]))
    return Exhibit(
        name="tokens",
        title="Tokens",
        words="Euclidean norm of the tokens after each block. An artefact is a patch whose norm is more than "
        f"{FACTOR:g} times the median of its image.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: norms_figure(panels),
    )


def _most_artefacts(artefacts: Array) -> str:
    worst = int(artefacts.mean(axis=(0, 2, 3)).argmax())
    share, images = artefacts[:, worst].mean(), artefacts[:, worst].any(axis=(1, 2)).mean()
    if not share:
        return "no artefacts"
    return f"artefacts: most after layer {worst + 1}, {share:.2%} of the patches, in {images:.0%} of the images"


def norms_figure(panels: Sequence[tuple[str, Array, Array, Array]]) -> "Figure":
    """Draw panels of (title, norms of patches (images, L, h, w), of prefix tokens (images, L, p), artefacts (h, w))."""
    from matplotlib.ticker import LogFormatter

    def draw(i: int, part: Any) -> None:
        title, patches, prefix, places = panels[i]
        left, right = part.subplots(1, 2, width_ratios=(1.5, 1))
        layers = np.arange(1, patches.shape[1] + 1)
        flat = patches.transpose(1, 0, 2, 3).reshape(len(layers), -1)
        low, middle, high = np.quantile(flat, (0.05, 0.5, 0.95), axis=1)
        left.fill_between(layers, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="patches, 5 to 95 %")
        left.plot(layers, middle, color=COLOURS[0], label="patches, median")
        left.plot(layers, flat.max(axis=1), color=COLOURS[1], linestyle=":", label="largest patch")
        for j in range(prefix.shape[2]):
            label = "class token, registers" if j == 0 else None
            left.plot(layers, prefix[:, :, j].mean(axis=0), color=COLOURS[2], linestyle="--", label=label)
        left.set(xlabel="layer", ylabel="norm of the token", yscale="log")
        left.yaxis.set_major_formatter(LogFormatter())
        left.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        legend_below(part, left, columns=2)
        layer_ticks(left, len(layers))
        right.set(xlabel="patch column", ylabel="patch row", xticks=[], yticks=[])
        right.set_title("artefacts,\nlast layer", fontsize=7)
        if places.any():
            image = right.imshow(places, cmap="magma", vmin=0, vmax=float(places.max()))
            bar = part.colorbar(image, ax=right, shrink=0.7)
            bar.set_label("share of images", fontsize=6)
        else:  # a bar of one colour would say nothing
            right.set(aspect=places.shape[0] / places.shape[1], xlim=(0, 1), ylim=(0, 1))
            right.text(0.5, 0.5, "none", ha="center", va="center", fontsize=7)
        title_part(part, title)

    return side_by_side(len(panels), draw)


ASPECT = OfBlocks(name="tokens", watch=lambda subject: TokenNorms(subject.config), show=exhibit)
