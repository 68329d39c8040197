"""Small data sets and images, written byte by byte."""

import struct
import zlib
from pathlib import Path

import numpy as np


def write_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """MNIST's format: `images` (n, H, W) and their `labels` (n,), as bytes."""
    shape = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(shape + images.astype(np.uint8).tobytes())
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(
        struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
    )


def write_stripes(folder: Path, labels: np.ndarray, side: int) -> None:
    """Square images in three classes that a tiny model tells apart: which third of the image is bright."""
    rng, width = np.random.default_rng(0), side // 3
    images = rng.integers(0, 90, (len(labels), side, side))
    for image, label in zip(images, labels, strict=True):
        image[:, width * label : width * label + width] += 150
    write_idx(folder, "train", images, labels)


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
