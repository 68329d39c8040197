"""Images → vectors: what a model makes of each before its head, in the order given, in constant memory.

    for one in embed(["cat.jpg", "holiday/"]):
        print(one.path, one.vector)

The path is that of `predict`, and the features are those of `evaluate --few-shot`, to the last bit. Prints nothing.

Legend: D width, N tokens.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vitcli import __version__
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import Split, Splits, labelled
from vitcli.data.sources import read_splits
from vitcli.errors import UsageError
from vitcli.inference.engines import Choice, EngineName, Numbers
from vitcli.inference.stream import Answer, Input, Source, Stream, sources, sources_of
from vitcli.model.shapes import Array
from vitcli.text import safe

DType = Literal["float32", "float16"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a model makes of one image: a vector (D,), or tokens (N, D); or why there is none."""

    path: str
    vector: Array | None
    error: str | None = None
    label: str | None = None  # of images of a data set
    split: Split | None = None


def embed(
    inputs: Input | Iterable[Input] | None = None,
    model: str | Path | Checkpoint | None = None,
    *,
    data: str | Path | None = None,
    folders: str | None = None,
    what: str = "pre_logits",
    normalize: bool = False,
    dtype: DType = "float32",
    engine: EngineName | Literal["auto"] = "auto",
    precision: Numbers = "fp32",
    device: str | None = None,
    batch_size: int | None = None,
    exact: bool = False,
) -> Iterator[Embedding]:
    """Files, folders, globs and Pillow images, or the labelled images at the place `data` → one embedding each.

    `what`: "pre_logits", what the head sees; of a plain ViT also "class", "mean" (of the patches), "patches" or
    "blocks.0" … (see `ViTConfig.token_shape`). `normalize` gives vectors the length 1. `folders` as in `read_splits`,
    everything else as in `predict`. Images that cannot be read have an error. Raises UsageError, CheckpointError,
    DataError.
    """
    if (inputs is None) == (data is None):
        raise UsageError("give images or data, one of them")
    checkpoint = model if isinstance(model, Checkpoint) else resolve(None if model is None else str(model))
    embedder = Embedder(
        checkpoint, what=what, normalize=normalize, dtype=dtype, engine=engine, precision=precision, device=device,
        batch_size=batch_size, exact=exact,
    )  # fmt: skip
    if data is not None:
        return embedder.of_splits(read_splits(data, folders=folders))
    assert inputs is not None
    return embedder.of(inputs)


class Embedder:
    """A checkpoint that gives vectors. Once read, its weights stay in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        what: str = "pre_logits",
        normalize: bool = False,
        dtype: DType = "float32",
        engine: EngineName | Literal["auto"] = "auto",
        precision: Numbers = "fp32",
        device: str | None = None,
        batch_size: int | None = None,
        exact: bool = False,
    ) -> None:
        if dtype not in get_args(DType):
            raise UsageError(f"vectors are float32 or float16, not {safe(dtype)}")
        if batch_size is not None and batch_size < 1:
            raise UsageError("batch_size must be at least 1")
        self.checkpoint = checkpoint
        self.shape = _shape(checkpoint, what)  # of a vector, (D,) or (N, D); None: known with the first
        self.dtype: DType = dtype
        self._normalize, self._batch_size, self._exact = normalize, batch_size, exact
        output = "features" if what == "pre_logits" else what
        precision = "fp32" if precision == "auto" else precision  # vectors are kept, and compared with other machines'
        self._stream = Stream(checkpoint, engine=engine, precision=precision, device=device, output=output)
        self._said = {"what": what, "dtype": dtype, "normalized": normalize, "precision": precision, "exact": exact}

    def choose(self, images: int) -> Choice:
        """The engine for that many images or more, and why."""
        return self._stream.choose(images)

    def about(self) -> dict[str, Any]:
        """What vectors are made with: model, SHA-256 of its weights, preprocessing, and what was asked for."""
        return {
            "schema": "vit.embed/1",
            "model": self.checkpoint.public_name,
            "source": self.checkpoint.source,
            "revision": self.checkpoint.revision,
            "architecture": self.checkpoint.architecture,
            "sha256": weights_digest(self.checkpoint),
            "preprocess": asdict(self.checkpoint.preprocess),
            **self._said,
            "vitcli": __version__,
        }

    def of(self, inputs: Input | Iterable[Input]) -> Iterator[Embedding]:
        """Of files, folders, globs (see `find_images`) and Pillow images, in that order."""
        return self.embeddings(Labelled(source) for source in sources(inputs))

    def of_splits(self, splits: Splits) -> Iterator[Embedding]:
        """Of all images of a data set, split by split, each with its label."""
        return self.embeddings(labelled_sources(splits))

    def embeddings(self, items: Iterator["Labelled"]) -> Iterator[Embedding]:
        """One for each of `items`, in their order."""
        waiting: deque[Labelled] = deque()  # taken by the stream, not answered yet

        def taken() -> Iterator[Source]:
            for item in items:
                waiting.append(item)
                yield item.source

        for answer in self._stream.answers(taken(), batch_size=self._batch_size, exact=self._exact):
            one, item = _embedding(self._normalize, self.dtype, answer), waiting.popleft()
            yield replace(one, label=item.label, split=item.split)

    @property
    def stream(self) -> Stream:
        """What computes."""
        return self._stream

    def settle(self) -> str:
        """Compute as for many images from now on, and say by what."""
        return str(self._stream.about()["engine"])


@dataclass(frozen=True)
class Labelled:
    """An image that is still to be read, with what a data set says of it."""

    source: Source
    label: str | None = None
    split: Split | None = None

    @property
    def name(self) -> str:
        return self.source.name


def labelled_sources(splits: Splits) -> Iterator[Labelled]:
    """All images of a data set, split by split."""
    for split in get_args(Split):
        samples = splits.named.get(split)
        if samples is not None:
            for source, label in zip(sources_of(samples, range(len(samples))), samples.labels, strict=True):
                yield Labelled(source, labelled(label, splits.classes), split)


def _shape(checkpoint: Checkpoint, what: str) -> tuple[int, ...] | None:
    """Raises UsageError for what the model does not have."""
    if checkpoint.vit is None:
        if what != "pre_logits":
            raise UsageError(f"{safe(checkpoint.name)} is not a plain ViT: of it there is pre_logits alone")
        return None
    try:
        return checkpoint.vit.token_shape(what)
    except ValueError as error:
        raise UsageError(f"{safe(what)} of {safe(checkpoint.name)}: {error}") from None


def _embedding(normalize: bool, dtype: DType, answer: Answer) -> Embedding:
    if answer.values is None:
        return Embedding(answer.name, None, answer.error)
    vector = unit(answer.values) if normalize else answer.values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            vector = vector.astype(np.float16)
        if not np.isfinite(vector).all():
            error = f"{safe(answer.name)}: a value is beyond float16's range; float32 holds it"
            return Embedding(answer.name, None, error)
    return Embedding(answer.name, vector)


def unit(vectors: Array) -> Array:
    """Vectors (…, D) of length 1, in float32; zero stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
