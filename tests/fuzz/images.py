"""Images in every format that Pillow writes, those that we refuse among them: bytes, PNG chunks, TIFF entries."""

import io
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from tests.fuzz import sound
from tests.fuzz.damage import damage_file

COMMANDS = (
    "predict -m model damaged good.png --jsonl",
    "predict -m model damaged good.png --jsonl --exact",
    "predict -m model good.png damaged --csv",
    "evaluate model --data set --json",
    "check set --json",
)
# Format, mode, and how it is saved; first those that we read.
SAVED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
    ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "LA", {}), ("PNG", "I;16", {}), ("PNG", "1", {}),
    ("PNG", "RGBA", {"save_all": True, "frames": 3}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"save_all": True, "frames": 3}), ("GIF", "P", {}), ("GIF", "P", {"save_all": True, "frames": 3}),
    ("BMP", "RGB", {}), ("BMP", "P", {}), ("BMP", "1", {}), ("BMP", "RGBA", {}), ("TIFF", "RGB", {}),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    ("TIFF", "I;16", {}), ("TIFF", "F", {}), ("TIFF", "1", {"compression": "group4"}), ("TIFF", "CMYK", {}),
    ("TIFF", "P", {}), ("PPM", "RGB", {}), ("PPM", "L", {}), ("PPM", "1", {}), ("AVIF", "RGB", {}),
    ("JPEG2000", "RGB", {}), ("JPEG2000", "L", {"no_jp2": True}),
    *((name, "RGB", {}) for name in ("TGA", "ICO", "PCX", "SGI", "DDS", "EPS", "IM", "PDF", "QOI", "ICNS")),
)  # fmt: skip


def prepare(place: Path) -> None:
    (place / "images").mkdir()
    picture = Image.linear_gradient("L").resize((48, 32))
    colours = Image.merge("RGB", (picture, picture.rotate(180), picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)))
    for number, (kind, mode, options) in enumerate(SAVED):
        more = dict(options)
        if frames := more.pop("frames", 0):
            more["append_images"] = [colours.rotate(90 * i).convert(mode) for i in range(1, frames)]
        image = picture.convert("F") if mode == "F" else (picture if mode.startswith("I") else colours).convert(mode)
        file = io.BytesIO()
        image.resize((64, 64) if kind == "ICNS" else (48, 32)).save(file, kind, **more)
        (place / "images" / f"{number:02}-{kind.lower()}").write_bytes(file.getvalue())


def lay(place: Path, folder: Path, rng: random.Random) -> None:
    readable = sorted((place / "images").iterdir())
    (folder / "set" / "red").mkdir(parents=True)
    (folder / "set" / "blue").mkdir()
    content = rng.choice(readable).read_bytes()
    (folder / "damaged").write_bytes(content)
    (folder / "good.png").symlink_to(place / sound.IMAGE)
    (folder / "set" / "red" / "good.png").symlink_to(place / sound.IMAGE)
    (folder / "model").symlink_to(place / "run" / "best")
    _into_set(folder)


def damage(place: Path, folder: Path, rng: random.Random) -> None:
    path = folder / "damaged"
    content = path.read_bytes()
    edit = _chunks if content.startswith(b"\x89PNG") else _entries if content[:4] in (b"II*\0", b"MM\0*") else None
    if edit and rng.random() < 0.6:
        path.write_bytes(edit(content, rng))
    else:
        damage_file(path, rng, rng.choice(sorted((place / "images").iterdir())).read_bytes())
    _into_set(folder)


def absurd(place: Path, folder: Path, command: str, stdout: str) -> str:
    """A good image beside a damaged one is not answered for, or is answered otherwise than alone."""
    if "--jsonl" not in command:
        return ""
    lines = [json.loads(line) for line in stdout.splitlines()]
    good = [line["labels"] for line in lines if line["path"] == "good.png" and "labels" in line]
    alone = (place / "alone.json").read_text() if (place / "alone.json").exists() else ""
    if len(lines) != 2 or len(good) != 1:
        return "the good image beside it has no answer"
    if not alone:
        (place / "alone.json").write_text(json.dumps(good[0]))
    elif json.loads(alone) != good[0]:
        return "the good image beside it has another answer"
    return ""


def _into_set(folder: Path) -> None:
    (folder / "set" / "blue" / "damaged.png").write_bytes((folder / "damaged").read_bytes())


def _chunks(content: bytes, rng: random.Random) -> bytes:
    """A PNG with one chunk changed, its checksum right again."""
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    i = rng.randrange(len(chunks))
    name, body = chunks[i]
    kind = rng.randrange(6)
    if kind == 0:
        del chunks[i]
    elif kind == 1:
        chunks.insert(i, chunks[i])
    elif kind == 2:
        text = zlib.compress(b"\0" * rng.choice((100, 10**6, 10**8)), 9)
        chunks.insert(1, rng.choice(((b"zTXt", b"a\0\0" + text), (b"iCCP", b"a\0\0" + text), (b"IDAT", text))))
    elif kind == 3:
        name = rng.choice((b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"\x1b[3m", b"abcd"))
        chunks[i] = (name, body)
    elif body:
        changed = bytearray(body)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 3, 8, 16, 127, 255))
        chunks[i] = (name, bytes(changed))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _entries(content: bytes, rng: random.Random) -> bytes:
    """A TIFF with the tag, type, count or value of some of its entries changed."""
    order = "<" if content[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", content, 4)[0]
    count = struct.unpack_from(f"{order}H", content, start)[0]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = start + 2 + 12 * rng.randrange(count)
        where, form, values = rng.choice((
            (0, "H", (254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 282, 284, 317, 320, 322, 330, 338, 339, 347)),
            (2, "H", (0, 1, 2, 3, 4, 5, 7, 11, 12, 16, 99)),
            (4, "I", (0, 1, 2, 3, 4, 5, 1000, 2**20, 2**31, 2**32 - 1)),
            (8, "I", (0, 1, 2, 3, 4, 8, 13, 16, 32, 64, 32773, 34712, 60_000, 2**20, 2**31, 2**32 - 1, start)),
            (8, "H", (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 32, 64, 32773, 60_000, 65535)),
        ))  # fmt: skip
        struct.pack_into(order + form, changed, at + where, rng.choice(values))
    return bytes(changed)
