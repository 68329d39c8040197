"""`fit`: the one training loop (docs/design.md, decision 5). Yields what happened; the caller draws it.

A step is `Plan.micro_batches` forward and backward passes of one micro-batch each, then one optimiser step. All
randomness inside a pass is keyed by (seed, step, micro-batch), so a run resumed at any step, and one spread over any
number of processes that divides the micro-batches, computes the same.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from vitcli.errors import EXIT_STOPPED, CheckpointError, ImageError, Stopped, UsageError, VitError
from vitcli.text import plural, safe
from vitcli.training.batches import Plan, training_batches
from vitcli.training.budget import Clock
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Event, FellBack, Lost, Stepped
from vitcli.training.folder import Run, as_line, export, what_is_left
from vitcli.training.learner import Learner
from vitcli.training.state import Progress
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import evaluate


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
    recipe, samples = task.recipe, task.data.train
    plan = Plan.of(len(samples), recipe.batch_size, recipe.micro_batch, recipe.seed)
    if plan.micro_batches % world.size:
        raise UsageError(
            f"{world.size} processes cannot share {plan.micro_batches} micro-batches of {plan.micro_batch}; "
            f"choose a batch size that is a multiple of {world.size * plan.micro_batch}"
        )
    total = recipe.total_steps(plan.steps_per_epoch)
    learner = Learner(task, world, plan.micro_batches)
    progress, skipped = run.restore(learner) or (Progress(step=0, best_step=0, best_accuracy=best), ())
    if skipped:
        yield FellBack(progress.step, skipped)
    if progress.step > total:
        raise CheckpointError(
            f"{safe(run.folder)}: its state is of step {progress.step}, but a run of its settings has {total}; "
            f"was run.json changed?{what_is_left(run.folder)}"
        )
    losses, damaged = run.rewind(progress.step) if world.leads else ([], 0)
    if damaged:
        yield Lost(f"{safe(run.folder)}/metrics.jsonl: {plural(damaged, 'damaged line')} left out")
    if progress.ended_of == total:
        return
    clock = clock or Clock(None)
    clock.before += progress.seconds
    batches = training_batches(
        samples,
        task.transform,
        plan,
        steps=range(progress.step, total),
        rank=world.rank,
        world=world.size,
        workers=workers,
    )

    def save() -> None:
        if world.leads:
            learner.require_finite(progress.step)
            run.save(replace(progress, seconds=clock.used if clock.budget else 0.0), learner)

    first = progress.step
    last_save = last_step = time.monotonic()
    with closing(batches):
        for step in range(progress.step, total):
            (share,) = world.sum([clock.share if world.leads else 0.0])
            lr = recipe.lr_at(max(step, share * total), total)
            try:
                loss = (learner.first_step if step == first else learner.step)(batches, step, lr)
            except ImageError:  # before anything has moved
                save()
                raise
            (loss,) = world.sum([loss])
            if not math.isfinite(loss):
                raise VitError(
                    f"the loss is {loss} at step {step}: lower --lr; the state saved before it is in {run.folder}"
                )
            losses.append(loss)
            now = time.monotonic()
            epoch = (step + 1) / plan.steps_per_epoch
            stepped = Stepped(step + 1, total, epoch, loss, learner.lr, plan.batch_size / (now - last_step))
            if world.leads:
                run.log(as_line(stepped))
            yield stepped
            progress = replace(progress, step=step + 1)
            (share,) = world.sum([clock.share if world.leads else 0.0])
            ends = step + 1 == total or share >= 1
            if (step + 1) % plan.steps_per_epoch == 0 or ends:
                learner.require_finite(step + 1)
                validation = evaluate(learner.averaged, task, task.data.val, world)
                is_best = validation.accuracy > progress.best_accuracy or not validation.n
                if is_best:
                    progress = replace(progress, best_step=step + 1, best_accuracy=validation.accuracy)
                event = Evaluated(step + 1, total, epoch, sum(losses) / len(losses), validation, is_best)
                if world.leads:
                    run.log(as_line(event))
                    for name in ["last", "best"] if is_best else ["last"]:
                        export(learner.averaged, task, run.folder / name, event)
                losses.clear()
                yield event
                waited = (step + 1 - progress.best_step) / plan.steps_per_epoch
                (share,) = world.sum([clock.share if world.leads else 0.0])  # the evaluation took its time
                ends = ends or share >= 1 or bool(recipe.patience and waited >= recipe.patience)
            if ends:
                progress = replace(progress, ended_of=total)
            (asked,) = world.sum([float(stop.exit_code)])
            if asked or ends or time.monotonic() - last_save > save_every:
                save()
                last_save = time.monotonic()
            if asked or ends:
                world.barrier()  # what the leader has saved is there for all
            if ends:
                return
            if asked:
                message = f"stopped at step {step + 1} of {total}; to go on: {run.resume_command}"
                raise Stopped(message, stop.exit_code or EXIT_STOPPED)
            last_step = time.monotonic()
