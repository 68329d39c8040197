"""MNIST-style IDX files: `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]`, `t10k-…`.

Format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
uint32, then the elements (http://yann.lecun.com/exdb/mnist/). Knows nothing of splits other than the files' own.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitcli.data.layout import split_of
from vitcli.data.samples import ArraySamples, Split, Splits
from vitcli.errors import DataError
from vitcli.files import open_file
from vitcli.storage.remote import Root
from vitcli.text import safe

_IMAGES = re.compile(r"(?P<prefix>.*?)(?P<split>[^\W\d_]+|t10k)-images(?P<sep>[-.])idx3-ubyte(?:\.gz)?", re.IGNORECASE)
_MAX_BYTES = 1 << 30  # of one file, unpacked: a bound on what a gzip bomb may cost
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# Only exactly these labels in exactly this order have these meanings: SHA-256 of the training labels, header left out.
_KNOWN_LABELS = {"657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7": _FASHION}


def find_idx(folder: Path) -> dict[Split, tuple[Path, Path]]:
    """(images, labels) file of each split in `folder`; empty when it holds no IDX images.

    Raises DataError for a missing label file and for two data sets in one folder.
    """
    found: dict[Split, tuple[Path, Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{safe(folder)} cannot be listed: {error.strerror}") from error
    for path in paths:
        match = _IMAGES.fullmatch(path.name)
        if not match:
            continue
        split = "test" if match["split"].casefold() == "t10k" else split_of(match["split"])
        if split is None:
            raise DataError(f"{safe(path)}: is '{safe(match['split'], 60)}' train, val or test? Rename the file")
        stem = f"{match['prefix']}{match['split']}-labels{match['sep']}idx1-ubyte"
        labels = next((p for p in (path.with_name(stem), path.with_name(stem + ".gz")) if p.is_file()), None)
        if labels is None:
            raise DataError(f"{safe(path)} has no labels beside it: expected {safe(stem)}[.gz]")
        known = found.setdefault(split, (path, labels))
        if known[1] != labels:
            raise DataError(
                f"{safe(folder)} holds two data sets, {safe(known[0].name)} and {safe(path.name)}: keep one"
            )
    return found


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes with this number of dimensions. Raises DataError."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:2] != b"\0\0":
                raise DataError(f"{safe(path)} is not an IDX file")
            if header[2] != 8 or header[3] != dimensions:
                raise DataError(
                    f"{safe(path)} holds elements of type {header[2]} in {header[3]} dimensions, "
                    f"not unsigned bytes in {dimensions}"
                )
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise DataError(f"{safe(path)} claims {size} bytes of data; at most {_MAX_BYTES} are read into memory")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{safe(path)} cannot be read: {safe(error)}") from error
    if len(data) != size:
        raise DataError(f"{safe(path)} is {'longer' if len(data) > size else 'shorter'} than its header says ({shape})")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_idx_folder(root: Path, files: Mapping[Split, tuple[Path, Path]]) -> Splits:
    """The splits in `files`, which `find_idx` gave for `root`. Without known names, classes are the numbers that occur.

    Raises DataError.
    """
    named = {split: _read_split(*pair) for split, pair in files.items()}
    numbers = np.unique(np.concatenate([samples.labels for samples in named.values()]))
    known = _class_names(root, [samples.labels for samples in named.values()])
    if known is None:
        named = {
            split: replace(samples, labels=np.searchsorted(numbers, samples.labels)) for split, samples in named.items()
        }
        return Splits(root, "idx", tuple(str(number) for number in numbers), named)
    if numbers[-1] >= len(known):
        raise DataError(f"{safe(root)} has labels up to {numbers[-1]} but only {len(known)} class names")
    if len(set(known)) < len(known):
        raise DataError(f"{safe(root)}: the class names are not all different")
    return Splits(root, "idx", known, named)


def _read_split(images_path: Path, labels_path: Path) -> ArraySamples:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{safe(images_path)} holds {len(images)} images but {safe(labels_path.name)} {len(labels)} labels"
        )
    if images.size == 0:
        raise DataError(f"{safe(images_path)} holds no images")
    return ArraySamples(images, labels.astype(np.int64), str(images_path), np.arange(len(labels)))


def _class_names(folder: Path, labels: Sequence[npt.NDArray[np.int64]]) -> tuple[str, ...] | None:
    """Names of labels 0, 1, …: those that the folder gives, else those of a data set recognised by its very labels;
    None when nobody knows. Raises DataError."""
    if (known := class_names(folder)) is not None:
        return known
    hashes = (hashlib.sha256(numbers.astype(np.uint8).tobytes()).hexdigest() for numbers in labels)
    return next((_KNOWN_LABELS[digest] for digest in hashes if digest in _KNOWN_LABELS), None)


def class_names(folder: Root) -> tuple[str, ...] | None:
    """Names of labels 0, 1, …, as `classes.txt` in the folder gives them, one a line; None without such a file.

    Raises DataError for one that is useless.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    try:
        with open_file(file) as lines:
            text = lines.read(_MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{safe(file)} cannot be read as UTF-8 text: {safe(error)}") from error
    return tuple(line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip())
