"""Where a checkpoint's files lie: their names, the bundled folders, the Hub cache. Standard library only, so that
listing models and completing their names cost nothing. Reads no weight and asks no network.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vitcli.checkpoint.tensor_file import weight_files
from vitcli.errors import CheckpointError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"  # of weights in several files
DEFAULT_BUNDLED = "fashion-vit"
ALIASES = {"imagenet": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"}


def bundled_folder() -> Path:
    """Where the checkpoints lie that come with this program, one folder each."""
    return Path(str(files("vitcli.checkpoint"))) / "bundled"


def bundled_names() -> list[str]:
    folder = bundled_folder()
    return sorted(e.name for e in folder.iterdir() if (e / CONFIG_NAME).is_file()) if folder.is_dir() else []


@dataclass(frozen=True)
class CachedRepo:
    """A model repository in the Hub cache, at one commit, with its config and its weights."""

    repo: str  # org/name
    commit: str
    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / CONFIG_NAME

    @property
    def weights_path(self) -> Path:
        """model.safetensors, or the index of several files where the repository has that instead."""
        single, index = self.folder / WEIGHTS_NAME, self.folder / INDEX_NAME
        return index if index.is_file() and not single.is_file() else single

    @property
    def complete(self) -> bool:
        with suppress(CheckpointError):
            return all(path.is_file() for path in (self.config_path, *weight_files(self.weights_path)))
        return False


def hub_cache() -> Path:
    """The cache folder that huggingface_hub uses, by its environment variables (importing it takes 0.2 s)."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def find_cached(repo: str, revision: str = "main") -> CachedRepo | None:
    """The cached snapshot of `repo` (org/name) at `revision` (branch, tag or commit) if all is there that is needed."""
    cached = snapshot(repo, revision)
    return cached if cached.complete else None


def snapshot(repo: str, revision: str = "main") -> CachedRepo:
    """Where the cache has `repo` at `revision`, whatever is there."""
    folder = hub_cache() / ("models--" + repo.replace("/", "--"))
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision  # a commit is its own name
    return CachedRepo(repo, commit, folder / "snapshots" / commit)


def cached_repos() -> Iterator[CachedRepo]:
    """Every model in the Hub cache whose main revision is complete, by name. Opens no file but the references."""
    try:
        names = sorted(entry.name for entry in os.scandir(hub_cache()) if entry.name.startswith("models--"))
    except OSError:
        return
    for name in names:
        repo = name.removeprefix("models--").replace("--", "/")
        if repo.count("/") == 1 and (cached := find_cached(repo)):
            yield cached


def repo_of(folder: Path) -> CachedRepo | None:
    """The repository whose snapshot `folder` is, when it lies in a Hub cache."""
    parts = folder.absolute().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return CachedRepo(parts[-3].removeprefix("models--").replace("--", "/"), parts[-1], folder)
    return None
