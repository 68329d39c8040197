"""A name becomes a `Checkpoint` on this machine (design decision 9). Imports no torch.

Knows where checkpoints may be; what is in them is for `config` and `weights`, the network is for `hub`.
"""

from importlib.resources import files
from pathlib import Path

from vitcli.checkpoint.config import Checkpoint, Source, parse_config, read_config
from vitcli.checkpoint.write import CONFIG_NAME, WEIGHTS_NAME
from vitcli.errors import CheckpointError
from vitcli.text import did_you_mean, safe


def bundled_folder() -> Path:
    """Where the checkpoints lie that come with this program, one folder each."""
    return Path(str(files("vitcli.checkpoint"))) / "bundled"


def bundled_names() -> list[str]:
    folder = bundled_folder()
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG_NAME).is_file()) if folder.is_dir() else []
    )


def resolve(name: str | None = None) -> Checkpoint:
    """The checkpoint that `name` means: a folder, a bundled name."""
    if name is None:
        name = "fashion-vit"
    path = Path(name)
    if path.is_dir():
        return open_folder(path)
    if name in bundled_names():
        return open_folder(bundled_folder() / name, source="bundled", name=name)
    raise CheckpointError(f"no checkpoint '{safe(name)}'.{did_you_mean(name, bundled_names())}")


def open_folder(folder: Path, *, source: Source = "folder", name: str | None = None) -> Checkpoint:
    """The checkpoint in `folder`."""
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    config = read_config(config_path)
    return parse_config(
        config, name=name or str(folder), source=source, config_path=config_path, weights_path=weights_path
    )
