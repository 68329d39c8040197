"""Exhibits of heads: attention distance, what kind of head each is."""

import numpy as np

from vitcli.inspection import exhibit as small
from vitcli.inspection.exhibit import Array, Exhibit, Models, Table, arrays_of, said_of
from vitcli.inspection.heads import Heads
from vitcli.report import inspection as figures

GLOBAL = 0.8  # share of even attention's distance from which on a head is called global


def distance(models: Models) -> Exhibit:
    table, records, findings, panels = Table(models), Table(models), [], []
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.distance
        assert found
        arrays |= arrays_of(title, models, paper=found.paper.values, renormalised=found.renormalised.values)
        mean, error = found.paper.mean, found.paper.error
        even = found.renormalised.mean
        for layer in range(len(mean)):
            of_layer = found.paper.values[:, layer].mean(axis=1)
            spread = f"± {of_layer.std(ddof=1) / len(of_layer) ** 0.5:.2f}" if len(of_layer) > 1 else "-"
            table.add(
                title, str(layer + 1), f"{mean[layer].min():.1f}", f"{mean[layer].mean():.1f}", spread,
                f"{mean[layer].max():.1f}", f"{even[layer].mean():.1f}",
            )  # fmt: skip
            for head in range(mean.shape[1]):
                records.add(
                    title, layer + 1, head + 1, mean[layer, head], error[layer, head],
                    even[layer, head], found.renormalised.error[layer, head],
                )  # fmt: skip
        panels.append((title, mean, error, found.uniform))
        findings += [said_of(title, models) + line for line in _reading(mean, even, found.uniform)]
    seen = next(iter(models.values()))
    assert seen.distance
    return Exhibit(
        "attention-distance",
        "Attention distance",
        f"Pixels between a patch and the patches that it attends to, weighted by attention; mean of {len(seen.images)} "
        "images, ± one standard error. Nearest, mean and farthest head: attention on the class token and registers "
        "counts as no distance (the paper's code); renormalised: only attention on patches counts. Even attention "
        f"over the image would give {seen.distance.uniform:.1f} pixels.",
        table.columns("layer", "nearest", "mean", "", "farthest", "renormalised"),
        table.rows,
        findings,
        (records.columns("layer", "head", "paper", "paper_error", "renormalised", "renormalised_error"), records.rows),
        arrays,
        lambda: figures.distance_figure(panels),
        lambda: small.heat([np.sort(mean, axis=1) / max(mean.max(), 1e-12) for _, mean, _, _ in panels]),
    )


def _reading(mean: Array, renormalised: Array, uniform: float) -> list[str]:
    """The paper's two findings, looked for: global heads in the lowest layer, and growth with depth."""
    wide = renormalised >= GLOBAL * uniform
    heads = renormalised.shape[1]
    lines = [
        f"layer 1: {int(wide[0].sum())} of {heads} heads look at the whole image (renormalised distance at least "
        f"{GLOBAL:.0%} of even attention's); last layer: {int(wide[-1].sum())} of {heads}"
    ]
    for column, values in (("mean", mean.mean(axis=1)), ("renormalised", renormalised.mean(axis=1))):
        if len(values) > 2 and values.std() > 0:
            r = np.corrcoef(np.arange(len(values)), values)[0, 1]
            lines.append(
                f"{column}: from layer 1 to {len(values)} it goes from {values[0]:.1f} to {values[-1]:.1f} pixels "
                f"(correlation with depth {r:+.2f})"
            )
    return lines


def heads(models: Models) -> Exhibit:
    table, records, findings, panels = Table(models), Table(models), [], []
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.heads
        assert found
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
        "heads",
        "Heads",
        "Entropy of the patches' attention as a share of even attention's (sharpest, mean, most even head), share of "
        "their attention on the class token and registers, and the two heads most alike (cosine of their attention).",
        table.columns("layer", "sharpest", "mean", "most even", "on prefix", "most alike"),
        table.rows,
        findings,
        (records.columns("layer", "head", "entropy_nats", "share_on_prefix", "nearest_head_cosine"), records.rows),
        arrays,
        lambda: figures.heads_figure(panels),
        lambda: small.heat([entropy for _, entropy, _ in panels]),
    )


def _twin(found: Heads, layer: int) -> float | None:
    alike = found.alike[layer][~np.eye(found.alike.shape[1], dtype=bool)]
    return float(alike.max()) if alike.size else None
