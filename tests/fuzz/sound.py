"""Small sound files to damage: a labelled data set, a run trained on it (and so a checkpoint with a self-test)."""

import os
import random
from pathlib import Path

from PIL import Image

from tests.fuzz import engine

CLASSES = ("blue", "green", "red")
SIDE = 16
SIZES = "--set img_size=[16,16] --set patch_size=[4,4] --set embed_dim=24 --set depth=2 --set num_heads=3"
IMAGE = "data/red/0.png"


def vit(line: str) -> None:
    """`vit LINE` in this process, as `engine.vit` does it. Raises RuntimeError unless it succeeds."""
    try:
        engine.vit(line.split())
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"vit {line} ended with {end.code}") from None


def make(place: Path) -> None:
    """`data`, 36 pictures in three classes; `split`, the same as train and test; `run`, two epochs on the first."""
    os.chdir(place)
    rng = random.Random(0)
    for index, name in enumerate(CLASSES):
        for number in range(12):
            pixels = bytearray(rng.randbytes(SIDE * SIDE * 3))
            pixels[2 - index :: 3] = b"\xf0" * (SIDE * SIDE)
            image = Image.frombytes("RGB", (SIDE, SIDE), bytes(pixels))
            for folder in (Path("data", name), Path("split", "test" if number > 9 else "train", name)):
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{number}.png")
    vit(f"train --data data --out run --epochs 2 --batch-size 8 --workers 0 {SIZES} --set randaugment=")


def link(folder: Path, *sound: Path) -> None:
    """Links to what is not damaged, and what no command writes to."""
    for path in sound:
        (folder / path.name).symlink_to(path)
