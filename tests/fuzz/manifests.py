"""Manifests as CSV, TSV and JSON lines."""

import json
import os
import random
from pathlib import Path

from tests.fuzz import sound
from tests.fuzz.damage import DEEP, TEXTS, Pairs, damage_file, damaged_tree, dump_json

COMMANDS = (
    "check {} --json --no-near",
    "check {} --no-near",
    "evaluate model --data {} --json",
    "train --data {} --dry-run --json " + sound.SIZES,
    "finetune -m model --data {} --tune head --dry-run",
)
KINDS = ("list.csv", "list.tsv", "list.jsonl")
CELLS = (
    *TEXTS, '"', '"a\nb"', "'", ",", "\t", ";", "train", "test", "validation", "red", "0", "00", "data", "/dev/tty",
    "data/red/0.png", "data/red/../red/1.png", "https://a.b/c.png", "list.csv", "pipe", "x" * 200_000,
)  # fmt: skip


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    rows = [
        (f"data/{label}/{n}.png", label, ("train", "val", "test")[n % 3]) for label in sound.CLASSES for n in range(9)
    ]
    for kind, mark in zip(KINDS, ",\t", strict=False):
        (folder / kind).write_text("".join(f"{mark.join(row)}\n" for row in (("file_name", "label", "split"), *rows)))
    lines = [json.dumps(dict(zip(("file_name", "label", "split"), row, strict=True))) for row in rows]
    (folder / KINDS[2]).write_text("\n".join(lines))
    sound.link(folder, place / "data")
    (folder / "model").symlink_to(place / "run" / "best")
    os.mkfifo(folder / "pipe")


def fill(command: str, rng: random.Random) -> str:
    return command.format(rng.choice(KINDS))


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    for kind in KINDS:
        path = folder / kind
        if rng.random() < 0.3:
            damage_file(path, rng, (folder / rng.choice(KINDS)).read_bytes())
            continue
        lines = path.read_text("utf-8", "surrogateescape").split("\n")
        for _ in range(rng.choice((1, 1, 2, 5))):
            _damage_line(lines, rng, kind)
        path.write_bytes(rng.choice(("\n", "\n", "\r\n", "\r", "\n\n")).join(lines).encode("utf-8", "surrogatepass"))
        if rng.random() < 0.05:
            path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-8-sig"))))


def _damage_line(lines: list[str], rng: random.Random, kind: str) -> None:
    i = rng.choice((0, rng.randrange(len(lines))))
    change = rng.randrange(6)
    if change == 0:
        del lines[i : i + rng.choice((1, 5))]
        lines[:] = lines or [""]
    elif change == 1:
        lines.insert(i, rng.choice((lines[i], rng.choice(CELLS), rng.choice(DEEP))))
    elif kind == "list.jsonl":
        try:
            tree = json.loads(lines[i], object_pairs_hook=Pairs)
        except (ValueError, RecursionError):
            return
        lines[i] = dump_json(damaged_tree(tree, rng))
    else:
        mark = "," if kind == "list.csv" else "\t"
        cells = lines[i].split(mark)
        cells[rng.randrange(len(cells))] = rng.choice(CELLS)
        times = rng.choice((1, 1, 1, 1, 500))
        lines[i] = mark.join(cells * (times if len(lines[i]) < 10_000 else 1))
