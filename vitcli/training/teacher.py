"""A trained model that a student learns from (Hinton et al. 2015, arXiv 1503.02531; DeiT, arXiv 2012.12877)."""

import unicodedata

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcli.checkpoint.load import load_any
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.errors import UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe


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


def load_teacher(name: str, student: Preprocess, classes: tuple[str, ...]) -> Teacher:
    """The checkpoint `name` as a teacher of `classes`. Raises UsageError when it does not know all of them."""
    checkpoint = resolve(name)
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
