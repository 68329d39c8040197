"""Recipes: TOML files with [recipe] and [model]."""

import random
import tomllib
from pathlib import Path
from typing import Any

from tests.fuzz import sound
from tests.fuzz.damage import Pairs, damage_file, damaged_tree, dump_toml

COMMANDS = (
    "train --data data --recipe whole.toml --dry-run --json",
    "train --data data --recipe whole.toml --dry-run",
    "train --data data --recipe whole.toml --out out --workers 0 --score none --set steps=1",
    "finetune -m model --data data --recipe recipe.toml --tune all --dry-run --json",
    "finetune -m model --data data --recipe recipe.toml --tune all --out out --workers 0 --score none --set steps=1",
    "finetune -m model --data data --recipe recipe.toml --dry-run",
    "compare --data split --models vit-small --sizes 100% --seeds 1 --recipe study.toml --out study --dry-run --json",
)
MODEL = """
[model]
architecture = "vit_tiny_patch16_224"
img_size = [16, 16]
patch_size = [4, 4]
embed_dim = 24
depth = 2
num_heads = 3
init_values = 0.1
class_token = true
"""
HYBRID = """
[model]
architecture = "vit_tiny_r_s16_p8_224"
img_size = [16, 16]
patch_size = [1, 1]
embed_dim = 24
depth = 1
num_heads = 3
stem = { layers = [1], width = 32, block = "basic" }
"""


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    from vitcli.training.recipe import Recipe, as_dict

    small = {"epochs": 2.0, "batch_size": 8, "micro_batch": 8, "crop_padding": 2, "crop_scale": 1.0, "randaugment": ""}
    values = as_dict(Recipe()) | small
    kept = {name: value for name, value in values.items() if name in small or rng.random() < 0.7}
    shared = {name: value for name, value in kept.items() if name not in ("steps", "lrs", "seed", "epochs")}
    own = {name: value for name, value in kept.items() if name not in ("steps", "lrs")}
    (folder / "whole.toml").write_text(_text(own) + rng.choice((MODEL, HYBRID)))
    (folder / "recipe.toml").write_text(_text(own))
    (folder / "study.toml").write_text(_text(shared))
    sound.link(folder, place / "data", place / "split")
    (folder / "model").symlink_to(place / "run" / "best")


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    for name in ("whole.toml", "recipe.toml", "study.toml"):
        path = folder / name
        if rng.random() < 0.3:
            damage_file(path, rng, (MODEL + HYBRID).encode())
            if (tree := _read(path)) is None:
                continue
        else:
            tree = _pairs(tomllib.loads(path.read_text()))
            section = rng.choice([section for _, section in tree])  # as many in the short one as in the long one
            damaged_tree(rng.choice((tree, section)), rng)
        if name == "whole.toml":
            _stay_small(tree)
        path.write_bytes(dump_toml(tree).encode("utf-8", "surrogatepass"))


def _read(path: Path) -> Pairs | None:
    """What is still TOML after it was damaged."""
    try:
        tree = _pairs(tomllib.loads(path.read_text()))
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, Pairs) else None


def _stay_small(tree: Pairs) -> None:
    """Without its sizes a model is the architecture's own, 224 pixels: sound, and more work than a case may be."""
    sections = dict(tree)
    if "model" not in sections:
        tree.append(("model", _pairs(tomllib.loads(MODEL)["model"])))
    elif isinstance(model := sections["model"], Pairs):
        keys = {key for key, _ in model}
        model += [(key, value) for key, value in (("img_size", [16, 16]), ("depth", 1)) if key not in keys]


def _text(values: dict[str, Any]) -> str:
    return dump_toml(Pairs([("recipe", _pairs(values))]))


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs([(key, _pairs(inner)) for key, inner in value.items()])
    return [_pairs(inner) for inner in value] if isinstance(value, list) else value
