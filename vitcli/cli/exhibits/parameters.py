"""Exhibits of parameters alone: filters, position similarity."""

import numpy as np

from vitcli.inspection import exhibit as small
from vitcli.inspection.exhibit import Array, Exhibit, Models, Table, arrays_of, said_of
from vitcli.report import inspection as figures
from vitcli.report.figures import similarity_figure


def filters(models: Models) -> Exhibit:
    table, records, findings, panels = Table(models), Table(models), [], []
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.filters
        assert found
        arrays |= arrays_of(title, models, components=found.components, explained=found.explained)
        sums = np.cumsum(found.explained)
        for i in [*range(min(5, len(sums))), *(n - 1 for n in (10, 28) if 5 < n <= len(sums))]:
            table.add(title, str(i + 1), f"{found.explained[i]:.1%}", f"{sums[i]:.1%}")
        for i, share in enumerate(found.explained):
            records.add(title, i + 1, share, sums[i])
        what = "the CNN's first filters" if found.of_cnn else "the patch embedding"
        p, q = found.components.shape[2:]
        half = int(np.searchsorted(sums, 0.9)) + 1
        findings.append(f"{said_of(title, models)}{what}, {p}×{q} pixels: {half} components hold 90 % of the variance")
        panels.append((title, found.pictures()))
    return Exhibit(
        "filters",
        "Filters",
        "Principal components of the filters that see pixels, strongest first; middle gray is zero, each scaled to its "
        "largest entry.",
        table.columns("component", "variance", "up to here"),
        table.rows,
        findings,
        (records.columns("component", "explained", "cumulative"), records.rows),
        arrays,
        lambda: figures.filters_figure(panels),
        lambda: small.tiles(panels[0][1]),
    )


def positions(models: Models) -> Exhibit:
    names = {
        "neighbours": "patches side by side",
        "same_row": "same row, two or more apart",
        "same_column": "same column, two or more apart",
        "elsewhere": "two or more apart both ways",
        "far": "half the image apart",
        "with_distance": "correlation with distance",
    }
    found = {title: seen.positions for title, seen in models.items() if seen.positions}
    first = next(iter(found.values()))
    values = {name: [getattr(one, name) for one in found.values()] for name in names}
    findings = []
    arrays: dict[str, Array] = {}
    for title, one in found.items():
        arrays |= arrays_of(title, models, cosines=one.cosines)
        if one.neighbours is not None and one.far is not None:
            more = "more similar" if one.neighbours > one.far else "not more similar"
            findings.append(
                f"{said_of(title, models)}near patches are {more} than far ones: {one.neighbours:.2f} beside, "
                f"{one.far:.2f} half the image away"
            )
    return Exhibit(
        "position-similarity",
        "Position similarity",
        "Cosine similarity of the patches' position embeddings: a tile a patch, in it its similarity with every other.",
        ["mean cosine of", *(found if len(found) > 1 else [""])],
        [[names[name], *("-" if v is None else f"{v:.3f}" for v in line)] for name, line in values.items()],
        findings,
        (["what", *found], [[name, *line] for name, line in values.items()]),
        arrays,
        lambda: similarity_figure([(one.cosines, one.grid) for one in found.values()], list(found)),
        lambda: small.similarity(first.cosines, first.grid),
    )
