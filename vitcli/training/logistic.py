"""A linear classifier on features, by L-BFGS: what `--tune head` fits. Knows tensors, no model and no files.

Multinomial logistic regression (of several labels an image: one regression for each) with an L2 penalty that is chosen
on a held-out slice of train (as in the linear probes of CLIP, arXiv 2103.00020, appendix A.3). Features are
standardised for the fit; the layer that comes out takes them plain. The fit goes over them in blocks: beside them it
needs memory for one block of logits. Several processes may each hold some of the rows, and solve together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcli.data.samples import Labels
from vitcli.data.split import content_split
from vitcli.training.distributed import World

PENALTIES = tuple(10.0**exponent for exponent in range(-6, 2))  # on the mean loss, for standardised features
HELD_OUT = 0.1  # of train, for the choice
CHOICE_IMAGES = 20_000  # at most as many are used to choose; all of them for the fit itself
STEPS = 100  # of L-BFGS
BLOCK = 1 << 24  # logits at once
ALONE = World()
Layer = tuple[Tensor, Tensor]  # weight (K, D) and bias (K,)


@dataclass(frozen=True)
class PenaltyTried:
    """How good the head of one penalty is on the held-out slice."""

    penalty: float
    loss: float  # mean negative log-likelihood, nats
    accuracy: float


@dataclass(frozen=True)
class Fitted:
    """A linear layer (K, D), (K,) and how its penalty was chosen; `tried` is empty when nothing could be held out."""

    weight: Tensor
    bias: Tensor
    penalty: float
    tried: tuple[PenaltyTried, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Features and their labels, standardised a block of rows at a time: all of them once more would not fit.

    Each process of `world` holds some of them; `total` is how many all hold together.
    """

    x: Tensor  # (n, D) float32
    labels: Tensor  # on the same device, (n,) or, where several may hold, (n, K) of 0 and 1
    total: int
    world: World
    scale: tuple[Tensor, Tensor] | None = None  # mean and deviation (D,), (D,) that `x` still has; None: taken as it is
    old: Tensor | None = None  # logits (n, k) of the first classes, whose rows of the head stay as they are

    @property
    def kept(self) -> int:
        """How many classes that are."""
        return 0 if self.old is None else self.old.shape[1]

    def blocks(self, classes: int, weight: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (b, K) by the layer `weight`, `bias` of the classes that are not kept, with their labels."""
        step = max(1, BLOCK // classes)
        for start in range(0, len(self.x), step):
            those = slice(start, start + step)
            logits = F.linear(self._standardised(self.x[those]), weight, bias)
            yield logits if self.old is None else torch.cat([self.old[those], logits], dim=1), self.labels[those]

    def those(self, chosen: Tensor) -> "Rows":
        """The rows where `chosen` (n,) is true, standardised once and for all."""
        (total,) = self.world.sum([float(chosen.sum())])
        where = chosen.to(self.x.device)
        old = None if self.old is None else self.old[where]
        x = self._standardised(self.x[where])
        return replace(self, x=x, labels=self.labels[where], total=int(total), scale=None, old=old)

    def _standardised(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return x
        mean, std = self.scale
        return (x - mean) / std


def rows_of(x: Tensor, labels: Tensor, world: World) -> Rows:
    """The features `x` (n, D) that this process of `world` holds: those of every `world.size`-th of `labels` (N,)."""
    mean = _mean(x, len(labels), world)
    variance = _mean(x, len(labels), world, about=mean)
    return replace(plain_rows(x, labels, world), scale=(mean, variance.sqrt().clamp(min=1e-6)))


def plain_rows(x: Tensor, labels: Tensor, world: World) -> Rows:
    """As `rows_of`, but not standardised."""
    return Rows(x, labels[world.rank :: world.size].to(x.device), len(labels), world)


def _mean(x: Tensor, total: int, world: World, about: Tensor | None = None) -> Tensor:
    """The mean of each feature over all processes (D,), or of its squared distance to `about`, summed in float64."""
    summed = torch.zeros(x.shape[1], dtype=torch.float64)
    for block in torch.split(x, 1 << 14):
        summed += (block if about is None else (block - about).square()).sum(dim=0).double().cpu()
    return (torch.tensor(world.sum(summed.tolist()), dtype=torch.float64) / total).to(x)


def fit_head(
    x: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    keys: Sequence[bytes] | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    world: World = ALONE,
) -> Fitted:
    """The linear layer for features `x` (N, D) and `labels` (N,) or, where several may hold, (N, K) of 0 and 1.

    It is computed on the device that has `x`, in float32. Images with the same one of `keys` (N,) stay together when a
    slice is held out. Of the first classes the rows and biases `kept` (k, D), (k,) stay as they are, and the others are
    solved for beside them; their biases are then penalised as well, for without images of the kept classes nothing else
    would bound them. Each process of `world` has every `world.size`-th row of `x` from its own rank on, and all labels;
    all get the same.
    """
    if kept is None:
        with _full_precision():
            return _fit_head(rows_of(x, labels, world), labels, classes, seed, keys)
    weight, bias = (part.to(x.device) for part in kept)
    if len(weight) == classes:
        return Fitted(weight, bias, 0.0, ())
    with _full_precision():
        rows = replace(rows_of(x, labels, world), old=F.linear(x, weight, bias))
        new = _fit_head(rows, labels, classes, seed, keys)
    return replace(new, weight=torch.cat([weight, new.weight]), bias=torch.cat([bias, new.bias]))


def _fit_head(rows: Rows, labels: Tensor, classes: int, seed: int, keys: Sequence[bytes] | None) -> Fitted:
    world = rows.world
    digests = keys or [i.to_bytes(8, "little") for i in range(len(labels))]
    held_out = torch.from_numpy(content_split(digests, labels.numpy(), HELD_OUT, seed))  # (N,)
    tried: list[PenaltyTried] = []
    if held_out.any():
        kept = (~held_out).nonzero()[:, 0]
        kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:CHOICE_IMAGES]]
        chosen = torch.zeros_like(held_out).index_fill(0, kept, True)
        fitted_on, scored_on = (rows.those(mask[world.rank :: world.size]) for mask in (chosen, held_out))
        tried = list(_try(fitted_on, scored_on, classes))
    penalty = min(tried, key=lambda one: one.loss).penalty if tried else 1e-2
    weight, bias = _solve(rows, classes, penalty)
    assert rows.scale is not None
    mean, std = rows.scale
    weight = weight / std
    return Fitted(weight, bias - weight @ mean, penalty, tuple(tried))


def held_out_logits(
    x: Tensor, labels: Tensor, classes: int, folds: Labels, seed: int, keys: Sequence[bytes] | None = None
) -> Tensor:
    """Logits (N, K) for features `x` (N, D), those of each fold by a head that was fitted without it.

    `folds` (N,) numbers the fold of each image; the rest as in `fit_head`.
    """
    logits = torch.empty(len(x), classes)
    for fold in np.unique(folds):
        kept, out = (torch.from_numpy(np.flatnonzero(mask)) for mask in (folds != fold, folds == fold))
        own = [keys[i] for i in kept.tolist()] if keys else None
        fitted = fit_head(x[kept], labels[kept], classes, seed, own)
        logits[out] = F.linear(x[out], fitted.weight, fitted.bias)
    return logits


def _try(rows: Rows, others: Rows, classes: int) -> Iterator[PenaltyTried]:
    """From the strongest penalty to the weakest, each from the solution before; ends where it only gets worse."""
    start: Layer | None = None
    best, worse = float("inf"), 0
    for penalty in reversed(PENALTIES):
        start = _solve(rows, classes, penalty, start)
        loss, accuracy = _scores(others, *start)
        yield PenaltyTried(penalty, loss, accuracy)
        worse = worse + 1 if loss > best else 0
        best = min(best, loss)
        if worse == 2:
            return


@torch.inference_mode()
def _scores(rows: Rows, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Mean loss (nats) and accuracy of a linear layer; of several labels an image the share of right decisions."""
    loss = right = 0.0
    for logits, labels in rows.blocks(len(weight) + rows.kept, weight, bias):
        loss += _summed_loss(logits, labels).item()
        right += _right(logits, labels).sum().item()
    loss, right = rows.world.sum([loss, right])
    return loss / rows.total, right / rows.total


def logistic_regression(
    x: Tensor, labels: Tensor, classes: int, penalty: float, old: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy + penalty/2 · ‖W‖²: weight (K, D) and bias (K,). The bias is free.

    Where logits `old` (N, k) of the first classes are given, weight and bias are those of the K − k others, and the
    penalty is on both.
    """
    with _full_precision():
        return _solve(replace(plain_rows(x, labels, ALONE), old=old), classes, penalty)


def _solve(rows: Rows, classes: int, penalty: float, start: Layer | None = None) -> Layer:
    """What `logistic_regression` finds, for rows that lie in blocks and with several processes."""
    zeros, new = rows.x.new_zeros, classes - rows.kept
    weight, bias = start or (zeros(new, rows.x.shape[1]), zeros(new))
    weight, bias = parameters = [part.clone().requires_grad_() for part in (weight, bias)]
    penalised = parameters if rows.kept else parameters[:1]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=STEPS, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        value = zeros(())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # which is added to
        for logits, labels in rows.blocks(classes, weight, bias):
            part = _summed_loss(logits, labels) / rows.total
            part.backward()  # type: ignore[no-untyped-call]
            value += part.detach()
        for shared in (value, *gradients):
            rows.world.add(shared)
        for parameter, gradient in zip(penalised, gradients, strict=False):
            gradient += penalty * parameter.detach()
            value += penalty / 2 * parameter.detach().square().sum()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 numbers as such: the line search compares losses that differ in their last digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def mean_loss(x: Tensor, labels: Tensor, fitted: Fitted, world: World = ALONE) -> float:
    """Of a fitted layer on features and labels as `fit_head` takes them, nats."""
    return _scores(plain_rows(x, labels, world), fitted.weight, fitted.bias)[0]


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, K) for labels (N,), summed; for labels (N, K) of 0 and 1 that of each one."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right, (N,); of several labels an image, which share of the decisions at ½."""
    if labels.ndim == 1:
        return logits.argmax(dim=1) == labels
    return ((logits > 0) == labels.bool()).float().mean(dim=1)
