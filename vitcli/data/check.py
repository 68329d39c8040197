"""A look at a data set before hours are spent on it: what would spoil a measurement, and what is worth knowing.

Every image is decoded in full, as training sees it, and known by its upright RGB pixels: a copy saved in another format
without loss is the same image. Nothing is printed and nothing is changed.

Images that are near one another (resized, recompressed, a little brighter) are known by 16×16 gray thumbnails without
their mean and scale, so brightness and contrast do not count. Two show the same picture when their correlation is at
least 0.995, which pictures of two things of one kind seldom reach. Candidates come from signs of fixed random
projections, so that no picture is compared with all others.

Legend: N images, F = 256 values of a thumbnail.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitcli.data.folders import alike, like_empty_cells
from vitcli.data.layout import split_of
from vitcli.data.packed import damaged
from vitcli.data.samples import ArraySamples, FileSamples, Progress, Split, Splits, class_counts, require_one_label
from vitcli.data.sources import read_splits, torn_groups
from vitcli.errors import AmbiguousData, DataError, ImageError
from vitcli.images.decode import oddities
from vitcli.storage.remote import Root, place
from vitcli.text import plural, safe

SIDE = 16
ALIKE = 0.995  # correlation
FLAT = 4.0  # standard deviation in gray levels below which a picture shows nothing to compare
TABLES, BITS = 8, 24  # a pair of correlation 0.995 agrees in all 24 bits of one of 8 tables in 99.9 % of all cases
LARGEST = 2000  # pictures with the same bits: more are not compared pairwise

Thumbnails = npt.NDArray[np.float32]


def thumbnail(image: Image.Image) -> npt.NDArray[np.float32] | None:
    """RGB image → its unit vector (F,); None for one that is nearly flat."""
    gray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    if gray.std() < FLAT:
        return None
    centred = gray - gray.mean()
    return (centred / np.linalg.norm(centred)).astype(np.float32)  # type: ignore[no-any-return]


def pairs(vectors: Thumbnails) -> Iterator[tuple[int, int]]:
    """Pairs i < j of the same picture among `vectors` (N, F), each once."""
    found: set[tuple[int, int]] = set()
    projections = np.random.default_rng(0).normal(size=(vectors.shape[1], TABLES * BITS)).astype(np.float32)
    weights = (1 << np.arange(BITS)).astype(np.int64)
    for table in range(TABLES):
        bits = vectors @ projections[:, table * BITS : (table + 1) * BITS] > 0  # (N, BITS)
        keys = bits @ weights
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for members in np.split(order, edges):
            if 1 < len(members) <= LARGEST:
                group = vectors[members]
                rows, columns = np.nonzero(np.triu(group @ group.T >= ALIKE, k=1))
                found.update(
                    (int(min(a, b)), int(max(a, b))) for a, b in zip(members[rows], members[columns], strict=True)
                )
    yield from sorted(found)


Grade = Literal["spoils a measurement", "worth knowing"]

FEW = 10  # images of a class in train: too few to learn from
IMBALANCE = 10.0  # the largest class to the smallest
TINY, HUGE = 32, 24_000_000  # shorter side in pixels; pixels in all
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Finding:
    """Something about a data set that its owner should know, and what to do about it."""

    kind: str  # stable, for programs
    grade: Grade
    count: int
    what: str
    advice: str
    examples: tuple[str, ...] = ()  # all of them


@dataclass(frozen=True)
class Report:
    """What a look through a data set found."""

    root: Root
    kind: str  # "folders", "manifest", "idx"
    classes: tuple[str, ...]
    counts: Mapping[Split, tuple[int, ...]]  # images of each class, (K,)
    sizes: tuple[int, int, int, int] | None  # least and largest width, least and largest height
    findings: tuple[Finding, ...]  # what spoils comes first
    notes: tuple[str, ...]

    @property
    def spoiled(self) -> bool:
        return any(finding.grade == "spoils a measurement" for finding in self.findings)


@dataclass(frozen=True)
class _Image:
    """What is kept of an image that was looked at."""

    split: Split
    label: int
    name: str
    error: str = ""
    size: tuple[int, int] = (0, 0)  # (width, height)
    pixels: bytes = b""  # a hash
    odd: tuple[str, ...] = ()
    vector: "np.ndarray[tuple[int], np.dtype[np.float32]] | None" = None


def check(
    path: str | Path, *, near: bool = True, folders: str | None = None, progress: Progress | None = None
) -> Report:
    """Read the data set at `path` whole. Without `near`, similar pictures are not looked for; `folders` as in
    `read_splits`. Folders that can be read in two ways are the one finding. Raises DataError."""
    try:
        found = read_splits(path, folders=folders)
    except AmbiguousData as error:
        finding = Finding("ambiguous-folders", "spoils a measurement", 1, error.what, error.advice)
        return Report(place(path), "folders", (), {}, None, (finding,), ())
    require_one_label(found, "vit check")
    if not any(map(len, found.named.values())):
        raise DataError(f"{safe(found.root)} holds no images")
    images = list(_look(found, near, progress))
    readable = [image for image in images if not image.error]
    counts = class_counts(found.named, len(found.classes))
    findings = [
        *_layout(found, folders),
        *_changed(found),
        *_unreadable(images),
        *_copies(readable, found.classes),
        *_classes(found, counts),
        *(_near(readable, found.classes) if near else ()),
        *_odd(readable, found.kind != "idx"),
    ]
    order: Sequence[Grade] = ("spoils a measurement", "worth knowing")
    sides = np.array([image.size for image in readable])
    sizes = (*sides.min(axis=0).tolist(), *sides.max(axis=0).tolist()) if len(sides) else None
    return Report(
        found.root,
        found.kind,
        found.classes,
        counts,
        sizes and (sizes[0], sizes[2], sizes[1], sizes[3]),
        tuple(sorted(findings, key=lambda finding: order.index(finding.grade))),
        found.notes,
    )


def _look(found: Splits, near: bool, progress: Progress | None) -> Iterator[_Image]:
    """Every image once, in order; a few are decoded ahead."""
    total = sum(len(samples) for samples in found.named.values())
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for split, samples in sorted(found.named.items(), key=lambda item: SPLITS.index(item[0])):
            for start in range(0, len(samples), 256):
                block = range(start, min(start + 256, len(samples)))
                for image in threads.map(lambda i, split=split, samples=samples: _one(samples, i, split, near), block):
                    yield image
                    done += 1
                    if progress:
                        progress(done, total)


def _one(samples: ArraySamples | FileSamples, i: int, split: Split, near: bool) -> _Image:
    label, name = int(samples.labels[i]), samples.name(i)
    try:
        image = samples.image(i)
        odd = oddities(samples.path(i)) if isinstance(samples, FileSamples) else ()
    except ImageError as error:
        return _Image(split, label, name, error=str(error))
    digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
    return _Image(split, label, name, "", image.size, digest, odd, thumbnail(image) if near else None)


def _layout(found: Splits, folders: str | None) -> Iterator[Finding]:
    """What is read otherwise than its owner may think."""
    if found.left_out:
        yield Finding(
            "left-out", "spoils a measurement", len(found.left_out),
            f"{plural(len(found.left_out), 'file or folder')} with images that belong to no split and no class",
            "give them a class and a split, or move them away", tuple(found.left_out),
        )  # fmt: skip
    if torn := torn_groups(found.named):
        yield Finding(
            "group-leak", "spoils a measurement", len(torn), f"{plural(len(torn), 'group')} in more than one split",
            "give each group one split, or leave the column out: vit keeps groups on one side when it splits",
            tuple(f"{group} ({', '.join(splits)})" for group, splits in torn.items()),
        )  # fmt: skip
    held_out = tuple(name for name in found.classes if split_of(name) in ("val", "test"))
    if held_out and found.kind == "folders" and folders is None:
        yield Finding(
            "class-like-a-split", "spoils a measurement", len(held_out),
            f"classes called like a split: {len(held_out)}",
            "move what is no class away, or say --folders classes", held_out,
        )  # fmt: skip


def _changed(found: Splits) -> Iterator[Finding]:
    """Packed shards that are no longer what their manifest says."""
    if found.kind == "shards" and (names := tuple(damaged(found.root))):
        yield Finding(
            "changed-shards", "spoils a measurement", len(names),
            f"{plural(len(names), 'shard')} with another checksum than when they were packed",
            "fetch or pack them again", names,
        )  # fmt: skip


def _unreadable(images: Iterable[_Image]) -> Iterator[Finding]:
    errors = [image.error for image in images if image.error]
    if errors:
        yield Finding(
            "unreadable", "spoils a measurement", len(errors), f"{plural(len(errors), 'image')} cannot be read",
            "mend or remove the files; training would stop at the first one", tuple(errors),
        )  # fmt: skip


def _copies(images: Sequence[_Image], classes: Sequence[str]) -> Iterator[Finding]:
    """The same pixels: under two labels, in two splits, twice in one."""
    groups: defaultdict[bytes, list[_Image]] = defaultdict(list)
    for image in images:
        groups[image.pixels].append(image)
    same = [group for group in groups.values() if len(group) > 1]
    torn = [group for group in same if len({image.label for image in group}) > 1]
    leaks = [group for group in same if len({image.split for image in group}) > 1]
    within = sum(sum(n - 1 for n in Counter(image.split for image in group).values()) for group in same)
    if leaks:
        held_out = sum(image.split != "train" for group in leaks for image in group)
        yield Finding(
            "leak", "spoils a measurement", len(leaks),
            f"{plural(len(leaks), 'image')} in more than one split ({held_out} of the held-out images)",
            "remove them from train, or the score counts what was learnt by heart", _examples(leaks, classes),
        )  # fmt: skip
    if torn:
        yield Finding(
            "two-labels", "spoils a measurement", len(torn), f"{plural(len(torn), 'image')} under two classes or more",
            "decide which class each one is", _examples(torn, classes),
        )  # fmt: skip
    if within:
        twice = [group for group in same if max(Counter(image.split for image in group).values()) > 1]
        yield Finding(
            "duplicates", "worth knowing", within, f"{plural(within, 'image')} exact copies within a split",
            "they count twice; vit keeps copies on one side when it splits", _examples(twice, classes),
        )  # fmt: skip


def _near(images: Sequence[_Image], classes: Sequence[str]) -> Iterator[Finding]:
    """The same picture in other pixels, within a split and across."""
    seen: dict[bytes, _Image] = {}
    for image in images:
        if image.vector is not None:
            seen.setdefault(image.pixels, image)
    ones = list(seen.values())
    if len(ones) < 2:
        return
    found = [(ones[i], ones[j]) for i, j in pairs(np.stack([one.vector for one in ones if one.vector is not None]))]
    across = [pair for pair in found if pair[0].split != pair[1].split]
    if across:
        yield Finding(
            "near-leak", "worth knowing", len(across),
            f"{plural(len(across), 'pair')} of nearly the same picture in two splits",
            "look at them: a resized or recompressed copy in train makes the score too good",
            _examples(across, classes),
        )  # fmt: skip
    if within := [pair for pair in found if pair[0].split == pair[1].split]:
        yield Finding(
            "near-duplicates", "worth knowing", len(within),
            f"{plural(len(within), 'pair')} of nearly the same picture within a split",
            "harmless in train; before splitting, keep such pairs together", _examples(within, classes),
        )  # fmt: skip


def _classes(found: Splits, counts: Mapping[Split, tuple[int, ...]]) -> Iterator[Finding]:
    names, train = found.classes, counts.get("train")
    if len(names) < 2:
        yield Finding(
            "one-class", "spoils a measurement", len(names), "there is one class only, and nothing to tell apart",
            "one folder a class, with the images in it", tuple(names),
        )  # fmt: skip
    for split, numbers in counts.items():
        missing = tuple(name for name, n in zip(names, numbers, strict=True) if not n)
        if not missing:
            continue
        if split == "train":
            yield Finding(
                "class-without-training", "spoils a measurement", len(missing),
                f"{len(missing)} classes have no training images", "add images or remove the classes",
                missing,
            )  # fmt: skip
        else:
            yield Finding(
                "class-not-measured", "worth knowing", len(missing), f"{len(missing)} classes have no {split} images",
                f"the {split} score says nothing of them", missing,
            )  # fmt: skip
    if train:
        few = tuple(f"{name} ({n})" for name, n in zip(names, train, strict=True) if 0 < n < FEW)
        if few:
            yield Finding(
                "few-images", "worth knowing", len(few), f"{len(few)} classes have fewer than {FEW} training images",
                "vit finetune --tune head learns from few", few,
            )  # fmt: skip
        present = [n for n in train if n]
        if present and max(present) / min(present) > IMBALANCE:
            ratio = max(present) / min(present)
            yield Finding(
                "imbalance", "worth knowing", round(ratio),
                f"the largest class has {ratio:.0f} times the images of the smallest",
                "look at balanced accuracy; --set class_weights=true weighs rare classes up",
            )  # fmt: skip
    written = [" / ".join(group) for group in alike(names)]
    if written:
        yield Finding(
            "similar-class-names", "spoils a measurement", len(written),
            f"{len(written)} classes are spelled in two ways", "give each class one name", tuple(written),
        )  # fmt: skip
    if empty := like_empty_cells(names):
        yield Finding(
            "empty-class-names", "worth knowing", len(empty),
            "a class has the name that empty cells get when a table is exported",
            "leave images without a label out, or give them one", tuple(empty),
        )  # fmt: skip


def _odd(images: Sequence[_Image], files: bool) -> Iterator[Finding]:
    """Images that are read in a way that their owner may not expect."""
    advice = {
        "turned by EXIF": "they are read upright, as viewers show them",
        "16-bit": "they are read as 8 bits, the lower ones dropped",
        "transparent": "they are read on white",
        "animated": "only the first frame is read",
    }
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        for kind in image.odd:
            by_kind[kind].append(image.name)
    found = [(kind, by_kind[kind], advice[kind]) for kind in advice if by_kind[kind]]
    tiny = [image.name for image in images if min(image.size) < TINY]
    if files and tiny and len(tiny) < len(images):
        found.append((f"smaller than {TINY} pixels", tiny, "they are enlarged; are they thumbnails by mistake?"))
    huge = [image.name for image in images if image.size[0] * image.size[1] > HUGE]
    if huge:
        found.append(
            (f"larger than {HUGE // 10**6} megapixels", huge, "decoding them takes most of the time; shrink them")
        )
    for kind, names, hint in found:
        word = kind.replace(" by EXIF", "-by-exif").split()[0]
        yield Finding(word, "worth knowing", len(names), f"{plural(len(names), 'image')} {kind}", hint, tuple(names))


def _examples(groups: Iterable[Sequence[_Image]], classes: Sequence[str]) -> tuple[str, ...]:
    """`first = second` with split and class."""
    return tuple(
        " = ".join(f"{image.name} ({image.split}, {classes[image.label]})" for image in group[:3]) for group in groups
    )
