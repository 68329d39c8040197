"""familiarity.safetensors: what a model's own held-out images look like to it, and how like them another image looks.

The file lies beside model.safetensors and is of exactly these weights. An image is known by its signature, numbers that
the model computes on the way to its answer; `inference.familiarity` fits the statistics, here they are kept, read and
asked. The score is made of a few distances from what is usual, each in units of its own spread (Lee et al. 2018, "A
Simple Unified Framework for Detecting Out-of-Distribution Samples", sum them over layers); the strangest counts most.
docs/evaluation.md has the measurements that chose it. Nothing here needs torch.

Legend: N held-out images, W signature, d of its numbers are a part, p directions of a part, P parts, K classes.
"""

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vitcli.checkpoint.config import MAX_CLASSES, Checkpoint
from vitcli.checkpoint.layout import FAMILIARITY_NAME
from vitcli.checkpoint.tensor_file import check_finite, parse_header, read_data, tensor_bytes
from vitcli.errors import CheckpointError
from vitcli.files import open_regular, parse_object, read_typed, write_file
from vitcli.model.shapes import Array
from vitcli.onnx.protobuf import read_metadata
from vitcli.text import safe

FORMAT = "familiarity/2"  # the one key of the metadata (of several the order is not ours), facts as its value
KEY = "vit.familiarity"  # of an exported file's metadata: the bytes of the file, in base 64
AGAIN = "delete the file; vit evaluate --calibrate writes another"
MAX_BYTES = 64 << 20
MAX_IMAGES = 10_000  # held-out images of which scores are kept
MAX_PARTS = 8
LARGEST = 1e8  # of any number in the file: distances must not overflow
STRANGEST = 100.0  # deviations from the mean: beyond them nothing is stranger

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """Some numbers of a signature, and where held-out images lie among them.

    Distances are from `centers`, the nearest counts; in the space of `axes`, in which the images' spread around their
    centers is one in every direction.
    """

    origin: Array  # (d,)
    axes: Array  # (d, p)
    centers: Array  # (1 or K, p)

    def distance(self, x: Array) -> Scores:
        """(N, d) → (N,)"""
        places = ((x - self.origin) @ self.axes).astype(np.float64)
        centers = self.centers.astype(np.float64)
        squares = (places**2).sum(axis=1)[:, None] - 2 * places @ centers.T + (centers**2).sum(axis=1)
        return np.asarray(np.sqrt(squares.min(axis=1).clip(0)))


@dataclass(frozen=True)
class Facts:
    """What the statistics are of."""

    data: str  # name of the data set
    images: int  # held-out images
    temperature: float  # of the probabilities in `truths`


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Statistics of a model's own held-out images. Scores are larger the more usual an image is."""

    facts: Facts
    parts: tuple[Part, ...]  # in the order of the signature
    usual: Array  # (P, 3): mean and deviation of each part's distance, and the part's weight
    reference: Array  # (N,) scores of the held-out images, rising; each was scored by statistics of the others
    truths: Array  # (N,) probabilities of the held-out images' right classes, rising; none for several labels an image
    known: Array  # (W,) signature of the self-test's image

    @property
    def width(self) -> int:
        return sum(len(part.origin) for part in self.parts)

    @cached_property
    def _places(self) -> list[slice]:
        ends = np.cumsum([len(part.origin) for part in self.parts]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def score(self, signature: Array) -> Scores:
        """Signatures (N, W) → scores (N,)."""
        return self.total(self.distances(signature))

    def distances(self, signature: Array) -> Scores:
        """(N, W) → those of each part, (N, P)."""
        places = zip(self.parts, self._places, strict=True)
        return np.stack([part.distance(signature[:, at]) for part, at in places], axis=1)

    def total(self, distances: Scores) -> Scores:
        """(N, P) → scores (N,).

        Of exponentials, because one strange part must not be made up for by others that look all too usual: to what the
        head sees noise is as usual as can be.
        """
        mean, deviation, weight = self.usual.astype(np.float64).T
        return np.asarray(-(weight * np.exp(np.minimum((distances - mean) / deviation, STRANGEST) / 2)).sum(axis=1))

    def share(self, scores: Scores) -> Scores:
        """Scores (N,) → the shares of the held-out images that score less, in [0, 1], (N,)."""
        return np.asarray(np.searchsorted(self.reference, scores.astype(np.float32)) / len(self.reference))

    def least_probability(self, level: float) -> float | None:
        """The probability from which on a class belongs to a set that holds the truth with probability `level`.

        Split-conformal: the ⌊(1 − level)(N + 1)⌋th of the held-out images' probabilities of the right class (Sadinle,
        Lei and Wasserman 2019, "Least Ambiguous Set-Valued Classifiers"). 0 where N images are too few to leave any
        class out.
        """
        rank = int(np.floor((1 - level) * (len(self.truths) + 1) + 1e-9))
        return float(self.truths[rank - 1]) if rank else 0.0


def read_familiarity(checkpoint: Checkpoint) -> Familiarity | None:
    """The statistics of `checkpoint`; None where it has none. Raises CheckpointError for a file that is no such."""
    if checkpoint.exported:
        text = read_metadata(checkpoint.weights_path).get(KEY)
        return None if text is None else _from_text(text, checkpoint)
    path = checkpoint.folder / FAMILIARITY_NAME
    if not path.is_symlink() and not path.exists():
        return None
    with open_regular(path) as file:
        found = _parse(file, path)
    _fits(found, checkpoint, path)
    return found


def write_familiarity(folder: Path, familiarity: Familiarity) -> None:
    """Put the statistics beside the weights in `folder`. Raises OSError."""
    write_file(folder / FAMILIARITY_NAME, [_bytes(familiarity)])


def as_text(familiarity: Familiarity) -> str:
    """As an exported file's metadata hold them."""
    return base64.b64encode(_bytes(familiarity)).decode("ascii")


def check_signature(familiarity: Familiarity, signature: Array, where: Path) -> None:
    """Compare the `signature` (1, W) of the self-test's image with the stored one. Raises CheckpointError.

    It finds statistics that are of other weights.
    """
    known = familiarity.known
    if signature.shape[1] == len(known):
        scale = max(float(np.abs(known).max()), 1e-3)
        if float(np.abs(signature[0] - known).max()) <= 2e-2 * scale:
            return
    raise CheckpointError(f"{safe(where)}: these are not the statistics of the weights beside them; {AGAIN}")


def _bytes(familiarity: Familiarity) -> bytes:
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for i, part in enumerate(familiarity.parts):
        halves = {"axes": part.axes.astype(np.float16), "centers": part.centers.astype(np.float16)}
        tensors |= {f"parts.{i}.origin": part.origin.astype(np.float32)}
        tensors |= {f"parts.{i}.{name}": array for name, array in halves.items()}
    for name in ("usual", "reference", "truths", "known"):
        tensors[name] = getattr(familiarity, name).astype(np.float32)
    return tensor_bytes(tensors, {FORMAT: json.dumps(vars(familiarity.facts))})


def _from_text(text: str, checkpoint: Checkpoint) -> Familiarity:
    path = checkpoint.weights_path
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise CheckpointError(f"{safe(path)}: {KEY} is not base 64; export the checkpoint again") from None
    found = _parse(io.BytesIO(data), path)
    _fits(found, checkpoint, path)
    return found


def _parse(file: BinaryIO, path: Path) -> Familiarity:
    """The statistics in an open file, believed nothing. Raises CheckpointError naming `path`."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > MAX_BYTES:
        raise CheckpointError(f"{safe(path)}: larger than {MAX_BYTES >> 20} MiB; these are no statistics")
    header = parse_header(file, path)
    if FORMAT not in header.metadata:
        raise CheckpointError(f"{safe(path)}: not statistics as this version of vit writes them; {AGAIN}")
    try:
        facts = read_typed(Facts, parse_object(header.metadata[FORMAT].encode(), f"{safe(path)}: facts"))
        tensors = read_data(file, header, path)
        check_finite(tensors, path)
        return _checked(facts, tensors)
    except (ValueError, KeyError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{safe(path)}: no statistics of held-out images: {safe(reason)}; {AGAIN}") from None


def _checked(facts: Facts, tensors: Mapping[str, Array]) -> Familiarity:
    """Raises ValueError or KeyError for what does not belong together."""
    if any(np.abs(array).max(initial=0) > LARGEST for array in tensors.values()):
        raise ValueError("a number is beyond all bounds")
    count = sum(name.endswith(".axes") for name in tensors)
    if not 1 <= count <= MAX_PARTS or len(tensors) != 3 * count + 4:
        raise ValueError(f"{count} parts in {len(tensors)} arrays")
    parts = []
    for i in range(count):
        origin, axes, centers = (tensors[f"parts.{i}.{name}"] for name in ("origin", "axes", "centers"))
        shapes = axes.ndim == centers.ndim == 2 and origin.ndim == 1
        if not shapes or axes.shape[0] != len(origin) or centers.shape[1:] != axes.shape[1:] or not centers.size:
            raise ValueError(f"the shapes of part {i} do not fit each other")
        parts.append(Part(origin, axes, centers))
    usual, reference, truths, known = (tensors[name] for name in ("usual", "reference", "truths", "known"))
    if usual.shape != (count, 3) or not (usual[:, 1:] > 0).all():
        raise ValueError("usual must hold a mean, a positive deviation and a positive weight for each part")
    for name, array in (("reference", reference), ("truths", truths)):
        if array.ndim != 1 or len(array) > MAX_IMAGES or (np.diff(array) < 0).any():
            raise ValueError(f"{name} must be up to {MAX_IMAGES} rising numbers")
    if not len(reference) or (len(truths) and not 0 <= truths[0] <= truths[-1] <= 1):
        raise ValueError("there must be scores, and probabilities between 0 and 1")
    if not 0.001 <= facts.temperature <= 1000 or facts.images < len(reference):
        raise ValueError("the temperature or the number of images is out of bounds")
    found = Familiarity(facts, tuple(parts), usual, reference, truths, known)
    if known.shape != (found.width,) or any(len(part.centers) > MAX_CLASSES for part in parts):
        raise ValueError("the parts do not make up the signature")
    return found


def _fits(found: Familiarity, checkpoint: Checkpoint, path: Path) -> None:
    """Raises CheckpointError where signature or probabilities are not this model's."""
    if checkpoint.vit and found.width != checkpoint.vit.signature_width:
        raise CheckpointError(
            f"{safe(path)}: statistics of another model ({found.width} numbers an image, this one gives "
            f"{checkpoint.vit.signature_width}); {AGAIN}"
        )
    if abs(found.facts.temperature - (checkpoint.temperature or 1.0)) > 1e-6 * found.facts.temperature:
        raise CheckpointError(
            f"{safe(path)}: statistics of probabilities at temperature {found.facts.temperature:g}, and that of the "
            f"checkpoint is {checkpoint.temperature or 1.0:g}; {AGAIN}"
        )
