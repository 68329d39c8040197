"""What a user names on the command line → images, one after the other. Knows names and folders, opens no image.

A list of a million paths passes through in constant memory; a folder is listed one level at a time.
"""

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from vitcli.errors import ArchiveError
from vitcli.files import MAX_FILE_BYTES, Place, Signature, Where
from vitcli.storage.named import expanded, is_address, split_address
from vitcli.storage.parquet import SUFFIX as PARQUET
from vitcli.storage.parquet import Row, rows
from vitcli.storage.remote import Remote, Root, entries, matching
from vitcli.storage.tar import SUFFIX as TAR
from vitcli.storage.tar import is_tar, member, members

# What a file found in a folder must be called to be tried. A file named by the user is always tried.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
    *(".heic", ".heif", ".hif"),  # with the extra "heif"
    *(".tga", ".jxl"),  # cannot be read here, and the user should be told so
)
_SYSTEM = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})
ARCHIVES = (TAR, PARQUET)  # what is looked into
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class ImageSource:
    """An image that was named: a file, or its bytes when it came through standard input."""

    name: str
    source: Where | bytes


def natural_key(name: str) -> tuple[object, ...]:
    """Sorts "img2" before "img10" and "a" before "B"; equal names only when they are the same."""
    # Digits compare as (length, text) without leading zeros: int() refuses numbers of thousands of digits.
    parts = _DIGITS.split(name.casefold())
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return tuple(part for pair in zip(parts[::2], [*numbers, ()], strict=True) for part in pair), name


def is_system_name(name: str) -> bool:
    """Hidden files and what operating systems leave in folders: .DS_Store, __MACOSX, Thumbs.db, …"""
    return name.startswith(".") or name.casefold() in _SYSTEM


def walk(
    folder: Root, skipped: Counter[str] | None = None, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> Iterator[Any]:
    """Files in `folder` and below that are called like images, or end in `suffixes`, in natural order.

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
            if isinstance(path, Path):
                identity = path.stat()
                if (identity.st_dev, identity.st_ino) in entered:
                    skipped["folder already seen through another link"] += 1
                    continue
                entered.add((identity.st_dev, identity.st_ino))
                with os.scandir(path) as listed:
                    found = [(entry.name, _is_folder(entry)) for entry in listed]
            else:
                found = entries(path)
        except OSError:
            skipped["folder that cannot be read"] += 1
            continue
        for name, is_folder in sorted(found, key=lambda entry: natural_key(entry[0]), reverse=True):
            if is_system_name(name):
                skipped["hidden or system file"] += 1
            elif is_folder or name.casefold().endswith(suffixes):
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

    Addresses are taken as paths are, and archives as folders (`photos.tar#cat/1.jpg` names one member). A path that
    exists is taken as it is, glob characters or not. A file that does not exist and a glob without a match are passed
    on, so that decoding reports them in their place. What is left out is counted in `skipped`, by reason.
    """
    for argument in arguments:
        if stdin is not None and str(argument) == "-":
            # One byte past the limit is enough for `decode` to refuse the rest of an endless stream.
            yield ImageSource("standard input", stdin.read(MAX_FILE_BYTES + 1))
            continue
        for one in _named(argument, skipped):
            if _holds_images(one):
                yield from _inside(one, skipped)
            else:
                yield ImageSource(str(one), one)


def _named(argument: str | Path, skipped: Counter[str] | None) -> Iterator[Root | Place]:
    """The files, folders, archives and members of archives that an argument means, not looked into."""
    if isinstance(argument, Path) or os.path.lexists(argument):
        yield Path(argument)
        return
    for text in expanded(argument):
        if is_address(text):
            yield from _behind(text)
        elif os.path.lexists(text):
            yield Path(text)
        elif inner := split_address(text):
            yield inside(Path(inner[0]), inner[1])
        elif glob.has_magic(text):
            found = None
            for found in _glob(text, skipped):
                yield found
            if found is None:
                yield Path(text)
        else:
            yield Path(text)


def where(name: str) -> Where:
    """The one file that a name means, as `find_images` gives it."""
    if os.path.lexists(name) or not (is_address(name) or split_address(name)):
        return Path(name)
    archive, inner = split_address(name) or (name, "")
    found = Remote(archive) if is_address(archive) else Path(archive)
    return inside(found, inner) if inner else found


def inside(archive: Root, name: str) -> Place:
    """What an archive calls so: a member of a tar, a row of a Parquet file by its number."""
    if is_tar(archive.name):
        return member(archive, name)
    if name.isascii() and name.isdigit() and len(name) < 19:
        return Row(archive, int(name))
    return Broken(f"{archive}#{name}", "rows have numbers, from 0")


def _behind(address: str) -> Iterator[Root | Place]:
    """What an address means; one with a query is taken as it is."""
    if inner := split_address(address):
        yield inside(Remote(inner[0]), inner[1])
    elif "?" not in address and glob.has_magic(address):
        yield from sorted(matching(address), key=lambda one: natural_key(one.address)) or [Remote(address)]
    else:
        yield Remote(address)


def _holds_images(one: Root | Place) -> bool:
    """Whether images are in there, and not one is there."""
    if isinstance(one, Path):
        return os.path.isdir(one) or one.name.casefold().endswith(ARCHIVES)
    if not isinstance(one, Remote) or one.name.casefold().endswith(IMAGE_SUFFIXES):
        return False
    return one.name.casefold().endswith(ARCHIVES) or one.is_dir()


def _inside(one: Any, skipped: Counter[str] | None) -> Iterator[ImageSource]:
    """The images in a folder, or in the archives in there if there are none; or in an archive.

    Of one that breaks off those before that, and what is wrong with it.
    """
    if not one.name.casefold().endswith(ARCHIVES) or (isinstance(one, Path) and os.path.isdir(one)):
        found = None
        for found in walk(one, skipped):
            yield ImageSource(str(found), found)
        if found is None:
            for archive in walk(one, suffixes=ARCHIVES):
                yield from _inside(archive, skipped)
        return
    try:
        if not is_tar(one.name):
            yield from (ImageSource(str(row), row) for row in rows(one))
            return
        for file in members(one):
            if any(map(is_system_name, file.name.split("/"))):
                _count(skipped, "hidden or system file")
            elif file.name.casefold().endswith(IMAGE_SUFFIXES):
                yield ImageSource(str(file), file)
            else:
                _count(skipped, "file not called like an image")
    except ArchiveError as error:
        yield ImageSource(str(one), Broken(str(one), error.why))


def _count(skipped: Counter[str] | None, reason: str) -> None:
    if skipped is not None:
        skipped[reason] += 1


@dataclass(frozen=True)
class Broken:
    """What cannot be read, in the place of the images that may be in it."""

    name: str
    why: str

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        raise OSError(errno.EIO, self.why)

    def signature(self) -> Signature:
        raise OSError(errno.EIO, self.why)


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
