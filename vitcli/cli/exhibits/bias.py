"""Exhibits of the inductive bias, of ViTs and CNNs alike: translation, locality."""

from collections.abc import Mapping

import numpy as np

from vitcli.inspection.equivariance import Equivariance
from vitcli.inspection.exhibit import Array, Exhibit, Table, arrays_of, said_of
from vitcli.inspection.locality import Locality
from vitcli.report import inspection as figures


def equivariance(models: Mapping[str, Equivariance]) -> Exhibit:
    table, records, findings = Table(models), Table(models), []
    arrays: dict[str, Array] = {}
    of_first = next(iter(models.values())).shifts
    for title, found in models.items():
        shifts = found.shifts
        arrays |= arrays_of(title, models, moved=found.moved, still=found.still)
        for i, layer in enumerate(found.layers):
            table.add(title, layer, *(_number(value) for value in found.moved[i]))
            for j, shift in enumerate(shifts):
                records.add(title, layer, shift, found.moved[i, j], found.still[i, j])
        for j, shift in enumerate(shifts):
            if not np.isnan(found.moved[-1, j]):
                steps = f"{found.layers[0]} {found.moved[0, j]:.2f}, {found.layers[-1]} {found.moved[-1, j]:.2f}"
                still = f"{_number(found.still[0, j])} and {_number(found.still[-1, j])}"
                line = f"{shift} pixel{'s' * (shift > 1)}: {steps}; standing still would be {still}"
                findings.append(said_of(title, models) + line)
    return Exhibit(
        "equivariance",
        "Translation",
        "The image is shifted round the edge; do features move with it? Cosine of the shifted image's features with "
        "the image's features shifted as far, away from the border: 1 is exactly. By shift in pixels, right and "
        "down; for a second model of another image size, by the same share of the image.",
        table.columns("layer", *(f"{shift} px" for shift in of_first)),
        table.rows,
        findings,
        (records.columns("layer", "shift", "moved", "still"), records.rows),
        arrays,
        lambda: figures.equivariance_figure([(title, f.moved, f.still, f.shifts) for title, f in models.items()]),
    )


def locality(models: Mapping[str, Locality]) -> Exhibit:
    table, records, findings = Table(models), Table(models), []
    arrays: dict[str, Array] = {}
    for title, found in models.items():
        arrays |= arrays_of(title, models, fields=found.fields)
        for layer, radius in zip(found.layers, found.radius, strict=True):
            table.add(title, layer, f"{radius:.1f}", f"{radius / found.uniform:.2f}")
            records.add(title, layer, radius, "", "")
        for what, shares in (("shuffled", found.shuffled), ("dropped", found.dropped)):
            for kind, share in shares.items():
                records.add(title, what, "", kind, share)
        shuffled = ", ".join(f"{n}×{n} {share:.0%}" for n, share in found.shuffled.items())
        dropped = ", ".join(f"{n:.0%} {share:.0%}" for n, share in found.dropped.items())
        if not (shuffled or dropped):
            continue
        findings.append(
            f"{said_of(title, models)}the answer stays when the picture is cut and shuffled: {shuffled}; when patches "
            f"are gone: {dropped}"
        )
    return Exhibit(
        "locality",
        "Locality",
        "Effective receptive field of the middle cell: the radius in pixels around the field's own centre that holds "
        "half of its gradient to the input, and its share of the radius if all pixels counted alike.",
        table.columns("layer", "radius", "of uniform"),
        table.rows,
        findings,
        (records.columns("layer", "radius", "breakage", "answers_kept"), records.rows),
        arrays,
        lambda: figures.fields_figure([(title, f.fields, f.layers) for title, f in models.items()]),
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
