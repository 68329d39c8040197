"""Tiny ImageNet's download as class folders: `train/` and `test/` (its `val`, the only other images with labels).

    python benchmarks/tiny_imagenet.py tiny-imagenet-200/ photos/

Folders are named after the first of a class's names in words.txt. Training images whose bytes stand under two classes
are left out, both copies. Links instead of copies where the file system has them.
"""

import argparse
import hashlib
import os
import shutil
from collections import defaultdict
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target
    names = class_names(source)
    train = {image: wnid for wnid in names for image in (source / "train" / wnid / "images").glob("*.JPEG")}
    disputed = two_labels(train)
    for image, wnid in train.items():
        if image not in disputed:
            place(image, target / "train" / names[wnid])
    for line in (source / "val" / "val_annotations.txt").read_text("utf-8").splitlines():
        file, wnid, *_ = line.split("\t")
        place(source / "val" / "images" / file, target / "test" / names[wnid])
    print(
        f"{len(train) - len(disputed)} training images, {len(disputed)} left out: their bytes stand under two classes"
    )


def class_names(source: Path) -> dict[str, str]:
    """WNID → the first of its names."""
    words = dict(line.split("\t", 1) for line in (source / "words.txt").read_text("utf-8").splitlines())
    wnids = (source / "wnids.txt").read_text("utf-8").split()
    names = {wnid: words[wnid].split(",")[0] for wnid in wnids}
    assert len(set(names.values())) == len(names)
    return names


def two_labels(images: dict[Path, str]) -> set[Path]:
    """The images of which a copy, byte for byte, has another class."""
    copies = defaultdict(list)
    for image in images:
        copies[hashlib.sha256(image.read_bytes()).digest()].append(image)
    return {image for same in copies.values() if len({images[i] for i in same}) > 1 for image in same}


def place(image: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(image, folder / image.name)
    except OSError:
        shutil.copyfile(image, folder / image.name)


if __name__ == "__main__":
    main()
