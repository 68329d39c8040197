"""What a model's own held-out images look like to it, measured: the statistics from which `vit predict` says how
familiar an image is and which classes it may be.

    familiarise("runs/flowers-1/best", samples, classes)

Distances, score and file are in `checkpoint.familiarity`. Every image's reference score comes from statistics of other
images (cross-fitting), because a distance from a mean that an image took part in is too small.

Legend: N images, W numbers of a signature, d of a part of it, p directions, K classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import (
    MAX_IMAGES,
    Facts,
    Familiarity,
    Part,
    Scores,
    write_familiarity,
)
from vitcli.checkpoint.layout import FAMILIARITY_NAME
from vitcli.checkpoint.selftest import selftest_input, selftest_seed
from vitcli.data.samples import Progress, Samples
from vitcli.errors import CheckpointError
from vitcli.inference.engines import EngineName, open_engine, probabilities, temperature_of
from vitcli.inference.stream import Stream, sources_of
from vitcli.metrics import Labels
from vitcli.model.shapes import Array
from vitcli.text import safe

LEAST_IMAGES = 100  # held-out images for which statistics are made: with fewer, a hundredth of them is no image
MOST_IMAGES = MAX_IMAGES
WEIGHTS = (1.0, 1.0, 2.0)  # of the distances of mean, spread and features (docs/evaluation.md)
DIRECTIONS = 128  # at most, of a part without classes: those in which images vary most
FOLDS = 5
FLOOR = 1e-6  # of a direction's variance, in units of the largest


def signed(
    checkpoint: Checkpoint, samples: Samples, indices: Sequence[int], progress: Progress | None = None
) -> tuple[Array, Array, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]:
    """Signatures (N, W) and logits (N, K) of those images `indices` that can be read, and which can."""
    stream, classes = Stream(checkpoint, output="signature"), checkpoint.num_classes
    rows, read = [], np.zeros(len(indices), dtype=bool)
    for done, answer in enumerate(stream.answers(sources_of(samples, indices))):
        if answer.values is not None:
            rows.append(answer.values)
            read[done] = True
        if progress:
            progress(done + 1, len(indices))
    values = np.stack(rows) if rows else np.zeros((0, classes), np.float32)
    return values[:, :-classes], values[:, -classes:], read


def familiarise(
    checkpoint: Checkpoint,
    samples: Samples,
    *,
    labels: Labels | None = None,
    data: str = "",
    temperature: float | None = None,
    progress: Progress | None = None,
) -> Familiarity | None:
    """The statistics of `checkpoint` on held-out `samples`, whose labels are its classes', or else `labels` (-1: none).

    None where there are fewer than `LEAST_IMAGES` that can be read. Of more than `MOST_IMAGES` every second, third, …
    counts. `temperature` divides the logits, that of the checkpoint if it is not given.
    """
    labels = samples.labels if labels is None else labels
    wanted = np.flatnonzero(labels >= 0)
    wanted = wanted[:: -(-len(wanted) // MOST_IMAGES) or 1]
    if len(wanted) < LEAST_IMAGES:
        return None
    signatures, logits, read = signed(checkpoint, samples, wanted.tolist(), progress)
    if len(signatures) < LEAST_IMAGES:
        return None
    temperature = temperature_of(checkpoint) if temperature is None else temperature
    return fit(
        signatures,
        logits,
        labels[wanted[read]],
        widths_of(checkpoint, signatures.shape[1]),
        known=known_signature(checkpoint),
        facts=Facts(data, len(signatures), temperature),
        exclusive=checkpoint.outputs == "classes",
    )


def store(folder: Path, familiarity: Familiarity | None) -> None:
    """Put the statistics, or none, beside the weights in `folder`. Raises CheckpointError."""
    try:
        if familiarity is None:
            (folder / FAMILIARITY_NAME).unlink(missing_ok=True)
        else:
            write_familiarity(folder, familiarity)
    except OSError as error:
        raise CheckpointError(f"{safe(error.filename or folder)}: {error.strerror}; nothing was stored") from error


def widths_of(checkpoint: Checkpoint, width: int) -> tuple[int, ...]:
    """How many numbers each part of a signature has; the last part is what the head sees."""
    vit = checkpoint.vit
    return (vit.embed_dim, vit.embed_dim, vit.num_features) if vit else (width,)


def known_signature(checkpoint: Checkpoint) -> Array:
    """The signature (W,) of the self-test's image."""
    engine: EngineName = Stream(checkpoint, output="signature").choose(1).engine
    image = selftest_input(checkpoint.preprocess, selftest_seed(checkpoint) or 0)
    return open_engine(checkpoint, engine, output="signature").logits(image)[0, : -checkpoint.num_classes]


def fit(
    signatures: Array,
    logits: Array,
    labels: Labels,
    widths: Sequence[int],
    *,
    known: Array,
    facts: Facts,
    exclusive: bool = True,
) -> Familiarity:
    """Statistics of N held-out images, from signatures (N, W), logits (N, K) and true `labels` (N,).

    `exclusive`: one class an image, as `Familiarity.truths` needs.
    """
    folds = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    parts = parts_of(signatures, labels, widths)
    empty = np.zeros(0, np.float32)
    made = Familiarity(facts, parts, np.ones((len(parts), 3), np.float32), empty, empty, known.astype(np.float32))
    distances = np.empty((len(labels), len(widths)))
    for fold in range(FOLDS):
        out = folds == fold
        of_others = replace(made, parts=parts_of(signatures[~out], labels[~out], widths))
        distances[out] = of_others.distances(signatures[out])
    deviation, weights = np.maximum(distances.std(axis=0), 1e-6), np.array(WEIGHTS[-len(widths) :])
    usual = np.stack([distances.mean(axis=0), deviation, weights], axis=1)
    made = replace(made, usual=usual.astype(np.float32))
    truths = np.zeros(0)
    if exclusive:
        truths = np.sort(probabilities(logits, facts.temperature)[np.arange(len(labels)), labels])
    reference = np.sort(made.total(distances).astype(np.float32))
    return replace(made, reference=reference, truths=truths.astype(np.float32))


def parts_of(signatures: Array, labels: Labels, widths: Sequence[int]) -> tuple[Part, ...]:
    """Of what the head sees the distance is from the nearest class, of the others from the mean of all images."""
    *others, head = np.split(signatures.astype(np.float64), np.cumsum(widths)[:-1], axis=1)
    return (*(_part(x, None, DIRECTIONS) for x in others), _part(head, labels, head.shape[1]))


def _part(x: Scores, labels: Labels | None, directions: int) -> Part:
    """A part of signatures (N, d), of the classes `labels` (N,) or of one, in so many `directions` at most."""
    origin = x.mean(axis=0)
    x = x - origin
    classes, members = np.unique(labels, return_inverse=True) if labels is not None else (np.zeros(1), None)
    if members is None or len(classes) >= len(x) / 2:  # hardly two images of a class: nothing is known of it
        means, inside = np.zeros((1, x.shape[1])), x
    else:
        sums = np.zeros((len(classes), x.shape[1]))
        np.add.at(sums, members, x)
        means = sums / np.bincount(members)[:, None]
        inside = x - means[members]
    values, vectors = np.linalg.eigh(_shrunk(inside, len(x) - len(means)))
    kept = slice(-min(directions, len(values)), None)
    axes = vectors[:, kept] / np.sqrt(np.maximum(values[kept], FLOOR * values[-1] + 1e-9))
    return Part(origin.astype(np.float32), axes.astype(np.float32), (means @ axes).astype(np.float32))


def _shrunk(x: Scores, freedom: int) -> Scores:
    """Covariance of rows around zero (N, d) → (d, d), drawn towards a sphere (Chen et al. 2010, "OAS", eq. 23)."""
    d = x.shape[1]
    covariance = x.T @ x / max(freedom, 1)
    trace, squares = np.trace(covariance), float((covariance**2).sum())
    down = (freedom + 1 - 2 / d) * (squares - trace**2 / d)
    share = min(1.0, ((1 - 2 / d) * squares + trace**2) / down) if down > 0 else 1.0
    return np.asarray((1 - share) * covariance + share * trace / d * np.eye(d))
