"""How to train: a frozen dataclass and readable TOML files. Defaults live here and nowhere else. Imports no torch."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitcli.errors import UsageError
from vitcli.text import did_you_mean, safe

Kind = Literal["train", "finetune"]


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults suit small data and training from scratch (after arXiv 2106.10270, "AugReg")."""

    epochs: float = 100.0
    steps: int = 0  # optimiser steps instead of epochs; 0: epochs count
    batch_size: int = 256  # images per optimiser step, over all processes
    micro_batch: int = 64  # images per forward pass: the unit of accumulation, of distribution and of randomness
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
    patience: int = 0  # epochs without a better validation accuracy after which the run ends; 0: never
    teacher_weight: float = 0.5  # share of the loss that a teacher has, when there is one
    teacher_temperature: float = 1.0
    token_weight: float = 0.0  # of the distance between a ViT's patch tokens and its teacher's, added to the loss
    amp: Literal["", "bf16", "fp16"] = ""  # autocast of the forward pass
    compile: bool = False  # torch.compile
    grad_checkpointing: bool = False  # recompute the blocks in the backward pass: less memory, a third more time
    ema_decay: float = 0.999  # of the averaged weights that are evaluated and kept; 0 switches it off
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                known = ", ".join(repr(value) for value in get_args(kind))
                raise UsageError(f"recipe: {name} is {safe(repr(getattr(self, name)))}, it must be one of {known}")
        positive = ("epochs", "batch_size", "micro_batch", "lr", "layer_decay", "teacher_temperature")
        probabilities = (
            "label_smoothing", "dropout", "drop_path", "random_erasing", "hflip", "invert", "ema_decay",
            "teacher_weight",
        )  # fmt: skip
        closed = ("hflip", "invert", "random_erasing", "teacher_weight")  # 1 makes sense
        for name in positive:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, it must be above 0")
        for name in probabilities:
            if not 0 <= getattr(self, name) < 1 + (name in closed) * 1e-9:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, it must lie between 0 and 1")
        if not (math.isfinite(self.token_weight) and self.token_weight >= 0):
            raise UsageError(f"recipe: token_weight is {self.token_weight}, it must be at least 0")
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"recipe: crop_scale is {self.crop_scale}, it must lie in (0, 1]")
        if self.crop_padding and self.crop_scale < 1:
            raise UsageError(
                "recipe: crop_padding and crop_scale exclude each other; set crop_scale = 1 to pad and crop"
            )
        if self.batch_size % self.micro_batch:
            raise UsageError(f"recipe: micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        if (self.mixup or self.cutmix) and self.micro_batch % 2:
            raise UsageError(
                f"recipe: mixup and cutmix pair images, so micro_batch {self.micro_batch} must be even: "
                "choose an even batch size, or set both to 0"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def lr_at(self, step: float, total: int) -> float:
        """Learning rate of `step` (from 0) of `total`: linear warm-up, then cosine or linear decay to 0."""
        warmup = min(total // 20 if self.warmup_steps < 0 else self.warmup_steps, total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = min((step - warmup) / max(1, total - warmup), 1.0)
        share = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.lr * share


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the model it was written for: `[model]` is an architecture and what differs from it."""

    recipe: Recipe
    model: dict[str, Any]
    source: str


def recipe_names(kind: Kind = "train") -> list[str]:
    names = (entry.name for entry in _shipped(kind).iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_recipe(name: str | None, kind: Kind = "train") -> RecipeFile:
    """A shipped recipe by name, or a TOML file. None: the defaults. Raises UsageError naming the field."""
    if name is None:
        return load_recipe("default", kind) if kind == "finetune" else RecipeFile(Recipe(), {}, "default")
    path = Path(name)
    if name.endswith(".toml") and path.is_file():
        text = path.read_text("utf-8")
    elif name in (known := recipe_names(kind)):
        text = (_shipped(kind) / f"{name}.toml").read_text("utf-8")
    else:
        raise UsageError(
            f"no recipe '{safe(name)}': give a .toml file or one of {', '.join(known)}.{did_you_mean(name, known)}"
        )
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{safe(name)}: not valid TOML: {error}") from error
    if unknown := set(document) - {"model", "recipe"}:
        raise UsageError(f"{safe(name)}: unknown section [{safe(min(unknown))}]; there are [model] and [recipe]")
    return RecipeFile(override(Recipe(), document.get("recipe", {}), name), document.get("model", {}), name)


FITTED = ("crop_scale", "crop_padding", "randaugment")  # what `small_images` decides


def small_images(recipe: Recipe, side: int) -> Recipe:
    """`recipe` for small images of `side` pixels: shifts by a sixteenth instead of random crops and RandAugment."""
    return replace(recipe, crop_scale=1.0, crop_padding=max(1, side // 16), randaugment="")


def override(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """`recipe` with `changes`, each checked for name and type. Raises UsageError.

    A batch size that comes without a micro-batch gets the largest one that divides it and is no larger than `recipe`'s.
    """
    types = {field.name: type(getattr(recipe, field.name)) for field in fields(recipe)}
    converted = {}
    for name, value in changes.items():
        if name not in types:
            raise UsageError(f"{safe(source)}: no recipe setting '{safe(name)}'.{did_you_mean(name, types)}")
        expected = types[name]
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if expected is tuple and isinstance(value, list):
            value = tuple(float(item) for item in value)
        if not isinstance(value, expected):
            raise UsageError(f"{safe(source)}: {name} = {safe(value)} should be of type {expected.__name__}")
        converted[name] = value
    if "batch_size" in converted and "micro_batch" not in converted:
        converted["micro_batch"] = _micro_batch(recipe, converted)
    return replace(recipe, **converted)


def _micro_batch(recipe: Recipe, changes: dict[str, Any]) -> int:
    """The largest divisor of the changed batch size up to `recipe.micro_batch`; an even one where images are paired."""
    divisors = [n for n in range(recipe.micro_batch, 0, -1) if changes["batch_size"] % n == 0]
    paired = changes.get("mixup", recipe.mixup) or changes.get("cutmix", recipe.cutmix)
    return next((n for n in divisors if n % 2 == 0), divisors[0]) if paired else divisors[0]


def smaller_micro_batch(recipe: Recipe) -> int | None:
    """The next smaller one that divides it, an even one where images are paired; None when there is none."""
    paired = recipe.mixup or recipe.cutmix
    smaller = range(recipe.micro_batch - 1, 0, -1)
    return next((n for n in smaller if recipe.micro_batch % n == 0 and not (paired and n % 2)), None)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}


def _shipped(kind: Kind) -> Any:
    return files("vitcli.training") / "recipes" / kind
