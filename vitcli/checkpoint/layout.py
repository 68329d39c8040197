"""The names of a checkpoint's files, and the checkpoints that come with this program. Standard library only."""

from importlib.resources import files
from pathlib import Path

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"  # of weights in several files
FAMILIARITY_NAME = "familiarity.safetensors"  # statistics of the model's own held-out images, where there are any
DEFAULT_BUNDLED = "photo-vit"
ALIASES = {"imagenet": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"}


def bundled_folder() -> Path:
    """Where the checkpoints lie that come with this program, one folder each."""
    return Path(str(files("vitcli.checkpoint"))) / "bundled"


def bundled_names() -> list[str]:
    folder = bundled_folder()
    return sorted(e.name for e in folder.iterdir() if (e / CONFIG_NAME).is_file()) if folder.is_dir() else []
