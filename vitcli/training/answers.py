"""A teacher's answers to the training images, given once and kept in a file that later runs read.

The teacher sees each image whole, at its own size, as `vit predict` would show it. What a small student sees, shifted
and flipped, is near enough; and a teacher that costs more than its student is asked once instead of every epoch.
"""

from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vitcli.checkpoint.durable import write_file
from vitcli.data.samples import Samples
from vitcli.errors import EXIT_STOPPED, Stopped, UsageError, VitError
from vitcli.text import safe
from vitcli.training.distributed import World
from vitcli.training.evaluation import batches
from vitcli.training.events import Asked
from vitcli.training.run import Run
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.teacher import Teacher

NAME = "answers"


def kept_answers(file: Path, task: Task, run: Run, world: World, stop: StopFlag) -> Generator[Asked, None, Tensor]:
    """The logits (N, K), float16, of `task.teacher` for `task.data.train`: from `file`, or computed and kept there.

    Raises UsageError when the file is of other images or another teacher, Stopped after a signal.
    """
    teacher, samples = task.teacher, task.data.train
    assert isinstance(teacher, Teacher)
    told = {"teacher": teacher.digest, "images": samples.fingerprint, "classes": "\0".join(task.data.classes)}
    if world.leads and not file.exists():
        answers = yield from _asked(teacher, samples, task.recipe.amp, run, world, stop)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, [save({NAME: answers}, told)])
        except OSError as error:
            raise VitError(f"{safe(file)}: {error.strerror}; the teacher's answers were not kept") from error
    world.barrier()
    return _read(file, told, (len(samples), task.classes))


def _asked(
    teacher: Teacher, samples: Samples, amp: str, run: Run, world: World, stop: StopFlag
) -> Generator[Asked, None, Tensor]:
    """The logits (N, K), float16, in the precision of the training."""
    model = teacher.model.to(world.device).to(memory_format=torch.channels_last)
    order = teacher.order.to(world.device)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    found: list[Tensor] = []
    done = 0
    for pixels, _ in batches(samples, range(len(samples)), teacher.own):
        images = pixels.to(world.device).to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(world.device.type, kind) if kind else nullcontext():
            found.append(model(images)[:, order].to(torch.float16).cpu())
        done += len(pixels)
        yield Asked(done, len(samples))
        if stop.exit_code:
            raise Stopped(
                f"stopped at answer {done} of {len(samples)}; to go on: {run.resume_command}",
                stop.exit_code or EXIT_STOPPED,
            )
    return torch.cat(found)


def _read(file: Path, told: dict[str, str], shape: tuple[int, int]) -> Tensor:
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}) != told:
                raise UsageError(
                    f"{safe(file)} holds another teacher's answers, or those to other images; name another file"
                )
            answers: Tensor = opened.get_tensor(NAME)
    except (OSError, SafetensorError) as error:
        raise VitError(
            f"{safe(file)} cannot be read: {safe(error)}; remove it, and the teacher is asked anew"
        ) from error
    if answers.shape != shape or not answers.isfinite().all():
        raise VitError(f"{safe(file)} is damaged; remove it, and the teacher is asked anew")
    return answers
