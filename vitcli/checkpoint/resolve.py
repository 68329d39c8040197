"""A name becomes a `Checkpoint` on this machine (docs/design.md, 9). Imports no torch, and the Hub only to download.

Knows where checkpoints may be; what is in them is for `config` and `weights`. A file of `vit export` is one, too:
its metadata hold a config.json, with labels and preprocessing. Whether its graph is the one of that config is for
`vitcli.inference.exported`.
"""

import os
from dataclasses import replace
from pathlib import Path

from vitcli.checkpoint.config import Checkpoint, Source, parse_config
from vitcli.checkpoint.hub import (
    CachedRepo,
    cached_repos,
    find_cached,
    hub_name,
    is_hub_name,
    repo_of,
    require_network,
)
from vitcli.checkpoint.imagenet import are_wordnet_ids, describe, imagenet_names
from vitcli.checkpoint.layout import (
    ALIASES,
    CONFIG_NAME,
    DEFAULT_BUNDLED,
    FAMILIARITY_NAME,
    INDEX_NAME,
    WEIGHTS_NAME,
    bundled_folder,
    bundled_names,
)
from vitcli.checkpoint.naming import nameless_note, placeholders
from vitcli.checkpoint.tensor_file import INDEX_SUFFIX, PICKLE_HINT
from vitcli.errors import CheckpointError, HubError
from vitcli.files import OnProgress, parse_object, read_config
from vitcli.model.architectures import ALIASES as OLD_NAMES
from vitcli.model.architectures import ARCHITECTURES, NOT_COVERED
from vitcli.onnx.protobuf import read_metadata
from vitcli.text import command, did_you_mean, safe

CONFIG_KEY = "vit.config"  # config.json of the checkpoint that was exported, at the exported size
PIXELS_KEY = "vit.pixels"  # "1": the input is pixels from 0 to 255, the normalisation is in the graph
SHARES_KEY = "vit.probabilities"  # "1": the output is probabilities, temperature included
PRECISION_KEY = "vit.precision"  # fp32, fp16 or int8
SIZES_KEY = "vit.sizes"  # of the images it takes, 224x224 or 224x224,384x384; the first is the config's
CHECKSUM_KEY = "vit.crc32"  # of all bytes before this entry, which is the last; eight hexadecimal digits


def exported_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that was exported to the ONNX file `path`. Raises CheckpointError for other ONNX files."""
    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        raise CheckpointError(f"{safe(path)}: an ONNX file without labels and preprocessing; `vit export` writes them")
    config = parse_object(text.encode("utf-8"), safe(path))
    checkpoint = parse_config(config, name=str(path), source="file", config_path=path, weights_path=path)
    return replace(checkpoint, notes=())  # they doubt the arithmetic, which is the file's own


_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".pth.tar")


def resolve(
    name: str | None = None, *, bundled: str = DEFAULT_BUNDLED, progress: OnProgress | None = None
) -> Checkpoint:
    """The checkpoint that `name` means; `.why` says how it was found.

    In this order: the prefixes `local-dir:` and `hf-hub:`; a folder (by the name of a bundled model or an alias only
    when there is a model in it, and with a note); a .safetensors file with config.json beside it; an .onnx file of
    `vit export`; a bundled name; an alias; a timm name with its tag; `org/name[@revision]` on the Hub, cache first.
    None: the environment's VIT_MODEL, else the ImageNet ViT if it is in the Hub cache, else the checkpoint `bundled`.

    Raises CheckpointError, or HubError when only the Hub could have helped.
    """
    if name is not None:
        return _named(name, progress)
    if chosen := os.environ.get("VIT_MODEL"):
        checkpoint = _named(chosen, progress)
        return replace(checkpoint, why=f"VIT_MODEL: {checkpoint.why}")
    if cached := find_cached(ALIASES["imagenet"]):
        return replace(_open_cached(cached), why="the default: the ImageNet ViT in the local Hub cache")
    return replace(_bundled(bundled), why=f"the default: {bundled}, bundled with this program")


def _named(name: str, progress: OnProgress | None) -> Checkpoint:
    prefix, _, rest = name.partition(":")
    if prefix == "local-dir":
        return _folder(Path(rest))
    if prefix in ("hf-hub", "hf_hub"):
        return _hub(rest, progress)
    path = Path(os.path.expanduser(name))  # os.path never raises, whatever a name holds
    ours = name in ALIASES or name in bundled_names()
    if name and os.path.isdir(path) and (not ours or _holds_checkpoint(path)):
        found = _folder(path)
        return replace(found, notes=(*found.notes, _hides(name))) if ours else found
    if name.lower().endswith(_PICKLES):
        raise CheckpointError(f"{safe(name)}: {PICKLE_HINT}")
    if name.endswith((".safetensors", INDEX_SUFFIX)):
        return _file(path)
    if name.endswith(".onnx"):
        return _exported(path)
    if name in bundled_names():
        return _bundled(name)
    if name in ALIASES:
        return _hub(ALIASES[name], progress)
    if "/" not in name and "." in name and _is_architecture(name):
        return _hub(f"timm/{name}", progress)
    if name in OLD_NAMES:
        return _hub(f"timm/{OLD_NAMES[name]}", progress)
    if is_hub_name(name) and not os.path.exists(path):
        return _hub(name, progress)
    raise _unknown(name)


def _holds_checkpoint(path: Path) -> bool:
    """Whether a folder with one of our own names is a model, and not the data set of that name."""
    return any(os.path.lexists(path / place / CONFIG_NAME) for place in ("", "best"))


def _hides(name: str) -> str:
    """What is said where a folder is taken for one of our own names."""
    own = (
        f"the alias of {ALIASES[name]}; that is {command('-m', ALIASES[name])}"
        if name in ALIASES
        else "a bundled model"
    )
    rename = "" if name in ALIASES else "; rename the folder for that"
    return f"the folder {name} in this directory is taken; {name} is also {own}{rename}"


def _folder(path: Path) -> Checkpoint:
    """The checkpoint in `path`, or that in its `best/`: what a run folder holds."""
    if not os.path.lexists(path / CONFIG_NAME) and os.path.exists(path / "best" / CONFIG_NAME):
        path = path / "best"
    if cached := repo_of(path):
        return replace(_open_cached(cached), why=f"the Hub cache's folder of {cached.repo}")
    config_path = path / CONFIG_NAME
    if not os.path.lexists(config_path):
        raise CheckpointError(f"{safe(path)}: no {CONFIG_NAME} here, so this is not a checkpoint folder")
    return _open(config_path, _weights_in(path), str(path), "folder", f"the folder {safe(path)}")


def _weights_in(path: Path) -> Path:
    """model.safetensors, its index, or the only .safetensors file (or index) there is, as in timm."""
    for weights in (path / WEIGHTS_NAME, path / INDEX_NAME):
        if os.path.lexists(weights):
            return weights
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise CheckpointError(f"{safe(path)}: {error.strerror}") from None
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        found = [name for name in names if name.endswith(suffix) and name != FAMILIARITY_NAME]
        if len(found) == 1:
            return path / found[0]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise CheckpointError(f"{safe(path)}: no {WEIGHTS_NAME}, only {safe(pickles[0])}; {PICKLE_HINT}")
    raise CheckpointError(f"{safe(path)}: no {WEIGHTS_NAME} beside {CONFIG_NAME}")


def _file(path: Path) -> Checkpoint:
    if not os.path.lexists(path):
        raise CheckpointError(f"{safe(path)}: no such file")
    config_path = path.parent / CONFIG_NAME
    if not os.path.lexists(config_path):
        raise CheckpointError(f"{safe(path)}: no {CONFIG_NAME} beside it, which would say what model it is")
    return _open(config_path, path, str(path), "file", f"the file {safe(path)}")


def _exported(path: Path) -> Checkpoint:
    """A file of `vit export`: its config is in its metadata."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{safe(path)}: no such file")
    return replace(_with_names(exported_checkpoint(path)), why=f"the file {safe(path)}")


def _bundled(name: str) -> Checkpoint:
    folder = bundled_folder() / name
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"the bundled model {name} is missing: this installation is incomplete, install it again")
    return _open(folder / CONFIG_NAME, folder / WEIGHTS_NAME, name, "bundled", f"{name}, bundled with this program")


def _hub(name: str, progress: OnProgress | None) -> Checkpoint:
    repo, revision = hub_name(name)
    try:
        found = find_cached(repo, revision)
        cached = found or _download(repo, revision, progress)
    except HubError as error:
        here = "" if ":" in name or name.startswith("timm/") else _near(name)
        raise HubError(f"{error}{here}") from None
    how = "in the local Hub cache" if found else "downloaded from the Hub"
    return replace(_open_cached(cached), why=f"{cached.repo} at {cached.commit[:7]}, {how}")


def _download(repo: str, revision: str, progress: OnProgress | None) -> CachedRepo:
    require_network(repo, revision)
    from vitcli.checkpoint.download import download

    return download(repo, revision, _open_cached, progress)


def _open_cached(cached: CachedRepo) -> Checkpoint:
    why = f"{cached.repo} in the Hub cache"
    return _open(cached.config_path, cached.weights_path, cached.repo, "hub", why, cached.commit)


def _open(
    config_path: Path, weights_path: Path, name: str, source: Source, why: str, revision: str | None = None
) -> Checkpoint:
    checkpoint = parse_config(
        read_config(config_path),
        name=name,
        source=source,
        config_path=config_path,
        weights_path=weights_path,
        revision=revision,
    )
    return replace(_with_names(checkpoint), why=why)


def _with_names(checkpoint: Checkpoint) -> Checkpoint:
    """Class names for people, one for each class, whatever the config has."""
    labels, count = checkpoint.labels, checkpoint.num_classes
    if are_wordnet_ids(labels) and checkpoint.label_descriptions:
        found = describe(labels, checkpoint.label_descriptions)
        return replace(checkpoint, labels=found.names, label_ids=found.ids, label_descriptions={})
    if labels or not count:
        return checkpoint
    names = imagenet_names(checkpoint.name, count) if checkpoint.source == "hub" else None
    if names:
        return replace(checkpoint, labels=names.names, label_ids=names.ids)
    return replace(checkpoint, labels=placeholders(count), notes=(*checkpoint.notes, nameless_note(count)))


def _is_architecture(name: str) -> bool:
    architecture = name.partition(".")[0]
    return architecture in ARCHITECTURES or architecture in NOT_COVERED


def _unknown(name: str) -> CheckpointError:
    if name.startswith(("http://", "https://")):
        return CheckpointError(f"'{safe(name)}' is an address; give the model's name on the Hub, org/name")
    if "/" not in name and _is_architecture(name):
        tagged = [repo.repo for repo in cached_repos() if repo.repo.startswith(f"timm/{name}.")]
        example = tagged[0].removeprefix("timm/") if tagged else f"{name}.augreg_in21k_ft_in1k"
        return CheckpointError(
            f"'{name}' is an architecture; weights have a tag too, as in {example} (https://huggingface.co/timm)"
        )
    if os.path.exists(os.path.expanduser(name)):
        return CheckpointError(
            f"{safe(name)}: a file that is no checkpoint; that is a folder, a .safetensors or an .onnx file"
        )
    if os.sep in name or name.startswith((".", "~")):
        return CheckpointError(f"no checkpoint '{safe(name)}': no such folder")
    return CheckpointError(
        f"no checkpoint '{safe(name)}': not a folder, a bundled model ({', '.join(bundled_names())}), or a name on the "
        f"Hub (org/name).{_near(name)}"
    )


def _near(name: str) -> str:
    known = [*bundled_names(), *ALIASES, *(cached.repo for cached in cached_repos())]
    return did_you_mean(name, known)
