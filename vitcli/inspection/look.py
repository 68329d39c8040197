"""`inspect`: opens models and images, measures the aspects that are asked for, and gives their exhibits.

An aspect is a file of its own and one entry of `ASPECTS`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.layout import bundled_names
from vitcli.checkpoint.load import load_any, load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import UsageError, VitError
from vitcli.inspection import (
    distance,
    equivariance,
    feature_map,
    filters,
    heads,
    lens,
    locality,
    maps,
    positions,
    relevance,
    tokens,
)
from vitcli.inspection.aspect import Aspect, Cut, OfAnyModel, OfBlocks, OfParameters, Subject
from vitcli.inspection.exhibit import Exhibit
from vitcli.inspection.images import COUNT, Feed, Picture, pictures_of
from vitcli.inspection.observe import observe
from vitcli.machine import default_device
from vitcli.model import linear
from vitcli.model.vit import VisionTransformer
from vitcli.text import did_you_mean, safe

# In the order of their exhibits.
ASPECTS: tuple[Aspect, ...] = (
    filters.ASPECT,
    positions.ASPECT,
    distance.ASPECT,
    heads.ASPECT,
    tokens.ASPECT,
    lens.ASPECT,
    maps.ROLLOUT,
    maps.ATTENTION,
    equivariance.ASPECT,
    locality.ASPECT,
    relevance.ASPECT,
    feature_map.ASPECT,
)
PATCH = (16, 16)  # pixels: how images are cut where the first model is no plain ViT

Kind = TypeVar("Kind", bound=Aspect)
Results = dict[str, dict[str, Any]]  # what was measured: by aspect, then by the model's title
Say = Callable[[str], None]
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in one or more models, which are named by their titles."""

    checkpoints: Mapping[str, Checkpoint]
    exhibits: Sequence[Exhibit]
    results: Mapping[str, Mapping[str, Any]]  # by aspect, then by title: each aspect's own type
    images: Sequence[str]  # names of all images that were to be looked with
    watched: Sequence[str]  # of these, the ones on which the first model was watched block by block
    failed: Sequence[str]  # a line for each image that could not be read


def inspect(
    model: str | Mapping[str, str] | None = None,
    aspects: Collection[str] | None = None,
    *,
    beside: str | None = None,
    images: Sequence[str] | None = None,
    data: str | None = None,
    folders: str | None = None,
    count: int | None = None,
    layers: str | Iterable[int] | None = None,
    img_size: Sequence[int] | None = None,
    device: str | None = None,
    find: Callable[[str | None], Checkpoint] = resolve,
    say: Say = lambda line: None,
    progress: Progress = lambda title: nullcontext(),
) -> Inspection:
    """Look at aspects of a model: what it has learnt, in numbers and figures.

    Args:
        model: the name of a checkpoint, or several by the titles that they are shown under; None is the default model.
        aspects: names of `ASPECTS`. All by default; then what a model does not have is left out and said.
        beside: another model, for the aspects that a CNN has, too; an architecture of timm's is taken with its weights.
        images: files, folders and globs to look with. Without `images` and `data` built-in pictures are taken.
        data: a data set to draw images from; `folders` says what its folders are.
        count: how many images at most, 128 by default.
        layers: those whose attention maps are wanted, from 1 ("1,6,12"), or "all"; the last by default.
        img_size: height and width in pixels; position embeddings are resampled.
        device: such as "cpu" or "cuda:0"; a GPU by default where there is one.
        find: gives the checkpoint of a name.
        say: is told notes, a line each.
        progress: gives for a title a context whose value is told (images done, of how many), or None.

    Raises:
        UsageError: what is asked for does not exist or does not go together.
        VitError: a model cannot be read or lacks an aspect that was asked for by name, or none of the images could be
            read.
    """
    wanted = _wanted(aspects, labelled=data is not None)
    needed = _needed(wanted, images, data, count)
    names: Mapping[str, str | None] = model if isinstance(model, Mapping) else {"": model}
    checkpoints, extra = _opened(names, beside, find, say)
    pictures: list[Picture] = []
    if needed:
        first = next(iter(checkpoints.values()))
        pictures = pictures_of(first, images, data, needed, folders=folders, say=say)
    subjects = _subjects(checkpoints, extra, wanted, pictures, layers, img_size, device, say)
    results: Results = {aspect.name: {} for aspect in wanted}
    failed: dict[str, None] = {}  # the same images for every model, each once
    watched: list[str] = []
    inner = [aspect for aspect in wanted if not isinstance(aspect, OfAnyModel)]
    for subject in subjects if inner else ():
        if subject.title != extra:
            having = _having(subject, inner, say) if aspects is None else inner
            _look(subject, having, results, progress)
            watched = watched or [picture.name for picture in subject.feed.shown]
            failed |= dict.fromkeys(subject.feed.failed)
    outer = [aspect for aspect in wanted if isinstance(aspect, OfAnyModel)]
    for subject in subjects if outer else ():
        batches = list(_readable(subject.feed))
        for aspect in _having(subject, outer, say) if aspects is None else outer:
            results[aspect.name][subject.title] = aspect.measure(subject, batches)
        failed |= dict.fromkeys(subject.feed.failed)
    return Inspection(
        checkpoints=checkpoints,
        exhibits=[aspect.show(found) for aspect in wanted if (found := results[aspect.name])],
        results=results,
        images=[picture.name for picture in pictures],
        watched=watched,
        failed=list(failed),
    )


def _wanted(names: Collection[str] | None, *, labelled: bool) -> list[Aspect]:
    """The aspects called `names`, in the order of their exhibits; of all those that make sense, `labelled` or not."""
    known = {aspect.name: aspect for aspect in ASPECTS}
    for name in names or ():
        if name not in known:
            raise UsageError(f"there is no aspect '{safe(name)}' to look at.{did_you_mean(name, known)}")
    if names is None:
        return [aspect for aspect in ASPECTS if labelled or not aspect.of_data]
    return [aspect for name, aspect in known.items() if name in names]


def _needed(wanted: Sequence[Aspect], images: Sequence[str] | None, data: str | None, count: int | None) -> int:
    """How many images the aspects `wanted` make use of. Raises UsageError where some are given for nothing."""
    needed = max((aspect.images(count or COUNT) for aspect in wanted), default=0)
    if wanted and not needed and (images or data or count):
        raise UsageError(f"--{wanted[0].name} looks at weights alone; --images, --data and --count change nothing")
    return needed


def _opened(
    names: Mapping[str, str | None], beside: str | None, find: Callable[[str | None], Checkpoint], say: Say
) -> tuple[dict[str, Checkpoint], str | None]:
    """The checkpoints by their titles, and the title of the one that is only `beside`.

    That one, and a model whose title is "", get a title made of the checkpoint's name.
    """
    found: dict[str, Checkpoint] = {}

    def add(title: str, name: str | None) -> str:
        checkpoint = find(name)
        if name is None:
            say(f"{safe(checkpoint.name)} ({checkpoint.why})")
        for line in checkpoint.notes:
            say(line)
        title = title or _short(checkpoint)
        title = f"{title}-2" if title in found else title
        found[title] = checkpoint
        return title

    for title, name in names.items():
        add(title, name)
    return found, add("", _with_weights(beside)) if beside else None


def _with_weights(name: str) -> str:
    """`resnet18` → `timm/resnet18.a1_in1k`: the weights that timm takes for an architecture by itself."""
    from timm.models import get_pretrained_cfg, is_model

    if Path(name).exists() or name in bundled_names() or not is_model(name):
        return name
    config = get_pretrained_cfg(name)
    return config.hf_hub_id if config and config.hf_hub_id else name


def _short(checkpoint: Checkpoint) -> str:
    """A name for titles and files: of `runs/a/best` `a`."""
    of_runs = ("", ".", "best", "last", "run")
    parts = [part for part in re.split(r"[/\\]", checkpoint.name.partition("@")[0]) if part not in of_runs]
    return re.sub(r"[^\w.]+", "-", parts[-1] if parts else "model")


def _subjects(
    checkpoints: Mapping[str, Checkpoint],
    beside: str | None,
    wanted: Sequence[Aspect],
    pictures: Sequence[Picture],
    layers: str | Iterable[int] | None,
    img_size: Sequence[int] | None,
    device: str | None,
    say: Say,
) -> list[Subject]:
    """The models on their device. One that is not a plain ViT may be among them where only features are looked at."""
    place = torch.device(device or default_device())
    if place.type == "cpu":
        linear.kernel()
    inside = any(not isinstance(aspect, OfAnyModel) for aspect in wanted)
    subjects: list[Subject] = []
    kept: tuple[int, ...]
    for title, checkpoint in checkpoints.items():
        watched = inside and title != beside
        model = _load(checkpoint, img_size, say, any_model=not watched).to(place)
        preprocess, patch, kept = checkpoint.preprocess, PATCH, ()
        if isinstance(model, VisionTransformer):
            preprocess = replace(preprocess, size=model.config.img_size)
            patch = model.config.stride
            kept = _layers(layers, model.config.depth) if watched else ()
        cut = subjects[0].cut if subjects else Cut(preprocess.size, patch)
        subjects.append(Subject(title, checkpoint, model, Feed(pictures, preprocess, place), kept, cut))
    return subjects


def _load(checkpoint: Checkpoint, img_size: Sequence[int] | None, say: Say, *, any_model: bool) -> nn.Module:
    if checkpoint.vit is None and any_model:
        if img_size:
            raise UsageError("--img-size resamples position embeddings; a CNN takes its own size")
        return load_any(checkpoint)
    return load_model(checkpoint, img_size=(img_size[0], img_size[1]) if img_size else None, say=say)


def _layers(chosen: str | Iterable[int] | None, depth: int) -> tuple[int, ...]:
    """`1,6,12`, `all`, or nothing for the last of `depth` layers → layers from 0."""
    if chosen is None:
        return (depth - 1,)
    if chosen == "all":
        return tuple(range(depth))
    text = chosen if isinstance(chosen, str) else ",".join(map(str, chosen))
    try:
        layers = tuple(int(part) - 1 for part in text.split(","))
    except ValueError:
        layers = (-1,)
    if not all(0 <= layer < depth for layer in layers):
        raise UsageError(f"--layers {safe(text)}: write numbers from 1 to {depth}, such as 1,{depth}, or all")
    return layers


def _having(subject: Subject, aspects: Iterable[Kind], say: Say) -> list[Kind]:
    """Those of the `aspects` that the model has; why it lacks the others is said."""
    having = []
    for aspect in aspects:
        if why := aspect.lacking(subject):
            say(f"{safe(subject.title)}: --{aspect.name} is left out, for {why}")
        else:
            having.append(aspect)
    return having


def _look(subject: Subject, aspects: Sequence[Aspect], results: Results, progress: Progress) -> None:
    """Add what the `aspects` measure in the parameters, and in one pass of the images through the blocks."""
    with progress(safe(subject.title, 30)) as tell, torch.no_grad():
        for aspect in aspects:
            if isinstance(aspect, OfParameters):
                results[aspect.name][subject.title] = aspect.measure(subject.vit)
        watching = {aspect.name: aspect.watch(subject) for aspect in aspects if isinstance(aspect, OfBlocks)}
        if watching:
            observe(subject.vit, _readable(subject.feed, tell), list(watching.values()))
        for name, instrument in watching.items():
            results[name][subject.title] = instrument.result()


def _readable(feed: Feed, tell: Callable[[int, int], None] | None = None) -> Iterator[Tensor]:
    """The batches of `feed`. Raises VitError when none of its images can be read."""
    for batch in feed:
        yield batch
        if tell:
            tell(len(feed.shown) + len(feed.failed), len(feed.pictures))
    if feed.failed and not feed.shown:
        raise VitError(f"none of the {len(feed.pictures)} images could be read; the first: {feed.failed[0]}")
