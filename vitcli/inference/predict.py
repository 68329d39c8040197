"""Images → predictions, as a stream: in the order given, in constant memory, one bad file never in the way of the rest.

    for prediction in predict(["cat.jpg", "holiday/"]):
        print(prediction.path, prediction.labels[0].label)

Class names, temperature and the best classes of each; how images become logits is in `stream`. Prints nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitcli import __version__
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import Familiarity, check_signature, read_familiarity
from vitcli.checkpoint.naming import named, placeholders
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inference.engines import Choice, EngineName, Numbers, Output, probabilities, temperature_of
from vitcli.inference.stream import Answer, Input, Opened, Source, Stream, sources
from vitcli.model.shapes import Array
from vitcli.text import safe

STRANGE = 0.01  # familiarity below which an image looks like nothing that the model learned
TOP = 5  # classes of a prediction, unless another number is asked for
DEFAULT_THRESHOLD = 0.5  # from which a label holds where none was chosen


@dataclass(frozen=True)
class Score:
    label: str
    probability: float  # those of all classes sum to 1, but where the model's labels hold each by itself
    index: int  # of the class, in the order of the logits


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: the most probable classes first; or why there is nothing to say."""

    path: str
    labels: tuple[Score, ...] = ()  # of a multi-label model with thresholds those above theirs, unless `top_k` is given
    error: str | None = None
    familiarity: float | None = None  # share of the model's own held-out images that look less familiar to it, 0 to 1
    unknown: bool | None = None  # with `reject`: too strange to be named
    set: tuple[Score, ...] | None = None  # with `sets`: the classes that it may be


def document_head(name: str, revision: str | None, outputs: str, sets: float | None = None) -> dict[str, Any]:
    """What a JSON document says of all predictions of the model `name`; `predictions`, a list of `as_dict`, follows."""
    return {
        "schema": "vit.predict/1",
        "model": name,
        "revision": revision,
        "outputs": outputs,
        **({} if sets is None else {"sets": sets}),
    }


def as_dict(prediction: Prediction) -> dict[str, Any]:
    """A prediction, ready for JSON."""
    if prediction.error is not None:
        return {"path": prediction.path, "error": prediction.error}
    scores = [
        {"label": score.label, "probability": round(score.probability, 6), "index": score.index}
        for score in prediction.labels
    ]
    own: dict[str, Any] = {"path": prediction.path, "labels": scores}
    if prediction.familiarity is not None:
        own["familiarity"] = round(prediction.familiarity, 6)
    if prediction.unknown is not None:
        own["unknown"] = prediction.unknown
    if prediction.set is not None:
        own["set"] = [score.label for score in prediction.set]
    return own


def load(
    model: str | Path | Checkpoint | None = None,
    *,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Numbers = "auto",
    device: str | None = None,
    class_names: str | Path | None = None,
) -> "Model":
    """A model by name: a bundled one, `imagenet`, a timm or Hub name, a folder, a file; None: the default.

    `engine` and `device` are chosen by what there is to do unless given; `precision="int8"`, on a CPU, is faster and
    less exact. `class_names` is a file of names, as `naming.read_names` takes it, for a model whose classes have none.
    Weights are read when the first image comes. Raises CheckpointError, HubError and UsageError.
    """
    checkpoint = model if isinstance(model, Checkpoint) else resolve(None if model is None else str(model))
    checkpoint = named(checkpoint, class_names)
    return Model(checkpoint, engine=engine, precision=precision, device=device)


def predict(
    inputs: Input | Iterable[Input],
    model: "str | Path | Checkpoint | Model | None" = None,
    *,
    top_k: int | None = None,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Numbers = "auto",
    device: str | None = None,
    batch_size: int | None = None,
    exact: bool = False,
    reject: float | None = None,
    sets: float | None = None,
) -> Iterator[Prediction]:
    """`load(model, …).predict(inputs, …)` in one call; `model` may be a loaded one too."""
    if not isinstance(model, Model):
        model = load(model, engine=engine, precision=precision, device=device)
    elif (engine, precision, device) != ("auto", "auto", None):
        raise UsageError("a loaded model has its engine, precision and device already: give them to load()")
    return model.predict(inputs, top_k=top_k, batch_size=batch_size, exact=exact, reject=reject, sets=sets)


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
        self.labels = checkpoint.labels or placeholders(checkpoint.num_classes)
        self.temperature = temperature_of(checkpoint)
        self.thresholds = tuple(checkpoint.thresholds)  # of a multi-label model, (K,); nothing where none were chosen
        self.familiarity = read_familiarity(checkpoint)
        known = self.familiarity
        check = partial(check_signature, known, where=checkpoint.folder) if known else None
        output: Output = "signature" if known else "logits"
        self._stream = Stream(checkpoint, engine=engine, precision=precision, device=device, output=output, check=check)

    @property
    def preprocess(self) -> Preprocess:
        return self.checkpoint.preprocess

    def choose(self, images: int) -> Choice:
        """The engine for that many images or more, and why."""
        return self._stream.choose(images)

    def predict(
        self,
        inputs: Input | Iterable[Input],
        *,
        top_k: int | None = None,
        batch_size: int | None = None,
        exact: bool = False,
        reject: float | None = None,
        sets: float | None = None,
    ) -> Iterator[Prediction]:
        """Files, folders, globs (see `find_images`) and Pillow images → predictions, in that order.

        `top_k` classes each, 5 if it is not given; of a multi-label model every label above its threshold, where the
        checkpoint has thresholds. `batch_size` images are computed together, which changes no result. `exact` resizes
        as timm does, to the bit. An image that cannot be read gives a prediction with an `error`. Of a model that has
        statistics of its held-out images, each prediction says how familiar the image is; `reject` (0.05) makes
        `unknown` what is less familiar than all but that share of them, `sets` (0.9) gives the classes among which the
        truth is with that probability. Raises UsageError for these of a model without statistics.
        """
        if batch_size is not None and batch_size < 1:
            raise UsageError("batch_size must be at least 1")
        wishes = self.wishes(top_k=top_k, reject=reject, sets=sets)
        return self._predictions(sources(inputs), wishes, batch_size, exact)

    def wishes(self, *, top_k: int | None = None, reject: float | None = None, sets: float | None = None) -> "Wishes":
        """What `predict` is asked for, once it is known that this model can give it. Raises UsageError."""
        if top_k is not None and top_k < 1:
            raise UsageError("top_k must be at least 1")
        if reject is not None:
            self._require(reject, "reject")
        return Wishes(top_k, reject, self._least_probability(sets))

    def opened(self) -> Opened:
        """The model with its weights read, ready for many images. Raises CheckpointError."""
        return self._stream.opened()

    def prediction(self, answer: Answer, wishes: "Wishes") -> Prediction:
        """What an `answer` of the opened model says; the same as `predict` does."""
        if answer.values is None:
            return Prediction(answer.name, error=answer.error)
        return self._prediction(answer.name, answer.values, wishes)

    def about(
        self,
        *,
        top_k: int | None = None,
        exact: bool = False,
        reject: float | None = None,
        sets: float | None = None,
    ) -> dict[str, Any]:
        """What predictions with these wishes are made with, so that parts of one result can be told from others."""
        labels = hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()
        return {
            "schema": "vit.predict-part/1",
            "name": self.checkpoint.name,
            **self._stream.about(),
            "outputs": self.checkpoint.outputs,
            "labels": labels,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
            "familiarity": self.familiarity is not None,
            "top": top_k,
            "exact": exact,
            "reject": reject,
            "sets": sets,
            "least": self._least_probability(sets),
            "vitcli": __version__,
        }

    @property
    def stream(self) -> Stream:
        """What computes."""
        return self._stream

    def answers_about(self) -> dict[str, Any]:
        """What `answers` are made with."""
        return self._stream.about()

    def answers(
        self, sources: Iterator[Source], *, batch_size: int | None = None, exact: bool = False
    ) -> Iterator[Answer]:
        """The logits behind the predictions; `probabilities` and `temperature` make shares of them."""
        for answer in self._stream.answers(sources, batch_size=batch_size, exact=exact):
            values = answer.values
            yield answer if values is None else replace(answer, values=values[-len(self.labels) :])

    def _predictions(
        self, sources: Iterator[Source], wishes: "Wishes", batch_size: int | None, exact: bool
    ) -> Iterator[Prediction]:
        for answer in self._stream.answers(sources, batch_size=batch_size, exact=exact):
            yield self.prediction(answer, wishes)

    def _prediction(self, name: str, values: Array, wishes: "Wishes") -> Prediction:
        """Of the `values` (K,) or (W + K,) that the stream gives for an image."""
        count = len(self.labels)
        shares = probabilities(values[-count:], self.temperature, self.checkpoint.outputs)
        order = np.argsort(-shares, kind="stable")  # stable: of equals the first class
        familiarity = unknown = within = None
        if self.familiarity:
            familiarity = float(self.familiarity.share(self.familiarity.score(values[None, :-count]))[0])
            unknown = None if wishes.reject is None else familiarity < wishes.reject
        if wishes.least is not None:
            within = self._scores(shares, order[: int((shares >= wishes.least).sum())])
        return Prediction(
            name, self._scores(shares, self._named(shares, order, wishes)), None, familiarity, unknown, within
        )

    def _named(self, shares: "np.ndarray[Any, np.dtype[np.float64]]", order: Any, wishes: "Wishes") -> Any:
        """The classes of a prediction, of all in `order`."""
        if wishes.top_k is None and self.thresholds:
            return order[shares[order] >= np.array(self.thresholds)[order]]
        return order[: wishes.top_k or TOP]

    def _scores(self, shares: "np.ndarray[Any, np.dtype[np.float64]]", classes: Any) -> tuple[Score, ...]:
        return tuple(Score(self.labels[i], float(shares[i]), int(i)) for i in classes)

    def _least_probability(self, sets: float | None) -> float | None:
        """The least probability of a class in a set that holds the truth with probability `sets`."""
        if sets is None:
            return None
        found = self._require(sets, "sets")
        if not len(found.truths):
            raise UsageError(f"sets are for one class an image, and {safe(self.checkpoint.name)} is multi-label")
        return found.least_probability(sets)

    def _require(self, share: float, name: str) -> Familiarity:
        """Raises UsageError for a `share` that is none, and without statistics."""
        if not 0 < share < 1:
            raise UsageError(f"{name} is a share between 0 and 1 (5%, 0.05), not {share:g}")
        if self.familiarity is None:
            raise UsageError(
                f"{safe(self.checkpoint.name)} has no statistics of its own held-out images, which {name} needs; "
                "vit evaluate --calibrate writes them"
            )
        return self.familiarity


@dataclass(frozen=True)
class Wishes:
    """What is wanted of each prediction."""

    top_k: int | None
    reject: float | None  # images less familiar than this are unknown
    least: float | None  # probability of a class in the set; None: no sets
