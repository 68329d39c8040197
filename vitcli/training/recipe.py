"""How to train: a frozen dataclass and readable TOML files. Defaults live here and nowhere else. Imports no torch."""

import math
import re
import tomllib
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitcli.checkpoint.model_args import checked_settings
from vitcli.errors import CheckpointError, UsageError
from vitcli.files import open_regular, shown, typed_value
from vitcli.text import did_you_mean, safe

Kind = Literal["train", "finetune"]


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults suit small data and training from scratch (after arXiv 2106.10270, "AugReg")."""

    epochs: float = 100.0
    steps: int = 0  # optimiser steps instead of epochs; 0: epochs count
    batch_size: int = 256  # images per optimiser step, over all processes
    # Images per forward pass: the unit of accumulation, of distribution and of randomness. 0, "auto": what suits.
    micro_batch: int = 0
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    init: Literal["authors", "mimetic"] = "authors"  # first weights of a ViT; mimetic: near attends to near
    lr: float = 1e-3  # at the end of the warm-up
    lrs: tuple[float, ...] = ()  # tried one after the other on held-out images; the best one trains on all of train
    layer_decay: float = 1.0  # of the learning rate from each block to the one below
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam; the first is SGD's momentum
    weight_decay: float = 0.05
    warmup_steps: int = -1  # -1: a twentieth of the run
    schedule: Literal["cosine", "linear"] = "cosine"
    clip_grad: float = 1.0  # global norm; 0 switches it off
    label_smoothing: float = 0.1
    dropout: float = 0.0
    drop_path: float = 0.1
    mixup: float = 0.2  # α; 0 switches it off
    cutmix: float = 0.0  # α; 0 switches it off
    randaugment: str = "rand-m9-mstd0.5-inc1"  # timm's notation; empty switches it off
    random_erasing: float = 0.25  # probability
    crop_scale: float = 0.35  # least share of the area that a random resized crop keeps; 1: no crop
    crop_padding: int = 0  # instead of a resized crop: pad by this many pixels and crop back (small images)
    hflip: float = 0.5  # probability
    invert: float = 0.0  # probability of a negative
    class_weights: bool = False  # weigh each class by the inverse of how often it occurs
    loss: Literal["auto", "asymmetric"] = "auto"  # asymmetric (arXiv 2009.14119) is for several labels an image
    asymmetric: tuple[float, float, float] = (0.0, 4.0, 0.05)  # its γ+, γ− and margin m, as in that paper
    patience: int = 0  # epochs without a better validation accuracy after which the run ends; 0: never
    teacher_weight: float = 0.5  # share of the loss that a teacher has, when there is one
    teacher_temperature: float = 1.0
    token_weight: float = 0.0  # of the distance between a ViT's patch tokens and its teacher's, added to the loss
    amp: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # precision of the forward pass; auto: what suits the device
    compile: bool | None = None  # torch.compile; None, "auto": on a GPU where the run is long enough to gain from it
    shard_model: bool = False  # under torchrun: weights and what goes with them are shared out among the processes
    grad_checkpointing: bool = False  # recompute the blocks in the backward pass: less memory, a third more time
    ema_decay: float = 0.999  # of the averaged weights that are evaluated and kept; 0 switches it off
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                known = ", ".join(repr(value) for value in get_args(kind))
                raise UsageError(f"recipe: {name} is {safe(repr(getattr(self, name)))}, it must be one of {known}")
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not (low <= value <= high and (value > 0 or name not in _POSITIVE)):
                least = "above 0" if name in _POSITIVE else f"at least {low:g}"
                raise UsageError(f"recipe: {name} is {shown(value)}, it must be {least} and at most {high:g}")
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < LEAST_ALPHA:
                raise UsageError(
                    f"recipe: {name} is {shown(getattr(self, name))}, it must be 0, which switches it off, or at least "
                    f"{LEAST_ALPHA:g}: no Beta distribution can be drawn from below"
                )
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1 + (name in _CLOSED):
                raise UsageError(f"recipe: {name} is {shown(getattr(self, name))}, it must lie between 0 and 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"recipe: betas are {shown(list(self.betas))}, they must be two numbers from 0 to below 1")
        if len(self.lrs) > MOST_LRS or not all(0 < lr <= _BOUNDS["lr"][1] for lr in self.lrs):
            raise UsageError(
                f"recipe: lrs are {shown(list(self.lrs))}, they must be up to {MOST_LRS} numbers above 0, "
                f"at most {_BOUNDS['lr'][1]:g}"
            )
        positive, negative, margin = self.asymmetric if len(self.asymmetric) == 3 else (-1.0, -1.0, -1.0)
        if not (0 <= positive <= 100 and 0 <= negative <= 100 and 0 <= margin < 1):
            raise UsageError(
                f"recipe: asymmetric is {shown(list(self.asymmetric))}, it must be γ+ and γ−, from 0 to 100, and a "
                "margin from 0 to below 1"
            )
        if self.randaugment and not _RANDAUGMENT.fullmatch(self.randaugment):
            raise UsageError(
                f"recipe: randaugment is {shown(self.randaugment)}, it must be written as timm does: "
                "rand-m9-n2-mstd0.5-inc1, with m up to 10 and n up to 15"
            )
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"recipe: crop_scale is {shown(self.crop_scale)}, it must lie in (0, 1]")
        if self.crop_padding and self.crop_scale < 1:
            raise UsageError(
                "recipe: crop_padding and crop_scale exclude each other; set crop_scale = 1 to pad and crop"
            )
        if self.batch_size % (self.micro_batch or 1):
            raise UsageError(f"recipe: micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        if self.paired and (self.micro_batch or self.batch_size) % 2:
            name = "micro_batch" if self.micro_batch else "batch_size"
            raise UsageError(
                f"recipe: mixup and cutmix pair images, so {name} {getattr(self, name)} must be even: "
                "choose an even batch size, or set both to 0"
            )

    @property
    def paired(self) -> bool:
        """Whether images are mixed in pairs."""
        return bool(self.mixup or self.cutmix)

    def micro_batches_up_to(self, most: int, processes: int = 1) -> list[int]:
        """The micro-batches of at most `most` images that make up a batch and can be shared out, largest first.

        An even number of images where they are paired.
        """
        return [
            n
            for n in range(min(most, self.batch_size), 0, -1)
            if self.batch_size % (n * processes) == 0 and not (self.paired and n % 2)
        ]

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def lr_at(self, step: float, total: int) -> float:
        """Learning rate of `step` (from 0) of `total`: linear warm-up, then cosine or linear decay to 0."""
        warmup = min(total // 20 if self.warmup_steps < 0 else self.warmup_steps, total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = min((step - warmup) / max(1, total - warmup), 1.0)
        share = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.lr * share


# Beyond these a number is a slip of the pen, and would be told late: by memory, or by a run that never ends.
_BOUNDS: dict[str, tuple[float, float]] = {
    "epochs": (0, 1e6),
    "steps": (0, 1e9),
    "batch_size": (1, 1 << 20),
    "micro_batch": (0, 1 << 20),
    "lr": (0, 1e37),
    "layer_decay": (0, 10),
    "weight_decay": (0, 1e3),
    "warmup_steps": (-1, 1e9),
    "clip_grad": (0, 1e6),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "crop_padding": (0, 1 << 12),
    "patience": (0, 1e6),
    "teacher_temperature": (0, 1e3),
    "token_weight": (0, 1e6),
    "seed": (-(1 << 62), 1 << 62),
}
LEAST_ALPHA = 1e-3  # already two points, 0 and 1
_POSITIVE = {"epochs", "batch_size", "lr", "layer_decay", "teacher_temperature"}
_CLOSED = ("hflip", "invert", "random_erasing", "teacher_weight")  # 1 makes sense
_SHARES = ("label_smoothing", "dropout", "drop_path", "ema_decay", *_CLOSED)
_RANDAUGMENT = re.compile(
    r"rand(-(m(10|\d)|n(1[0-5]|\d)|p(0?\.\d{1,6}|0|1)|mstd\d{1,3}(\.\d{1,6})?|mmax\d{1,2}|inc[01]|tweights))*"
)
MOST_LRS = 100
MAX_BYTES = 64 << 10  # of a recipe file; the longest shipped one has 2 KiB


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the model it was written for: `[model]` is an architecture and what differs from it."""

    recipe: Recipe
    model: dict[str, Any]
    source: str


def recipe_names(kind: Kind = "train") -> list[str]:
    """The shipped recipes of `kind`."""
    names = (entry.name for entry in _shipped(kind).iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_recipe(name: str | None, kind: Kind = "train") -> RecipeFile:
    """A shipped recipe by name, or a TOML file. None: the defaults. Raises UsageError naming the field."""
    if name is None:
        return load_recipe("default", kind) if kind == "finetune" else RecipeFile(Recipe(), {}, "default")
    path = Path(name)
    if name.endswith(".toml") and path.exists():
        data = _read(path)
    elif name in (known := recipe_names(kind)):
        data = (_shipped(kind) / f"{name}.toml").read_bytes()
    else:
        raise UsageError(
            f"no recipe '{safe(name)}': give a .toml file or one of {', '.join(known)}.{did_you_mean(name, known)}"
        )
    document = parse_toml(data, safe(name))
    if unknown := set(document) - {"model", "recipe"}:
        raise UsageError(f"{safe(name)}: unknown section [{safe(min(unknown))}]; there are [model] and [recipe]")
    for section, value in document.items():
        if not isinstance(value, dict):
            raise UsageError(f"{safe(name)}: {section} must be a section, [{section}], not {shown(value)}")
    recipe = override(Recipe(), document.get("recipe", {}), name)
    return RecipeFile(recipe, _model(document.get("model", {}), name), name)


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{safe(path)}: larger than {MAX_BYTES >> 10} KiB; this is no recipe")
    return data


def _model(values: dict[str, Any], source: str) -> dict[str, Any]:
    """`[model]`, its architecture a text and the rest what a model of it may be told. Raises UsageError."""
    if not isinstance(values.get("architecture", ""), str):
        raise UsageError(f"{safe(source)}: architecture must be a name, not {shown(values['architecture'])}")
    others = {name: value for name, value in values.items() if name != "architecture"}
    try:
        checked_settings(values.get("architecture"), others, f"{safe(source)}: model")
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    return values


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """The TOML document `data`. Raises UsageError, beginning with `where`, for anything else.

    Also for deep nesting, for integers beyond TOML's 64 bits and for numbers that are not finite.
    """
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))
        _require_plain(document, where)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not valid TOML: {safe(error)}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply for settings") from None
    except ValueError:  # an integer of more than 4300 digits
        raise UsageError(f"{where}: a number has too many digits") from None
    return document


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _require_plain(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value} is no number that a setting can have (too large, or not a number)")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise UsageError(f"{where}: a number of more than 64 bits")


FITTED = ("crop_scale", "crop_padding", "randaugment")  # what `small_images` decides


def small_images(recipe: Recipe, side: int) -> Recipe:
    """`recipe` for small images of `side` pixels: shifts by a sixteenth instead of random crops and RandAugment."""
    return replace(recipe, crop_scale=1.0, crop_padding=max(1, side // 16), randaugment="")


def finetuning_recipe(name: str | None, changes: dict[str, Any], pixels: tuple[int, int]) -> Recipe:
    """The recipe `name` for fine-tuning with `changes`; the default one is fitted to images as small as `pixels`.

    Random crops would leave too little of those. Raises UsageError for a recipe that has a model of its own.
    """
    file = load_recipe(name, "finetune")
    if file.model:
        raise UsageError(
            f"the recipe {safe(name)} has a [model] part, but the model of `vit finetune` is its checkpoint"
        )
    recipe = file.recipe
    if name is None and min(pixels) <= 64:
        recipe = small_images(recipe, min(pixels))
    if "epochs" in changes and "steps" not in changes:
        changes = {**changes, "steps": 0}  # epochs were asked for
    if "lr" in changes and "lrs" not in changes:
        changes = {**changes, "lrs": []}  # this one, no search
    return override(recipe, changes, "options")


def for_labels(recipe: Recipe, *, several: bool) -> tuple[Recipe, str | None]:
    """`recipe` for images with `several` labels each or with one; and what of it was switched off, in a line.

    A mixture of two pictures shows the labels of both, neither by half; and smoothed labels would only move every
    label's probability by the same amount. Raises UsageError for a loss that one label an image does not have.
    """
    if not several:
        if recipe.loss != "auto":
            raise UsageError(f"recipe: loss = {recipe.loss} is for several labels an image, and these data give one")
        return recipe, None
    off = {name: 0.0 for name in ("mixup", "cutmix", "label_smoothing") if getattr(recipe, name)}
    said = f"several labels an image: without {', '.join(off)}" if off else None
    return replace(recipe, **off), said  # type: ignore[arg-type]


def override(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """`recipe` with `changes`, each checked for name and type. Raises UsageError.

    A batch size that comes without a micro-batch gets the largest one that divides it and is no larger than `recipe`'s.
    """
    hints = get_type_hints(Recipe)
    converted: dict[str, Any] = {}
    for name, given in changes.items():
        if name not in hints:
            raise UsageError(f"{safe(source)}: no recipe setting '{safe(name)}'.{did_you_mean(name, hints)}")
        value = next((meant for said, meant in _SPELLED.get(name, ()) if said == given), given)
        # A choice among words is looked at with the rest, which knows what to say.
        hint = str if get_origin(hints[name]) is Literal else hints[name]
        try:
            converted[name] = typed_value(hint, value, name)
        except ValueError as error:
            raise UsageError(f"{safe(source)}: {error}") from None
    if converted.get("batch_size", 0) > 0 and "micro_batch" not in converted and recipe.micro_batch:
        changed = replace(recipe, **{**converted, "micro_batch": 0})
        converted["micro_batch"] = next(iter(changed.micro_batches_up_to(recipe.micro_batch)), 1)
    return replace(recipe, **converted)


# What a file says where a field cannot hold the word, and what `amp` was called before.
_SPELLED: dict[str, tuple[tuple[Any, Any], ...]] = {
    "micro_batch": (("auto", 0),),
    "compile": (("auto", None),),
    "amp": (("", "fp32"),),
}


def smaller_micro_batch(recipe: Recipe) -> int | None:
    """The next smaller micro-batch that divides `recipe`'s, an even one where images are paired; None without one."""
    smaller = recipe.micro_batches_up_to(recipe.micro_batch - 1)
    return next((n for n in smaller if recipe.micro_batch % n == 0), None)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """`recipe` as JSON and TOML hold it, with lists for tuples."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
    left_open = {"micro_batch": recipe.micro_batch == 0, "compile": recipe.compile is None}
    return values | {name: "auto" for name, is_open in left_open.items() if is_open}


def _shipped(kind: Kind) -> Any:
    return files("vitcli.training") / "recipes" / kind
