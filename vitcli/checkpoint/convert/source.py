"""SRC of `vit convert` → `Source`: a folder, a file or a name on the Hub; what kind of file it is by its content.

Knows where weights and the files beside them lie, not what they mean.
"""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitcli.checkpoint.blobs import verify_blob
from vitcli.checkpoint.convert.archive import read_archive
from vitcli.checkpoint.convert.names import Weights
from vitcli.checkpoint.convert.pickles import read_pickle
from vitcli.checkpoint.convert.result import Source
from vitcli.checkpoint.layout import CONFIG_NAME, WEIGHTS_NAME
from vitcli.checkpoint.resolve import is_hub_name, on_hub
from vitcli.checkpoint.tensors import StoredType, check_finite, read_tensors, stored_in
from vitcli.checkpoint.untrusted import open_regular, read_config
from vitcli.checkpoint.weights import unwrapped
from vitcli.errors import CheckpointError
from vitcli.text import safe

INDEX_NAME = "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PREFERRED = (WEIGHTS_NAME, INDEX_NAME, "open_clip_model.safetensors")
_SAFE, _PICKLED = (".safetensors", ".npz"), (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")


def open_source(name: str, *, allow_pickle: bool = False) -> Source:
    """The original that `name` means: a folder, a file, or `org/name[@revision]` on the Hub, cache first.

    Raises CheckpointError for what is not there, damaged, or a pickle that the user has not allowed.
    """
    path, origin = Path(os.path.expanduser(name)), None
    if not os.path.lexists(path):
        if not is_hub_name(name):
            raise CheckpointError(f"{safe(name)}: no such file or folder, and no name on the Hub (org/name)")
        cached, _ = on_hub(name, lambda _: None, also=PROCESSORS)
        path, origin = cached.folder, f"{cached.repo}@{cached.commit}"
        verify_blob(cached.weights_path, cached.repo)
    weights = _weights_in(path) if path.is_dir() else path
    source = _read(weights, allow_pickle)
    tensors: Weights = {}
    for key, array in source.tensors.items():
        if unwrapped(key) in tensors:
            raise CheckpointError(f"{source.where}: the same weight is there with and without a module. prefix")
        tensors[unwrapped(key)] = array
    check_finite(tensors, weights)
    beside = weights.parent
    return replace(
        source,
        name=name,
        tensors=tensors,
        origin=origin,
        config=_json(beside / CONFIG_NAME),
        clip_config=_json(beside / "open_clip_config.json"),
        processor=_processor(beside),
    )


def _weights_in(folder: Path) -> Path:
    """The one file of weights in `folder`: safetensors before .npz before pickles."""
    names = sorted(os.listdir(folder))
    for name in _PREFERRED:
        if name in names:
            return folder / name
    for suffixes in (_SAFE, _PICKLED):
        found = [name for name in names if name.endswith(suffixes) and name != "training_args.bin"]
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise CheckpointError(f"{safe(folder)}: several files of weights ({safe(', '.join(found[:5]))}); name one")
    raise CheckpointError(f"{safe(folder)}: no weights here: no {', '.join(_SAFE + _PICKLED)}")


def _read(path: Path, allow_pickle: bool) -> Source:
    where = safe(path)
    if path.name == INDEX_NAME:
        shards = [_safetensors(shard) for shard in _shards(path)]
        tensors = {name: array for part, _ in shards for name, array in part.items()}
        kinds = {stored for _, stored in shards}
        return Source("", where, "safetensors", tensors, kinds.pop() if len(kinds) == 1 else "float32")
    kind = kind_of(path)
    if kind == "npz":
        return Source("", where, kind, *read_archive(path))
    if kind == "safetensors":
        return Source("", where, kind, *_safetensors(path))
    if not allow_pickle:
        raise CheckpointError(
            f"{where}: a Python pickle, which can run code; if you trust where it comes from, --allow-pickle reads it "
            "in a process with limits"
        )
    tensors, stored, container = read_pickle(path)
    return Source(
        "", where, kind, tensors, stored, notes=(f"taken from the pickle: '{safe(container)}'",) if container else ()
    )


def kind_of(path: Path) -> str:
    """ "npz", "pickle", or "safetensors" for all else, which its reader then names."""
    with open_regular(path) as file:
        start = file.read(16)
        if start.startswith(b"PK\x03\x04"):
            try:
                names = zipfile.ZipFile(file).namelist()
            except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
                raise CheckpointError(f"{safe(path)}: a damaged zip archive: {safe(error, 120)}") from None
            return "npz" if any(name.endswith(".npy") for name in names) else "pickle"
    return "pickle" if len(start) > 8 and start[0] == 0x80 and start[1] in range(2, 6) and start[8] != ord("{") else (
        "safetensors"
    )  # fmt: skip


def _safetensors(path: Path) -> tuple[Weights, StoredType]:
    return read_tensors(path, indices=True), stored_in(path)


def _shards(index: Path) -> Iterator[Path]:
    """The files a model is split into, all in the folder of the index."""
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and n == os.path.basename(n) for n in names.values()):
        raise CheckpointError(f"{safe(index)}: weight_map must name files beside it")
    for name in sorted(set(names.values())):
        yield index.with_name(name)


def _json(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}


def _processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings. Where the settings of a whole processor hold them, transformers takes those."""
    inner = _json(folder / "processor_config.json").get("image_processor")
    return inner if isinstance(inner, dict) else _json(folder / "preprocessor_config.json")
