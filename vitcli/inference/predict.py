"""Images → predictions, as a stream: in the order given, in constant memory, one bad file never in the way of the rest.

    for prediction in predict(["cat.jpg", "holiday/"]):
        print(prediction.path, prediction.labels[0].label)

Class names, temperature and the best classes of each; how images become logits is in `stream`. Prints nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inference.engines import Choice, EngineName, Numbers, probabilities, temperature_of
from vitcli.inference.stream import Answer, Input, Source, Stream, sources
from vitcli.model.shapes import Array
from vitcli.text import safe


@dataclass(frozen=True)
class Score:
    label: str
    probability: float  # those of all classes sum to 1, but where the model's labels hold each by itself
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
    precision: Numbers = "auto",
    device: str | None = None,
) -> "Model":
    """A model by name: a bundled one, `imagenet`, a timm or Hub name, a folder, a file; None: the default.

    `engine` and `device` are chosen by what there is to do unless given; `precision="int8"`, on a CPU, is faster and
    less exact. Weights are read when the first image comes. Raises CheckpointError, HubError and UsageError.
    """
    checkpoint = model if isinstance(model, Checkpoint) else resolve(None if model is None else str(model))
    return Model(checkpoint, engine=engine, precision=precision, device=device)


def predict(
    inputs: Input | Iterable[Input],
    model: "str | Path | Checkpoint | Model | None" = None,
    *,
    top_k: int = 5,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Numbers = "auto",
    device: str | None = None,
    batch_size: int | None = None,
    exact: bool = False,
) -> Iterator[Prediction]:
    """`load(model, …).predict(inputs, …)` in one call; `model` may be a loaded one too."""
    if not isinstance(model, Model):
        model = load(model, engine=engine, precision=precision, device=device)
    elif (engine, precision, device) != ("auto", "auto", None):
        raise UsageError("a loaded model has its engine, precision and device already: give them to load()")
    return model.predict(inputs, top_k=top_k, batch_size=batch_size, exact=exact)


class Model:
    """A checkpoint that predicts. Once read, its weights stay in memory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        engine: EngineName | Literal["auto"] = "auto",
        precision: Numbers = "auto",
        device: str | None = None,
    ) -> None:
        if why := checkpoint.why_no_classes:
            raise CheckpointError(f"{safe(checkpoint.name)}: {why}; `vit finetune -m` gives it classes")
        self.checkpoint = checkpoint
        self.labels = checkpoint.labels or tuple(f"class {i}" for i in range(checkpoint.num_classes))
        self.temperature = temperature_of(checkpoint)
        self._stream = Stream(checkpoint, engine=engine, precision=precision, device=device)

    @property
    def preprocess(self) -> Preprocess:
        return self.checkpoint.preprocess

    def choose(self, images: int) -> Choice:
        """The engine for that many images or more, and why."""
        return self._stream.choose(images)

    def predict(
        self, inputs: Input | Iterable[Input], *, top_k: int = 5, batch_size: int | None = None, exact: bool = False
    ) -> Iterator[Prediction]:
        """Files, folders, globs (see `find_images`) and Pillow images → predictions, in that order.

        `top_k` classes each. `batch_size` images are computed together, which changes no result. `exact` resizes as
        timm does, to the bit. An image that cannot be read gives a prediction with an `error`.
        """
        if top_k < 1 or (batch_size is not None and batch_size < 1):
            raise UsageError("top_k and batch_size must be at least 1")
        return self._predictions(sources(inputs), top_k, batch_size, exact)

    def answers(
        self, sources: Iterator[Source], *, batch_size: int | None = None, exact: bool = False
    ) -> Iterator[Answer]:
        """The logits behind the predictions; `probabilities` and `temperature` make shares of them."""
        return self._stream.answers(sources, batch_size=batch_size, exact=exact)

    def _predictions(
        self, sources: Iterator[Source], top_k: int, batch_size: int | None, exact: bool
    ) -> Iterator[Prediction]:
        for answer in self.answers(sources, batch_size=batch_size, exact=exact):
            if answer.values is None:
                yield Prediction(answer.name, error=answer.error)
            else:
                yield Prediction(answer.name, self._best(answer.values, top_k))

    def _best(self, logits: Array, top_k: int) -> tuple[Score, ...]:
        shares = probabilities(logits, self.temperature, self.checkpoint.outputs)
        best = np.argsort(-shares, kind="stable")[:top_k]  # stable: of equals the first class
        return tuple(Score(self.labels[i], float(shares[i]), int(i)) for i in best)
