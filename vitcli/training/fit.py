"""`fit`: the one training loop (docs/design.md, decision 5). Yields what happened; the caller draws it.

A step is `Plan.micro_batches` forward and backward passes of one micro-batch each, then one optimiser step. All
randomness inside a pass is keyed by (seed, step, micro-batch), so a run resumed at any step, and one spread over any
number of processes that divides the micro-batches, computes the same.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from vitcli.errors import EXIT_STOPPED, CheckpointError, ImageError, Stopped, UsageError, VitError
from vitcli.machine import on_cpu
from vitcli.text import plural, safe
from vitcli.training.auto import settled
from vitcli.training.batches import Plan, training_batches
from vitcli.training.budget import Clock
from vitcli.training.distributed import Told, World, losses_of
from vitcli.training.events import Evaluated, Event, FellBack, Lost, Stepped
from vitcli.training.feed import onto
from vitcli.training.folder import Run, what_is_left
from vitcli.training.learner import Learner
from vitcli.training.precision import tensor_cores
from vitcli.training.recipe import Recipe
from vitcli.training.state import Position, take_part
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import validate

LARGEST_STATE = 4  # times model and averaged weights, with what the optimiser keeps of each
SHOWN_EVERY = 0.5  # seconds between two looks at the losses on an accelerator, which runs ahead meanwhile


def fit(
    task: Task,
    run: Run,
    world: World,
    stop: StopFlag,
    *,
    workers: int = 0,
    save_every: float = 300.0,
    show_every: float | None = None,
    clock: Clock | None = None,
    best: float = -1.0,
) -> Iterator[Event]:
    """Train `task.model` by `task.recipe` in `run`, from its saved state when there is one.

    `save_every` is in seconds, and so is `show_every`: how long steps go unseen, by default none on a CPU. Nobody waits
    for the device in between, and what is saved was seen. With a budget on `clock` the learning rate follows the time
    as well, and the run ends in time. `best` is the validation accuracy of what `best/` already holds. Raises Stopped
    after a signal once the state is saved, ImageError when a training image cannot be read, once the state is saved
    too; VitError when the loss or a weight is not finite (what is saved always is).
    """
    device = str(world.device)
    task = replace(task, recipe=settled(task.recipe, device, world.size))
    plan = _plan(task, world)
    clock = clock or Clock(None)
    schedule = Schedule(task.recipe, task.recipe.total_steps(plan.steps_per_epoch), clock, world)
    learner = Learner(task, world, plan.micro_batches)
    position, skipped = _restored(learner, run, schedule.total) or (Position(0, best_step=0, best_accuracy=best), ())
    if skipped:
        yield FellBack(position.step, skipped)
    losses, damaged = run.rewind(position.step) if world.leads else ([], 0)
    if damaged:
        yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
    if position.ended_of == schedule.total:
        return
    clock.before += position.seconds
    first = position.step
    batches = training_batches(
        task.data.train, task.transform, plan,
        steps=range(first, schedule.total), rank=world.rank, world=world.size, workers=workers,
    )  # fmt: skip
    fed = onto(batches, world.device)
    unseen = _Unseen(run, world, plan, schedule.total, losses)
    every = (0.0 if on_cpu(device) else SHOWN_EVERY) if show_every is None else show_every
    last_save = time.monotonic()
    told = Told(world, None, [schedule.own_share, float(stop.exit_code), 0.0]) if world.size > 1 else None
    with closing(batches), tensor_cores(task.recipe.amp, world.device):
        for step in range(first, schedule.total):
            lr = schedule.lr(step, clock.share if told is None else told.of_all()[0])
            try:
                loss = (learner.first_step if step == first else learner.step)(fed, step, lr)
            except ImageError:  # before anything has moved
                yield from unseen.looked_at()
                _save(learner, run, position, clock, world)
                raise
            due = unseen.seconds >= every and world.leads
            new = Told(world, loss, [schedule.own_share, float(stop.exit_code), float(due)])
            unseen.add(step, lr, new)
            position = replace(position, step=step + 1)
            # What the others say of this very step would have to be waited for, unless its loss is looked at anyway.
            share, asked, shown = (told if told and every else new).of_all()
            told = new if world.size > 1 else None
            ends = schedule.is_over(step + 1, share)
            at_end_of_epoch = (step + 1) % plan.steps_per_epoch == 0 or ends
            if shown or at_end_of_epoch or asked or ends:
                yield from unseen.looked_at()
                asked = asked if told else stop.exit_code  # whoever was shown the steps may have asked
            if at_end_of_epoch:
                event, position = _end_of_epoch(learner, run, position, losses, plan, schedule)
                losses.clear()
                yield event
                after = Told(world, None, [schedule.own_share, float(stop.exit_code), 0.0])  # that took its time
                share, asked, _ = after.of_all()
                told = after if world.size > 1 else None
                waited = (step + 1 - position.best_step) / plan.steps_per_epoch
                ends = ends or schedule.is_over(step + 1, share)
                ends = ends or bool(task.recipe.patience and waited >= task.recipe.patience)
            if ends:
                position = replace(position, ended_of=schedule.total)
            if asked or ends or time.monotonic() - last_save > save_every:
                yield from unseen.looked_at()
                _save(learner, run, position, clock, world)
                last_save = time.monotonic()
            if asked or ends:
                world.barrier()  # what the leader has saved is there for all
            if ends:
                return
            if asked:
                message = f"stopped at step {step + 1} of {schedule.total}; to go on: {run.resume_command}"
                raise Stopped(message, stop.exit_code or EXIT_STOPPED)
            if not unseen.steps:
                unseen.since = time.monotonic()


class _Unseen:
    """The steps whose losses nobody has looked at yet, and what is then told of them."""

    def __init__(self, run: Run, world: World, plan: Plan, total: int, losses: list[float]) -> None:
        """`losses` grows by those that are looked at."""
        self.run, self.world, self.plan, self.total, self.losses = run, world, plan, total, losses
        self.steps: list[tuple[int, float, Told]] = []  # from 0, its learning rate, its loss
        self.since = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long nobody has looked."""
        return time.monotonic() - self.since

    def add(self, step: int, lr: float, told: Told) -> None:
        """Another one is done, or will be once the device comes to it."""
        self.steps.append((step, lr, told))

    def looked_at(self) -> Iterator[Stepped]:
        """Read all of them at once, and write them down. Raises VitError when one is not finite."""
        if not self.steps:
            return
        steps, self.steps = self.steps, []
        losses = losses_of([told for _, _, told in steps])
        rate = self.plan.batch_size * len(steps) / max(self.seconds, 1e-9)
        self.since = time.monotonic()
        for (step, lr, _), loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise VitError(
                    f"the loss is {loss} at step {step}: lower --lr; the state saved before it is in {self.run.folder}"
                )
            self.losses.append(loss)
            stepped = Stepped(step + 1, self.total, (step + 1) / self.plan.steps_per_epoch, loss, lr, rate)
            if self.world.leads:
                self.run.log(stepped)
            yield stepped


@dataclass(frozen=True)
class Schedule:
    """Learning rate and end of a run of `total` steps: by its steps, and by the leader's clock if that has a budget."""

    recipe: Recipe
    total: int
    clock: Clock
    world: World

    @property
    def own_share(self) -> float:
        """The share of the time that is used by the leader's clock; the others keep silent, so that the sum is that."""
        return self.clock.share if self.world.leads else 0.0

    def lr(self, step: int, used: float) -> float:
        """The learning rate of `step` (from 0) when so much of the time, as a share, is used."""
        return self.recipe.lr_at(max(step, used * self.total), self.total)

    def is_over(self, steps: int, used: float) -> bool:
        """Whether the run ends after so many steps."""
        return used >= 1 or steps == self.total


def _plan(task: Task, world: World) -> Plan:
    """Raises UsageError when the processes cannot share a step."""
    recipe = task.recipe
    plan = Plan.of(len(task.data.train), recipe.batch_size, recipe.micro_batch, recipe.seed)
    if plan.micro_batches % world.size:
        raise UsageError(
            f"{world.size} processes cannot share {plan.micro_batches} micro-batches of {plan.micro_batch}; "
            f"choose a batch size that is a multiple of {world.size * plan.micro_batch}"
        )
    return plan


def _restored(learner: Learner, run: Run, total: int) -> tuple[Position, tuple[str, ...]] | None:
    """Load the newest saved state that is whole into `learner`; None for a fresh run. Raises CheckpointError.

    Returns where it stands and which newer states were skipped. The tensors are let go: they are as large as all that
    the learner holds.
    """
    present = sum(tensor.nbytes for tensor in learner.tensors().values())
    state = run.newest(most=LARGEST_STATE * present + (1 << 20))
    if state is None:
        return None
    try:
        learner.load(state.tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the state saved in {safe(run.folder)} is not one of the model and recipe that its run.json names; "
            f"was that file changed?{what_is_left(run.folder)}"
        ) from error
    if state.position.step > total:
        raise CheckpointError(
            f"{safe(run.folder)}: its state is of step {state.position.step}, but a run of its settings has {total}; "
            f"was run.json changed?{what_is_left(run.folder)}"
        )
    return state.position, state.skipped


def _end_of_epoch(
    learner: Learner, run: Run, position: Position, losses: list[float], plan: Plan, schedule: Schedule
) -> tuple[Evaluated, Position]:
    """Validate the (averaged) weights, and keep them; what that gave, and the position with what is best now."""
    learner.require_finite(position.step)
    task, world = learner.task, learner.world
    validation = validate(learner.averaged, task, task.data.val, world)
    is_best = validation.score > position.best_accuracy or not validation.n
    if is_best:
        position = replace(position, best_step=position.step, best_accuracy=validation.score)
    epoch = position.step / plan.steps_per_epoch
    event = Evaluated(position.step, schedule.total, epoch, sum(losses) / len(losses), validation, is_best)
    if world.leads:
        run.log(event)
    model = learner.kept()
    if world.leads:
        assert model is not None
        run.keep(model, task, event, own=learner.sharded)
    return event, position


def _save(learner: Learner, run: Run, position: Position, clock: Clock, world: World) -> None:
    if world.leads or learner.sharded:
        learner.require_finite(position.step)
    if world.leads:
        run.save(replace(position, seconds=clock.used if clock.budget else 0.0), learner.tensors())
    elif learner.sharded:
        take_part(learner.tensors())
