"""One number that makes a model's probabilities mean what they say: the temperature (Guo et al. 2017, section 4.2).

Fitted on one split, kept by `vitcli.checkpoint.write.store_temperature`, read by `engines.temperature_of`.
Dividing by it changes no prediction, only how sure it is.

    calibrate("runs/flowers-1/best", "flowers/", out="calibrated")
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import Familiarity
from vitcli.checkpoint.write import check_writable, store_temperature, store_thresholds
from vitcli.data.samples import Split, Tell
from vitcli.errors import DataError, UsageError
from vitcli.inference.engines import probabilities
from vitcli.inference.evaluate import Evaluation, Note, Scored, Scoring, Unreadable, open_scored
from vitcli.inference.familiarity import familiarise, store
from vitcli.inference.multilabel import LabelEvaluation, ManyMeasures, best_thresholds, of_split
from vitcli.inference.predict import Model, load
from vitcli.metrics import Labels, Measures
from vitcli.model.shapes import Array
from vitcli.storage.named import name_of

COLDEST, HOTTEST = 1e-2, 1e2
HALVINGS = 30  # of the interval between them, in its logarithm: to 1e-8


@dataclass(frozen=True, eq=False)
class Calibration:
    """A temperature that was fitted and stored, and what it does to a split that it was not fitted on."""

    split: str  # that it was fitted on
    n: int  # images of that split
    temperature: float
    before: Measures | ManyMeasures  # of the scored split
    after: Evaluation | LabelEvaluation  # of the scored split
    folder: Path  # where the temperature is stored
    failed: tuple[Unreadable, ...]  # of both splits
    familiar: int  # images of which statistics were stored, by which `vit predict` knows strangers; 0: too few


def calibrate(
    model: str | Path | Checkpoint | Model | None,
    data: str | Path,
    *,
    fit_on: Split = "val",
    split: Split | None = None,
    folders: str | None = None,
    out: str | Path | None = None,
    ignore_unknown: bool = False,
    multi_label: bool = False,
    batch_size: int | None = None,
    exact: bool = False,
    note: Note | None = None,
    progress: Tell | None = None,
) -> Calibration:
    """Fit a temperature on the split `fit_on` of `data`, store it in the checkpoint, score another split with it.

    Where each label holds by itself, the thresholds are chosen on `fit_on` as well, from the new probabilities. With
    `out` a new folder gets a calibrated copy instead. The rest as in `evaluate` and `evaluate_labels`. Raises
    CheckpointError before any work where the checkpoint may not be written to, UsageError when the split that is scored
    is the one fitted on, DataError when no temperature fits.
    """
    model = model if isinstance(model, Model) else load(model)
    folder = None if out is None else Path(out)
    check_writable(model.checkpoint, folder)
    scored = open_scored(data, split, folders, wanted=(fit_on,), used=fit_on, note=note, progress=progress)
    if scored.split == "train" and split is None and note:
        note("scored on train, which is all that is left: a model that learnt from these images looks better there")
    if scored.split == fit_on:
        others = ", ".join(one for one in scored.splits.named if one != fit_on) or "no other is there"
        raise UsageError(
            f"the temperature is fitted on {fit_on}, so that split cannot be scored: name another with --split or "
            f"--calibrate-on ({others})"
        )
    scoring = Scoring(ignore_unknown, batch_size, exact, note, progress)
    several = model.checkpoint.outputs == "labels"

    def answers(scoring: Scoring, scored: Scored) -> Evaluation | LabelEvaluation:
        if not several:
            return scoring.of_split(model, scored)
        return of_split(scoring, model, scored, multi_label=multi_label)

    fitted = answers(replace(scoring, note=None), replace(scored, split=fit_on))
    temperature = fit_temperature(fitted.logits, fitted.labels)
    before = answers(scoring, scored)
    statistics = _statistics(model.checkpoint, replace(scored, split=fit_on), fitted, temperature, progress)
    stored = store_temperature(model.checkpoint, temperature, folder)
    store(stored, statistics)
    after = replace(before, temperature=temperature)
    if isinstance(after, LabelEvaluation) and isinstance(fitted, LabelEvaluation):
        thresholds = best_thresholds(replace(fitted, temperature=temperature).probabilities, fitted.labels)
        store_thresholds(stored, thresholds)
        after = replace(after, thresholds=thresholds)
    failed = (*fitted.failed, *after.failed)
    familiar = statistics.facts.images if statistics else 0
    return Calibration(fit_on, len(fitted.labels), temperature, before.measures, after, stored, failed, familiar)


def _statistics(
    checkpoint: Checkpoint,
    fit_on: Scored,
    fitted: Evaluation | LabelEvaluation,
    temperature: float,
    progress: Tell | None,
) -> Familiarity | None:
    """Of the images that the temperature was fitted on."""
    labels = np.full(len(fit_on.samples), -1)
    # Of several labels an image none is the one whose mean it would be near.
    labels[fitted.indices] = fitted.labels if isinstance(fitted, Evaluation) else 0
    return familiarise(
        checkpoint,
        fit_on.samples,
        labels=labels,
        data=name_of(fit_on.data),
        temperature=temperature,
        progress=progress and partial(progress, "familiarity"),
    )


def fit_temperature(logits: Array, labels: Labels) -> float:
    """The temperature with the least negative log-likelihood for `logits` (N, K) and `labels`.

    Those are classes (N,) or, where each label holds by itself, 0 and 1 (N, K). The likelihood is concave in 1/T; its
    slope Σ (p − y) z changes sign once, and that place is found by bisection, to six digits. Raises DataError when
    there is none in [0.01, 100]: every image predicted rightly, or no better than chance.
    """
    several = labels.ndim == 2
    held = np.einsum("nk,nk->n", labels, logits, dtype=float) if several else logits[np.arange(len(labels)), labels]

    def too_cold(temperature: float) -> bool:
        found = probabilities(logits, temperature, "labels" if several else "classes")
        return float((np.einsum("nk,nk->n", found, logits) - held.astype(np.float64)).sum()) > 0

    if not too_cold(COLDEST):
        raise DataError(
            f"no temperature fits these {len(labels)} images: surer would always be better, as when all are predicted "
            "rightly; calibrate on more images, which the model was not trained on"
        )
    if too_cold(HOTTEST):
        raise DataError(f"no temperature fits: on these {len(labels)} images the model is no better than chance")
    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_cold(float(np.exp(middle))) else (low, middle)
    return float(f"{np.exp((low + high) / 2):.6g}")  # as it is stored
