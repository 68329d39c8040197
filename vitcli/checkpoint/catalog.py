"""What `vit models` lists: bundled checkpoints, those in the Hub cache, and a few worth downloading.

Reads the configs and file headers only, with the standard library: no torch, no NumPy, no network. A folder that is not
what it should be is left out; whoever loads it is told why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitcli.checkpoint.hub import CachedRepo, cached_repos
from vitcli.checkpoint.layout import ALIASES, CONFIG_NAME, bundled_folder, bundled_names
from vitcli.checkpoint.tensor_file import read_header, weight_files
from vitcli.errors import CheckpointError
from vitcli.files import read_config

SUGGESTIONS = {
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": "ViT-Ti/16, ImageNet-1k: the smallest",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "ViT-S/16, ImageNet-1k; a small start for fine-tuning",
    ALIASES["imagenet"]: "ViT-B/16, ImageNet-1k; `-m imagenet`",
    "timm/vit_base_patch16_224.augreg_in21k": "ViT-B/16, 21843 classes of ImageNet-21k; a good start for fine-tuning",
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": "DINOv2 ViT-S/14 with registers, no classes: a start "
    "for fine-tuning; licence Apache-2.0",
    "timm/vit_small_patch16_dinov3.lvd1689m": "DINOv3 ViT-S/16, no classes: a start for fine-tuning; DINOv3's "
    "own licence (https://ai.meta.com/resources/models-and-libraries/dinov3-license)",
    "timm/vit_base_r50_s16_384.orig_in21k_ft_in1k": "hybrid R50+ViT-B/16 at 384 pixels, ImageNet-1k",
}

# Small ones to begin a fine-tuning with, the one that takes fewer pixels first; megabytes to download.
STARTS = {
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": 88,
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": 88,
}


@dataclass(frozen=True)
class Listed:
    """One line of the list. `name` is what `--model` takes."""

    name: str
    kind: Literal["bundled", "cached", "suggestion"]
    note: str = ""  # for a suggestion, what it is
    architecture: str | None = None
    num_classes: int | None = None
    image_size: tuple[int, int] | None = None  # (height, width) in pixels
    parameters: int | None = None
    file_bytes: int | None = None


def list_models() -> list[Listed]:
    """Bundled, cached and suggested models, in this order; a suggestion that is cached is listed once."""
    bundled = [_listed(name, "bundled", bundled_folder() / name) for name in bundled_names()]
    cached = [_listed(repo.repo, "cached", repo.folder) for repo in cached_repos()]
    here = [listed for listed in [*bundled, *cached] if listed]
    names = {listed.name for listed in here}
    return here + [Listed(name, "suggestion", note) for name, note in SUGGESTIONS.items() if name not in names]


def model_names() -> list[str]:
    """Every name that can be offered for `--model`, for completion: opens no file."""
    return list(dict.fromkeys([*bundled_names(), *ALIASES, *(repo.repo for repo in cached_repos()), *SUGGESTIONS]))


def _listed(name: str, kind: Literal["bundled", "cached"], folder: Path) -> Listed | None:
    try:
        config = read_config(folder / CONFIG_NAME)
        weights = CachedRepo(name, "", folder).weights_path
        header = read_header(weights)
        size = sum(file.stat().st_size for file in weight_files(weights))
    except (CheckpointError, OSError):
        return None
    architecture, num_classes = config.get("architecture"), config.get("num_classes")
    if not isinstance(architecture, str):
        return None  # another library's model: the Hub cache holds all kinds
    return Listed(
        name=name,
        kind=kind,
        architecture=architecture,
        num_classes=num_classes if type(num_classes) is int else None,
        image_size=_image_size(config),
        parameters=header.parameters,
        file_bytes=size,
    )


def _image_size(config: dict[str, Any]) -> tuple[int, int] | None:
    cfg = config.get("pretrained_cfg", config)
    match cfg.get("input_size") if isinstance(cfg, dict) else None:
        case [_, int(height), int(width)]:
            return height, width
    return None
