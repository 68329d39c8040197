"""How to train: a frozen dataclass and readable TOML files. Defaults live here and nowhere else. Imports no torch."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vitcli.errors import UsageError
from vitcli.text import did_you_mean, safe


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults suit small data and training from scratch (after arXiv 2106.10270, "AugReg")."""

    epochs: float = 100.0
    batch_size: int = 256  # images per optimiser step, over all processes
    micro_batch: int = 64  # images per forward pass: the unit of accumulation, of distribution and of randomness
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    lr: float = 1e-3  # at the end of the warm-up
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
    ema_decay: float = 0.999  # of the averaged weights that are evaluated and kept; 0 switches it off
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "micro_batch", "lr")
        probabilities = ("label_smoothing", "dropout", "drop_path", "random_erasing", "hflip", "invert", "ema_decay")
        for name in positive:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, it must be above 0")
        for name in probabilities:
            if not 0 <= getattr(self, name) < 1 + (name in ("hflip", "invert", "random_erasing")) * 1e-9:
                raise UsageError(f"recipe: {name} is {getattr(self, name)}, it must lie between 0 and 1")
        if not 0 < self.crop_scale <= 1:
            raise UsageError(f"recipe: crop_scale is {self.crop_scale}, it must lie in (0, 1]")
        if self.crop_padding and self.crop_scale < 1:
            raise UsageError(
                "recipe: crop_padding and crop_scale exclude each other; set crop_scale = 1 to pad and crop"
            )
        if self.batch_size % self.micro_batch:
            raise UsageError(f"recipe: micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        if (self.mixup or self.cutmix) and self.micro_batch % 2:
            raise UsageError(f"recipe: mixup and cutmix pair images, so micro_batch {self.micro_batch} must be even")

    def total_steps(self, steps_per_epoch: int) -> int:
        return max(1, round(self.epochs * steps_per_epoch))

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of `step` (from 0) of `total`: linear warm-up, then cosine or linear decay to 0."""
        warmup = min(total // 20 if self.warmup_steps < 0 else self.warmup_steps, total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        share = 0.5 * (1 + math.cos(math.pi * progress)) if self.schedule == "cosine" else 1 - progress
        return self.lr * share


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the model it was written for: `[model]` is an architecture and what differs from it."""

    recipe: Recipe
    model: dict[str, Any]
    source: str


def recipe_names() -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str | None) -> RecipeFile:
    """A shipped recipe by name, or a TOML file. None: the defaults above. Raises UsageError naming the field."""
    if name is None:
        return RecipeFile(Recipe(), {}, "default")
    path = Path(name)
    if name.endswith(".toml") and path.is_file():
        text = path.read_text("utf-8")
    elif name in recipe_names():
        text = (_shipped() / f"{name}.toml").read_text("utf-8")
    else:
        known = recipe_names()
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


def override(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """`recipe` with `changes`, each checked for name and type. Raises UsageError."""
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
    return replace(recipe, **converted)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}


def _shipped() -> Any:
    return files("vitcli.training") / "recipes"
