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
from vitcli.text import plural, safe
from vitcli.training.batches import Plan, training_batches
from vitcli.training.budget import Clock
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Event, FellBack, Lost, Stepped
from vitcli.training.folder import Run, what_is_left
from vitcli.training.learner import Learner
from vitcli.training.recipe import Recipe
from vitcli.training.state import Position
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import validate

LARGEST_STATE = 4  # times model and averaged weights, with what the optimiser keeps of each


def fit(
    task: Task,
    run: Run,
    world: World,
    stop: StopFlag,
    *,
    workers: int = 0,
    save_every: float = 300.0,
    clock: Clock | None = None,
    best: float = -1.0,
) -> Iterator[Event]:
    """Train `task.model` by `task.recipe` in `run`, from its saved state when there is one.

    `save_every` is in seconds. With a budget on `clock` the learning rate follows the time as well, and the run ends
    in time. `best` is the validation accuracy of what `best/` already holds. Raises Stopped after a signal once the
    state is saved, ImageError when a training image cannot be read, once the state is saved too; VitError when the loss
    or a weight is not finite (what is saved always is).
    """
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
    last_save = last_step = time.monotonic()
    with closing(batches):
        for step in range(first, schedule.total):
            lr = schedule.lr(step)
            try:
                share = (learner.first_step if step == first else learner.step)(batches, step, lr)
            except ImageError:  # before anything has moved
                _save(learner, run, position, clock, world)
                raise
            (loss,) = world.sum([share])
            if not math.isfinite(loss):
                raise VitError(
                    f"the loss is {loss} at step {step}: lower --lr; the state saved before it is in {run.folder}"
                )
            losses.append(loss)
            now, epoch = time.monotonic(), (step + 1) / plan.steps_per_epoch
            stepped = Stepped(step + 1, schedule.total, epoch, loss, lr, plan.batch_size / (now - last_step))
            if world.leads:
                run.log(stepped)
            yield stepped
            position = replace(position, step=step + 1)
            ends = schedule.is_over(step + 1)
            if (step + 1) % plan.steps_per_epoch == 0 or ends:
                event, position = _end_of_epoch(learner, run, position, losses, plan, schedule)
                losses.clear()
                yield event
                waited = (step + 1 - position.best_step) / plan.steps_per_epoch
                ends = schedule.is_over(step + 1) or ends  # the evaluation took its time
                ends = ends or bool(task.recipe.patience and waited >= task.recipe.patience)
            if ends:
                position = replace(position, ended_of=schedule.total)
            (asked,) = world.sum([float(stop.exit_code)])
            if asked or ends or time.monotonic() - last_save > save_every:
                _save(learner, run, position, clock, world)
                last_save = time.monotonic()
            if asked or ends:
                world.barrier()  # what the leader has saved is there for all
            if ends:
                return
            if asked:
                message = f"stopped at step {step + 1} of {schedule.total}; to go on: {run.resume_command}"
                raise Stopped(message, stop.exit_code or EXIT_STOPPED)
            last_step = time.monotonic()


@dataclass(frozen=True)
class Schedule:
    """Learning rate and end of a run of `total` steps: by its steps, and by the leader's clock where that has a budget.

    Every process must ask as often as the others.
    """

    recipe: Recipe
    total: int
    clock: Clock
    world: World

    def lr(self, step: int) -> float:
        """The learning rate of `step` (from 0)."""
        return self.recipe.lr_at(max(step, self._time_used() * self.total), self.total)

    def is_over(self, steps: int) -> bool:
        """Whether the run ends after so many steps."""
        return self._time_used() >= 1 or steps == self.total

    def _time_used(self) -> float:
        (share,) = self.world.sum([self.clock.share if self.world.leads else 0.0])
        return share


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
    is_best = validation.accuracy > position.best_accuracy or not validation.n
    if is_best:
        position = replace(position, best_step=position.step, best_accuracy=validation.accuracy)
    epoch = position.step / plan.steps_per_epoch
    event = Evaluated(position.step, schedule.total, epoch, sum(losses) / len(losses), validation, is_best)
    if world.leads:
        run.log(event)
        run.keep(learner.averaged, task, event)
    return event, position


def _save(learner: Learner, run: Run, position: Position, clock: Clock, world: World) -> None:
    if world.leads:
        learner.require_finite(position.step)
        run.save(replace(position, seconds=clock.used if clock.budget else 0.0), learner.tensors())
