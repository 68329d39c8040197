"""Images → predictions, as a stream: in the order given, in constant memory, one bad file never in the way of the rest.

    for prediction in predict(["cat.jpg", "holiday/"]):
        print(prediction.path, prediction.labels[0].label)

Decoding and computing go on in several threads: Pillow and the engines let go of Python's lock. Prints nothing.
"""

import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import CheckpointError, ImageError, UsageError
from vitcli.images.find import ImageSource, find_images
from vitcli.images.load import load as load_pixels
from vitcli.images.preprocess import Preprocess
from vitcli.inference.engines import (
    Array,
    Choice,
    Engine,
    EngineName,
    available_cpus,
    choose,
    gpu_visible,
    open_engine,
    probabilities,
    temperature_of,
)
from vitcli.inference.onnx_graph import Precision
from vitcli.text import safe

Input = str | Path | ImageSource | Image.Image

LOOK_AHEAD = 64  # images counted before a GPU is worth its start
IMAGES_PER_CALL: dict[EngineName, int] = {"onnxruntime": 1, "torch": 16}


@dataclass(frozen=True)
class Score:
    label: str
    probability: float  # those of all classes sum to 1
    index: int  # of the class, in the order of the logits


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: the most probable classes first; or why there is nothing to say."""

    path: str
    labels: tuple[Score, ...] = ()
    error: str | None = None


def load(
    model: str | Path | Checkpoint | None = None,
    *,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Precision = "fp32",
    device: str | None = None,
) -> "Model":
    """A model by name: a bundled one, `imagenet`, a timm or Hub name, a folder, a file; None: the default.

    `engine` and `device` are chosen by what there is to do unless given; `precision="int8"` is faster and less exact.
    Weights are read when the first image comes. Raises CheckpointError, HubError and UsageError.
    """
    checkpoint = model if isinstance(model, Checkpoint) else resolve(None if model is None else str(model))
    return Model(checkpoint, engine=engine, precision=precision, device=device)


def predict(
    inputs: Input | Iterable[Input],
    model: "str | Path | Checkpoint | Model | None" = None,
    *,
    top_k: int = 5,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Precision = "fp32",
    device: str | None = None,
    batch_size: int | None = None,
    exact: bool = False,
) -> Iterator[Prediction]:
    """`load(model, …).predict(inputs, …)` in one call; `model` may be a loaded one too."""
    if not isinstance(model, Model):
        model = load(model, engine=engine, precision=precision, device=device)
    elif (engine, precision, device) != ("auto", "fp32", None):
        raise UsageError("a loaded model has its engine, precision and device already: give them to load()")
    return model.predict(inputs, top_k=top_k, batch_size=batch_size, exact=exact)


class Model:
    """A checkpoint that predicts. Once read, its weights stay in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        engine: EngineName | Literal["auto"] = "auto",
        precision: Precision = "fp32",
        device: str | None = None,
    ) -> None:
        if not checkpoint.num_classes:
            raise CheckpointError(f"{safe(checkpoint.name)} has no classes: it ends with the representation")
        self.checkpoint = checkpoint
        self.labels = checkpoint.labels or tuple(f"class {i}" for i in range(checkpoint.num_classes))
        self._engine: EngineName | Literal["auto"] = engine
        self._precision: Precision = precision
        self._device = device
        self._temperature = temperature_of(checkpoint)
        self._opened: dict[tuple[EngineName, int], Engine] = {}
        self._opening = Lock()
        self.choose(1)  # wishes that exclude each other are an error at once

    @property
    def preprocess(self) -> Preprocess:
        return self.checkpoint.preprocess

    def choose(self, images: int) -> Choice:
        """The engine for that many images or more, and why."""
        return choose(
            self.checkpoint, engine=self._engine, precision=self._precision, device=self._device, images=images
        )

    def predict(
        self, inputs: Input | Iterable[Input], *, top_k: int = 5, batch_size: int | None = None, exact: bool = False
    ) -> Iterator[Prediction]:
        """Files, folders, globs (see `find_images`) and Pillow images → predictions, in that order.

        `top_k` classes each. `batch_size` images are computed together, which changes no result. `exact` decodes large
        JPEGs in full, as timm does. An image that cannot be read gives a prediction with an `error`.
        """
        if top_k < 1 or (batch_size is not None and batch_size < 1):
            raise UsageError("top_k and batch_size must be at least 1")
        return self._stream(_sources(inputs), top_k, batch_size, exact)

    def _stream(
        self, sources: "Iterator[_Source]", top_k: int, batch_size: int | None, exact: bool
    ) -> Iterator[Prediction]:
        cpus = available_cpus()
        first = list(islice(sources, LOOK_AHEAD if gpu_visible() else cpus // 2 + 1))
        engine = self.choose(len(first)).engine
        # A few images get all cores each, one after the other; many are computed side by side.
        at_once = cpus if len(first) > cpus // 2 else 1
        batches = _batches(chain(first, sources), batch_size or IMAGES_PER_CALL[engine])
        threads = ThreadPoolExecutor(max(cpus, 2), thread_name_prefix="predict")
        try:
            opened = threads.submit(self._open, engine, at_once)  # while the first images are decoded
            waiting: deque[Future[list[Prediction]]] = deque()
            for batch in batches:
                waiting.append(threads.submit(self._predict, batch, opened, top_k, exact))
                while waiting and (len(waiting) > 2 * max(cpus, 2) or waiting[0].done()):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _open(self, engine: EngineName, at_once: int) -> Engine:
        with self._opening:
            key = engine, at_once
            if key not in self._opened:
                self._opened[key] = open_engine(
                    self.checkpoint, engine, precision=self._precision, device=self._device, at_once=at_once
                )
            return self._opened[key]

    def _predict(
        self, batch: "Sequence[_Source]", opened: "Future[Engine]", top_k: int, exact: bool
    ) -> list[Prediction]:
        """All that happens to a batch, in one thread."""
        pixels: list[Array] = []
        errors: list[str | None] = []
        for source in batch:
            try:
                pixels.append(_load(source, self.preprocess, exact))
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        engine = opened.result()
        logits = iter(engine.logits(np.stack(pixels)) if pixels else ())
        return [
            Prediction(source.name, error=error) if error else self._prediction(source.name, next(logits), top_k)
            for source, error in zip(batch, errors, strict=True)
        ]

    def _prediction(self, name: str, logits: Array, top_k: int) -> Prediction:
        if not np.isfinite(logits).all():
            return Prediction(name, error=f"{safe(name)}: the model's answer is not finite")
        shares = probabilities(logits, self._temperature)
        best = np.argsort(-shares, kind="stable")[:top_k]  # stable: of equals the first class
        return Prediction(name, tuple(Score(self.labels[i], float(shares[i]), int(i)) for i in best))


@dataclass(frozen=True)
class _Source:
    name: str
    source: Path | bytes | Image.Image


def _sources(inputs: Input | Iterable[Input]) -> Iterator[_Source]:
    if isinstance(inputs, str | Path | ImageSource | Image.Image):
        inputs = [inputs]
    for number, item in enumerate(inputs, start=1):
        if isinstance(item, Image.Image):
            yield _Source(f"image {number}", item)
        elif isinstance(item, ImageSource):
            yield _Source(item.name, item.source)
        else:
            yield from (_Source(found.name, found.source) for found in find_images([item]))


def _batches(sources: Iterator[_Source], size: int) -> Iterator[list[_Source]]:
    while batch := list(islice(sources, size)):
        yield batch


def _load(item: _Source, preprocess: Preprocess, exact: bool) -> Array:
    source = item.source
    if isinstance(source, Image.Image):
        if source.mode == "RGB":
            return preprocess(source, exact=exact)
        file = io.BytesIO()  # through the decoder, which knows what to do with transparency, palettes and 16 bits
        source.save(file, "PNG", compress_level=0)
        source = file.getvalue()
    return load_pixels(source, preprocess, exact=exact, name=item.name)
