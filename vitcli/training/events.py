"""What a training run tells while it runs. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Validation:
    """How good a model is on the validation split."""

    n: int  # images
    accuracy: float
    loss: float  # mean negative log-likelihood, nats; of several labels an image summed over these
    mean_average_precision: float | None = None  # of several labels an image; accuracy is then that all are right at ½

    @property
    def score(self) -> float:
        """By which the best epoch is chosen."""
        return self.accuracy if self.mean_average_precision is None else self.mean_average_precision


@dataclass(frozen=True)
class Stepped:
    """One optimiser step is done."""

    step: int
    total: int
    epoch: float
    loss: float
    lr: float
    images_per_second: float  # over the last step, all processes


@dataclass(frozen=True)
class Evaluated:
    """An epoch ended and the (averaged) weights were evaluated on the validation split."""

    step: int
    total: int
    epoch: float
    train_loss: float  # mean since the last evaluation
    validation: Validation
    is_best: bool


@dataclass(frozen=True)
class Featured:
    """The trunk's features of so many training images are computed."""

    done: int
    total: int


@dataclass(frozen=True)
class Asked:
    """The teacher has answered for so many training images."""

    done: int
    total: int


@dataclass(frozen=True)
class HeadFitted:
    """A linear head was fitted on the features; `penalty` did best on a held-out slice of train."""

    penalty: float
    accuracy: float | None  # on that slice; None: too few images to hold one out
    seconds: float


@dataclass(frozen=True)
class Shrunk:
    """Memory ran out at the first step: the run begins again with smaller micro-batches, the same effective batch."""

    micro_batch: int


@dataclass(frozen=True)
class Tried:
    """A learning rate was tried on held-out images."""

    lr: float
    accuracy: float
    chosen: bool = False  # whether all of train is trained with it now


@dataclass(frozen=True)
class FellBack:
    """A run goes on from an older state than its newest, which could not be read."""

    step: int
    skipped: tuple[str, ...]  # which states, and why


@dataclass(frozen=True)
class Uncompiled:
    """The model could not be compiled on this machine: the run begins again without."""

    why: str


@dataclass(frozen=True)
class FoldScored:
    """A model was scored on the images that it was trained without."""

    fold: int  # from 1
    folds: int
    n: int  # images
    score: float
    measure: str = "accuracy"  # which that is


@dataclass(frozen=True)
class Lost:
    """Something beside the training failed, a damaged file or a tracker, and the run goes on without it."""

    what: str  # one line


Event = Stepped | Evaluated | Featured | Asked | HeadFitted | Shrunk | Tried | FellBack | Uncompiled | FoldScored | Lost
