"""Weights under one project's names → weights under timm's: renaming, joining, leaving out. Knows no project.

Nothing disappears here without being counted: what a table does not know keeps its name, and the comparison with the
shapes of the finished config then lists it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitcli.errors import CheckpointError
from vitcli.model.shapes import Array
from vitcli.text import safe

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]  # (expression, replacement), in this order
Reasons = Sequence[tuple[str, str]]  # (expression, what it finds)
Weights = dict[str, Array]

_AVERAGED = re.compile(r"(^|\.)(teacher|ema|ema_model|model_ema|momentum_encoder)\.")


@dataclass(frozen=True)
class Dropped:
    """Weights that the original has and the result has not."""

    what: str
    weights: int


def rename(tensors: Mapping[str, Array], rules: Rules, where: str) -> Weights:
    """Every rule on every name. Raises CheckpointError when two weights end up under one name."""
    renamed: Weights = {}
    for name, array in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise CheckpointError(f"{where}: two weights for {safe(new, 80)}; one of them is {safe(name, 80)}")
        renamed[new] = array
    return renamed


def leave_out(tensors: Mapping[str, Array], reasons: Reasons) -> tuple[Weights, list[Dropped]]:
    """The weights that no expression of `reasons` finds, and a count of the others."""
    kept: Weights = {}
    counts: dict[str, int] = {}
    for name, array in tensors.items():
        what = next((what for pattern, what in reasons if re.search(pattern, name)), None)
        if what is None:
            kept[name] = array
        else:
            counts[what] = counts.get(what, 0) + 1
    return kept, [Dropped(what, count) for what, count in counts.items()]


def join(tensors: Weights, parts: Sequence[str], whole: str) -> None:
    """`….q.weight`, `….k.weight`, `….v.weight` become one `….qkv.weight`, in place. What is incomplete is left."""
    for name in list(tensors):
        for kind in ("weight", "bias"):
            stem = name.removesuffix(f".{parts[0]}.{kind}")
            names = [f"{stem}.{part}.{kind}" for part in parts]
            if stem == name or not all(part in tensors for part in names):
                continue
            if len({tensors[part].shape for part in names}) == 1:
                tensors[f"{stem}.{whole}.{kind}"] = np.concatenate([tensors.pop(part) for part in names])


def merge_class_position(tensors: Weights) -> None:
    """Add the class token's row of the position embedding to the token, and take it away: timm's `no_embed_class`.

    The sum is the one the original computes in each forward pass, so no bit of the result changes.
    """
    cls, pos = tensors.get("cls_token"), tensors.get("pos_embed")
    if cls is not None and pos is not None and cls.ndim == pos.ndim == 3 and cls.shape[2] == pos.shape[2]:
        tensors["cls_token"], tensors["pos_embed"] = cls + pos[:, :1], pos[:, 1:]


def inner(tensors: Mapping[str, Array], anchor: str, where: str) -> tuple[Weights, list[Dropped]]:
    """The model inside what was trained with it: the weights under the one prefix before the name `anchor`.

    Of a teacher and its student, or an average and what it is of, the first. Raises CheckpointError for other models
    beside each other.
    """
    prefixes = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")]
    averaged = [prefix for prefix in prefixes if _AVERAGED.search(prefix)]
    if len(prefixes) > 1 and len(averaged) != 1:
        raise CheckpointError(
            f"{where}: several models in one file ({', '.join(safe(p, 40) for p in prefixes[:5])}); "
            "save the one you mean by itself"
        )
    prefix = (averaged or prefixes)[0]
    found = {name.removeprefix(prefix): a for name, a in tensors.items() if name.startswith(prefix)}
    outside = len(tensors) - len(found)
    return found, [Dropped(f"what lies outside '{safe(prefix, 40)}'", outside)] if outside else []


def counted(dropped: Iterable[Dropped]) -> tuple[str, ...]:
    """For people and provenance."""
    return tuple(f"{one.what} ({one.weights} weight{'s' * (one.weights != 1)})" for one in dropped)
