"""Run folders: run.json, metrics.jsonl, LATEST.json, the states, the features of a head, and a study's own files."""

import os
import random
import shutil
from pathlib import Path

from tests.fuzz import sound
from tests.fuzz.damage import damage_file, damaged_json

SHORT = "--epochs 1 --batch-size 8 --workers 0 --score none"
KINDS = {
    "scratch": (
        "train --resume scratch --workers 0 --score none",
        "train --resume scratch --workers 0 --epochs 3 --json",
        "train --resume scratch --dry-run --json",
        f"predict -m scratch {sound.IMAGE} --json",
        "inspect scratch --json",
    ),
    "tuned": (
        "finetune --resume tuned --workers 0",
        "finetune --resume tuned --workers 0 --epochs 2 --score none --json",
        "finetune --resume tuned --dry-run",
    ),
    "head": ("finetune --resume head --workers 0 --json", "finetune --resume head --dry-run"),
    "study": (
        "compare --resume study --workers 0 --json",
        "compare --resume study --dry-run",
        "compare --resume study --csv",
    ),
}  # fmt: skip
COMMANDS = tuple(command for commands in KINDS.values() for command in commands)


def prepare(place: Path) -> None:
    os.chdir(place)
    shutil.copytree("run", "scratch")
    sound.vit(f"finetune -m run/best --data data --tune all --out tuned {SHORT}")
    sound.vit("finetune -m run/best --data data --tune head --out head --workers 0 --score none")
    sound.vit(
        "compare --data split --models vit-small --sizes 50%,100% --seeds 1 --epochs 1 --set batch_size=8 --workers 0 "
        "--out study"
    )


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    for kind in KINDS:
        shutil.copytree(place / kind, folder / kind)
    sound.link(folder, place / "data", place / "split")


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    for kind in KINDS:
        if kind == "head" and rng.random() < 0.5:  # as if killed after the features
            shutil.rmtree(folder / kind / "best")
        files = sorted(path for path in (folder / kind).rglob("*") if path.is_file() and path.stat().st_size)
        own = [path for path in files if path.parent.name not in ("best", "last") and path.suffix != ".html"]
        path = rng.choice(own)
        if path.suffix == ".json" and rng.random() < 0.75:
            path.write_bytes(damaged_json(path.read_text("utf-8"), rng))
        elif path.suffix == ".jsonl" and rng.random() < 0.6:
            lines = path.read_text("utf-8").splitlines()
            i = rng.randrange(len(lines))
            lines[i] = damaged_json(lines[i], rng).decode("utf-8", "surrogateescape")
            path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        elif rng.random() < 0.1:
            path.unlink()
        else:
            damage_file(path, rng, rng.choice(files).read_bytes())
