"""From `Settings` to a `Task`: the model that a run begins with, on its data. A run and its resumption begin here.

From scratch the model is freshly initialised. From a checkpoint the whole pre-training head goes, its hidden layer too,
and a zero-initialised linear layer takes its place (paper, section 3.2); where the checkpoint knows the classes of the
data, that layer begins with its rows for them. The patch size stays; for another image size the position embedding is
resampled in 2-D.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.load import build, load_any, load_model
from vitcli.checkpoint.model_args import checked_settings, require_sound
from vitcli.checkpoint.naming import only_numbered
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.samples import DataSet, require_one_label
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inference.class_names import map_classes
from vitcli.machine import memory_free
from vitcli.model.architectures import ARCHITECTURES, architecture
from vitcli.model.config import ViTConfig
from vitcli.model.cost import cost
from vitcli.model.mimetic import mimic
from vitcli.model.vit import VisionTransformer
from vitcli.text import did_you_mean, safe
from vitcli.training.lora import adapt
from vitcli.training.recipe import Recipe
from vitcli.training.seeds import reseed
from vitcli.training.settings import FineTuning, Settings, Tune
from vitcli.training.task import Task
from vitcli.training.teacher import load_teacher, require_like_tokens

Resolver = Callable[[str], Checkpoint]


def build_task(
    settings: Settings, data: DataSet, *, base: Checkpoint | None = None, resolver: Resolver = resolve
) -> Task:
    """The model that `settings` begin with, on `data`.

    `base` is the checkpoint of `settings.start` where it was resolved and hashed for them just now; `resolver` finds
    the others, as `resolve` does. Raises UsageError for a model that cannot be, CheckpointError when the checkpoint
    changed meanwhile.
    """
    recipe = settings.recipe
    reseed(recipe.seed, "initialise")
    if settings.start:
        task = _from_checkpoint(settings.start, base or _unchanged(settings.start, resolver), data, recipe)
    else:
        task = _from_scratch(settings, data)
    if settings.teacher:
        require_one_label(data, "learning from a teacher")
        teacher = load_teacher(settings.teacher, task.preprocess, data.classes, resolver)
        task = replace(task, teacher=teacher, origin={**task.origin, "teacher": teacher.name})
    if settings.teacher_answers:
        _require_whole_images(settings)
    if recipe.token_weight:
        require_like_tokens(task.teacher, task.vit)
    if recipe.init != "authors" and (settings.start or task.vit is None):
        raise UsageError("init is for a Vision Transformer that begins from scratch; leave it out")
    if recipe.grad_checkpointing:
        if task.vit is None:
            raise UsageError(f"grad_checkpointing is for Vision Transformers, not for {safe(task.architecture)}")
        task.model.grad_checkpointing = True  # type: ignore[assignment]
    return task


def retuned(task: Task, tune: Tune, data: DataSet) -> Task:
    """A fine-tuning task that trains all of its model, trained in another way (but for `lora`) on a part of its data.

    The model is the same one, changed in place.
    """
    if tune == "head":
        _freeze_trunk(task.model)
    return replace(task, data=data, origin={**task.origin, "tuned": tune})


def _require_whole_images(settings: Settings) -> None:
    """Raises UsageError for what answers that were given once, to whole images, cannot serve."""
    if settings.teacher is None:
        raise UsageError("--teacher-answers keeps what a teacher says; name one with --teacher")
    recipe = settings.recipe
    if moving := [name for name in ("mixup", "cutmix", "token_weight") if getattr(recipe, name)]:
        raise UsageError(
            f"--teacher-answers holds one answer for each whole image, {moving[0]} would need others: "
            f"--set {moving[0]}=0, or leave the file out"
        )


# From a checkpoint


def _unchanged(start: FineTuning, resolver: Resolver) -> Checkpoint:
    """The checkpoint of `start`. Raises CheckpointError when its weights are other ones now."""
    checkpoint = resolver(start.checkpoint)
    if weights_digest(checkpoint) != start.sha256:
        raise CheckpointError(f"{safe(start.checkpoint)} is not what it was when this run began; start a new run")
    return checkpoint


def _from_checkpoint(start: FineTuning, checkpoint: Checkpoint, data: DataSet, recipe: Recipe) -> Task:
    """`checkpoint` with a new head for `data`. Raises UsageError when it cannot have that size or be tuned that way."""
    notes: list[str] = []
    classes = len(data.classes)
    model: nn.Module
    if checkpoint.vit:
        _require_whole_patches(start.img_size, checkpoint.vit)
        known = load_model(checkpoint, img_size=start.img_size, kernel=start.kernel, say=notes.append)
        model = _with_head(_headless(known), classes, dropout=recipe.dropout, drop_path=recipe.drop_path)
        whole = known.config.head_hidden is None  # what the head sees is what the new one sees
        notes += _begun(heads_of(model), heads_of(known) if whole and checkpoint.num_classes else [], checkpoint, data)
        size = model.config.img_size
    else:
        size = start.img_size or checkpoint.preprocess.size
        if size != checkpoint.preprocess.size and not _any_size(checkpoint.architecture):
            raise UsageError(f"{safe(checkpoint.name)} is a {checkpoint.architecture}, which timm builds for one size")
        model = load_any(checkpoint)
        before = model.get_classifier()  # type: ignore[operator]
        model.reset_classifier(classes)  # type: ignore[operator]  # timm's name for it, on every model
        after = model.get_classifier()  # type: ignore[operator]
        for parameter in after.parameters():
            nn.init.zeros_(parameter)
        linear = [head for head in (before, after) if isinstance(head, nn.Linear)]
        notes += _begun([after], [before] if len(linear) == 2 else [], checkpoint, data)
    if start.tune == "lora":
        if not isinstance(model, VisionTransformer):
            raise UsageError(
                f"--tune lora needs a Vision Transformer; {safe(checkpoint.name)} is a {checkpoint.architecture}"
            )
        adapt(model, start.rank)
    if start.tune == "head":
        _freeze_trunk(model)
    origin: dict[str, Any] = {
        "base_model": checkpoint.public_name,
        "base_weights": start.sha256,
        "tuned": start.tune,
        "posemb_kernel": start.kernel,
    }
    return Task(
        architecture=checkpoint.architecture,
        model_args=dict(checkpoint.timm_args),
        vit=model.config if isinstance(model, VisionTransformer) else None,
        model=model,
        preprocess=replace(checkpoint.preprocess, size=size),
        data=data,
        recipe=recipe,
        origin=origin,
        notes=tuple(notes),
    )


def _begun(new: list[nn.Linear], old: list[nn.Linear], checkpoint: Checkpoint, data: DataSet) -> list[str]:
    """Give the heads `new`, which are zeros, the rows that `old` has for their classes; says so.

    Where the checkpoint knows every class of the data, or those it knows are kept; else the zeros stay. Raises
    UsageError where classes that are kept have no rows.
    """
    if data.known and not old:
        raise UsageError(f"--keep-classes: {safe(checkpoint.name)} does not end with one linear layer to keep rows of")
    alike = checkpoint.outputs == ("labels" if data.multi_label else "classes")
    if not old or not alike or only_numbered(checkpoint.labels):
        return []
    rows = [*range(data.known)]
    if not rows:
        found = map_classes(data.classes, checkpoint.labels, checkpoint.label_ids).labels
        if None in found:
            return []
        rows = [label for label in found if label is not None]
    with torch.no_grad():
        for head, before in zip(new, old, strict=True):
            head.weight[: len(rows)] = before.weight[rows]
            if head.bias is not None:
                head.bias[: len(rows)] = 0 if before.bias is None else before.bias[rows]
    if data.known:
        return []
    if len(rows) == checkpoint.num_classes:
        return ["the classes are the checkpoint's own: its head is where training begins"]
    return [f"the checkpoint knows these classes: {len(rows)} rows of its head are where training begins"]


def _require_whole_patches(img_size: tuple[int, int] | None, vit: ViTConfig) -> None:
    """Raises UsageError for a size of which the patches would leave a strip out."""
    for pixels, stride in zip(img_size or (), vit.stride, strict=False):
        if pixels % stride or pixels < stride:
            raise UsageError(f"--img-size: {pixels} is not a multiple of the patch's {stride} pixels")


def _headless(model: VisionTransformer) -> VisionTransformer:
    """The same trunk, without head and pre-training hidden layer: images → representation (B, D)."""
    config = replace(model.config, num_classes=0, head_hidden=None)
    trunk = {n: t for n, t in model.state_dict().items() if not n.startswith(("head.", "head_dist.", "pre_logits."))}
    return build(config, trunk)


def _with_head(
    trunk: VisionTransformer, classes: int, *, dropout: float = 0.0, drop_path: float = 0.0
) -> VisionTransformer:
    """A trainable ViT with the weights of `trunk` (which has no head) and a linear head of zeros."""
    config = replace(trunk.config, num_classes=classes)
    with torch.device("meta"):
        model = VisionTransformer(config, dropout=dropout, drop_path=drop_path)
    head = {n: torch.zeros(t.shape) for n, t in model.state_dict().items() if n.startswith(("head.", "head_dist."))}
    model.load_state_dict({**trunk.state_dict(), **head}, strict=True, assign=True)
    return model.requires_grad_(True)


def _freeze_trunk(model: nn.Module) -> None:
    """Leave only the head trainable."""
    model.requires_grad_(False)
    for head in heads_of(model):
        head.requires_grad_(True)


def heads_of(model: nn.Module) -> list[nn.Linear]:
    """The last linear layer of ours or of a timm model; of a distilled DeiT the two whose answers' mean is the model's.

    Raises UsageError where the classifier is something else.
    """
    if isinstance(model, VisionTransformer):
        heads = [model.head, *([model.head_dist] if model.head_dist else [])]
    else:
        heads = [model.get_classifier()]  # type: ignore[operator]
    for head in heads:
        if not isinstance(head, nn.Linear):
            raise UsageError(f"the classifier is a {type(head).__name__}, not one linear layer; use --tune all")
    return heads  # type: ignore[return-value]


# From scratch


def _from_scratch(settings: Settings, data: DataSet) -> Task:
    """A freshly initialised model."""
    recipe = settings.recipe
    if settings.architecture in ARCHITECTURES:
        vit = vit_config(settings.architecture, settings.model_args, len(data.classes))
        model: nn.Module = _fresh(vit, recipe)
        size = vit.img_size
    else:
        args = _checked(settings.architecture, settings.model_args)
        size = args.get("img_size", (224, 224))
        settings = replace(settings, model_args=_timm_args(settings))
        vit, model = None, _timm_model(settings, len(data.classes))
    # Small images carry no border that a centre crop could spare, at whatever size the model takes them.
    crop_pct = 1.0 if min(*size, data.side) <= 64 else 0.9
    preprocess = Preprocess(size=size, crop_pct=crop_pct, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Task(settings.architecture, settings.model_args, vit, model, preprocess, data, recipe)


def _fresh(vit: ViTConfig, recipe: Recipe) -> VisionTransformer:
    _require_room(cost(vit).params, "lower depth, embed_dim, mlp_ratio or img_size")
    model = VisionTransformer(vit, dropout=recipe.dropout, drop_path=recipe.drop_path)
    if recipe.init == "mimetic":
        try:
            mimic(model)
        except ValueError as error:
            raise UsageError(f"init = mimetic: {error}") from error
    return model


def _require_room(weights: int, advice: str) -> None:
    """Raises UsageError where so many numbers do not fit into memory, which a machine may promise and then kill for."""
    free, size = memory_free("cpu"), 4 * weights
    if free is not None and size > free:
        raise UsageError(
            f"the weights of this model take {size / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free: {advice}"
        )


def fitting_model(data: DataSet) -> dict[str, Any]:
    """Model settings for images as small as these; none for ordinary photographs, which ViT-Ti/16 at 224 suits.

    Judged by the median shorter side of the first images. Small: 4- or 8-pixel patches, for a grid of about eight by
    eight is left, and half of Ti's depth.
    """
    side = data.side
    if side > 96:
        return {}
    patch = 4 if side <= 40 else 8
    size = max(round(side / patch), 2) * patch
    return {"img_size": [size, size], "patch_size": [patch, patch], "depth": 6}


def vit_config(name: str, model_args: dict[str, Any], classes: int) -> ViTConfig:
    """The architecture with the changes a user asked for. Raises UsageError naming what does not fit."""
    config: ViTConfig = replace(architecture(name), **_checked(name, model_args), num_classes=classes)
    if config.embed_dim % config.num_heads:
        raise UsageError(f"width {config.embed_dim} is not a multiple of {config.num_heads} heads")
    for axis, (pixels, stride) in enumerate(zip(config.img_size, config.stride, strict=True)):
        if pixels % stride or pixels < stride:
            side = ("height", "width")[axis]
            raise UsageError(f"image {side} {pixels} is not a multiple of the patch's {stride} pixels")
    try:
        require_sound(config)
    except CheckpointError as error:
        raise UsageError(str(error)) from None
    return config


def _checked(name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    try:
        return checked_settings(name, model_args, "model")
    except CheckpointError as error:
        raise UsageError(str(error)) from None


# Models of timm that are none of our Vision Transformers


def _any_size(architecture: str) -> bool:
    """Whether timm's model of that name takes images of any size, as CNNs do."""
    import timm

    return timm.is_model(architecture) and not timm.get_pretrained_cfg(architecture).fixed_input_size


def _timm_args(settings: Settings) -> dict[str, Any]:
    """What timm's constructor takes: an image size only where the model is built for one."""
    without = {"img_size"} if _any_size(settings.architecture) else set()
    return {name: value for name, value in settings.model_args.items() if name not in without}


def _timm_model(settings: Settings, classes: int) -> nn.Module:
    import timm

    name = settings.architecture
    if not timm.is_model(name):
        raise UsageError(f"no architecture '{safe(name)}'.{did_you_mean(name, [*ARCHITECTURES, *timm.list_models()])}")
    try:
        with torch.device("meta"):
            sketch = timm.create_model(name, num_classes=classes, **settings.model_args)
        _require_room(parameters(sketch), "choose a smaller one")
        model: nn.Module = timm.create_model(name, num_classes=classes, **settings.model_args)
    except TypeError as error:
        raise UsageError(f"{safe(name)} does not take these model settings: {safe(error)}") from error
    return model


def parameters(model: nn.Module) -> int:
    """How many numbers a model has to learn, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
