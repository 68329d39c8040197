"""A data set → tar shards that can be read in any order, here and by whatever reads WebDataset.

Images are copied byte by byte, or made smaller; order and labels stay. An image has three members: itself, `.cls` with
the number of its class, and `.json` with its label and the name it had. Each shard is written beside, synced and
renamed, and has an index; `manifest.json` comes last, with a checksum of each. What is there already is not written
again, so that a pack that was killed goes on, and ends with the same bytes.
"""

import hashlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image

from vitcli.data import index
from vitcli.data.members import Texts
from vitcli.data.packed import MANIFEST, PLAN, SCHEMA
from vitcli.data.samples import FileSamples, Progress, Split, Splits, Stored
from vitcli.data.sources import read_splits
from vitcli.errors import DataError, ImageError, UsageError
from vitcli.files import MAX_FILE_BYTES, holds_something, open_file, parse_object, replacing, signature, write_file
from vitcli.images.decode import open_image, suffix_of
from vitcli.storage.named import folder_of, is_address, name_of
from vitcli.storage.tar import SUFFIX
from vitcli.text import safe

SHARD = 256 << 20  # bytes, about, where nobody says how many shards
LEAST = 16  # pixels
MARGIN = 2  # a JPEG is decoded with at least so many times the pixels that it gets, on each side
QUALITY = 95  # of JPEGs that are made smaller
_LOOKED_AT = 64  # images, for the size of a shard
_AHEAD = 128  # images that are read before they are written


@dataclass(frozen=True)
class Packed:
    """What has been written."""

    folder: Path
    images: dict[Split, int]
    shards: int
    kept: int  # of them, those that were there already
    bytes: int
    left_out: tuple[str, ...]  # images that could not be read, and why


@dataclass
class _Shard:
    """One archive while it is written."""

    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: dict[tuple[str, ...], int] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    in_group: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def pack(
    data: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    shards: int | None = None,
    folders: str | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write the images of `data`, as `read_splits` takes it, to shards in the folder `out`; begin, or go on.

    `size`, in pixels: what is larger on its shorter side is made as small. `shards`: how many there are to be, about,
    of all splits. Images that cannot be read are left out, and told. Raises UsageError for a folder that holds
    something else, DataError, OSError.
    """
    if (size is not None and size < LEAST) or (shards is not None and shards < 1):
        raise UsageError(f"a size is {LEAST} pixels or more, and there is one shard or more")
    folder = Path(out)
    if not is_address(data) and folder.resolve().is_relative_to(Path(folder_of(str(data))).resolve()):
        raise UsageError(f"{safe(folder)} lies in the data itself: name a folder elsewhere")
    found = read_splits(data, folders=folders)
    total = sum(map(len, found.named.values()))
    if not total:
        raise DataError(f"{safe(found.root)} holds no images")
    asked = {
        "schema": SCHEMA, "data": name_of(str(data)), "fingerprint": _fingerprint(found), "size": size,
        "shards": shards, "made_by": f"Pillow {PIL.__version__}" if size else "copying",
    }  # fmt: skip
    plan = _plan(folder, asked, found, total)
    images: dict[Split, int] = {}
    entries: list[dict[str, Any]] = []
    left_out: list[str] = []
    done, kept = 0, 0
    for split, samples in found.named.items():
        count = math.ceil(len(samples) / plan["each"])
        for number in range(count):
            rows = range(number * plan["each"], min((number + 1) * plan["each"], len(samples)))
            path = folder / f"{split}-{number:0{max(3, len(str(count - 1)))}}{SUFFIX}"
            about = _written(path)
            kept += about is not None
            tell = progress and partial(_tell, progress, done, total)
            about = about or _write(path, split, samples, found, rows, size, tell)
            done += len(rows)
            if progress:
                progress(done, total)
            entries.append({name: about[name] for name in ("file", "bytes", "sha256", "images")})
            left_out += about["left_out"]
            images[split] = images.get(split, 0) + about["images"]
    manifest = {**asked, "classes": found.classes, "images": images, "files": entries, "left_out": left_out}
    write_file(folder / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    return Packed(folder, images, len(entries), kept, sum(one["bytes"] for one in entries), tuple(left_out))


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _fingerprint(found: Splits) -> str:
    parts = [*found.classes, *(f"{split} {samples.fingerprint}" for split, samples in found.named.items())]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _plan(folder: Path, asked: dict[str, Any], found: Splits, total: int) -> dict[str, Any]:
    """What is asked for, and how many images a shard has; as it was begun, where it was. Raises UsageError."""
    path = folder / PLAN
    if path.exists():
        with open_file(path) as file:
            known = parse_object(file.read(1 << 20), safe(path))
        if (
            {name: known.get(name) for name in asked} != asked
            or type(known.get("each")) is not int
            or known["each"] < 1
        ):
            raise UsageError(
                f"{safe(folder)} holds a pack of other data or settings, or the data changed: name another"
            )
        return known
    if holds_something(folder):
        raise UsageError(f"{safe(folder)} holds something else: name an empty folder, or one that is not there")
    wanted = asked["shards"] or max(1, round(_bytes(found, asked["size"]) / SHARD))
    plan = {**asked, "each": math.ceil(total / min(wanted, total))}
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, [json.dumps(plan).encode()])
    return plan


def _bytes(found: Splits, size: int | None) -> float:
    """How many there will be, about, judged by some images."""
    whole = 0.0
    for samples in found.named.values():
        some = range(0, len(samples), max(1, len(samples) // _LOOKED_AT))
        sizes = []
        for i in some:
            try:
                sizes.append(len(_packed(samples, size, i)[1]))
            except ImageError:
                continue
        whole += len(samples) * (sum(sizes) / len(sizes) if sizes else 0.0)
    return whole


def _written(path: Path) -> dict[str, Any] | None:
    """What is known of a shard that is whole; None where there is none."""
    about, known = index.said_in(index.beside(path)), signature(path)
    try:
        said: dict[str, Any] = json.loads(about["packed"])
        return said if known and said["bytes"] == known.size else None
    except (KeyError, ValueError, TypeError):
        return None


def _write(
    path: Path, split: Split, samples: Stored, found: Splits, rows: range, size: int | None, tell: Any
) -> dict[str, Any]:
    """One shard and its index; what is said of it."""
    shard = _Shard()
    with replacing(path) as raw:
        file = _Summed(raw)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:  # type: ignore[call-overload]
            for i, made in _read_ahead(samples, size, rows):
                _add(archive, shard, i, made, samples, found)
                if tell and (i - rows.start) % 64 == 0:
                    tell(i - rows.start)
    known = signature(path)
    if known is None:
        raise DataError(f"{safe(path)} is gone")
    said = {
        "file": path.name, "bytes": known.size, "sha256": file.sum.hexdigest(), "images": len(shard.names),
        "split": split, "left_out": shard.left_out,
    }  # fmt: skip
    index.write(Path(str(index.beside(path))), _index(shard, several=found.multi_label), known, packed=json.dumps(said))
    return said


def _read_ahead(samples: Stored, size: int | None, rows: range) -> Iterator[tuple[int, Any]]:
    """(Number, suffix and bytes, or what is wrong) of images, in order; some are read in threads meanwhile."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for start in range(rows.start, rows.stop, _AHEAD):
            block = range(start, min(start + _AHEAD, rows.stop))
            yield from zip(block, threads.map(partial(_tried, samples, size), block), strict=True)


def _tried(samples: Stored, size: int | None, i: int) -> tuple[str, bytes] | ImageError:
    try:
        return _packed(samples, size, i)
    except ImageError as error:
        return error


def _packed(samples: Stored, size: int | None, i: int) -> tuple[str, bytes]:
    """(Suffix, bytes) of an image as it goes into a shard. Raises ImageError."""
    if not isinstance(samples, FileSamples):
        return ".png", _encoded(samples.image(i).convert("L"), "PNG")
    where, name = samples.path(i), samples.name(i)
    try:
        with open_file(where) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{safe(name)} cannot be opened: {error.strerror or safe(error)}") from error
    suffix = suffix_of(data, safe(name))
    if size is None:
        return suffix, data
    whole: list[int] = []

    def shrink(width: int, height: int) -> float:
        whole[:] = width, height
        return min(width, height) / size / MARGIN

    image = open_image(data, name=name, shrink=shrink)
    width, height = whole or image.size
    if min(width, height) <= size:
        return suffix, data
    ratio = size / min(width, height)
    image = image.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.LANCZOS)
    return (".jpg", _encoded(image, "JPEG", quality=QUALITY)) if suffix == ".jpg" else (".png", _encoded(image, "PNG"))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _add(archive: tarfile.TarFile, shard: _Shard, i: int, made: Any, samples: Stored, found: Splits) -> None:
    """An image with what is said of it; one that could not be read is noted instead."""
    if isinstance(made, ImageError):
        shard.left_out.append(str(made))
        return
    suffix, data = made
    label = samples.labels[i]
    names = tuple(found.classes[k] for k in (np.flatnonzero(label) if np.ndim(label) else [label]))
    group = samples.groups[i] if samples.groups else ""
    said: dict[str, Any] = {"labels": names} if found.multi_label else {"label": names[0]}
    said |= {"group": group} if group else {}
    said["file_name"] = samples.names[i] if isinstance(samples, FileSamples) else samples.name(i)
    key = f"{i:09}"
    shard.names.append(key + suffix)
    shard.starts.append(archive.offset + tarfile.BLOCKSIZE)
    shard.sizes.append(len(data))
    shard.codes.append(shard.labels.setdefault(names, len(shard.labels)))
    shard.in_group.append(shard.groups.setdefault(group, len(shard.groups)))
    shard.contents.append(hashlib.blake2b(data, digest_size=16).digest())
    members = [(suffix, data), (".json", json.dumps(said).encode())]
    if not found.multi_label:
        members.insert(1, (".cls", str(int(label)).encode()))
    for ending, content in members:
        entry = tarfile.TarInfo(key + ending)
        entry.size, entry.mode = len(content), 0o644
        archive.addfile(entry, io.BytesIO(content))


def _index(shard: _Shard, *, several: bool) -> index.Index:
    return index.Index(
        Texts.of(shard.names), np.array(shard.starts, np.int64), np.array(shard.sizes, np.int64), tuple(shard.labels),
        np.array(shard.codes, np.int32), tuple(shard.groups), np.array(shard.in_group, np.int32), several,
        np.frombuffer(b"".join(shard.contents), np.uint8).reshape(-1, 16),
    )  # fmt: skip


class _Summed:
    """A file of which the checksum is known once it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()
