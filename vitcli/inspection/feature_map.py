"""`--map`: what the head sees of each image, laid out in two dimensions: which images are alike to the model.

By openTSNE or UMAP where one of them is installed, by two principal components otherwise. How far the picture can be
believed is its trustworthiness (Venna and Kaski 2001): 1 where every neighbour in the picture is one of the features'.

Legend: N images, D numbers of a feature.
"""

import importlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitcli.errors import ImageError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inspection.aspect import OfAnyModel, Subject
from vitcli.inspection.exhibit import Array, Exhibit, ModelTable, arrays_of, said_of
from vitcli.inspection.images import Picture
from vitcli.model.vit import seen_by_head
from vitcli.report.figures import COLOURS, STYLE, WIDE, figure, fitted
from vitcli.report.page import Dot
from vitcli.text import safe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = npt.NDArray[np.float64]

NEIGHBOURS = 5  # of each image, as scikit-learn's trustworthiness takes by default
LEAST = 4  # images: with fewer there are no neighbours to speak of
ROWS = 256  # whose distances to all others are looked at together
MARKERS = "o^sDvPX"  # with as many colours: so many times as many classes look different
NAMED = 21  # classes in a legend
THUMBNAIL = 72  # pixels


@dataclass(frozen=True, eq=False)
class Placed:
    """The images in two dimensions."""

    points: Points  # (N, 2)
    method: str
    trust: float
    neighbours: int  # that `trust` is about
    pictures: tuple[Picture, ...]  # (N,)
    preprocess: Preprocess

    @property
    def labels(self) -> list[str]:
        """The class of each image, "" where none is known."""
        return [picture.label for picture in self.pictures]


def principal(features: Points) -> Points:
    """Features (N, D) on their two principal components, (N, 2); the largest number of each component is positive."""
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)  # (min(N, D), D)
    axes = np.pad(axes, ((0, max(0, 2 - len(axes))), (0, 0)))[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return np.asarray(centred @ (axes * np.where(signs == 0, 1, signs)[:, None]).T)


def trustworthiness(features: Points, points: Points, neighbours: int) -> float:
    """1 − 2 / (N k (2 N − 3 k − 1)) Σ_i Σ_{j ∈ U_k(i)} (r(i, j) − k), as scikit-learn computes it.

    U_k(i) are those of the k neighbours of i among `points` (N, 2) that are not among the k of i by `features` (N, D),
    and r(i, j) is the rank of j by these, from 1. Raises ValueError unless k is less than N / 2.
    """
    n, k = len(features), neighbours
    if not 0 < k < n / 2:
        raise ValueError(f"{k} neighbours of {n} images")
    penalty = 0
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        order = np.argsort(_distances(features, rows), axis=1, kind="stable")  # (rows, N), oneself last
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(1, n + 1)[None], axis=1)
        near = np.argsort(_distances(points, rows), axis=1, kind="stable")[:, :k]
        penalty += int(np.maximum(np.take_along_axis(rank, near, axis=1) - k, 0).sum())
    return 1.0 - penalty * 2.0 / (n * k * (2.0 * n - 3.0 * k - 1.0))


def _distances(x: Points, rows: npt.NDArray[np.int64]) -> Points:
    """Squared distances of `rows` of x (N, D) to all of it, infinite to themselves."""
    found = np.stack([np.square(x - x[i]).sum(axis=1) for i in rows])
    found[np.arange(len(rows)), rows] = np.inf
    return found


def placed(features: Points) -> tuple[Points, str]:
    """`features` (N, D) in two dimensions, and by which method."""
    few = len(features) < 3 * LEAST
    if not few and importlib.util.find_spec("openTSNE"):
        library: Any = importlib.import_module("openTSNE")
        perplexity = min(30.0, (len(features) - 1) / 3)
        made = library.TSNE(perplexity=perplexity, initialization="pca", random_state=0, n_jobs=1).fit(features)
        return np.asarray(made, np.float64), "t-SNE (openTSNE)"
    if not few and importlib.util.find_spec("umap"):
        library = importlib.import_module("umap")
        made = library.UMAP(n_neighbors=min(15, len(features) - 1), random_state=0).fit_transform(features)
        return np.asarray(made, np.float64), "UMAP"
    return principal(features), "two principal components"


def measure(subject: Subject, batches: Sequence[Tensor]) -> Placed:
    """The images of `subject.feed` that could be read, by what its head sees of them. Raises UsageError for too few."""
    with torch.no_grad():
        features = torch.cat([seen_by_head(subject.model, batch).float().cpu() for batch in batches]).double().numpy()
    if len(features) < LEAST:
        raise UsageError(f"--map lays out {LEAST} images or more, not {len(features)}")
    points, method = placed(features)
    neighbours = min(NEIGHBOURS, (len(features) - 1) // 2)
    trust = trustworthiness(features, points, neighbours)
    return Placed(points, method, trust, neighbours, tuple(subject.feed.shown), subject.feed.preprocess)


def show(found: Mapping[str, Placed]) -> Exhibit:
    """The maps of the models side by side."""
    table = ModelTable(found, "map", "trustworthiness", "images", "classes")
    records = ModelTable(found, "image", "class", "x", "y")
    findings: list[str] = []
    arrays: dict[str, Array] = {}
    for title, one in found.items():
        known = sorted(set(one.labels) - {""})
        table.add(title, one.method, f"{one.trust:.4f}", str(len(one.points)), str(len(known) or "-"))
        for picture, (x, y) in zip(one.pictures, one.points.tolist(), strict=True):
            records.add(title, picture.name, picture.label, x, y)
        arrays |= arrays_of(title, found, points=one.points)
        findings.append(
            f"{said_of(title, found)}trustworthiness {one.trust:.4f} for {one.neighbours} neighbours, by {one.method}"
        )
    return Exhibit(
        name="map",
        title="Map of the features",
        words="What the head sees of each image, laid out in two dimensions. Near one another lies what the model "
        "finds alike; how far that can be believed is the trustworthiness, 1 where every neighbour in the picture is "
        "one of the features'. Distances between far groups, and the axes, mean nothing.",
        table=table,
        findings=findings,
        records=records,
        arrays=arrays,
        draw=lambda: draw(found),
        dots=lambda: {title: dots(one, _looks(found)) for title, one in found.items()},
    )


def _looks(found: Mapping[str, Placed]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each class, the same in every map."""
    classes = sorted({label for one in found.values() for label in one.labels})
    return {
        label: (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]) for i, label in enumerate(classes)
    }


def draw(found: Mapping[str, Placed]) -> "Figure":
    """A scatter plot a model, coloured by class."""
    from matplotlib import rc_context

    looks = _looks(found)
    with rc_context(STYLE):
        drawing = figure(WIDE, 0.75 * WIDE if len(found) == 1 else 0.6 * WIDE)
        axes = drawing.subplots(1, len(found), squeeze=False)[0]
        for place, (title, one) in zip(axes, found.items(), strict=True):
            labels = np.array(one.labels)
            for label, (colour, marker) in looks.items():
                chosen = one.points[labels == label]
                place.scatter(chosen[:, 0], chosen[:, 1], s=12, c=colour, marker=marker, linewidths=0, alpha=0.8)
            place.set_axis_off()
            place.set_title(f"{fitted(safe(title), WIDE / len(found) / 2)}: {one.method}, trust {one.trust:.3f}")
        if 1 < len(looks) <= NAMED:
            names = [fitted(safe(label), 1.3) or "no class" for label in looks]
            marks = [
                drawing.axes[0].scatter([], [], s=12, c=colour, marker=marker, linewidths=0)
                for colour, marker in looks.values()
            ]
            widest = (max(map(len, names)) + 5) * 0.66 * 8 / 72  # inches, with the mark
            drawing.legend(marks, names, loc="outside lower center", ncols=max(1, min(len(names), int(WIDE / widest))))
    return drawing


def dots(one: Placed, looks: Mapping[str, tuple[str, str]]) -> list[Dot]:
    """What the page shows of a map: a dot an image, which shows it. Images that have gone since are left out."""
    low, span = one.points.min(axis=0), np.maximum(np.ptp(one.points, axis=0), 1e-12)
    found = []
    for picture, (x, y) in zip(one.pictures, ((one.points - low) / span).tolist(), strict=True):
        try:
            pixels = picture.pixels(one.preprocess)
        except ImageError:
            continue
        file, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(file, "PNG")
        said = f"{picture.label}: {picture.name}" if picture.label else picture.name
        found.append(Dot(x, 1 - y, looks[picture.label][0], file.getvalue(), said))
    return found


ASPECT = OfAnyModel(name="map", show=show, measure=measure, of_data=True)
