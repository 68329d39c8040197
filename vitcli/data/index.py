"""What a tar archive holds, read once from its headers and then kept: images, and the labels that lie beside them.

In WebDataset's layout an image and its label are two members of one name: `0001.jpg` with `0001.cls` (a number or a
name), `0001.txt` (a name) or `0001.json` (`label`, or a list `labels`, and perhaps `group`), of which JSON counts first
and text last, since other programs keep captions there. An index is kept in the user's cache, under the size and the
times of its archive; `vit pack` writes one beside each archive, which counts unless it is older.

Legend: N images.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcli.data.members import Members, Numbers, Texts
from vitcli.errors import DataError
from vitcli.files import Signature, Where, key_of, open_file, signature, write_file
from vitcli.images.find import IMAGE_SUFFIXES, is_system_name
from vitcli.privacy import our_cache
from vitcli.storage.remote import Remote, Root, entries
from vitcli.storage.tar import Member, members
from vitcli.text import safe

BESIDE = ".index"  # behind the name of an archive
LAYOUT = "1"
SHOWN = 20  # faults that are told
_MOST = {".cls": 1 << 10, ".txt": 1 << 12, ".json": 1 << 20}  # bytes of a label's member
_MOST_INDEX = 1 << 31

Labels = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Index:
    """The images of one archive."""

    names: Texts  # (N,)
    starts: Numbers  # of their bytes in the archive, (N,)
    sizes: Numbers  # (N,)
    labels: tuple[Labels, ...]  # those that differ
    codes: npt.NDArray[np.int32]  # which of them an image has, (N,)
    groups: tuple[str, ...]
    in_group: npt.NDArray[np.int32]  # (N,)
    several: bool = False  # whether an image may have several labels
    contents: npt.NDArray[np.uint8] | None = None  # a hash of each image's bytes, (N, 16)
    faults: tuple[str, ...] = ()  # the first of them
    faulty: int = 0  # how many there are
    unlabelled: int = 0  # images that are there without a label, on purpose

    def places(self, archive: Root) -> Members:
        """Where they lie in the archive."""
        zeros = np.zeros(len(self.codes), np.int32)
        return Members((archive,), zeros, self.starts, self.sizes, self.names, self.contents)


def index_of(archive: Root) -> Index:
    """The index of a tar archive: the one beside it, the one in the cache, or a new one. Raises DataError."""
    known = signature(archive)
    if known is None:
        raise DataError(f"{safe(archive)} does not exist or cannot be read")
    cache = _in_cache(archive)
    for place, counts in ((beside(archive), _not_older(archive, known)), (cache, known == _kept_for(cache))):
        if counts and (found := _read(place, known.size)):
            return found
    made = _made(archive)
    with suppress(OSError):  # a cache that cannot be written is none
        cache.parent.mkdir(parents=True, exist_ok=True)
        write(cache, made, known)
    return made


def beside(archive: Root) -> Root:
    """Where `vit pack` keeps the index of an archive."""
    return archive.with_name(archive.name + BESIDE)


def write(path: Path, index: Index, of: Signature, **more: str) -> None:
    """Write an index to a file; `of` is the archive's signature. Raises OSError."""
    from safetensors.numpy import save

    arrays: dict[str, Any] = {
        "letters": np.frombuffer(index.names.letters, np.uint8), "ends": index.names.ends,
        "starts": index.starts, "sizes": index.sizes, "codes": index.codes, "in_group": index.in_group,
    }  # fmt: skip
    if index.contents is not None:
        arrays["contents"] = index.contents
    about = {
        "layout": LAYOUT, "of": json.dumps(of), "labels": json.dumps(index.labels), "groups": json.dumps(index.groups),
        "several": json.dumps(index.several), "faults": json.dumps([index.faulty, *index.faults]), **more,
    }  # fmt: skip
    write_file(path, [save(arrays, {**about, "sum": _sum(arrays, about)})])


def _sum(arrays: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """By which a damaged index is known."""
    digest = hashlib.sha256(json.dumps(sorted((key, value) for key, value in about.items() if key != "sum")).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def said_in(path: Where) -> dict[str, str]:
    """What an index says beside its arrays; nothing where there is none that can be read."""
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(min(length, 1 << 26)))["__metadata__"]
            return about if isinstance(about, dict) else {}
    except (OSError, ValueError, KeyError, RecursionError):
        return {}


def _in_cache(archive: Root) -> Path:
    digest = hashlib.sha256(key_of(archive).encode("utf-8", "surrogateescape")).hexdigest()
    return our_cache() / "indexes" / f"{digest[:32]}.safetensors"


def _kept_for(path: Path) -> Signature | None:
    try:
        return Signature(*json.loads(said_in(path)["of"]))
    except (KeyError, ValueError, TypeError):
        return None


def _not_older(archive: Root, known: Signature) -> bool:
    """Whether there is an index beside an archive that was written after it."""
    if isinstance(archive, Remote) and _lists_without(archive):
        return False
    found = signature(beside(archive))
    return found is not None and found.mtime >= known.mtime


def _lists_without(archive: Remote) -> bool:
    """Whether a store lists an archive, and no index beside it: one request for all archives, and not one each."""
    try:
        names = dict(entries(archive.parent))
    except OSError:  # not all of them list
        return False
    return archive.name in names and beside(archive).name not in names


def _read(path: Where, size: int) -> Index | None:
    """The index in a file, of an archive of `size` bytes; None for one that makes no sense."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    about = said_in(path)
    try:
        with open_file(path) as file:
            arrays = load(file.read(_MOST_INDEX))
        if about["sum"] != _sum(arrays, about):
            return None
        labels = tuple(tuple(map(_text_of, one)) for one in json.loads(about["labels"]))
        groups = tuple(map(_text_of, json.loads(about["groups"])))
        faulty, *faults = json.loads(about["faults"])
        found = Index(
            Texts(arrays["letters"].tobytes(), arrays["ends"]), arrays["starts"], arrays["sizes"], labels,
            arrays["codes"], groups, arrays["in_group"], json.loads(about["several"]) is True, arrays.get("contents"),
            tuple(map(_text_of, faults)), int(faulty),
        )  # fmt: skip
        whole = about["layout"] == LAYOUT and Signature(*json.loads(about["of"])).size == size
        return found if whole and _makes_sense(found, size) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return None


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _makes_sense(found: Index, size: int) -> bool:
    """Whether no number of an index leads outside of what it is of."""
    n, ends = len(found.starts), found.names.ends
    kinds = {"ends": ends, "starts": found.starts, "sizes": found.sizes}
    if any(one.dtype != np.int64 or one.shape != (n,) for one in kinds.values()):
        return False
    if any(one.dtype != np.int32 or one.shape != (n,) for one in (found.codes, found.in_group)):
        return False
    if found.contents is not None and (found.contents.dtype != np.uint8 or found.contents.shape != (n, 16)):
        return False
    steps = np.diff(ends, prepend=0)
    inside = (found.starts >= 0) & (found.sizes >= 0) & (found.sizes <= size) & (found.starts <= size - found.sizes)
    coded = [(found.codes, len(found.labels)), (found.in_group, len(found.groups))]
    return bool(
        (steps >= 0).all()
        and (not n or ends[-1] == len(found.names.letters))
        and inside.all()
        and all(((codes >= 0) & (codes < count)).all() for codes, count in coded)
    )


# ---- from the headers


@dataclass
class _Codes:
    """Things that many images share, by number."""

    of: dict[Any, int] = field(default_factory=dict)

    def __call__(self, thing: Any) -> int:
        return self.of.setdefault(thing, len(self.of))


@dataclass
class _Beside:
    """What lies beside images, by its name without the ending."""

    labels: dict[str, dict[str, tuple[Labels, str, bool]]] = field(
        default_factory=lambda: {kind: {} for kind in (".json", ".cls", ".txt")}
    )  # labels, group, several
    faults: list[str] = field(default_factory=list)

    def see(self, kind: str, member: Member) -> None:
        stem = member.name[: -len(kind)]
        try:
            if stem in self.labels[kind]:
                raise ValueError("it is there twice")
            if found := _said(kind, _bytes(member, _MOST[kind])):
                self.labels[kind][stem] = found
        except (OSError, ValueError, RecursionError) as error:
            self.faults.append(f"{safe(member.name)}: {safe(getattr(error, 'strerror', None) or error)}")

    def keys(self, name: str) -> tuple[str, str]:
        """By which an image's label is found: its name without the ending, and without all that follows a dot."""
        path = PurePosixPath(name)
        return name[: -len(path.suffix)], name[: len(name) - len(path.name)] + path.name.partition(".")[0]


def _made(archive: Root) -> Index:
    """Reads all headers, and the members that are labels. Raises DataError."""
    images: dict[str, Member] = {}
    there = _Beside()
    for member in members(archive):
        name = PurePosixPath(member.name)
        if any(map(is_system_name, name.parts)):
            continue
        if (kind := name.suffix.casefold()) in _MOST:
            there.see(kind, member) if not member.fault else there.faults.append(f"{safe(name)}: {member.fault}")
        elif name.suffix.casefold() in IMAGE_SUFFIXES:
            if member.fault or member.name in images:
                there.faults.append(f"{safe(name)}: {member.fault or 'it is there twice'}")
            images[member.name] = member
    return _index(images, there)


def _index(images: Mapping[str, Member], there: _Beside) -> Index:
    labels, groups = _Codes(), _Codes()
    codes, in_group, kept, used, spoken = [], [], [], dict[tuple[str, str], str](), set[bool]()
    for name, member in images.items():
        pairs = ((kind, key) for kind in there.labels for key in there.keys(name))
        found = next(((kind, key) for kind, key in pairs if key in there.labels[kind]), None)
        if found is None:
            there.faults.append(f"{safe(name)} has no label beside it (.cls, .json or .txt)")
            continue
        if (other := used.setdefault(found, name)) != name:
            there.faults.append(f"{safe(name)} and {safe(other)} have one label between them")
        kind, key = found
        own, group, several = there.labels[kind][key]
        codes.append(labels(own))
        in_group.append(groups(group))
        spoken.add(several)
        kept.append(member)
    there.faults += _lonely(there, {key for _, key in used})
    if len(spoken) > 1:
        there.faults.append("some images have a label and others labels")
    return Index(
        Texts.of([one.name for one in kept]),
        np.array([one.start for one in kept], np.int64),
        np.array([one.size for one in kept], np.int64),
        tuple(labels.of), np.array(codes, np.int32), tuple(groups.of), np.array(in_group, np.int32),
        spoken == {True}, None, tuple(there.faults[:SHOWN]), len(there.faults),
    )  # fmt: skip


def _lonely(there: _Beside, used: set[str]) -> Iterator[str]:
    """Labels whose image is missing."""
    for kind, known in there.labels.items():
        for key in known:
            if key not in used:
                yield f"{safe(key + kind)} has no image beside it"


def _bytes(member: Member, most: int) -> bytes:
    if member.size > most:
        raise ValueError(f"{member.size} bytes are no label")
    with member.open() as file:
        return file.read()


def _said(kind: str, data: bytes) -> tuple[Labels, str, bool] | None:
    """Labels, group, and whether there may be several; None for JSON about something else. Raises ValueError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if kind != ".json":
        return (_label(text),), "", False
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        return ((_label(value),), "", False) if isinstance(value, str | int) else None
    if "label" in value and "labels" in value:
        raise ValueError("both label and labels: one of them is enough")
    group = value.get("group")
    group = "" if group is None else _label(group)
    if "labels" in value:
        several = value["labels"]
        if not isinstance(several, list):
            raise ValueError("labels is no list")
        names = tuple(map(_label, several))
        if len(set(names)) < len(names):
            raise ValueError("a label twice")
        return names, group, True
    return ((_label(value["label"]),), group, False) if "label" in value else None


def _label(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"label {safe(value, 60)} is not text")
    if not (text := value.strip()):
        raise ValueError("no label")
    if "\n" in text or "\r" in text:
        raise ValueError("a label of several lines")
    return text
