"""config.json of a checkpoint."""

import random
from pathlib import Path

from tests.fuzz import sound, weights
from tests.fuzz.damage import damage_file, damaged_json

COMMANDS = (
    f"predict -m model {sound.IMAGE} --json",
    f"predict -m model {sound.IMAGE} --csv",
    f"predict -m model {sound.IMAGE}",
    f"predict -m model {sound.IMAGE} --engine torch --jsonl",
    "evaluate model --data data --json",
    "inspect model --json",
    "inspect model",
    "inspect model --attention-distance --json --count 4",
    "resize-posemb model --size 32 -o larger",
    "export model -o model.onnx --json",
    "finetune -m model --data data --tune all --dry-run --json",
)
lay = weights.lay


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    path = folder / "model" / "config.json"
    if rng.random() < 0.75:
        path.write_bytes(damaged_json(path.read_text("utf-8"), rng))
    else:
        damage_file(path, rng, path.read_bytes())
