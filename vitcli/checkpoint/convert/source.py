"""SRC of `vit convert` → `Source`: a folder, a file or a name on the Hub; what kind of file it is by its content.

Knows where weights and the files beside them lie, not what they mean. A folder and a repository on the Hub are looked
through by the same function, so what converts from the one converts from the other. What lies there instead of weights
is told by its name, with what to do.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitcli.checkpoint.convert.archive import read_archive
from vitcli.checkpoint.convert.names import Weights
from vitcli.checkpoint.convert.pickles import read_pickle
from vitcli.checkpoint.convert.result import Source
from vitcli.checkpoint.hub import CachedRepo, hub_name, is_hub_name, require_network, snapshot, verify_blob
from vitcli.checkpoint.layout import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME
from vitcli.checkpoint.tensor_file import (
    INDEX_SUFFIX,
    StoredType,
    check_finite,
    check_index,
    opened,
    read_parts,
    stored_as,
    weight_files,
)
from vitcli.checkpoint.weights import unwrapped
from vitcli.errors import CheckpointError, HubError
from vitcli.files import OnProgress, open_regular, read_config
from vitcli.text import safe

_FILES = (  # (expression, what it is, what to do), the most telling first
    (r"^adapter_config\.json$", "a PEFT adapter's settings", "merge it into its model with peft and save that"),
    (r"\.gguf$", "GGUF, quantised weights for other programs", "take the model that they were made from"),
    (r"\.(onnx|onnx_data|ort)$", "an ONNX graph, in which weights have no names to go by", "take the model behind it"),
    (r"\.(tflite|mlmodel|mlpackage|engine|plan|xml|pt2)$", "a model compiled for one runtime", "take its original"),
    (r"\.(h5|keras)$|^saved_model\.pb$", "Keras's or TensorFlow's weights", "save them from PyTorch, or take an .npz"),
    (r"\.ckpt.*\.(index|data-\d+-of-\d+|meta)$", "TensorFlow's weights", "save them from PyTorch, or take an .npz"),
    (r"\.msgpack$|^_METADATA$|^_CHECKPOINT_METADATA$|\.orbax", "Flax's or Orbax's weights (JAX)",
     "save them from PyTorch, or as .npz with numpy.savez"),
    (r"^(distcp|.*\.distcp|\.metadata)$", "a sharded training state", "save the model's state_dict() by itself"),
    (r"\.(gz|zip|tgz|xz|7z|zst)$", "an archive", "unpack it"),
    (r"^(optimizer|scheduler|scaler|rng_state|training_args|trainer_state)", "a trainer's state without its model",
     "save the model"),
    (r"^config\.json$", "a model's settings without its weights", "fetch the weights, too"),
    (r"^(preprocessor_config|processor_config|image_processor\w*)\.json$", "an image processor without its model",
     "name the model's own repository or folder"),
    (r"^(tokenizer|vocab|merges|special_tokens|sentencepiece|spiece)", "a tokenizer",
     "name the repository or folder of an image model"),
)  # fmt: skip


def told_by(names: Sequence[str]) -> str | None:
    """What the files `names` are, and what to do; None where no name is known. All of them are of other kinds than
    weights that can be read."""
    for pattern, what, advice in _FILES:
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"{found} is {what}; {advice}"
    return None


PROCESSORS = ("preprocessor_config.json", "processor_config.json")
CLIP_CONFIG = "open_clip_config.json"
_PICKLED_INDEX = ".bin.index.json"
_PREFERRED = (WEIGHTS_NAME, INDEX_NAME, "open_clip_model.safetensors")
_PREFERRED_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin")
_SAFE, _PICKLED = (".safetensors", ".npz"), (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state\w*)\.(bin|pt|pth)\Z")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

Check = Callable[[Mapping[str, Any], str], None]
"""(content of config.json, where it lies) → CheckpointError for a model of which the weights need not be fetched."""


def open_source(
    name: str,
    *,
    allow_pickle: bool = False,
    progress: OnProgress | None = None,
    check_config: Check = lambda config, where: None,
) -> Source:
    """The original that `name` means: a folder, a file, or `org/name[@revision]` on the Hub, cache first.

    Raises CheckpointError for what is not there, damaged, or a pickle that the user has not allowed.
    """
    path, cached = Path(os.path.expanduser(name)), None
    if not os.path.lexists(path):
        if not is_hub_name(name):
            raise CheckpointError(f"{safe(name)}: no such file or folder, and no name on the Hub (org/name)")
        cached = _on_hub(name, allow_pickle, progress, check_config)
        path = cached.folder
    weights = path / choose_weights(_names_in(path), safe(cached.repo if cached else path)) if path.is_dir() else path
    if cached:
        for file in weight_files(weights):
            verify_blob(file, cached.repo)
    source = _read(weights, allow_pickle)
    names = unwrapped(source.tensors, source.where)
    tensors = {plain: source.tensors[stored] for stored, plain in names.items()}
    check_finite(tensors, weights)
    beside = weights.parent
    averaged = ("averaged weights, as torch's AveragedModel keeps them",) if len(names) < len(source.tensors) else ()
    return replace(
        source,
        name=name,
        tensors=tensors,
        origin=f"{cached.repo}@{cached.commit}" if cached else None,
        config=_json(beside / CONFIG_NAME),
        clip_config=_json(beside / CLIP_CONFIG),
        processor=_processor(beside),
        readable=_readable(path, weights, on_hub=cached is not None),
        notes=(*source.notes, *averaged),
    )


def _readable(path: Path, weights: Path, on_hub: bool) -> bool:
    """Whether a model by the name of `path` is resolved to `weights`."""
    if on_hub:
        return weights.name in (WEIGHTS_NAME, INDEX_NAME)
    suffixes = (".safetensors", INDEX_SUFFIX)
    alone = sum(name.endswith(weights.suffix) for name in os.listdir(weights.parent)) == 1
    return weights.name.endswith(suffixes) and (weights == path or weights.name in _PREFERRED[:2] or alone)


def _on_hub(name: str, allow_pickle: bool, progress: OnProgress | None, check_config: Check) -> CachedRepo:
    """The repository `name` in the Hub cache, with every file that conversion needs."""
    repo, revision = hub_name(name)
    here = snapshot(repo, revision)
    wanted = partial(_wanted, where=repo, allow_pickle=allow_pickle, check_config=check_config)
    complete = False
    if here.folder.is_dir():
        try:
            names = _names_in(here.folder)
            needed = list(wanted(here.folder, names))
            complete = all((here.folder / file).is_file() for file in needed)
        except CheckpointError:
            pass  # not all of it is here: the Hub tells
    if complete and set(PROCESSORS) & set(needed):
        return here
    try:
        require_network(repo, revision)
        from vitcli.checkpoint.download import download_chosen

        return download_chosen(repo, revision, wanted, progress)
    except HubError:
        if complete:  # what else the repository may have is not here, which the notes then say
            return here
        raise


def _wanted(
    folder: Path, names: Sequence[str], *, where: str, allow_pickle: bool, check_config: Check
) -> Iterator[str]:
    """The files to convert out of those in `names`, each of which lies in `folder` when the next is asked for."""
    weights = choose_weights(names, where)
    if _is_pickle(weights) and not allow_pickle:
        raise CheckpointError(_not_allowed(f"{where}: {safe(weights)}"))
    yield from (name for name in (CONFIG_NAME, CLIP_CONFIG, *PROCESSORS) if name in names)
    check_config(_json(folder / CONFIG_NAME), where)
    yield weights
    if weights.endswith(".index.json"):
        yield from (file.name for file in weight_files(folder / weights))


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{safe(folder)}: {error.strerror}") from None


def choose_weights(names: Sequence[str], where: str) -> str:
    """The one file of weights (or its index) out of the `names` in a folder: safetensors before .npz before pickles.

    Raises CheckpointError when there is none, or more than one to choose from.
    """
    several: list[str] = []
    for preferred, suffixes in (
        (_PREFERRED, (INDEX_SUFFIX,)),
        ((), _SAFE),
        (_PREFERRED_PICKLES, (_PICKLED_INDEX,)),
        ((), _PICKLED),
    ):
        if known := [name for name in preferred if name in names]:
            return known[0]
        found = [name for name in names if name.endswith(suffixes) and not _NO_WEIGHTS.match(name)]
        if len(found) == 1:
            return found[0]
        several = several or found
        if several:
            break
    if several and all(_SHARD.search(name) for name in several):
        raise CheckpointError(f"{where}: parts of one model without the index that joins them, {_index_of(several[0])}")
    if several:
        shown = ", ".join(safe(name, 80) for name in several[:5])
        raise CheckpointError(f"{where}: several files of weights ({shown}); name one, by its path on this machine")
    if not names:
        raise CheckpointError(f"{where}: an empty folder")
    what = told_by(names) or f"no {', '.join(_SAFE + _PICKLED)} among {len(names)} files"
    raise CheckpointError(f"{where}: no weights here: {safe(what, 200)}")


def _index_of(shard: str) -> str:
    return f"{_SHARD.sub('.', safe(shard, 80))}.index.json"


def _is_pickle(name: str) -> bool:
    return name.endswith((*_PICKLED, _PICKLED_INDEX))


def _not_allowed(where: str) -> str:
    return (
        f"{where}: a Python pickle, which can run code; if you trust where it comes from, --allow-pickle reads it in a "
        "process with limits"
    )


def _read(path: Path, allow_pickle: bool) -> Source:
    where = safe(path)
    if path.name.endswith(".index.json"):
        kind = "pickle" if path.name.endswith(_PICKLED_INDEX) else "safetensors"
    else:
        kind = kind_of(path)
    if kind == "npz":
        return Source("", where, kind, *read_archive(path))
    if kind == "safetensors":
        return Source("", where, kind, *_safetensors(path))
    if not allow_pickle:
        raise CheckpointError(_not_allowed(where))
    read = {file: read_pickle(file) for file in weight_files(path)}
    check_index(path, {file: tensors for file, (tensors, _, _) in read.items()})
    tensors = {name: array for part, _, _ in read.values() for name, array in part.items()}
    kinds = {stored for _, stored, _ in read.values()}
    containers = sorted({container for _, _, container in read.values() if container})
    notes = tuple(f"taken from the pickle: '{safe(container)}'" for container in containers)
    return Source("", where, kind, tensors, kinds.pop() if len(kinds) == 1 else "float32", notes=notes)


def kind_of(path: Path) -> str:
    """ "npz", "pickle", or "safetensors" for all else, which its reader then names.

    Raises CheckpointError for what is known to be none of them.
    """
    with open_regular(path) as file:
        start = file.read(16)
        if start.startswith(b"PK\x03\x04"):
            try:
                names = zipfile.ZipFile(file).namelist()
            except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
                raise CheckpointError(f"{safe(path)}: a damaged zip archive: {safe(error, 120)}") from None
            if any(name.endswith(".npy") for name in names):
                return "npz"
            if any(name.endswith("data.pkl") for name in names):
                return "pickle"
            keras = any(name.endswith(".weights.h5") for name in names)
            what = (
                "Keras's; save the weights from PyTorch" if keras else "with neither PyTorch's weights nor arrays in it"
            )
            raise CheckpointError(f"{safe(path)}: a zip archive {what}")
    if len(start) > 8 and start[0] == 0x80 and start[1] in range(2, 6) and start[8] != ord("{"):
        return "pickle"
    if path.suffix not in _SAFE and start[8:9] != b"{" and (told := told_by([path.name])):
        raise CheckpointError(f"{safe(path.parent)}: {safe(told, 200)}")
    if path.suffix == ".json":
        raise CheckpointError(f"{safe(path)}: settings, not weights; name the folder or the file of the weights")
    return "safetensors"


def _safetensors(path: Path) -> tuple[Weights, StoredType]:
    if _SHARD.search(path.name) and (path.parent / _index_of(path.name)).is_file():
        raise CheckpointError(f"{safe(path)}: one part of a model; name its folder, or {_index_of(path.name)}")
    with opened(path, indices=True) as parts:
        # Scalars, such as CLIP's temperature, do not count.
        stored = stored_as(info.dtype for part in parts for info in part.header.tensors.values() if info.shape)
        return read_parts(parts), stored


def _json(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}


def _processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings. Where the settings of a whole processor hold them, transformers takes those."""
    inner = _json(folder / "processor_config.json").get("image_processor")
    return inner if isinstance(inner, dict) else _json(folder / "preprocessor_config.json")
