"""What `vit inspect` does: open models and images, look, and show it as terminal, JSON or files."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vitcli.checkpoint.config import Checkpoint, Outputs
from vitcli.checkpoint.layout import bundled_names
from vitcli.checkpoint.load import load_any, load_model
from vitcli.cli.console import note, progress, resolved
from vitcli.cli.exhibits import bias, flow, heads, maps, parameters
from vitcli.cli.settings import size
from vitcli.cli.views import exhibits as view
from vitcli.data.sources import open_splits, scored_split
from vitcli.errors import UsageError, VitError
from vitcli.images.preprocess import Preprocess
from vitcli.inspection.equivariance import Equivariance, equivariance, usual_shifts
from vitcli.inspection.exhibit import Exhibit
from vitcli.inspection.folder import write_folder
from vitcli.inspection.images import Feed, Picture, built_in, from_files, from_samples
from vitcli.inspection.locality import Locality, locality
from vitcli.inspection.look import Aspect, Seen, images_needed, lacking, look
from vitcli.model.vit import VisionTransformer
from vitcli.text import safe

COUNT = 128  # images, as in the paper


class Inspecting:
    """One command on one model, or on two whose titles are the keys of `names`.

    Of `everything`, what a model does not have is left out and said; what is asked for by name must be there.
    """

    def __init__(
        self,
        names: Mapping[str, str | None],
        wanted: Sequence[str],
        biases: Sequence[str],
        *,
        everything: bool,
        images: list[str] | None,
        data: str | None,
        folders: str | None,
        count: int | None,
        layers: str | None,
        img_size: str | None,
        device: str | None,
    ) -> None:
        self.wanted, self.biases = cast(Sequence[Aspect], wanted), biases
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.layers, self.size = layers, size(img_size, "--img-size")
        self.names, self.everything = names, everything
        self.beside: str | None = None  # title of the model that only the biases look at
        needed = count or COUNT if biases else images_needed(self.wanted, count or COUNT)
        if not needed and (images or data or count):
            raise UsageError(f"--{self.wanted[0]} looks at weights alone; --images, --data and --count change nothing")
        self.pictures = pictures_of(images, data, needed, folders=folders) if needed else []

    def run(self, *, out: str | None, json: bool) -> int:
        """Look and show. Returns how many images could not be read."""
        checkpoints = self._resolve()
        models = {title: self._load(title, checkpoint) for title, checkpoint in checkpoints.items()}
        seen: dict[str, Seen] = {}
        found: list[Exhibit] = []
        failed: tuple[str, ...] = ()
        if self.wanted:
            for title, (model, preprocess) in models.items():
                if title == self.beside:
                    continue
                outputs = checkpoints[title].outputs
                seen[title] = self._look(title, cast(VisionTransformer, model), preprocess, outputs)
            failed = next(iter(seen.values())).failed
            found += _exhibits(seen, self.wanted, next(iter(checkpoints.values())).labels)
        if self.biases:
            made, failed = self._bias(checkpoints, models)
            found += made
        folder = Path(out) if out else Path(f"inspect-{next(iter(checkpoints))}")
        if out or self.everything:
            write_folder(folder, checkpoints, seen, found)
        if json:
            view.document(checkpoints, [picture.name for picture in self.pictures], found)
        else:
            view.show(found)
        if out or self.everything:
            note(f"figures, numbers and report.html are in {safe(folder)}")
        for line in failed[:5]:
            note(line)
        return len(failed)

    def _resolve(self) -> dict[str, Checkpoint]:
        """The checkpoints by their titles."""
        found = {}
        for title, name in self.names.items():
            checkpoint = resolved(_with_weights(name) if name and title == "beside" else name)
            if name is None:
                note(f"{safe(checkpoint.name)} ({checkpoint.why})")
            for line in checkpoint.notes:
                note(line)
            shown = _short(checkpoint) if title in ("", "beside") else title
            shown = f"{shown}-2" if shown in found else shown
            found[shown] = checkpoint
            if title == "beside":
                self.beside = shown
        return found

    def _load(self, title: str, checkpoint: Checkpoint) -> tuple[nn.Module, Preprocess]:
        """The model on its device, and how its images are prepared. Only for the biases may it be timm's."""
        wished = (self.size[0], self.size[1]) if self.size else None
        if checkpoint.vit is None and (not self.wanted or title == self.beside):
            if wished:
                raise UsageError("--img-size resamples position embeddings; a CNN takes its own size")
            return load_any(checkpoint).to(self.device), checkpoint.preprocess
        model = load_model(checkpoint, img_size=wished, say=note).to(self.device)
        return model, replace(checkpoint.preprocess, size=model.config.img_size)

    def _look(self, title: str, model: VisionTransformer, preprocess: Preprocess, outputs: Outputs) -> Seen:
        lacks = lacking(model.config, outputs)
        if "logit-lens" in lacks and "logit-lens" in self.wanted and model.config.num_classes and not self.everything:
            raise UsageError(f"{safe(title)}: --logit-lens: {lacks['logit-lens']}")
        lacks = lacks if self.everything else {}
        for aspect, why in lacks.items():
            note(f"{safe(title)}: --{aspect} is left out, for {why}")
        wanted = [aspect for aspect in self.wanted if aspect not in lacks]
        with progress(safe(title, 30)) as bar:
            feed = _Shown(self.pictures, preprocess, self.device, bar)
            seen = look(model, wanted, feed, _layers(self.layers, model))
        if seen.failed and not seen.images:
            raise VitError(f"none of the {len(self.pictures)} images could be read; the first: {seen.failed[0]}")
        return replace(seen, outputs=outputs)

    def _bias(
        self, checkpoints: Mapping[str, Checkpoint], models: Mapping[str, tuple[nn.Module, Preprocess]]
    ) -> tuple[list[Exhibit], tuple[str, ...]]:
        """Equivariance and locality of all models, on the same images cut into the first one's patches."""
        first, preprocess = next(iter(models.values()))
        patch = first.config.stride if isinstance(first, VisionTransformer) else (16, 16)
        grid = (-(-preprocess.size[0] // patch[0]), -(-preprocess.size[1] // patch[1]))
        moves: dict[str, Equivariance] = {}
        fields: dict[str, Locality] = {}
        failed: list[str] = []
        for title, (model, prepared) in models.items():
            feed = Feed(self.pictures, prepared, self.device)
            batches, failed = list(feed), feed.failed
            if not batches:
                raise VitError(f"none of the {len(self.pictures)} images could be read; the first: {failed[0]}")
            if "equivariance" in self.biases:
                larger = min(prepared.size) / min(preprocess.size)  # the same share of the image for every model
                shifts = [max(1, round(k * larger)) for k in usual_shifts(patch[1], min(preprocess.size))]
                moves[title] = equivariance(model, batches, shifts)
            if "locality" in self.biases:
                fields[title] = locality(model, batches, grid, answers=not checkpoints[title].why_no_classes)
        made = [bias.equivariance(moves)] if moves else []
        return [*made, *([bias.locality(fields)] if fields else [])], tuple(failed)


class _Shown(Feed):
    """A feed that moves a progress bar."""

    def __init__(self, pictures: Sequence[Picture], preprocess: Preprocess, device: torch.device, bar: Any) -> None:
        super().__init__(pictures, preprocess, device)
        self.bar = bar

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch
            if self.bar:
                self.bar(len(self.shown) + len(self.failed), len(self.pictures))


def _with_weights(name: str) -> str:
    """`resnet18` → `timm/resnet18.a1_in1k`: the weights that timm takes for an architecture by itself."""
    from timm.models import get_pretrained_cfg, is_model

    if Path(name).exists() or name in bundled_names() or not is_model(name):
        return name
    config = get_pretrained_cfg(name)
    return config.hf_hub_id if config and config.hf_hub_id else name


def _exhibits(seen: Mapping[str, Seen], wanted: Sequence[Aspect], labels: Sequence[str]) -> list[Exhibit]:
    makers: dict[Aspect, Callable[[Mapping[str, Seen]], Exhibit]] = {
        "filters": parameters.filters,
        "posemb": parameters.positions,
        "attention-distance": heads.distance,
        "heads": heads.heads,
        "tokens": flow.tokens,
        "logit-lens": lambda models: flow.lens(models, labels),
        "rollout": maps.rollout,
        "attention": maps.attention,
    }
    having = {
        aspect: {title: one for title, one in seen.items() if aspect not in lacking(one.config, one.outputs)}
        for aspect in wanted
    }
    return [make(having[aspect]) for aspect, make in makers.items() if having.get(aspect)]


def pictures_of(
    images: list[str] | None, data: str | None, count: int, *, folders: str | None = None, doing: str = "looking"
) -> list[Picture]:
    """`count` of the user's images, or of the built-in ones, which is then said."""
    if images:
        return from_files(images, count)
    if data:
        splits = open_splits(data, folders=folders)
        for line in splits.notes:
            note(line)
        return from_samples(splits.named[scored_split(splits, None)], count)
    pictures = built_in(count)
    note(f"{doing} with {len(pictures)} built-in pictures of Fashion-MNIST; --images or --data takes yours")
    return pictures


def _layers(text: str | None, model: VisionTransformer) -> list[int]:
    """`1,6,12`, `all`, or nothing for the last → layers from 0."""
    depth = model.config.depth
    if text is None:
        return [depth - 1]
    if text == "all":
        return list(range(depth))
    try:
        layers = [int(part) - 1 for part in text.split(",")]
    except ValueError:
        layers = [-1]
    if not all(0 <= layer < depth for layer in layers):
        raise UsageError(f"--layers {safe(text)}: write numbers from 1 to {depth}, such as 1,{depth}, or all")
    return layers


def _short(checkpoint: Checkpoint) -> str:
    """A name for titles and files: of `runs/a/best` `a`."""
    of_runs = ("", ".", "best", "last", "run")
    parts = [part for part in re.split(r"[/\\]", checkpoint.name.partition("@")[0]) if part not in of_runs]
    return re.sub(r"[^\w.]+", "-", parts[-1] if parts else "model")
