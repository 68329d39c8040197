"""What is in the weights themselves: digest, size of the numbers, damage, dead heads. Damage is no error here.

Imports no torch. Legend: D width, n heads, d width of a head, L layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.tensor_file import read_tensors
from vitcli.checkpoint.weights import unwrapped, weights_digest
from vitcli.model.config import ViTConfig
from vitcli.model.shapes import Array
from vitcli.text import safe

DEAD = 0.01  # a head whose output matrix is this much smaller than its layer's median


@dataclass(frozen=True)
class Statistics:
    """The numbers of one tensor; the moments are those of its finite entries."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    largest: float  # in size
    not_finite: int  # NaN and infinities


@dataclass(frozen=True)
class Weights:
    """What is in a checkpoint's weights."""

    sha256: str  # of the file, or of several one after the other
    tensors: tuple[Statistics, ...]
    head_sizes: tuple[tuple[float, ...], ...]  # (L, n): Frobenius norm of each head's way from value to output
    dead: tuple[tuple[int, int], ...]  # (layer, head), from 0


def weights(checkpoint: Checkpoint) -> Weights:
    """Read the weights of `checkpoint` once for their digest and once for their numbers."""
    digest = weights_digest(checkpoint)
    path = checkpoint.weights_path
    tensors = read_tensors(path, allow_nonfinite=True)
    arrays = {plain: tensors[name] for name, plain in unwrapped(tensors, safe(path)).items()}
    with np.errstate(all="ignore"):  # sizes of damaged heads are NaN
        sizes = _head_sizes(checkpoint.vit, arrays) if checkpoint.vit else ()
    dead = tuple(
        (layer, head)
        for layer, heads in enumerate(sizes)
        for head, size in enumerate(heads)
        if size < DEAD * float(np.median(heads))
    )
    return Weights(digest, tuple(_statistics(n, a) for n, a in arrays.items()), sizes, dead)


def _statistics(name: str, array: Array) -> Statistics:
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size:
        return Statistics(name, array.shape, 0.0, 0.0, 0.0, array.size)
    return Statistics(
        name, array.shape, finite.mean(), finite.std(), abs(finite).max(), int(array.size - finite.size)
    )  # fmt: skip


def _head_sizes(vit: ViTConfig, arrays: Mapping[str, Array]) -> tuple[tuple[float, ...], ...]:
    """‖P_h V_h‖ of each head h: what reaches the residual stream of what it gathers, (L, n)."""
    n, d, D = vit.num_heads, vit.head_dim, vit.embed_dim
    sizes = []
    for layer in range(vit.depth):
        name = f"blocks.{layer}.attn."
        if vit.qkv == "split":
            value = arrays.get(f"{name}v_proj.weight")
        else:
            qkv = arrays.get(f"{name}qkv.weight")
            value = None if qkv is None or qkv.shape != (3 * n * d, D) else qkv[2 * n * d :]
        proj = arrays.get(f"{name}proj.weight")
        if value is None or proj is None or value.shape != (n * d, D) or proj.shape != (D, n * d):
            return ()
        values = value.reshape(n, d, D).astype(np.float64)
        outputs = proj.reshape(D, n, d).transpose(1, 2, 0).astype(np.float64)  # (n, d, D)
        # ‖PᵀᵀV‖² = trace of (P Pᵀ)(V Vᵀ), of d×d matrices instead of D×D
        squared = ((outputs @ outputs.transpose(0, 2, 1)) * (values @ values.transpose(0, 2, 1))).sum(axis=(1, 2))
        sizes.append(tuple(float(size) for size in np.sqrt(np.maximum(squared, 0))))
    return tuple(sizes)
