"""Images → what a model makes of each, as a stream: in the order given, in constant memory.

Decoding and computing go on in several threads: Pillow and the engines let go of Python's lock. `predict`, `evaluate`
and `few_shot` all see images through this one path, which is why they agree to the last bit. Knows no class names.

Legend: C channels, H W pixels, D features, K classes.
"""

import io
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from PIL import Image

from vitcli.checkpoint.config import Checkpoint
from vitcli.data.samples import Samples
from vitcli.errors import ImageError, UsageError
from vitcli.images.find import ImageSource, find_images
from vitcli.images.preprocess import Preprocess
from vitcli.images.preprocess import load as load_pixels
from vitcli.inference.engines import (
    Check,
    Choice,
    Engine,
    EngineName,
    Numbers,
    Output,
    choose,
    open_engine,
)
from vitcli.machine import available_cpus, default_device, gpu_visible, on_cpu
from vitcli.model.shapes import Array
from vitcli.text import safe

LARGE = 1024 * 1024  # pixels of a model's input above which no image is prepared before the weights are known to fit
LOOK_AHEAD = 64  # images counted before a GPU is worth its start
IMAGES_PER_CALL: dict[EngineName, int] = {"onnxruntime": 1, "torch": 16}
IMAGES_ON_GPU = 64


@dataclass(frozen=True)
class Source:
    """An image that is still to be read: its name, and how to get it as float32 (C, H, W); `load` raises ImageError."""

    name: str
    load: Callable[[Preprocess, bool], Array]  # the second argument: resize as timm does, to the bit


Input = str | Path | ImageSource | Source | Image.Image


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model makes of one image: the stream's output, logits (K,) mostly; or why there is nothing."""

    name: str
    values: Array | None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with its weights read, for callers that have threads of their own."""

    choice: Choice
    together: int  # images that are best computed in one call; 1: each by itself, from as many threads as there are
    compute: Callable[[Sequence[Source]], list[Answer]]  # in the caller's thread, from several at once if they like


class Stream:
    """A checkpoint and how it is to be run. Once read, its weights stay in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        engine: EngineName | Literal["auto"] = "auto",
        precision: Numbers = "auto",
        device: str | None = None,
        output: Output = "logits",
        check: Check | None = None,
    ) -> None:
        if checkpoint.exported and output not in ("logits", "signature"):
            raise UsageError(f"{safe(checkpoint.name)} gives logits and nothing before them: name its checkpoint")
        self.checkpoint = checkpoint
        self._engine: EngineName | Literal["auto"] = engine
        self._precision: Numbers = precision
        self._device = device
        self._output: Output = output
        self._opened: dict[tuple[EngineName, int, bool], Engine] = {}
        self._opening = Lock()
        self._check = check
        self.elsewhere: Callable[..., Iterator[Answer]] | None = None  # what answers instead of this process
        self._many = False
        self.choose(1)  # wishes that exclude each other are an error at once

    @property
    def device(self) -> str:
        """Where torch would compute."""
        return self._device or default_device()

    def maker(self, engine: EngineName) -> "Callable[[], Stream]":
        """What makes one like this in whatever process, with nothing read yet."""
        return partial(
            Stream, self.checkpoint, engine=engine, precision=self._precision, device=self._device,
            output=self._output, check=self._check,
        )  # fmt: skip

    def settle(self) -> Choice:
        """Compute from now on as for many images, however few are left: parts of one result are made alike."""
        choice, self._many = self.choose(sys.maxsize), True
        self._engine = choice.engine
        return choice

    def about(self) -> dict[str, Any]:
        """What answers are made with: model, SHA-256 of its weights, preprocessing, and on what."""
        from vitcli.checkpoint.weights import weights_digest

        choice = self.settle()
        device = "cpu" if choice.engine == "onnxruntime" else self.device.partition(":")[0]
        return {
            "model": self.checkpoint.public_name,
            "source": self.checkpoint.source,
            "revision": self.checkpoint.revision,
            "sha256": weights_digest(self.checkpoint),
            "preprocess": asdict(self.checkpoint.preprocess),
            "precision": self._precision,
            "engine": f"{choice.engine} on {device}",
        }

    def choose(self, images: int) -> Choice:
        """The engine for that many images or more, and why."""
        return choose(
            self.checkpoint, engine=self._engine, precision=self._precision, device=self._device, images=images
        )

    def answers(
        self, sources: Iterator[Source], *, batch_size: int | None = None, exact: bool = False
    ) -> Iterator[Answer]:
        """One answer for each source, in their order; `batch_size` of them are computed together."""
        if self.elsewhere is not None:
            yield from self.elsewhere(sources, batch_size=batch_size, exact=exact)
            return
        cpus = available_cpus()
        first = list(islice(sources, LOOK_AHEAD if gpu_visible() else cpus // 2 + 1))
        engine = self.choose(len(first)).engine
        # A few images get all cores each, one after the other; many are computed side by side.
        at_once = cpus if self._many or len(first) > cpus // 2 else 1
        size = batch_size or self._images_per_call(engine)
        batches = _batches(chain(first, sources), size)
        # A product's bits depend on how many rows it has, so parts of one result are computed in calls of one size.
        whole = size if self._many and engine == "torch" else 0
        threads = ThreadPoolExecutor(max(cpus, 2), thread_name_prefix="predict")
        try:
            opened = threads.submit(self._open, engine, at_once)  # while the first images are decoded
            if self.checkpoint.exported or math.prod(self.checkpoint.preprocess.size) > LARGE:
                opened.result()  # a config's word for the size of an image counts once the weights have borne it out
            waiting: deque[Future[list[Answer]]] = deque()
            for batch in batches:
                waiting.append(threads.submit(self._answer, batch, opened.result, exact, whole))
                while waiting and (len(waiting) > 2 * max(cpus, 2) or waiting[0].done()):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def opened(self) -> Opened:
        """What is kept for images that come one at a time and without end. Raises CheckpointError."""
        choice = self.choose(sys.maxsize)
        engine = self._open(choice.engine, 1, spin=False)
        # On a CPU an image's last bits may depend on its neighbours, and these on who else asks just then.
        together = IMAGES_ON_GPU if self._on_gpu(choice.engine) else 1
        return Opened(choice, together, lambda batch: self._answer(batch, lambda: engine, False))

    def _images_per_call(self, engine: EngineName) -> int:
        return IMAGES_ON_GPU if self._on_gpu(engine) else IMAGES_PER_CALL[engine]

    def _on_gpu(self, engine: EngineName) -> bool:
        return engine == "torch" and not on_cpu(self.device)

    def _open(self, engine: EngineName, at_once: int, spin: bool = True) -> Engine:
        with self._opening:
            key = engine, at_once, spin
            if key not in self._opened:
                self._opened[key] = open_engine(
                    self.checkpoint,
                    engine,
                    precision=self._precision,
                    device=self._device,
                    at_once=at_once,
                    output=self._output,
                    check=self._check,
                    spin=spin,
                )
            return self._opened[key]

    def _answer(
        self, batch: Sequence[Source], opened: Callable[[], Engine], exact: bool, whole: int = 0
    ) -> list[Answer]:
        """All that happens to a batch, in one thread; a call has `whole` images or more, some of them in vain."""
        pixels: list[Array] = []
        errors: list[str | None] = []
        for source in batch:
            try:
                pixels.append(source.load(self.checkpoint.preprocess, exact))
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        engine = opened()
        pixels += pixels[-1:] * (whole - len(pixels))
        rows = iter(engine.logits(np.stack(pixels)) if pixels else ())
        return [
            Answer(source.name, None, error) if error else _finite(source.name, next(rows))
            for source, error in zip(batch, errors, strict=True)
        ]


def sources(inputs: Input | Iterable[Input]) -> Iterator[Source]:
    """Files, folders, globs (see `find_images`) and Pillow images, as they come."""
    if isinstance(inputs, Input):
        inputs = [inputs]
    for number, item in enumerate(inputs, start=1):
        if isinstance(item, Image.Image):
            yield Source(f"image {number}", partial(_from_pillow, item, f"image {number}"))
        elif isinstance(item, ImageSource):
            yield _from_file(item)
        elif isinstance(item, Source):
            yield item
        else:
            yield from map(_from_file, find_images([item]))


def sources_of(samples: Samples, indices: Iterable[int]) -> Iterator[Source]:
    """The images of a data set with these `indices`."""
    return (Source(samples.name(i), partial(_from_samples, samples, i)) for i in indices)


def _batches(sources: Iterator[Source], size: int) -> Iterator[list[Source]]:
    while batch := list(islice(sources, size)):
        yield batch


def _from_file(found: ImageSource) -> Source:
    return Source(
        found.name,
        lambda preprocess, exact: load_pixels(found.source, preprocess, exact=exact, name=found.name),
    )


def _from_samples(samples: Samples, i: int, preprocess: Preprocess, exact: bool) -> Array:
    return samples.load(i, preprocess, exact=exact)


def _from_pillow(image: Image.Image, name: str, preprocess: Preprocess, exact: bool) -> Array:
    if image.mode == "RGB":
        return preprocess(image, exact=exact)
    file = io.BytesIO()  # through the decoder, which knows what to do with transparency, palettes and 16 bits
    image.save(file, "PNG", compress_level=0)
    return load_pixels(file.getvalue(), preprocess, exact=exact, name=name)


def _finite(name: str, values: Array) -> Answer:
    if np.isfinite(values).all():
        return Answer(name, values)
    return Answer(name, None, f"{safe(name)}: the model's answer is not finite")
