"""`--tune head`: the trunk's features once, then a linear classifier on them by L-BFGS.

Multinomial logistic regression (of several labels an image: one regression for each) with an L2 penalty that is chosen
on a held-out slice of train (as in the linear probes of CLIP, arXiv 2103.00020, appendix A.3). Features are
standardised for the fit; the layer that comes out takes them plain. A run keeps them in its folder, so that one that
was interrupted computes them once. They stay on the device that computed them, and the fit goes over them in blocks:
beside them it needs memory for one block of logits.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from vitcli.checkpoint.tensor_file import read_header, read_tensors
from vitcli.data.samples import Labels, Samples, Stored
from vitcli.data.split import content_split, together
from vitcli.errors import CheckpointError, Stopped
from vitcli.files import write_file
from vitcli.images.preprocess import Preprocess
from vitcli.model.vit import VisionTransformer
from vitcli.text import plural, safe
from vitcli.training.build import heads_of
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Event, Featured, HeadFitted, Lost
from vitcli.training.folder import Run
from vitcli.training.state import load_state
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import batches, validate

PENALTIES = tuple(10.0**exponent for exponent in range(-6, 2))  # on the mean loss, for standardised features
HELD_OUT = 0.1  # of train, for the choice
CHOICE_IMAGES = 20_000  # at most as many are used to choose; all of them for the fit itself
STEPS = 100  # of L-BFGS
BLOCK = 1 << 24  # logits at once
ALONE = World()


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


@torch.inference_mode()
def features(
    model: nn.Module, samples: Samples, preprocess: Preprocess, device: torch.device, mine: range | None = None
) -> Iterator[Tensor]:
    """What the head sees of each sample, or of those called `mine`, in order, as float32 batches (B, D) on `device`."""
    model.eval().to(device)
    for pixels, _ in batches(samples, mine or range(len(samples)), preprocess, reduced=True):
        pixels = pixels.to(device)
        if isinstance(model, VisionTransformer):
            found = model.representation(pixels)
        else:
            found = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        yield found.float()


@dataclass(frozen=True, eq=False)
class Rows:
    """Standardised features and their labels, a block of rows at a time: all of them once more would not fit.

    Each process of `world` holds some of them; `total` is how many all hold together.
    """

    x: Tensor  # (n, D) float32, as they are
    labels: Tensor  # on the same device, (n,) or, where several may hold, (n, K) of 0 and 1
    mean: Tensor  # (D,)
    std: Tensor
    total: int
    world: World
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
            logits = F.linear((self.x[those] - self.mean) / self.std, weight, bias)
            yield logits if self.old is None else torch.cat([self.old[those], logits], dim=1), self.labels[those]

    def those(self, chosen: Tensor) -> "Rows":
        """The rows where `chosen` (n,) is true."""
        (total,) = self.world.sum([float(chosen.sum())])
        where = chosen.to(self.x.device)
        old = None if self.old is None else self.old[where]
        return replace(self, x=self.x[where], labels=self.labels[where], total=int(total), old=old)


def rows_of(x: Tensor, labels: Tensor, world: World) -> Rows:
    """The features `x` (n, D) that this process of `world` holds: those of every `world.size`-th of `labels` (N,)."""
    mean = _mean(x, len(labels), world)
    variance = _mean(x, len(labels), world, about=mean)
    return replace(plain_rows(x, labels, world), mean=mean, std=variance.sqrt().clamp(min=1e-6))


def plain_rows(x: Tensor, labels: Tensor, world: World) -> Rows:
    """As `rows_of`, but not standardised."""
    mine = labels[world.rank :: world.size].to(x.device)
    width = x.shape[1]
    return Rows(x, mine, x.new_zeros(width), x.new_ones(width), len(labels), world)


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
    weight = weight / rows.std
    return Fitted(weight, bias - weight @ rows.mean, penalty, tuple(tried))


def group_keys(samples: Stored) -> list[bytes] | None:
    """What keeps the images of a group together, (N,); None where there are no groups."""
    if samples.groups is None:
        return None
    return together([i.to_bytes(8, "little") for i in range(len(samples))], samples.groups)


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
    start: tuple[Tensor, Tensor] | None = None
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


def _solve(
    rows: Rows, classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
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


def tune_head(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, float]:
    """Fit the head of `task.model` in place, and keep the model. Nothing to do where training went on from there.

    Under `torchrun` each process computes and holds the features of its share of the images; they solve together, and
    the first alone writes the checkpoint. Returns the validation accuracy, -1 when nothing was done. Raises Stopped
    after a signal.
    """
    if load_state(run.folder) is not None:
        return -1.0
    began = time.monotonic()
    x = yield from _kept_features(task, run, world, stop)
    labels = torch.from_numpy(task.data.train.labels)
    heads = heads_of(task.model)
    keys, kept = group_keys(task.data.train), _kept_rows(heads, task.data.known)
    fitted = fit_head(x, labels, task.classes, task.recipe.seed, keys, kept, world)
    with torch.no_grad():
        for head, weight in zip(heads, fitted.weight.chunk(len(heads), dim=1), strict=True):
            head.weight.copy_(weight * len(heads))  # their mean is the model's answer
            head.bias.copy_(fitted.bias)
    chosen = [one.accuracy for one in fitted.tried if one.penalty == fitted.penalty]
    event = HeadFitted(fitted.penalty, chosen[0] if chosen else None, time.monotonic() - began)
    if world.leads:
        _, damaged = run.rewind(-1)  # what a run that was killed before its first step had logged
        if damaged:
            yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
        run.log(event, step=0)
    yield event
    exact = replace(task, recipe=replace(task.recipe, amp="fp32"))  # as its features are
    validation = validate(task.model, exact, task.data.val, world)
    loss, _ = _scores(plain_rows(x, labels, world), fitted.weight, fitted.bias)
    evaluated = Evaluated(0, 0, 0.0, loss, validation, is_best=True)
    if world.leads:
        run.log(evaluated)
        run.keep(task.model, task, evaluated)
    world.barrier()  # what the leader has kept is there for all
    yield evaluated
    return validation.score


def _kept_rows(heads: list[nn.Linear], known: int) -> tuple[Tensor, Tensor] | None:
    """Rows and biases of the `known` first classes, of the heads together; None where no class is known."""
    if not known:
        return None
    with torch.no_grad():
        weight = torch.cat([head.weight[:known] / len(heads) for head in heads], dim=1).float().cpu()
        return weight, torch.stack([head.bias[:known] for head in heads]).mean(dim=0).float().cpu()


def _kept_features(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, Tensor]:
    """What the head sees of this process's training images (n, D), on its device.

    As an earlier part of the run left them, or computed and kept.
    """
    samples = task.data.train
    mine = range(world.rank, len(samples), world.size)
    width = sum(head.in_features for head in heads_of(task.model))
    if _features_file(run.folder, world).exists():
        try:
            return stored_features(task, run.folder, world).to(world.device)
        except CheckpointError as error:
            yield Lost(f"{error}; the features are computed again")
    x = torch.empty(len(mine), width, device=world.device)
    done = 0
    for part in features(task.model, samples, task.preprocess, world.device, mine):
        x[done : done + len(part)] = part
        done += len(part)
        yield Featured(done, len(mine))
        if stop.exit_code:
            raise Stopped(f"stopped at image {done} of {len(mine)}; to go on: {run.resume_command}", stop.exit_code)
    store_features(x, run.folder, world)
    return x


def _features_file(folder: Path, world: World) -> Path:
    """In the run folder; of several processes each has its own."""
    share = f"-{world.rank}-of-{world.size}" if world.size > 1 else ""
    return folder / f"features{share}.safetensors"


def store_features(x: Tensor, folder: Path, world: World = ALONE) -> None:
    """Keep features (n, D) for `stored_features`."""
    write_file(_features_file(folder, world), [save({"features": x.cpu()})])


def stored_features(task: Task, folder: Path, world: World = ALONE) -> Tensor:
    """The features (n, D) of this process's training images that `tune_head` left in the run folder `folder`.

    Raises CheckpointError for anything else.
    """
    path = _features_file(folder, world)
    images = len(range(world.rank, len(task.data.train), world.size))
    width = sum(head.in_features for head in heads_of(task.model))
    tensors = read_header(path).tensors
    if set(tensors) != {"features"} or tensors["features"].shape != (images, width):
        raise CheckpointError(f"{safe(path)}: not {images} features of {width} numbers")
    return torch.from_numpy(read_tensors(path)["features"])
