"""model.safetensors of a checkpoint."""

import json
import random
import shutil
import struct
from pathlib import Path

from tests.fuzz import sound
from tests.fuzz.damage import Pairs, damage_file, damaged_tree, dump_json

COMMANDS = (
    f"predict -m model {sound.IMAGE} --json",
    f"predict -m model {sound.IMAGE} --engine torch --json",
    f"predict -m model/model.safetensors {sound.IMAGE} --csv",
    "evaluate model --data data --json",
    "inspect model --weights --json",
    "inspect model --weights",
    "inspect model --filters --posemb --json",
    "resize-posemb model --size 32 -o larger",
    "finetune -m model --data data --tune head --dry-run --json",
)
VALUES = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 1e9)


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    shutil.copytree(place / "run" / "best", folder / "model")
    sound.link(folder, place / "data")


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    path = folder / "model" / "model.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", content)[0]
    kind = rng.randrange(4)
    if kind == 0:  # the header says something else
        tree = json.loads(content[8:end], object_pairs_hook=Pairs)
        header = dump_json(damaged_tree(tree, rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[end:])
    elif kind == 1:  # some weights are other numbers
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 10, 1000))):
            at = end + 4 * rng.randrange((len(content) - end) // 4)
            struct.pack_into("<f", changed, at, rng.choice(VALUES))
        path.write_bytes(changed)
    else:
        damage_file(path, rng, content[end:])
