"""What a training run tells while it runs."""

from dataclasses import dataclass

from vitcli.training.evaluation import Evaluation


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
    validation: Evaluation
    is_best: bool


Event = Stepped | Evaluated
