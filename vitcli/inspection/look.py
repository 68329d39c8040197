"""`look`: all that was asked for about one model, in one pass over the images."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from vitcli.checkpoint.config import Outputs
from vitcli.images.preprocess import Preprocess
from vitcli.inspection.distance import AttentionDistance, Distances
from vitcli.inspection.filters import Filters, filters
from vitcli.inspection.heads import HeadKinds, Heads
from vitcli.inspection.images import Feed, Picture
from vitcli.inspection.lens import Lens, LogitLens
from vitcli.inspection.maps import AttentionMaps, Maps
from vitcli.inspection.observe import Instrument, observe
from vitcli.inspection.positions import Similarity, positions
from vitcli.inspection.tokens import Norms, TokenNorms
from vitcli.model.config import ViTConfig
from vitcli.model.vit import VisionTransformer

Aspect = Literal["attention-distance", "filters", "posemb", "rollout", "attention", "tokens", "heads", "logit-lens"]
OF_PARAMETERS: frozenset[Aspect] = frozenset(("filters", "posemb"))  # these need no images
OF_MAPS: frozenset[Aspect] = frozenset(("rollout", "attention"))
MAPPED = 8  # images that maps are kept of


@dataclass(frozen=True)
class Seen:
    """What was looked at; the rest is None. `images` were shown to the model, the `mapped` first of them have maps."""

    config: ViTConfig
    preprocess: Preprocess
    images: tuple[Picture, ...] = ()
    distance: Distances | None = None
    filters: Filters | None = None
    positions: Similarity | None = None
    maps: Maps | None = None
    norms: Norms | None = None
    heads: Heads | None = None
    lens: Lens | None = None
    failed: tuple[str, ...] = field(default=())
    outputs: Outputs = "classes"

    def pixels(self, i: int) -> npt.NDArray[np.uint8]:
        """The image `i` as the model sees it, (H, W, 3), enlarged by whole pixels to about 224."""
        seen = self.images[i].load(self.preprocess)
        mean, std = (np.array(part)[:, None, None] for part in (self.preprocess.mean, self.preprocess.std))
        pixels = ((seen * std + mean).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        times = max(1, 224 // max(pixels.shape[:2]))
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(times, axis=0).repeat(times, axis=1)

    @property
    def mapped(self) -> tuple[Picture, ...]:
        return self.images[:MAPPED]


def lacking(config: ViTConfig, outputs: Outputs = "classes") -> dict[Aspect, str]:
    """What cannot be looked at in a model of `config` whose head gives `outputs`, and why."""
    lacks: dict[Aspect, str] = {}
    if not config.num_pos_tokens:
        lacks["posemb"] = "the model has no learnt position embedding"
    if not config.num_classes:
        lacks["logit-lens"] = "the model ends with features, not with classes"
    elif outputs != "classes":
        lacks["logit-lens"] = "the model's outputs are not classes of which one holds"
    return lacks


def images_needed(wanted: Collection[Aspect], count: int) -> int:
    """How many images `look` makes use of, when `count` are there to measure on."""
    if OF_PARAMETERS.issuperset(wanted):
        return 0
    return min(count, MAPPED) if (OF_PARAMETERS | OF_MAPS).issuperset(wanted) else count


def look(model: VisionTransformer, wanted: Collection[Aspect], feed: Feed, layers: Collection[int]) -> Seen:
    """`layers`, from 0, are those whose attention maps are kept. Raises UsageError, CheckpointError as the parts do."""
    config = model.config
    distance = AttentionDistance(config) if "attention-distance" in wanted else None
    heads = HeadKinds(config) if "heads" in wanted else None
    maps = AttentionMaps(config, layers, MAPPED) if OF_MAPS.intersection(wanted) else None
    norms = TokenNorms(config) if "tokens" in wanted else None
    lens = LogitLens(model) if "logit-lens" in wanted else None
    instruments: list[Instrument] = [one for one in (distance, heads, maps, norms, lens) if one is not None]
    if instruments:
        observe(model, feed, instruments)
    shown = bool(feed.shown)
    with torch.no_grad():
        return Seen(
            config,
            feed.preprocess,
            tuple(feed.shown),
            distance=distance.result() if distance and shown else None,
            filters=filters(model) if "filters" in wanted else None,
            positions=positions(model) if "posemb" in wanted else None,
            maps=maps.result() if maps and shown else None,
            norms=norms.result() if norms and shown else None,
            heads=heads.result() if heads and shown else None,
            lens=lens.result() if lens and shown else None,
            failed=tuple(feed.failed),
        )
