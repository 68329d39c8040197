"""timm's `model_args` ↔ ViTConfig: the whitelist of what a config may say about the arithmetic, and its bounds.

Knows one config at a time: no files, no labels. The bounds only keep absurd numbers from reaching an allocation; that
the numbers are true is shown by comparing every shape with the weights (`weights`), and by the self-test.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from vitcli.checkpoint.related_args import SETTLED, args_of, fields_of, settable
from vitcli.errors import CheckpointError
from vitcli.files import shown
from vitcli.images.preprocess import Preprocess
from vitcli.model.architectures import ALIASES as OLD_NAMES
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.config import Size, StemConfig, ViTConfig
from vitcli.text import did_you_mean, safe

MAX_PATCHES = 1 << 20

Check = Callable[[Any], Any]


def architecture_name(value: Any) -> tuple[str, list[str]]:
    """A timm architecture name without prefix and tag, and a note when it was written otherwise."""
    if not isinstance(value, str):
        raise CheckpointError("no architecture; is this a timm or `vit` checkpoint?")
    name = value.removeprefix("timm/").partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name):
        raise CheckpointError(f"'{safe(value, 80)}' is not an architecture name")
    name = OLD_NAMES.get(name, name).partition(".")[0]
    return name, [] if name == value else [f"architecture '{safe(value, 80)}' read as '{name}'"]


def read_model_args(
    architecture: str,
    args: Mapping[str, Any],
    other: Mapping[str, Any],
    num_classes: int,
    preprocess: Preprocess,
    *,
    proven: bool,
) -> tuple[ViTConfig | None, dict[str, Any], list[str]]:
    """The ViTConfig that `architecture` with `args` and our `other` fields means; for other models None and the args.

    `proven`: the checkpoint carries a self-test, so that lies which change no shape need no note.
    """
    if args.get("num_classes", num_classes) != num_classes:
        raise CheckpointError(
            f"model_args.num_classes {safe(args['num_classes'], 40)} is not num_classes {num_classes}"
        )
    args = {key: value for key, value in args.items() if key not in _WITHOUT_EFFECT}
    base = ARCHITECTURES.get(architecture)
    if base is None:
        return None, _any_models(architecture, args), []
    if base.related:
        args = fields_of(architecture, base, args)
    changes = _checked(args, _whitelist(base, _ARGS), "model_args")
    if "act_layer" in changes:
        changes["act"] = changes.pop("act_layer")
    changes |= _checked(other, _whitelist(base, _OTHER), "vit.model")
    # Without an explicit image size timm takes that of the preprocessing, when it is fixed.
    vit: ViTConfig = replace(base, **{"img_size": preprocess.size, **changes, "num_classes": num_classes})
    _check_whole(vit, preprocess)
    return vit, {}, [] if proven else _doubts(architecture, base, vit)


def _any_models(architecture: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` for an architecture that timm builds: sizes, switches and names of layers, all of them bounded.

    Whether timm has such an argument, and whether weights of such shapes are there, is seen when the model is built.
    """
    checked: dict[str, Any] = {}
    for key, value in args.items():
        if key in _ANY_MODEL:
            checked |= _checked({key: value}, _ANY_MODEL, "model_args")
        elif not _WORD.fullmatch(key) or _NEVER.fullmatch(key):
            raise CheckpointError(f"model_args.{safe(key, 40)} is not known as a setting of {architecture}")
        elif not _is_setting(value, 512 if _REPEATED.fullmatch(key) else 1 << 13):
            raise CheckpointError(
                f"model_args.{key} of {architecture} must be a size, a switch, a word or a list of them, not "
                f"{safe(repr(value), 60)}"
            )
        else:
            checked[key] = value
    return checked


def _is_setting(value: Any, most: int, *, nested: int = 2) -> bool:
    match value:
        case bool() | None:
            return True
        case int() | float():
            return -most <= value <= most
        case str():
            return bool(_WORD.fullmatch(value))
        case list():
            return nested > 0 and len(value) <= 64 and all(_is_setting(one, most, nested=nested - 1) for one in value)
    return False


def model_args_of(architecture: str, vit: ViTConfig) -> dict[str, Any]:
    """What timm must be told to build `vit` from `architecture`. The image size, channels and pooling always."""
    base = _base(architecture)
    args: dict[str, Any] = {"img_size": vit.img_size, "in_chans": vit.in_chans, "global_pool": vit.global_pool}
    if base.related or vit.related:
        args |= args_of(base, vit)
    else:
        fields = {name: "act" if name == "act_layer" else name for name in _whitelist(base, _ARGS)}
        changed = {name: getattr(vit, field) for name, field in fields.items()}
        args |= {name: value for name, value in changed.items() if value != getattr(base, fields[name])}
    return {name: _as_timm_has_it(name, value) for name, value in args.items()}


def _as_timm_has_it(name: str, value: Any) -> Any:
    """A pair as a list, or as one number where both are the same; of the image's size always both."""
    if not isinstance(value, tuple):
        return value
    return value[0] if value[0] == value[1] and name != "img_size" else list(value)


def other_fields_of(architecture: str, vit: ViTConfig) -> dict[str, Any]:
    """The fields of `vit` that differ from `architecture` and that timm cannot be told in JSON."""
    base = _base(architecture)
    other: dict[str, Any] = {}
    for name in _whitelist(base, _OTHER):
        value = getattr(vit, name)
        if value != getattr(base, name):
            other[name] = asdict(value) if isinstance(value, StemConfig) else value
    return other


def checked_facts(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What no weight's shape tells about a model (num_heads, act, norm_eps, img_size), checked.

    Raises CheckpointError for another name and for a value that cannot be meant, naming `where` it was said.
    """
    return _checked(values, _FACTS, where)


def checked_settings(architecture: str | None, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a recipe, `--set` or a run says of the model to build, by the names of ViTConfig or of timm's constructor.

    Classes and channels are the data's. Sizes come back as (height, width). None: an architecture of ours.
    Raises CheckpointError for another name and for a value that cannot be meant, naming `where` it was said.
    """
    base = ViTConfig() if architecture is None else ARCHITECTURES.get(architecture.partition(".")[0])
    return _checked(values, _whitelist(base, _SETTINGS) if base else _OTHER_SETTINGS, where)


def require_sound(vit: ViTConfig) -> None:
    """Raises CheckpointError for a ViT whose parts, each possible, do not go together."""
    if vit.embed_dim % vit.num_heads:
        raise CheckpointError(f"embed_dim {vit.embed_dim} cannot be split over {vit.num_heads} heads")
    if not 0 < vit.num_patches <= MAX_PATCHES:
        raise CheckpointError(
            f"img_size {vit.img_size} with patches of {vit.stride} pixels gives {vit.num_patches} patches"
        )
    if vit.global_pool == "token" and not vit.class_token:
        raise CheckpointError("global_pool 'token' needs class_token")
    if vit.rope and vit.head_dim % 4:
        raise CheckpointError(f"heads of width {vit.head_dim} cannot be turned by places: 4 does not divide it")
    if vit.global_pool == "map" and vit.embed_dim % vit.pool_heads:
        raise CheckpointError(f"embed_dim {vit.embed_dim} cannot be split over {vit.pool_heads} heads that pool")
    if vit.layout == "beit" and vit.global_pool == "map":
        raise CheckpointError("global_pool of a BEiT is token or avg")
    if vit.distilled and vit.global_pool != "token":
        raise CheckpointError("global_pool of a distilled DeiT is token: its two heads read one token each")


def _whitelist(base: ViTConfig, whitelist: Mapping[str, Check]) -> dict[str, Check]:
    """Those of `whitelist` that a model made from `base` can be told."""
    if base.related:
        allowed = settable(base) | {"norm_eps"}
        return {name: check for name, check in whitelist.items() if name in allowed}
    only_related = {"attn_pool_num_heads", "attn_pool_mlp_ratio"} | (_NOT_DISTILLED if base.distilled else set())
    return {name: check for name, check in whitelist.items() if name not in only_related}


def _base(architecture: str) -> ViTConfig:
    if architecture not in ARCHITECTURES:
        near = did_you_mean(architecture, ARCHITECTURES)
        raise CheckpointError(f"'{safe(architecture, 80)}' is not a plain-ViT architecture of timm.{near}")
    return ARCHITECTURES[architecture]


def _checked(args: Mapping[str, Any], whitelist: Mapping[str, Check], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in args.items():
        if key not in whitelist:
            raise CheckpointError(f"{where}.{safe(key, 40)} is not known.{did_you_mean(key, whitelist)}")
        try:
            checked[key] = whitelist[key](value)
        except ValueError as error:
            raise CheckpointError(f"{where}.{key} must be {error}, not {shown(value)}") from None
    return checked


def _check_whole(vit: ViTConfig, preprocess: Preprocess) -> None:
    if vit.img_size != preprocess.size:
        shown = "×".join(map(str, preprocess.size))
        raise CheckpointError(f"input_size is {shown}, but model_args.img_size {vit.img_size[0]}×{vit.img_size[1]}")
    if vit.in_chans != preprocess.in_chans:
        raise CheckpointError(f"input_size has {preprocess.in_chans} channels, model_args.in_chans is {vit.in_chans}")
    require_sound(vit)


def _doubts(architecture: str, base: ViTConfig, vit: ViTConfig) -> list[str]:
    """Settings that change the logits and no shape: nobody can check them without a self-test."""
    silent = ("num_heads", "act", "norm_eps") if vit.embed_dim == base.embed_dim else ("act", "norm_eps")
    return [
        f"{name} is {getattr(vit, name)}, {architecture} has {getattr(base, name)}; without a self-test in the "
        "checkpoint a mistake here would not be noticed"
        for name in silent
        if getattr(vit, name) != getattr(base, name)
    ]


# --- checks of one value: return it in ViTConfig's type, or ValueError("what it must be") ---


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _real(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not (math.isfinite(value) and low < value <= high):
            raise ValueError(f"a number above {low:g} and up to {high:g}")
        return float(value)

    return check


def _size(low: int, high: int) -> Check:
    side = _whole(low, high)

    def check(value: Any) -> Size:
        pair = value if isinstance(value, list | tuple) else [value, value]
        if len(pair) != 2:
            raise ValueError("a number of pixels or [height, width]")
        return side(pair[0]), side(pair[1])

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise ValueError("one of " + ", ".join(allowed))
        return value

    return check


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _widths(value: Any) -> list[int]:
    if isinstance(value, list | tuple) and len(value) == 4:
        return [_whole(1, 1 << 13)(width) for width in value]
    raise ValueError("four numbers")


def stem_config(value: Any) -> StemConfig:
    """`{layers: [2, 2], width: 64, block: "basic"}` → StemConfig; width and block may be left out."""
    if not isinstance(value, dict) or not {"layers"} <= value.keys() <= {"layers", "width", "block"}:
        raise ValueError("an object with layers, width and block")
    layers, width = value["layers"], value.get("width", StemConfig.width)
    if (
        not isinstance(layers, (list, tuple))
        or len(layers) > 4
        or not all(type(n) is int and 0 < n <= 64 for n in layers)
    ):
        raise ValueError("given up to four numbers of blocks as layers")
    if type(width) is not int or not 0 < width <= 1024 or width % 32:
        raise ValueError("given a width that is a multiple of 32")
    if (block := value.get("block", StemConfig.block)) not in ("bottleneck", "basic"):
        raise ValueError("given bottleneck or basic as block")
    return StemConfig(tuple(layers), width, block)


_ARGS: dict[str, Check] = {
    "img_size": _size(1, 1 << 14),
    "patch_size": _size(1, 1 << 12),
    "in_chans": _whole(1, 64),
    "embed_dim": _whole(1, 1 << 14),
    "depth": _whole(1, 256),
    "num_heads": _whole(1, 256),
    "mlp_ratio": _real(0, 64),
    "qkv_bias": _flag,
    "proj_bias": _flag,
    "qk_norm": _flag,
    "init_values": _or_none(_real(0, 1e3)),
    "class_token": _flag,
    "reg_tokens": _whole(0, 1024),
    "no_embed_class": _flag,
    "pos_embed": _one_of("learn", "none"),
    "pre_norm": _flag,
    "final_norm": _flag,
    "fc_norm": _or_none(_flag),
    "global_pool": _one_of("token", "avg", "map"),
    "pool_include_prefix": _flag,
    "act_layer": _one_of("gelu", "gelu_tanh", "quick_gelu"),
    "attn_pool_num_heads": _or_none(_whole(1, 256)),
    "attn_pool_mlp_ratio": _or_none(_real(0, 64)),
}

_OTHER: dict[str, Check] = {
    "norm_eps": _real(0, 1),
    "mlp": _one_of("mlp", "swiglu"),
    "head_hidden": _or_none(_whole(1, 1 << 14)),
    "head_act": _one_of("tanh", "gelu"),
    "stem": _or_none(stem_config),
}

_FACTS: dict[str, Check] = {
    "num_heads": _ARGS["num_heads"],
    "act": _ARGS["act_layer"],
    "norm_eps": _OTHER["norm_eps"],
    "img_size": _ARGS["img_size"],
}

_ANY_MODEL: dict[str, Check] = {
    "img_size": _size(1, 1 << 10),  # window masks grow with it, and are in no file
    "in_chans": _whole(1, 64),
    "global_pool": _one_of("token", "avg", "map", "max", "avgmax"),
    "channels": _widths,  # of a ResNet's four stages
}
# Arguments of timm.create_model that choose files, code or another result, and no sizes of a model
_NEVER = re.compile(r"pretrained.*|checkpoint_path|cache_dir|features_only|feature_cfg|out_indices|scriptable|"
                    r"exportable|jit|no_jit|.*_fn|.*kwargs.*|.*_filter|model_cfg|variant|device|dtype")  # fmt: skip
_WORD = re.compile(r"[a-z][a-z0-9_]{0,40}")
_REPEATED = re.compile(r".*(depth|layers|blocks|repeats|num_|tokens).*")

# Of a model to build: what its classes and channels are follows from the data.
_SETTINGS = {("act" if name == "act_layer" else name): check for name, check in (_ARGS | _OTHER).items()}
_OTHER_SETTINGS = dict(_ANY_MODEL)
for _settings in (_SETTINGS, _OTHER_SETTINGS):
    del _settings["in_chans"]

# A distilled DeiT's two heads read two tokens as they leave the encoder.
_NOT_DISTILLED = {"class_token", "reg_tokens", "fc_norm", "pool_include_prefix", "head_hidden", "head_act"}

# Training-time settings, and what timm must know to take images of any size: no effect on the logits of a good image.
_WITHOUT_EFFECT = {
    "num_classes",
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "weight_init",
    "fix_init",
    "dynamic_img_size",
    "dynamic_img_pad",
    "strict_img_size",
}

assert {f.name for f in fields(ViTConfig)} == {*_ARGS, *_OTHER, *SETTLED, "num_classes", "act"} - {"act_layer"}
