"""What kind of head each head is: sharp or even, on patches or on prefix tokens, alone or one of two alike.

Means over query patches. Legend: n heads, N tokens, L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vitcli.inspection.aspect import OfBlocks
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, heat, said_of
from vitcli.inspection.observe import Instrument, PerHead, stacked
from vitcli.model.config import ViTConfig
from vitcli.report.figures import side_by_side, title_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALIKE = 0.95  # cosine of two heads' attention maps from which on they are called near-duplicates


@dataclass(frozen=True)
class Heads:
    """What kind of head each is; `alike` is over all weights of two heads on the same images."""

    entropy: PerHead  # nats; from 0 (one token) to `most_entropy` (all tokens alike)
    on_prefix: PerHead  # share of attention on class token and registers
    alike: Array  # (L, n, n): cosine of each pair of heads of a layer
    most_entropy: float

    def duplicates(self) -> list[tuple[int, int, int, float]]:
        """Near-duplicate heads: (layer, head, head, cosine), counted from 0."""
        layers, heads, _ = self.alike.shape
        return [
            (layer, a, b, float(self.alike[layer, a, b]))
            for layer in range(layers)
            for a in range(heads)
            for b in range(a + 1, heads)
            if self.alike[layer, a, b] >= ALIKE
        ]


class HeadKinds(Instrument):
    """Measures entropy, attention on prefix tokens and likeness of every head."""

    watches_weights = True

    def __init__(self, config: ViTConfig) -> None:
        self.prefix, self.most = config.num_prefix_tokens, float(torch.tensor(config.num_tokens).log())
        self._entropy: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._on_prefix: list[list[Tensor]] = [[] for _ in range(config.depth)]
        self._products = torch.zeros(config.depth, config.num_heads, config.num_heads, dtype=torch.float64)

    def weights(self, layer: int, image: int, weights: Tensor) -> None:
        queries = weights[:, self.prefix :]  # (n, h·w, N)
        self._entropy[layer].append(torch.special.entr(queries).sum(dim=-1).mean(dim=-1))
        self._on_prefix[layer].append(queries[..., : self.prefix].sum(dim=-1).mean(dim=-1))
        flat = weights.flatten(1)
        self._products[layer] += (flat @ flat.T).double().cpu()

    def result(self) -> Heads:
        """What was measured of the heads so far, over at least one image."""
        length = self._products.diagonal(dim1=1, dim2=2).sqrt()
        alike = self._products / (length[:, :, None] * length[:, None])
        entropy, on_prefix = (PerHead(stacked(part).double().numpy()) for part in (self._entropy, self._on_prefix))
        return Heads(entropy, on_prefix, alike.numpy(), self.most)


def exhibit(models: Mapping[str, Heads]) -> Exhibit:
    """The heads of `models` by their titles."""
    table = ModelTable(models, "layer", "sharpest", "mean", "most even", "on prefix", "most alike")
    records = ModelTable(models, "layer", "head", "entropy_nats", "share_on_prefix", "nearest_head_cosine")
    findings, panels = [], []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(
            title, models, entropy=found.entropy.values, on_prefix=found.on_prefix.values, alike=found.alike
        )
        entropy, on_prefix = found.entropy.mean / found.most_entropy, found.on_prefix.mean
        for layer in range(len(entropy)):
            e, twin = entropy[layer], _twin(found, layer)
            table.add(
                title, str(layer + 1), f"{e.min():.2f}", f"{e.mean():.2f}", f"{e.max():.2f}",
                f"{on_prefix[layer].mean():.1%}", "-" if twin is None else f"{twin:.2f}",
            )  # fmt: skip
            for head in range(len(e)):
                others = np.delete(found.alike[layer, head], head)
                nearest = float(others.max()) if others.size else None
                records.add(
                    title, layer + 1, head + 1, found.entropy.mean[layer, head], on_prefix[layer, head], nearest
                )
        twins = found.duplicates()
        shown = ", ".join(f"layer {a + 1} heads {b + 1} and {c + 1}" for a, b, c, _ in twins[:5])
        more = f" and {len(twins) - 5} more" if len(twins) > 5 else ""
        findings.append(f"{said_of(title, models)}near-duplicate heads: {shown + more if twins else 'none'}")
        panels.append((title, entropy, on_prefix))
    return Exhibit(
        name="heads",
        title="Heads",
        words="Entropy of the patches' attention as a share of even attention's (sharpest, mean, most even head), "
        "share of their attention on the class token and registers, and the two heads most alike (cosine of their "
        "attention).",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: heads_figure(panels),
        picture=lambda: heat([entropy for _, entropy, _ in panels]),
    )


def _twin(found: Heads, layer: int) -> float | None:
    alike = found.alike[layer][~np.eye(found.alike.shape[1], dtype=bool)]
    return float(alike.max()) if alike.size else None


def heads_figure(panels: Sequence[tuple[str, Array, Array]]) -> "Figure":
    """Draw panels of (title, entropy as a share of the greatest (L, n), share of attention on prefix tokens (L, n))."""

    def draw(i: int, part: Any) -> None:
        title, entropy, on_prefix = panels[i]
        left, right = part.subplots(1, 2, sharey=True)
        _draw_map(left, entropy, "entropy / greatest")
        _draw_map(right, on_prefix, "share on prefix tokens")
        left.set(ylabel="layer")
        title_part(part, title)

    return side_by_side(len(panels), draw)


def _draw_map(axes: "Axes", values: Array, title: str) -> None:
    """Layers down, heads across, 0 to 1."""
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=7)
    layers, heads = values.shape
    axes.set(xlabel="head")
    axes.set_xticks(range(0, heads, -(-heads // 12)), [str(i + 1) for i in range(0, heads, -(-heads // 12))])
    axes.set_yticks(range(0, layers, -(-layers // 12)), [str(i + 1) for i in range(0, layers, -(-layers // 12))])
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


ASPECT = OfBlocks(name="heads", watch=lambda subject: HeadKinds(subject.config), show=exhibit)
