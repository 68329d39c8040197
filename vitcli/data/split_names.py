"""Names of folders, and cells of a manifest's split column, that say which split they mean.

A name is read as words: "Train_Images" is "train" and "images", "valSet2017" is "val" and "set". It means a split when
one of its words does and the others say nothing: "set", "images", a number. "steam_train" means none by itself, but
beside "steam_test" it does.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from vitcli.data.samples import Split

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
