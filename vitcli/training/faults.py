"""What the world does to a run at work (disk, memory, workers, other processes), said in one line with the way on.

Knows what such errors look like, not what training is. Anything else stays what it is: a bug, with its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from vitcli.errors import CheckpointError, ImageError, StoreError, UsageError, VitError
from vitcli.text import safe
from vitcli.training.folder import Run
from vitcli.training.lock import removed


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Raises VitError for what is no bug of ours. States are durable, so that the newest saved one is whole."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if not run.folder.exists():
            raise removed(run.folder) from error
        where, what = safe(cause.filename or run.folder), cause.strerror or safe(cause)
        raise VitError(
            f"{where}: {what}; what was saved before is whole: mend it, then {run.resume_command}"
        ) from error
    except StoreError as error:
        raise VitError(f"{error}; all until then is saved, and {run.resume_command} goes on") from error
    except ImageError as error:
        raise VitError(
            f"{error}; `vit check` finds all such files. With the file restored, {run.resume_command} goes on; "
            "without it, start a new run"
        ) from error
    except RuntimeError as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise VitError(f"{reason}; to go on from the last saved state: {run.resume_command}") from error


@contextmanager
def one_image_explained() -> Iterator[None]:
    """Raises UsageError where a norm over the batch finds one value of each channel, of which it has no variance."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise UsageError(
            "batch normalisation needs more than one image at once here: a larger --set micro_batch and --batch-size, "
            "or larger images"
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _reason(error: RuntimeError) -> str | None:
    """What happened, when it happened to us; None for a bug. Torch and gloo tell these apart by their text alone."""
    text = str(error)
    if out_of_memory(error):
        return "out of memory: lower --set micro_batch, or set grad_checkpointing=true"
    if text.startswith("DataLoader worker"):
        return (
            f"a process that decodes images died ({safe(text.splitlines()[0].rstrip('. '))}), often for lack of memory "
            "or of room in /dev/shm: fewer --workers need less, 0 none"
        )
    if "unable to allocate shared memory" in text or "unable to open shared memory object" in text:
        return f"no room for decoded images in /dev/shm ({safe(text.splitlines()[-1])}): --workers 0 needs none"
    if "gloo" in text or isinstance(error, dist.DistError):
        return "another process of this run ended or cannot be reached"
    return None
