"""A trained model that a student learns from (Hinton et al. 2015, arXiv 1503.02531; DeiT, arXiv 2012.12877).

It is asked about the very images that the student sees, in every pass; or once about each whole image, at its own size,
as `vit predict` would show it, with the answers kept in a file that later runs read. What a small student sees, shifted
and flipped, is near enough to that, and a teacher may cost more than its student.
"""

import unicodedata
from collections.abc import Callable, Generator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.load import load_any
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import Samples
from vitcli.errors import Stopped, UsageError, VitError
from vitcli.files import write_file
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe
from vitcli.training.distributed import World
from vitcli.training.events import Asked
from vitcli.training.folder import Run
from vitcli.training.precision import autocast
from vitcli.training.stop import StopFlag
from vitcli.training.task import Task
from vitcli.training.validation import batches


class Teacher(nn.Module):
    """Images (B, C, H, W) as the student sees them → the teacher's logits (B, K), in the student's order of classes.

    The images are normalised anew and resized on the tensor (bilinear), so the teacher's own input size may differ.
    `own` is how it would see a whole image, `digest` the SHA-256 of its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Preprocess,
        student: Preprocess,
        order: list[int],
        name: str = "teacher",
        digest: str = "",
    ) -> None:
        super().__init__()
        self.name, self.own, self.digest = name, own, digest
        self.model, self.size = model.eval().requires_grad_(False), own.size
        # (x · s + m − μ) / σ: from the student's normalisation (m, s) to the teacher's (μ, σ)
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (student.mean, student.std, own.mean, own.std)
        )
        self.scale: Tensor
        self.shift: Tensor
        self.order: Tensor
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.register_buffer("order", torch.tensor(order))

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def forward(self, x: Tensor, *, with_tokens: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """As `VisionTransformer.forward`; only a ViT has tokens."""
        x = x * self.scale + self.shift
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        if not with_tokens:
            return self.model(x)[:, self.order]  # type: ignore[no-any-return]
        logits, tokens = self.model(x, with_tokens=True)
        return logits[:, self.order], tokens


def load_teacher(
    name: str, student: Preprocess, classes: tuple[str, ...], resolver: Callable[[str], Checkpoint] = resolve
) -> Teacher:
    """The checkpoint `name` as a teacher of `classes`. Raises UsageError when it does not know all of them."""
    checkpoint = resolver(name)
    if checkpoint.outputs != "classes":
        why = checkpoint.why_no_classes or "several of its labels may hold for one image (multi-label)"
        raise UsageError(f"{safe(name)} cannot teach classes: {why}")
    known = [unicodedata.normalize("NFC", label) for label in checkpoint.labels]
    if unknown := [label for label in classes if label not in known]:
        raise UsageError(f"the teacher {safe(name)} does not know the class '{safe(unknown[0])}' of the data")
    if checkpoint.preprocess.in_chans != student.in_chans:
        raise UsageError(f"the teacher {safe(name)} takes {checkpoint.preprocess.in_chans} channels, the student "
                         f"{student.in_chans}")  # fmt: skip
    order = [known.index(label) for label in classes]
    digest = weights_digest(checkpoint)
    return Teacher(load_any(checkpoint), checkpoint.preprocess, student, order, checkpoint.public_name, digest)


def require_like_tokens(teacher: nn.Module | None, student: ViTConfig | None) -> None:
    """Raises UsageError unless the tokens of both are of one grid and one width, so that they can be compared."""
    model = teacher.model if isinstance(teacher, Teacher) else None
    if not isinstance(model, VisionTransformer) or student is None:
        raise UsageError("token_weight is for a Vision Transformer with another one as its teacher")
    own = model.config
    for what, theirs, ours in (("grid", own.grid, student.grid), ("width", own.embed_dim, student.embed_dim)):
        if theirs != ours:
            raise UsageError(
                f"token_weight compares tokens, but their {what} is {theirs} in the teacher and {ours} in the student"
            )


TENSOR = "answers"  # its name in the file


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
            write_file(file, [save({TENSOR: answers}, told)])
        except OSError as error:
            raise VitError(f"{safe(file)}: {error.strerror}; the teacher's answers were not kept") from error
    world.barrier()
    return _read(file, told, (len(samples), task.classes))


def _asked(
    teacher: Teacher, samples: Samples, amp: str, run: Run, world: World, stop: StopFlag
) -> Generator[Asked, None, Tensor]:
    """The logits (N, K), float16, of `teacher` for whole images, computed in the precision of the training."""
    model = teacher.model.to(world.device).to(memory_format=torch.channels_last)
    order = teacher.order.to(world.device)
    found: list[Tensor] = []
    done = 0
    for pixels, _ in batches(samples, range(len(samples)), teacher.own):
        images = pixels.to(world.device).to(memory_format=torch.channels_last)
        with torch.inference_mode(), autocast(amp, world.device):
            found.append(model(images)[:, order].to(torch.float16).cpu())
        done += len(pixels)
        yield Asked(done, len(samples))
        if stop.exit_code:
            raise Stopped(f"stopped at answer {done} of {len(samples)}; to go on: {run.resume_command}", stop.exit_code)
    return torch.cat(found)


def _read(file: Path, told: dict[str, str], shape: tuple[int, int]) -> Tensor:
    """The answers in `file`, which are to be of `shape` and to those that `told` names."""
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}) != told:
                raise UsageError(
                    f"{safe(file)} holds another teacher's answers, or those to other images; name another file"
                )
            answers: Tensor = opened.get_tensor(TENSOR)
    except (OSError, SafetensorError) as error:
        raise VitError(
            f"{safe(file)} cannot be read: {safe(error)}; remove it, and the teacher is asked anew"
        ) from error
    if answers.shape != shape or not answers.isfinite().all():
        raise VitError(f"{safe(file)} is damaged; remove it, and the teacher is asked anew")
    return answers
