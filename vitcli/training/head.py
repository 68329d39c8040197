"""`--tune head`: the trunk's features once, then a linear classifier on them by L-BFGS.

Multinomial logistic regression (of several labels an image: one regression for each) with an L2 penalty that is chosen
on a held-out slice of train (as in the linear probes of CLIP, arXiv 2103.00020, appendix A.3). Features are
standardised for the fit; the layer that comes out takes them plain. A run keeps them in its folder, so that one that
was interrupted computes them once.
"""

import time
from collections.abc import Generator, Iterator, Sequence
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
from vitcli.errors import CheckpointError, Stopped, UsageError
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
FEATURES = "features.safetensors"  # in the run folder


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
def features(model: nn.Module, samples: Samples, preprocess: Preprocess, device: torch.device) -> Iterator[Tensor]:
    """What the head sees of each sample, in order, as float32 batches (B, D) on the CPU."""
    model.eval().to(device)
    for pixels, _ in batches(samples, range(len(samples)), preprocess):
        pixels = pixels.to(device)
        if isinstance(model, VisionTransformer):
            found = model.representation(pixels)
        else:
            found = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        yield found.float().cpu()


def fit_head(
    x: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    keys: Sequence[bytes] | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
) -> Fitted:
    """The linear layer for features `x` (N, D) and `labels` (N,) or, where several may hold, (N, K) of 0 and 1.

    Images with the same one of `keys` (N,) stay together when a slice is held out. Of the first classes the rows and
    biases `kept` (k, D), (k,) stay as they are, and the others are solved for beside them; their biases are then
    penalised as well, for without images of the kept classes nothing else would bound them.
    """
    if kept is not None and len(kept[0]) == classes:
        return Fitted(*kept, 0.0, ())
    old = None if kept is None else F.linear(x, *kept)  # (N, k)
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-6)
    standard = (x - mean) / std
    digests = keys or [i.to_bytes(8, "little") for i in range(len(x))]
    held_out = torch.from_numpy(content_split(digests, labels.numpy(), HELD_OUT, seed))
    tried: list[PenaltyTried] = []
    if held_out.any():
        chosen = (~held_out).nonzero()[:, 0]
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:CHOICE_IMAGES]]
        tried = list(_try(standard, labels, chosen, held_out.nonzero()[:, 0], classes, old))
    penalty = min(tried, key=lambda one: one.loss).penalty if tried else 1e-2
    weight, bias = logistic_regression(standard, labels, classes, penalty, old=old)
    weight = weight / std
    bias = bias - weight @ mean
    if kept is not None:
        weight, bias = torch.cat([kept[0], weight]), torch.cat([kept[1], bias])
    return Fitted(weight, bias, penalty, tuple(tried))


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


def _try(
    x: Tensor, labels: Tensor, chosen: Tensor, held_out: Tensor, classes: int, old: Tensor | None
) -> Iterator[PenaltyTried]:
    """From the strongest penalty to the weakest, each from the solution before; ends where it only gets worse.

    `chosen` and `held_out` are the samples to fit on and to judge by; the rest as `logistic_regression` takes it.
    """
    start: tuple[Tensor, Tensor] | None = None
    best, worse = float("inf"), 0
    for penalty in reversed(PENALTIES):
        fixed = None if old is None else old[chosen]
        start = logistic_regression(x[chosen], labels[chosen], classes, penalty, start=start, old=fixed)
        logits = F.linear(x[held_out], *start)
        if old is not None:
            logits = torch.cat([old[held_out], logits], dim=1)
        loss = _mean_loss(logits, labels[held_out]).item()
        yield PenaltyTried(penalty, loss, _right(logits, labels[held_out]).float().mean().item())
        worse = worse + 1 if loss > best else 0
        best = min(best, loss)
        if worse == 2:
            return


def logistic_regression(
    x: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    start: tuple[Tensor, Tensor] | None = None,
    old: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy + penalty/2 · ‖W‖²: weight (K, D) and bias (K,). The bias is free.

    Where logits `old` (N, k) of the first classes are given, weight and bias are those of the K − k others, and the
    penalty is on both.
    """
    rows = classes - (0 if old is None else old.shape[1])
    weight, bias = start or (torch.zeros(rows, x.shape[1]), torch.zeros(rows))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weight, bias)
        penalised = weight.square().sum()
        if old is not None:
            logits, penalised = torch.cat([old, logits], dim=1), penalised + bias.square().sum()
        value = _mean_loss(logits, labels) + penalty / 2 * penalised
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, K) for labels (N,); for labels (N, K) of 0 and 1 the sum of each one's."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / len(labels)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right, (N,); of several labels an image (N, K), the decisions at ½."""
    return logits.argmax(dim=1) == labels if labels.ndim == 1 else (logits > 0) == labels.bool()


def tune_head(task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Event, None, float]:
    """Fit the head of `task.model` in place, and keep the model. Nothing to do where training went on from there.

    Returns the validation accuracy, -1 when nothing was done.
    Raises Stopped after a signal, and UsageError under `torchrun`.
    """
    if world.size > 1:
        raise UsageError("--tune head works in one process; under torchrun choose --tune all")
    if load_state(run.folder) is not None:
        return -1.0
    began = time.monotonic()
    x = yield from _kept_features(task, run, world, stop)
    labels = torch.from_numpy(task.data.train.labels)
    heads = heads_of(task.model)
    fitted = fit_head(
        x, labels, task.classes, task.recipe.seed, group_keys(task.data.train), _kept_rows(heads, task.data.known)
    )
    with torch.no_grad():
        for head, weight in zip(heads, fitted.weight.chunk(len(heads), dim=1), strict=True):
            head.weight.copy_(weight * len(heads))  # their mean is the model's answer
            head.bias.copy_(fitted.bias)
    chosen = [one.accuracy for one in fitted.tried if one.penalty == fitted.penalty]
    event = HeadFitted(fitted.penalty, chosen[0] if chosen else None, time.monotonic() - began)
    _, damaged = run.rewind(-1)  # what a run that was killed before its first step had logged
    if damaged:
        yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
    run.log(event, step=0)
    yield event
    exact = replace(task, recipe=replace(task.recipe, amp="fp32"))  # as its features are
    validation = validate(task.model, exact, task.data.val, world)
    loss = _mean_loss(x @ fitted.weight.T + fitted.bias, labels).item()
    evaluated = Evaluated(0, 0, 0.0, loss, validation, is_best=True)
    run.log(evaluated)
    run.keep(task.model, task, evaluated)
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
    """What the head sees of the training images (N, D): as an earlier part of the run left it, or computed and kept."""
    cache, samples = run.folder / FEATURES, task.data.train
    if cache.exists():
        try:
            return stored_features(task, run.folder)
        except CheckpointError as error:
            yield Lost(f"{error}; the features are computed again")
    parts: list[Tensor] = []
    done = 0
    for part in features(task.model, samples, task.preprocess, world.device):
        parts.append(part)
        done += len(part)
        yield Featured(done, len(samples))
        if stop.exit_code:
            raise Stopped(f"stopped at image {done} of {len(samples)}; to go on: {run.resume_command}", stop.exit_code)
    x = torch.cat(parts)
    store_features(x, run.folder)
    return x


def store_features(x: Tensor, folder: Path) -> None:
    """Keep features (N, D) for `stored_features`."""
    write_file(folder / FEATURES, [save({"features": x})])


def stored_features(task: Task, folder: Path) -> Tensor:
    """The features (N, D) of the training images that `tune_head` left in the run folder `folder`.

    Raises CheckpointError for anything else.
    """
    path, images, width = (
        folder / FEATURES,
        len(task.data.train),
        sum(head.in_features for head in heads_of(task.model)),
    )
    tensors = read_header(path).tensors
    if set(tensors) != {"features"} or tensors["features"].shape != (images, width):
        raise CheckpointError(f"{safe(path)}: not {images} features of {width} numbers")
    return torch.from_numpy(read_tensors(path)["features"])
