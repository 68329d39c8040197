"""What goes into the families' converters and what comes out: three dataclasses, and what all families share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitcli.checkpoint.config import Description, Outputs
from vitcli.checkpoint.convert.names import Dropped, Weights, leave_out
from vitcli.checkpoint.tensor_file import StoredType
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import ViTConfig
from vitcli.text import safe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

EMBEDS = "the head is the projection to the common space of image and text: embeddings, not classes"
QUANTITIES = "its outputs are quantities (problem_type regression), and this program reads classes"
TWO_HEADS = "two classifiers, on the class and on the distillation token, are averaged, and a ViT has one"

_HEADS = [(r"^(head|head_dist|pre_logits)\.", "the head, as --no-head asks")]


@dataclass(frozen=True)
class Source:
    """An original as it lies on the disk: its weights under their own names, and what lies beside them."""

    name: str  # for people
    where: str  # the file of the weights, for messages
    kind: str  # "safetensors", "npz" or "pickle"
    tensors: Weights
    stored: StoredType = "float32"
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    clip_config: Mapping[str, Any] = field(default_factory=dict)  # open_clip_config.json
    processor: Mapping[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    origin: str | None = None  # org/name@commit
    readable: bool = False  # whether `vit predict -m name` finds these weights, too
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the user says beside the file."""

    facts: Mapping[str, Any] = field(default_factory=dict)  # num_heads, act, norm_eps, img_size
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # fields of Preprocess
    head: bool = True  # False: leave the classifier out
    class_names: str | None = None  # file of names for classes that have none


@dataclass(frozen=True)
class Converted:
    """A ViT under timm's names, whose shapes are those of `vit`."""

    family: str
    vit: ViTConfig
    tensors: Weights
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    label_descriptions: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    outputs: Outputs = "classes"
    timm_difference: float | None = None  # how far timm's outputs are off, where its norms have another epsilon

    def described(self, architecture: str) -> Description:
        """What config.json says of it, but for where it comes from."""
        return Description(
            architecture=architecture,
            vit=self.vit,
            labels=self.labels,
            preprocess=self.preprocess,
            label_descriptions=self.label_descriptions,
            outputs=self.outputs,
        )


def without_head(tensors: Weights, settings: Settings, why_not: str | None) -> tuple[Weights, list[Dropped]]:
    """`tensors` without the head where the user wants none.

    Raises CheckpointError when the head cannot be kept, UsageError when there is none to leave out.
    """
    if not settings.head:
        kept, dropped = leave_out(tensors, _HEADS)
        if not dropped:
            raise UsageError("--no-head: the original has no head, so this would change nothing")
        return kept, dropped
    if why_not:
        raise CheckpointError(f"{why_not}; --no-head converts the model without it")
    return tensors, []


def facts_of(known: Mapping[str, Any], settings: Settings, said_by: str | None = None) -> dict[str, Any]:
    """`known` and what the user says. Raises UsageError where the user would overrule the file `said_by`."""
    if said_by and (twice := sorted(known.keys() & settings.facts.keys())):
        raise UsageError(f"--set {', '.join(twice)}: {safe(said_by)} says it already")
    return {**known, **settings.facts}


def fitted(preprocess: Preprocess, vit: ViTConfig, settings: Settings) -> Preprocess:
    """`preprocess` at the model's image size and number of channels, with what the user says."""
    changes: dict[str, Any] = {"size": vit.img_size, **settings.preprocess}
    for name in ("mean", "std"):
        values = changes.get(name, getattr(preprocess, name))
        if vit.in_chans == 1 and len(values) == 3:
            changes[name] = (sum(values) / 3,)
    if vit.in_chans not in (1, 3):
        raise CheckpointError(f"images of {vit.in_chans} channels are not read; 1 and 3 are")
    return replace(preprocess, **changes)


def embedding_labels(width: int) -> tuple[str, ...]:
    """Names for outputs that are no classes."""
    return tuple(f"embedding {i}" for i in range(width))
