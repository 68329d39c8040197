"""config.json: from the dictionary to a `Checkpoint`, and from a `Description` back to the dictionary.

The layout is timm's, and transformers reads it too (docs: checkpoint format). Reading is a whitelist: a field that
could change the arithmetic is checked or refused; fields that choose code or files (`hf_hub_filename`, `custom_load`,
`url`, `first_conv`, …) are never read. Imports no torch; knows nothing of where files come from.

Our own data is under the root key "vit", which other readers ignore: `format`, `grid` (of the position embedding),
`selftest`, `provenance`, `temperature`, `thresholds` (from which probability on each label holds), `outputs`
("embedding" for a head that is a projection and no classifier), `crop_margin` ("floor" for crops that lie as
transformers' do), and `model`. The last holds what timm's `model_args` cannot say in
JSON (`norm_eps`, `mlp`, the pre-training head, another stem) and is empty when the architecture's defaults already say
it. Where it is not empty, timm and transformers compute other logits (norm_eps; `vit convert` measures how far off) or
refuse the weights (the others). At the root, transformers' `problem_type` says whether classes exclude each other.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitcli import __version__
from vitcli.checkpoint.model_args import architecture_name, model_args_of, other_fields_of, read_model_args
from vitcli.errors import CheckpointError
from vitcli.images.preprocess import Preprocess
from vitcli.model.config import Size, ViTConfig
from vitcli.text import safe

FORMAT = 1
MAX_CLASSES = 100_000

Source = Literal["bundled", "hub", "folder", "file"]

# What the outputs of a head are: classes of which one holds (softmax), labels of which each holds by itself (sigmoid),
# a representation, or quantities. transformers' `problem_type` says the first, second and fourth.
Outputs = Literal["classes", "labels", "embedding", "quantities"]
PROBLEM_TYPES: Mapping[str, Outputs] = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "quantities",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What config.json says of a model, whatever weights lie beside it.

    `vit` is None for a timm model that is not a plain ViT; `timm_args` are then what `timm.create_model` needs besides
    the name. `labels` are in the order of the logits. `provenance` says where the weights come from (data, recipe,
    versions: JSON); `base_model` is the name of what they were fine-tuned or converted from.
    """

    architecture: str
    vit: ViTConfig | None = None
    labels: Sequence[str] = ()
    preprocess: Preprocess
    label_descriptions: Mapping[str, str] = field(default_factory=dict)
    outputs: Outputs = "classes"
    timm_args: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    temperature: float | None = None  # what logits are divided by; None: not calibrated
    thresholds: Sequence[float] = ()  # from which probability each label holds, where several may; (): not chosen
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """One model on this machine: what its config says, checked; its weights not yet read.

    `notes` are lines worth telling the user, `why` says how it was found.
    """

    name: str
    source: Source
    config_path: Path
    weights_path: Path
    num_classes: int
    labels: tuple[str, ...]
    label_ids: tuple[str, ...] = ()  # WordNet ids in logit order, where the labels are ImageNet's
    grid: Size | None = None  # of the stored position embedding, where the config says so
    selftest: Mapping[str, Any] | None = None  # as `selftest.selftest_entry` gives it
    selftest_before: Any = None  # there only while a checkpoint is being replaced (see `write`)
    revision: str | None = None
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def why_no_classes(self) -> str | None:
        """Why no output of this model is the probability of a class, in half a sentence; None where they are."""
        if self.outputs == "quantities":
            return "its outputs are quantities (problem_type regression), not classes"
        if self.outputs == "embedding":
            ends = "an embedding of images among texts" if self.num_classes else "the representation"
            return f"it has no classes: it ends with {ends}"
        return None

    @property
    def exported(self) -> bool:
        """Whether this is an .onnx file, which can only be run."""
        return self.weights_path.suffix == ".onnx"

    @property
    def folder(self) -> Path:
        return self.config_path.parent

    @property
    def public_name(self) -> str:
        """What provenance may say: the name on the Hub or in this package; of a local one the run's, never its path."""
        if self.source in ("bundled", "hub"):
            return self.name
        path = Path(self.name)
        return path.parent.name if path.name in ("best", "last") else path.name


def parse_config(
    config: Mapping[str, Any],
    *,
    name: str,
    source: Source,
    config_path: Path,
    weights_path: Path,
    revision: str | None = None,
) -> Checkpoint:
    """Check `config` field by field. Raises CheckpointError naming the file and the field."""
    where = safe(config_path)
    try:
        return _parse(config, name, source, config_path, weights_path, revision)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _parse(
    config: Mapping[str, Any], name: str, source: Source, config_path: Path, weights_path: Path, revision: str | None
) -> Checkpoint:
    if "architecture" not in config and "model_type" in config:
        raise CheckpointError("written by transformers for its own ViT, not in timm's layout; see `vit convert`")
    cfg = config.get("pretrained_cfg", config)  # before 2023 the whole file was the pretrained_cfg
    if not isinstance(cfg, dict):
        raise CheckpointError("pretrained_cfg must be an object")
    own = _checked_own(config.get("vit", {}))
    architecture, notes = architecture_name(config.get("architecture"))
    num_classes = _num_classes(config, cfg)
    preprocess = replace(Preprocess.from_config(cfg), crop_margin=own.get("crop_margin", "round"))
    args = config.get("model_args") or {}
    if not isinstance(args, dict):
        raise CheckpointError("model_args must be an object")
    vit, timm_args, arg_notes = read_model_args(
        architecture, args, own.get("model", {}), num_classes, preprocess, proven="selftest" in own
    )
    labels = labels_in(config)
    licence, grid = cfg.get("license"), own.get("grid")
    return Checkpoint(
        name=name,
        source=source,
        config_path=config_path,
        weights_path=weights_path,
        architecture=architecture,
        vit=vit,
        num_classes=num_classes,
        labels=labels,
        preprocess=preprocess,
        label_descriptions=_descriptions(_first(config, cfg, "label_descriptions"), labels),
        timm_args=timm_args,
        provenance=own.get("provenance", {}),
        base_model=own.get("base_model"),
        temperature=own.get("temperature"),
        thresholds=_thresholds(own.get("thresholds"), config, num_classes),
        licence=licence if isinstance(licence, str) else None,
        grid=(grid[0], grid[1]) if grid else None,
        selftest=own.get("selftest"),
        selftest_before=own.get("selftest_before"),
        revision=revision,
        notes=(*notes, *arg_notes),
        outputs=outputs_of(config.get("problem_type"), num_classes, embeds="outputs" in own),
    )


def build_config(
    described: Description, *, measured: Mapping[str, Any] | None = None, tag: str = "vit"
) -> dict[str, Any]:
    """The config.json that timm (`local-dir:`) and transformers load unchanged.

    Rules found by measurement: `num_classes` never in `model_args` (transformers passes it twice), the image size
    always (transformers ignores `input_size`), `label_names` a list at the root, no unknown key in `pretrained_cfg`.
    `measured` are further keys of "vit", found with the very weights that are written (`selftest`). Raises
    CheckpointError for a config that would be refused when it is read: labels that are not unique, an image size that
    is not the preprocessing's, and so on.
    """
    architecture, vit, preprocess = described.architecture, described.vit, described.preprocess
    labels, outputs = described.labels, described.outputs
    num_classes = vit.num_classes if vit else len(labels)
    config: dict[str, Any] = {"architecture": architecture, "num_classes": num_classes}
    own = {"format": FORMAT, "tool_version": __version__, **_said_of_weights(described), **(measured or {})}
    if vit:
        config |= {"num_features": vit.num_features // vit.pooled_tokens, "global_pool": vit.global_pool}
        own["grid"] = list(vit.grid)
        if other := other_fields_of(architecture, vit):
            own["model"] = other
    if num_classes and outputs in PROBLEM_TYPES.values() and outputs != "classes":
        config["problem_type"] = next(name for name, means in PROBLEM_TYPES.items() if means == outputs)
    elif num_classes and outputs == "embedding":
        own["outputs"] = outputs
    if preprocess.crop_margin != "round":
        own["crop_margin"] = preprocess.crop_margin
    if labels:
        config["label_names"] = list(labels)
    if described.label_descriptions:
        config["label_descriptions"] = dict(described.label_descriptions)
    config["model_args"] = model_args_of(architecture, vit) if vit else dict(described.timm_args)
    config["pretrained_cfg"] = {
        "tag": tag,
        "custom_load": False,
        **preprocess.to_config(),
        "fixed_input_size": vit is not None or "img_size" in config["model_args"],  # timm then passes img_size on
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": _first_conv(vit) if vit else None,
        "classifier": (["head", "head_dist"] if vit.distilled else "head") if vit else None,
        "license": described.licence,
    }
    config["vit"] = own
    _parse(config, "", "folder", Path(), Path(), None)  # what could not be read is not written
    return config


def _said_of_weights(described: Description) -> dict[str, Any]:
    """The keys of "vit" that say where the weights come from, without those of which there is nothing to say."""
    said = {
        "base_model": described.base_model,
        "temperature": described.temperature,
        "thresholds": list(described.thresholds) or None,
        "provenance": dict(described.provenance) or None,
    }
    return {key: value for key, value in said.items() if value is not None}


def outputs_of(problem_type: Any, num_classes: int, *, embeds: bool = False) -> Outputs:
    """What a head of `num_classes` outputs gives, by transformers' `problem_type` (or None), read as its pipeline does.

    A single output is a label: the softmax of one number is 1 for every image. Raises CheckpointError for a
    problem_type that transformers does not have.
    """
    if problem_type is not None and (not isinstance(problem_type, str) or problem_type not in PROBLEM_TYPES):
        raise CheckpointError(f"problem_type '{safe(problem_type, 40)}' is none of {', '.join(PROBLEM_TYPES)}")
    if embeds or not num_classes:
        return "embedding"
    means = PROBLEM_TYPES[problem_type or "single_label_classification"]
    return "labels" if means == "classes" and num_classes == 1 else means


def _first_conv(vit: ViTConfig) -> str:
    if vit.stem is None:
        return "patch_embed.proj"
    return "patch_embed.backbone.stem.conv" if vit.stem.layers else "patch_embed.backbone.conv"


def _num_classes(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> int:
    count = _first(config, cfg, "num_classes")
    if type(count) is not int or not 0 <= count <= MAX_CLASSES:
        raise CheckpointError(f"num_classes must be a whole number up to {MAX_CLASSES}, not {safe(count, 40)!r}")
    return count


def _first(config: Mapping[str, Any], cfg: Mapping[str, Any], *keys: str) -> Any:
    """Root keys win over those of pretrained_cfg, as in timm; `labels` is the old name of `label_names`."""
    for level in (config, cfg):
        for key in keys:
            if level.get(key) is not None:
                return level[key]
    return None


def labels_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that `config` has, in logit order; empty where it has none. Raises CheckpointError."""
    cfg = config.get("pretrained_cfg", config)
    return _labels(_first(config, cfg, "label_names", "labels"), _num_classes(config, cfg))


def _labels(names: Any, num_classes: int) -> tuple[str, ...]:
    """Class names in logit order; empty when the config has none."""
    if names is None:
        return ()
    if isinstance(names, dict):  # {"0": "cat", …}
        try:
            names = [names[str(index)] for index in range(len(names))]
        except KeyError:
            raise CheckpointError("label_names must be a list, or an object with the keys 0, 1, 2, …") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError("label_names must be a list of strings, none of them empty")
    if len(names) != num_classes:
        raise CheckpointError(f"{len(names)} label_names for {num_classes} classes")
    seen: set[str] = set()
    for name in names:
        normal = unicodedata.normalize("NFC", name)
        if normal in seen:
            raise CheckpointError(f"two classes are called '{safe(name, 80)}'")
        seen.add(normal)
    return tuple(names)


def _thresholds(values: Any, config: Mapping[str, Any], num_classes: int) -> tuple[float, ...]:
    """One number from 0 to 1 for each label of a multi-label head; empty where the config has none."""
    if values is None:
        return ()
    if outputs_of(config.get("problem_type"), num_classes) != "labels":
        raise CheckpointError("vit.thresholds are for labels of which several may hold (problem_type)")
    if not isinstance(values, list) or len(values) != num_classes:
        raise CheckpointError(f"vit.thresholds must be a list of {num_classes} numbers, one for each label")
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise CheckpointError("vit.thresholds must be numbers from 0 to 1")
    return tuple(map(float, values))


def _descriptions(value: Any, labels: tuple[str, ...]) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, list) and len(value) == len(labels):
        value = dict(zip(labels, value, strict=True))
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError("label_descriptions must map class names to text")
    return {label: value[label] for label in labels if label in value}


def _checked_own(own: Any) -> dict[str, Any]:
    """Our own object "vit" of a config, with the types and bounds of its values checked."""
    if not isinstance(own, dict):
        raise CheckpointError("'vit' must be an object")
    if own and own.get("format") != FORMAT:
        raise CheckpointError(f"format {safe(own.get('format'), 20)} of 'vit' is not known; update this program")
    for key, kinds in {"selftest": dict, "model": dict, "provenance": dict, "base_model": str}.items():
        if key in own and not isinstance(own[key], kinds):
            raise CheckpointError(f"vit.{key} must be {'an object' if kinds is dict else 'a string'}")
    temperature = own.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 1e-3 <= temperature <= 1e3:
        raise CheckpointError("vit.temperature must be a number from 0.001 to 1000")
    if not isinstance(own.get("provenance", {}).get("resized", []), list):
        raise CheckpointError("vit.provenance.resized must be a list")
    if own.get("outputs", "embedding") != "embedding":
        raise CheckpointError(f"vit.outputs '{safe(own['outputs'], 40)}' is not known; update this program")
    grid = own.get("grid", [1, 1])
    if not (isinstance(grid, list) and len(grid) == 2 and all(type(n) is int and 0 < n < 1 << 16 for n in grid)):
        raise CheckpointError("vit.grid must be two positive whole numbers")
    return dict(own)
