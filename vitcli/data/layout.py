"""Which folder of a data set is which split, and whether that can be told at all. Knows names only, opens no image.

What can be read in two ways is never guessed: `AmbiguousData` says both, and `--folders` is the answer.

A name is read as words: "Train_Images" is "train" and "images", "valSet2017" is "val" and "set". It means a split when
one of its words does and the others say nothing: "set", "images", a number. "steam_train" means none by itself, but
beside "steam_test" it does. The cells of a manifest's split column are read in the same way.
"""

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePath
from typing import cast, get_args

from vitcli.data.samples import Split
from vitcli.errors import AmbiguousData, DataError, UsageError
from vitcli.images.find import IMAGE_SUFFIXES, is_system_name, natural_key, walk
from vitcli.storage.remote import Root, entries
from vitcli.text import safe, some

_SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "eval", "evaluation", "dev", "devel"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
# Words that say nothing of what is inside, in the singular.
_EMPTY = (
    *("set", "subset", "data", "dataset", "split", "folder", "dir", "file", "sample", "example", "v", "x", "px"),
    *("image", "img", "picture", "pic", "photo", "png", "jpg", "jpeg"),
)
_UNLABELLED = ("unlabelled", "unlabeled", "unsup", "unsupervised", "pred", "prediction", "submission")
_SAYS_NOTHING = re.compile(rf"(?:{'|'.join(_EMPTY)})s?")
_GLUED = re.compile(  # "trainset", "imgval"
    rf"(?:{_SAYS_NOTHING.pattern})?(?P<split>{'|'.join(_SPLITS)})(?:{_SAYS_NOTHING.pattern})?"
)


def split_of(name: str) -> Split | None:
    """The split that `name` means by itself."""
    split, rest = _read(name)
    return None if rest else split


def splits_among(names: Iterable[str]) -> dict[str, Split]:
    """Those of `names` that mean a split, by themselves or together, as "seg_train" and "seg_test" do."""
    read = {name: _read(name) for name in names}
    meant = {rest: {split for split, other in read.values() if split and other == rest} for _, rest in read.values()}
    return {name: split for name, (split, rest) in read.items() if split and (not rest or len(meant[rest]) > 1)}


def is_wrapper(name: str) -> bool:
    """Whether `name` says nothing of what is inside: "images", "data"."""
    words = _words(name)
    return bool(words) and all(map(_SAYS_NOTHING.fullmatch, words))


def is_unlabelled(name: str) -> bool:
    """Whether `name` says that what is inside has no labels."""
    return any(word.removesuffix("s") in _UNLABELLED for word in _words(name))


def _read(name: str) -> tuple[Split | None, tuple[str, ...]]:
    """The one split among the words of `name`, and the other words that say something."""
    splits, rest = set[Split](), []
    for word in _words(name):
        if found := _GLUED.fullmatch(word):
            splits.add(_SPLITS[found["split"]])
        elif not _SAYS_NOTHING.fullmatch(word):
            rest.append(word)
    if len(splits) == 1:
        return splits.pop(), tuple(rest)
    return None, tuple(_words(name))


def _words(name: str) -> list[str]:
    """Runs of letters in lower case, "hold-out" as one."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    words = " ".join(re.findall(r"[^\W\d_]+", name.casefold()))
    return re.sub(r"\b(hold|held) out\b", r"\1out", words).split()


SHOWN = 20  # of a long list of culprits
CLASSES = "classes"  # what `--folders` says where no folder is a split
WRAPPERS = 3  # folders around the data set, one in the other, as archives leave them


@dataclass(frozen=True)
class Layout:
    """Which folder is which split; the folders inside it are the classes."""

    splits: Mapping[Split, Root]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # what holds images and is in no split
    plain: bool = False  # no folder is called like a split, and nobody said that none is one


def find_layout(root: Root, asked: str | None) -> Layout:
    """The layout of `root`, or the one that is `asked` for, as `--folders` writes it. Raises DataError, UsageError."""
    if asked == CLASSES:
        return Layout({"train": root})
    if asked is not None:
        return _as_asked(root, asked)
    inner = _unwrapped(root)
    folders, images = listing(inner)
    among = splits_among(folders)
    opened = {name: _unwrapped(inner / name, deep=True) for name in among}
    holding = [name for name in among if listing(opened[name])[0]]
    if not holding:
        if among and all(name in among or is_unlabelled(name) for name in folders):
            raise DataError(f"{safe(inner)}: {quoted(folders)} must hold one folder per class, with its images inside")
        odd = [name for name, split in among.items() if split != "train"]  # a train is a thing, too
        note = (
            f"read as a class: {quoted(odd)}; if it is a split, give it the folders of the classes, else move it away"
        )
        return Layout({"train": inner}, (note,) if odd else (), plain=True)
    _require_one_reading(inner, folders, among, holding)
    others = [name for name in folders if name not in holding]
    notes = [f"left out, since it holds no class folders of a split: {quoted(others)}"] if others else []
    if images:
        notes.append(f"left out, since it lies beside the splits: {quoted(images)}")
    left_out = [name for name in others if holds_images(inner / name)] + images
    splits = {among[name]: opened[name] for name in holding}
    _require_apart(splits)
    return Layout(splits, tuple(notes), tuple(left_out))


def require_no_splits_inside(where: Root, by_class: Mapping[str, Sequence[str]]) -> None:
    """Raises AmbiguousData where folders inside the classes say that these may be something else.

    `by_class` has the images of each folder of `where`, as paths that begin inside that folder.
    """
    inside = {name: {path.partition("/")[0] for path in paths if "/" in path} for name, paths in by_class.items()}
    for name, folders in inside.items():
        among = splits_among(folders)
        if among and (len(among) == len(folders) or len(set(among.values())) > 1):
            alone = f"is it a class, or is the data set {safe(where / name)}"
            raise AmbiguousData(
                f"{safe(where)}: the folder '{safe(name, 60)}' holds others that are called like splits, "
                f"{quoted(sorted(among))}; {'are splits inside classes meant' if len(inside) > 1 else alone}?",
                f"let each split hold the folders of the classes, or say --folders {CLASSES} to take all as one split",
            )
    filled = [name for name, paths in by_class.items() if paths]
    if len(filled) < 2 or any("/" not in path for name in filled for path in by_class[name]):
        return
    common = set.intersection(*(inside[name] for name in filled))
    if len(common) > 1:
        example = shlex.quote(f"train={filled[0]},test={filled[1]}")
        raise AmbiguousData(
            f"{safe(where)}: {quoted(filled)} hold the same folders, {quoted(sorted(common))}: "
            "splits by names that are not known, or classes with folders inside?",
            f"say --folders {safe(example)} or the like, or --folders {CLASSES}",
        )


def listing(folder: Root, skipped: Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """(folders, images) directly in `folder`, by name; the rest is counted in `skipped`. Raises DataError."""
    skipped = Counter() if skipped is None else skipped
    folders: list[str] = []
    images: list[str] = []
    try:
        found = sorted(entries(folder), key=lambda entry: natural_key(entry[0]))
    except OSError as error:
        raise DataError(f"{safe(folder)} cannot be listed: {error.strerror}") from error
    for name, is_folder in found:
        if is_system_name(name):
            skipped["hidden or system file"] += 1
        elif is_folder:
            folders.append(name)
        elif name.casefold().endswith(IMAGE_SUFFIXES):
            images.append(name)
        elif isinstance(folder, Path) and not os.path.exists(folder / name) and not PurePath(name).suffix:
            # It may have been a class or a split.
            raise DataError(f"{safe(folder / name)} is a link that leads nowhere: mend or remove it")
        else:
            skipped["file not called like an image"] += 1
    return folders, images


def holds_images(folder: Root) -> bool:
    """Whether an image lies in `folder` or below."""
    return next(walk(folder), None) is not None


def quoted(names: Sequence[str]) -> str:
    """The first of `names`, in quotes, as messages list culprits."""
    return some(names, SHOWN, quote="'")


def _require_one_reading(where: Root, folders: Iterable[str], among: Mapping[str, Split], holding: list[str]) -> None:
    """Raises AmbiguousData where two folders are one split, and where one may be a class beside the splits."""
    first: dict[Split, str] = {}
    for name in holding:
        if (known := first.setdefault(among[name], name)) != name:
            raise AmbiguousData(
                f"{safe(where)} has two folders for one split: {quoted([known, name])}",
                "say what each of them is with --folders train=A,val=B,test=C",
            )
    strangers = [
        name for name in folders if name not in among and not is_unlabelled(name) and holds_images(where / name)
    ]
    if strangers:
        splits = shlex.quote(",".join(f"{split}={name}" for split, name in first.items()))
        raise AmbiguousData(
            f"{safe(where)} holds splits by their names, {quoted(holding)}, and other images in {quoted(strangers)}",
            f"say --folders {CLASSES} if every folder is a class; if not, name the splits, as --folders {safe(splits)} "
            "does, and the others are left out",
        )


def _require_apart(splits: Mapping[Split, Root]) -> None:
    """Raises DataError where one split lies in another, through links too: its images would be scored and learnt."""
    real = {split: folder.resolve() for split, folder in splits.items()}
    for one, other in permutations(real, 2):
        if real[one].is_relative_to(real[other]):  # type: ignore[arg-type]
            raise DataError(f"{safe(splits[one])} lies in {safe(splits[other])}, so {one} would be part of {other}")


def _unwrapped(folder: Root, *, deep: bool = False) -> Root:
    """`folder`, or the one folder in it that has images, where its name says nothing ("images") or repeats `folder`'s.

    That one must hold folders itself; with `deep` a repeated name is enough.
    """
    for _ in range(WRAPPERS):
        folders, images = listing(folder)
        said = [name for name in folders if is_wrapper(name) or name.casefold() == folder.name.casefold()]
        if images or not said or [name for name in folders if holds_images(folder / name)] != said:
            break
        again = said[0].casefold() == folder.name.casefold()
        if not listing(folder / said[0])[0] and not (deep and again):
            break
        folder /= said[0]
    return folder


def _as_asked(root: Root, asked: str) -> Layout:
    splits: dict[Split, Root] = {}
    for part in re.split(r",(?=(?:train|val|test)=)", asked):
        split, equals, name = part.partition("=")
        if not equals or split not in get_args(Split) or not name.strip("/"):
            raise UsageError(
                f"--folders {safe(asked)}: write {CLASSES} where every folder is a class, or train=A,val=B,test=C "
                "with the folders that are splits (--split chooses the one to score)"
            )
        if split in splits:
            raise UsageError(f"--folders {safe(asked)}: {split} is named twice")
        folder = root / name
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not folder.is_dir():
            raise UsageError(f"--folders {safe(part)}: there is no folder {safe(name)} in {safe(root)}")
        splits[cast(Split, split)] = folder
    _require_apart(splits)
    folders, images = listing(root)
    used = {folder.relative_to(root).parts[:1] for folder in splits.values()}  # type: ignore[arg-type]
    others = [name for name in folders if (name,) not in used and () not in used and holds_images(root / name)] + images
    notes = (f"left out, as --folders says: {quoted(others)}",) if others else ()
    return Layout(splits, notes, ())
