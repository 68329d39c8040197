"""What a user names on the command line → images, one after the other. Knows names and folders, opens no image.

A list of a million paths passes through in constant memory; a folder is listed one level at a time.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from vitcli.images.decode import MAX_FILE_BYTES

# What a file found in a folder must be called to be tried. A file named by the user is always tried.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
    *(".heic", ".heif", ".hif"),  # with the extra "heif"
    *(".tga", ".jxl"),  # cannot be read here, and the user should be told so
)
_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class ImageSource:
    """An image that was named: a file, or its bytes when it came through standard input."""

    name: str
    source: Path | bytes


def natural_key(name: str) -> tuple[object, ...]:
    """Sorts "img2" before "img10" and "a" before "B"; equal names only when they are the same."""
    # Digits compare as (length, text) without leading zeros: int() refuses numbers of thousands of digits.
    parts = _DIGITS.split(name.casefold())
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return tuple(part for pair in zip(parts[::2], [*numbers, ()], strict=True) for part in pair), name


def is_system_name(name: str) -> bool:
    """Hidden files and what operating systems leave in folders: .DS_Store, __MACOSX, Thumbs.db, …"""
    return name.startswith(".") or name.casefold() in _SYSTEM


def walk(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Files in `folder` and below that are called like images, in natural order.

    Links are followed, each folder is entered once. What is left out is counted in `skipped`, by reason.
    """
    skipped = Counter() if skipped is None else skipped
    entered: set[tuple[int, int]] = set()
    pending = [(folder, True)]
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            yield path
            continue
        try:
            identity = path.stat()
            if (identity.st_dev, identity.st_ino) in entered:
                skipped["folder already seen through another link"] += 1
                continue
            entered.add((identity.st_dev, identity.st_ino))
            with os.scandir(path) as entries:
                found = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError:
            skipped["folder that cannot be read"] += 1
            continue
        for name, is_folder in sorted(found, key=lambda entry: natural_key(entry[0]), reverse=True):
            if is_system_name(name):
                skipped["hidden or system file"] += 1
            elif is_folder or name.casefold().endswith(IMAGE_SUFFIXES):
                pending.append((path / name, is_folder))
            else:
                skipped["file not called like an image"] += 1


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def find_images(
    arguments: Iterable[str | Path], *, skipped: Counter[str] | None = None, stdin: BinaryIO | None = None
) -> Iterator[ImageSource]:
    """The images that files, folders, globs and "-" (the bytes of one image on `stdin`) name, in the order given.

    A path that exists is taken as it is, glob characters or not. A file that does not exist and a glob without a match
    are passed on, so that decoding reports them in their place. What is left out is counted in `skipped`, by reason.
    """
    for argument in arguments:
        path = Path(argument)
        if stdin is not None and str(argument) == "-":
            # One byte past the limit is enough for `decode` to refuse the rest of an endless stream.
            yield ImageSource("standard input", stdin.read(MAX_FILE_BYTES + 1))
        elif os.path.isdir(path):
            yield from (ImageSource(str(found), found) for found in walk(path, skipped))
        elif isinstance(argument, Path) or os.path.lexists(path) or not glob.has_magic(argument):
            yield ImageSource(str(path), path)
        else:
            matches = 0
            for found in _glob(argument, skipped):
                matches += 1
                yield ImageSource(str(found), found)
            if not matches:
                yield ImageSource(argument, path)


def _glob(pattern: str, skipped: Counter[str] | None) -> Iterator[Path]:
    if "**" not in Path(pattern).parts:
        for name in sorted(glob.glob(pattern), key=natural_key):
            if os.path.isdir(name):
                yield from walk(Path(name), skipped)
            else:
                yield Path(name)
        return
    # glob's own "**" follows links in circles.
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    for path in walk(base, skipped):
        if _matches(path.relative_to(base).parts, parts[fixed:]):
            yield path


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob, in which "**" stands for any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
