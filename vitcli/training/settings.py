"""What a training run was asked for, from scratch or from a checkpoint: enough to begin it again. Kept in run.json."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitcli.checkpoint.model_args import checked_settings
from vitcli.data.samples import DataSet
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import read_typed, shown
from vitcli.model.resample import Kernel
from vitcli.storage.named import name_of
from vitcli.storage.records import Cache
from vitcli.training.budget import seconds
from vitcli.training.recipe import Recipe, as_dict, for_labels, override

Tune = Literal["head", "all", "head+all", "lora"]

# What `--set` may change of an architecture; the rest (bias, norm, activation) is what the architecture is.
MODEL_SETTINGS = (
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "class_token",
    "global_pool", "init_values", "head_hidden", "head_act", "stem",
)  # fmt: skip


@dataclass(frozen=True)
class FineTuning:
    """Which checkpoint a run begins with, and what of it is trained."""

    checkpoint: str  # any name that `resolve` takes; a folder or file by its absolute path
    sha256: str  # of its weights
    tune: Tune
    img_size: tuple[int, int] | None = None  # height and width in pixels; None: the checkpoint's own
    kernel: Kernel = "timm"
    rank: int = 0  # of the low-rank update, for `lora`
    keep: tuple[str, ...] = ()  # its classes where they stay and the data's new ones come after them
    keep_ids: tuple[str, ...] = ()  # their WordNet ids, where they have any

    def __post_init__(self) -> None:
        if self.img_size is not None:
            object.__setattr__(self, "img_size", tuple(self.img_size))  # JSON knows lists only
        if len(self.keep_ids) not in (0, len(self.keep)):
            raise UsageError(f"{len(self.keep_ids)} ids for {len(self.keep)} classes that are kept")
        if (self.tune == "lora") != (self.rank > 0):
            raise UsageError("a LoRA rank is needed for --tune lora and for nothing else")


@dataclass(frozen=True)
class Settings:
    """A whole run: model, data, recipe, and what it begins with and learns from."""

    architecture: str
    model_args: dict[str, Any]  # what differs from the architecture, by ViTConfig's names
    data: str
    recipe: Recipe
    val_fraction: float = 0.1
    start: FineTuning | None = None  # None: from scratch; architecture and model_args are else the checkpoint's own
    teacher: str | None = None  # a checkpoint to learn from
    budget: float | None = None  # seconds
    share: float = 1.0  # of each class's training images; a smaller share is part of a larger one
    share_seed: int = 0  # which ones
    teacher_answers: str | None = None  # file of the teacher's answers to each training image, by its absolute path
    folders: str | None = None  # what the folders of the data are, as `read_splits` takes it
    multi_label: bool = False  # several labels an image, though the data give one each
    folds: int = 0  # parts of the images, each scored by a model trained on the others; 0: none, there is a split
    fold: int = 0  # the part that this run leaves out, from 1; 0: none, it is trained on all
    cache: Cache = "none"  # where copies of the images are kept; all kinds but "none" give the same bits

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"val_fraction is {shown(self.val_fraction)}, it must be at least 0 and below 1")
        if not 0 < self.share <= 1 or self.share_seed < 0:
            raise UsageError(f"share is {shown(self.share)} of seed {shown(self.share_seed)}, a part of the images")
        if self.folds < 0 or self.folds == 1 or not 0 <= self.fold <= self.folds:
            raise UsageError(
                f"folds is {shown(self.folds)} and fold {shown(self.fold)}; of 2 folds or more one is left out"
            )
        if self.folds and (self.budget or self.recipe.lrs or self.recipe.patience or self.share != 1):
            raise UsageError(
                "--folds trains every model alike, on all images that it has: no time budget, no patience and no "
                "search for a learning rate"
            )
        if self.budget is not None and not self.budget > 0:
            raise UsageError(f"budget is {shown(self.budget)}, it must be above 0 seconds")

    @property
    def tune(self) -> Tune:
        """What is trained; all of it in a run from scratch."""
        return self.start.tune if self.start else "all"

    @property
    def name(self) -> str:
        """The name of the data, which a run folder has by default."""
        return name_of(self.data) or "data"

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; `from_dict` reads them back."""
        return {**asdict(self), "recipe": as_dict(self.recipe)}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Settings":
        """The settings in a run.json. Raises VitError when that is not what it holds."""
        recipe = config.get("recipe")
        try:
            if not isinstance(recipe, dict):
                raise ValueError(f"recipe must be an object, not {shown(recipe)}")
            whole = override(Recipe(amp="fp32", compile=False), recipe, "run.json")  # where an older version was silent
            left_open = {"micro_batch": whole.micro_batch, "compile": whole.compile}  # not as a file spells it
            settings = read_typed(cls, {**config, "recipe": as_dict(whole) | left_open})
            if settings.start is None:
                checked_settings(settings.architecture, settings.model_args, "model_args")
        except (ValueError, CheckpointError) as error:
            raise VitError(f"run.json is not that of a run: {error}; start again in a new folder") from None
        return settings


def suited(settings: Settings, data: DataSet) -> tuple[Settings, str | None]:
    """`settings` whose recipe suits data of one or of several labels an image; and what was switched off, in a line."""
    recipe, off = for_labels(settings.recipe, several=data.multi_label)
    return replace(settings, recipe=recipe), off


def further(
    *, teacher_answers: str | Path | None = None, time_budget: float | str | None = None, **fields: Any
) -> dict[str, Any]:
    """Fields of `Settings`: a path that holds wherever a run may be resumed, and a time span in seconds."""
    budget = seconds(time_budget) if isinstance(time_budget, str) else time_budget
    answers = None if teacher_answers is None else str(Path(teacher_answers).resolve())
    return {**fields, "budget": budget, "teacher_answers": answers}
