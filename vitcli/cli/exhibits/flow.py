"""Exhibits of what flows through the blocks: norms of tokens, the logit lens."""

from collections.abc import Sequence

import numpy as np

from vitcli.inspection.exhibit import Array, Exhibit, Models, Table, arrays_of, said_of
from vitcli.inspection.tokens import FACTOR
from vitcli.report import inspection as figures


def tokens(models: Models) -> Exhibit:
    table, records, findings, panels = Table(models), Table(models), [], []
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.norms
        assert found
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
        worst = int(artefacts.mean(axis=(0, 2, 3)).argmax())
        share, images = artefacts[:, worst].mean(), artefacts[:, worst].any(axis=(1, 2)).mean()
        findings.append(
            said_of(title, models)
            + (f"artefacts: most after layer {worst + 1}, {share:.2%} of the patches, in {images:.0%} of the images"
               if share else "no artefacts")
        )  # fmt: skip
        panels.append((title, found.patches, found.prefix, places[-1]))
    return Exhibit(
        "tokens",
        "Tokens",
        "Euclidean norm of the tokens after each block. An artefact is a patch whose norm is more than "
        f"{FACTOR:g} times the median of its image.",
        table.columns("layer", "median", "95 %", "largest", "first prefix", "artefacts"),
        table.rows,
        findings,
        (records.columns("layer", "row", "column", "mean_norm", "share_artefact"), records.rows),
        arrays,
        lambda: figures.norms_figure(panels),
    )


def lens(models: Models, labels: Sequence[str]) -> Exhibit:
    table, records, findings, panels = Table(models), Table(models), [], []
    arrays: dict[str, Array] = {}
    for title, seen in models.items():
        found = seen.lens
        assert found
        arrays |= arrays_of(title, models, logits=found.logits)
        agrees, confidence, settled = found.agrees, found.confidence, found.settled
        for layer in range(len(agrees)):
            done = (settled <= layer).mean()
            table.add(title, str(layer + 1), f"{agrees[layer]:.1%}", f"{confidence[layer]:.3f}", f"{done:.1%}")
        for i, picture in enumerate(seen.images):
            for layer, answer in enumerate(found.answers[i]):
                label = labels[answer] if answer < len(labels) else f"class {answer}"
                records.add(title, picture.name, layer + 1, label, found.logits[i, layer, answer])
        half = int(np.median(settled)) + 1
        findings.append(
            f"{said_of(title, models)}half of the images have their answer after layer {half} of {len(agrees)}"
        )
        panels.append((title, agrees, confidence))
    return Exhibit(
        "logit-lens",
        "Logit lens",
        "What the last norm and the head would say after each block: share of the images with the last layer's answer, "
        "the probability it gets, and the images whose answer no longer changes from there.",
        table.columns("layer", "same answer", "probability", "settled"),
        table.rows,
        findings,
        (records.columns("image", "layer", "answer", "logit"), records.rows),
        arrays,
        lambda: figures.lens_figure(panels),
    )
