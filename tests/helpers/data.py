"""Small data sets and images, written byte by byte."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """MNIST's format: `images` (n, H, W) and their `labels` (n,), as bytes."""
    shape = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(shape + images.astype(np.uint8).tobytes())
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(
        struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
    )


def write_stripes(folder: Path, labels: np.ndarray, side: int, split: str = "train") -> None:
    """Square images in three classes that a tiny model tells apart: which third of the image is bright."""
    rng, width = np.random.default_rng(0), side // 3
    images = rng.integers(0, 90, (len(labels), side, side))
    for image, label in zip(images, labels, strict=True):
        image[:, width * label : width * label + width] += 150
    write_idx(folder, split, images, labels)


def write_class_stripes(folder: Path, classes: dict[str, int], each: int = 6, first: int = 0) -> Path:
    """Images of 28×28 whose quarter number `classes[name]` is bright, in class folders."""
    for name, part in classes.items():
        (folder / name).mkdir(parents=True)
        for n in range(first, first + each):
            pixels = np.random.default_rng((part, n)).integers(0, 90, (28, 28), np.uint8)
            pixels[:, 7 * part : 7 * part + 7] += 150
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def rgb16_png(gray: np.ndarray) -> bytes:
    """A PNG of 16 bits a sample whose three channels are all `gray` (H, W), big-endian."""
    rows = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in gray)
    height, width = gray.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
