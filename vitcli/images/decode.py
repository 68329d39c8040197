"""Image file → RGB image, upright. Every byte is hostile until decoded: one file can fail, and only with ImageError.

Formats are told by content, from a short list; only the decoder of that one format is ever imported or run. Sizes are
checked before anything is decoded. Knows no model; `Preprocess` says what a reduced decode may lose.
"""

import errno
import importlib
import io
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from vitcli.errors import ImageError
from vitcli.images.preprocess import Extent, Preprocess
from vitcli.text import safe

MAX_PIXELS = 64_000_000  # of one image
MAX_FILE_BYTES = 512 << 20
# A JPEG may be decoded at 1/2, 1/4 or 1/8 as long as it stays this many times larger than what it is resized to.
# Measured by benchmarks/preprocess.py: the mean difference to a full decode is 0.12 of 255 at 3, 0.20 at 2.
REDUCING_GAP = 3
_MAX_JPEG_SCANS = 500  # a progressive file has about ten; each one is a pass over the whole image

_FORMATS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (  # first bytes, Pillow module, its documented class
    (re.compile(rb"\xff\xd8\xff"), "JpegImagePlugin", "JpegImageFile"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PngImagePlugin", "PngImageFile"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WebPImagePlugin", "WebPImageFile"),
    (re.compile(rb"GIF8[79]a"), "GifImagePlugin", "GifImageFile"),
    (re.compile(rb"BM"), "BmpImagePlugin", "BmpImageFile"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TiffImagePlugin", "TiffImageFile"),
    (re.compile(rb"P[1-6][\s#]"), "PpmImagePlugin", "PpmImageFile"),
    (re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL), "AvifImagePlugin", "AvifImageFile"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "Jpeg2KImagePlugin", "Jpeg2KImageFile"),
)
_CONVERT = "convert it to JPEG or PNG first"
_NOT_IMAGES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL), f"is a HEIC image: {_CONVERT}"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), f"is a JPEG XL image: {_CONVERT}"),
    (re.compile(rb"....ftyp", re.DOTALL), "is a video, not an image"),
    (re.compile(rb"8BPS|%!PS|SIMPLE  ="), f"is in an image format that is not read: {_CONVERT}"),
    (re.compile(rb"%PDF"), f"is a PDF: {_CONVERT}"),
    (re.compile(rb"version https://git-lfs"), "is a git-LFS pointer: fetch the file itself with `git lfs pull`"),
    (re.compile(rb"\s*<(?:\?xml.{0,200}<svg|svg)", re.DOTALL | re.IGNORECASE), f"is an SVG drawing: {_CONVERT}"),
    (re.compile(rb"\s*<(?:!doctype\s+html|html)", re.IGNORECASE), "is a web page, not an image"),
)
# EXIF orientation → what makes the image upright (EXIF 2.32, tag 0x0112).
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    image: Image.Image  # RGB, upright
    extent: Extent | None  # where the full image lies in `image`; None: they are the same


def open_image(
    source: Path | bytes,
    *,
    name: str | None = None,
    fast_for: Preprocess | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """The image in a file, or in a file's bytes: RGB, upright, first frame, transparency on white.

    With `fast_for`, a JPEG may come reduced, to no less than that preprocessing needs. `name` is for messages.
    Raises ImageError.
    """
    return decode(source, name=name, fast_for=fast_for, max_pixels=max_pixels).image


def decode(
    source: Path | bytes,
    *,
    name: str | None = None,
    fast_for: Preprocess | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """As `open_image`, with what is needed to resize a reduced image exactly."""
    name = safe(name if name is not None else source if isinstance(source, Path) else "image")
    with _open_regular(source, name) if isinstance(source, Path) else io.BytesIO(source) as file:
        # Decoders raise nearly anything on damaged files (ValueError, SyntaxError, struct.error, MemoryError, …).
        try:
            return _decode(file, name, fast_for, max_pixels)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name} needs more memory than there is") from error
        except Exception as error:
            raise ImageError(f"{name} is damaged: {safe(error) or type(error).__name__}") from error


def oddities(path: Path) -> tuple[str, ...]:
    """What may surprise in a readable image, from its header: "turned by EXIF", "16-bit", "transparent", "animated".

    Raises ImageError when even that cannot be read.
    """
    name = safe(path)
    with _open_regular(path, name) as file:
        try:
            image = _opener(file, name)(file)
            deep = image.mode in ("I", "F") or image.mode.startswith("I;16") or _sixteen_bits(image)
            found = [
                ("turned by EXIF", _orientation(image) != 1),
                ("16-bit", deep),
                ("transparent", image.has_transparency_data),
                ("animated", _moves(image)),
            ]
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{name} is damaged: {safe(error) or type(error).__name__}") from error
    return tuple(what for what, is_so in found if is_so)


def _sixteen_bits(image: Image.Image) -> bool:
    """Of colours that Pillow halves on reading: the mode is "RGB", and the raw mode is known until it is loaded."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _moves(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged does not matter
        return False


def _open_regular(path: Path, name: str) -> IO[bytes]:
    """The file at `path`, opened without ever waiting for a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise ImageError(
            f"{name} " + ("does not exist" if missing else f"cannot be opened: {_reason(error)}")
        ) from error
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ImageError(f"{name} is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}, not a file")
    return os.fdopen(descriptor, "rb")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or safe(error)


def _decode(file: IO[bytes], name: str, fast_for: Preprocess | None, max_pixels: int) -> Decoded:
    image = _opener(file, name)(file)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} × {height} pixels, more than {max_pixels / 1e6:g} million: "
            "reduce it, or raise the limit"
        )
    if image.info.get("progressive"):
        _check_scans(file, name)
    if image.format == "JPEG" and fast_for is not None:
        _reduce(image, fast_for)
    image.load()
    orientation = _orientation(image)  # after loading: PNG keeps its EXIF behind the pixels, TIFF turns by itself
    rgb = _rgb(image, name)
    if orientation != 1:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    reduction = round(width / image.width) if image.format == "JPEG" else 1
    return Decoded(rgb, None if reduction == 1 else _extent(rgb, orientation, width, height, reduction))


def _opener(file: IO[bytes], name: str) -> Callable[[IO[bytes]], Image.Image]:
    """The Pillow class for the format that the first bytes show. Raises ImageError when it is none that we read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise ImageError(f"{name} is empty")
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB")
    start = file.read(512)
    file.seek(0)
    for pattern, module, plugin in _FORMATS:
        if pattern.match(start):
            # Not Image.open: it imports five plugins and applies a limit of its own, shared by the whole process.
            opener: Callable[[IO[bytes]], Image.Image] = getattr(importlib.import_module(f"PIL.{module}"), plugin)
            return opener
    what = next((what for pattern, what in _NOT_IMAGES if pattern.match(start)), "is not an image that can be read")
    raise ImageError(f"{name} {what}")


def _check_scans(file: IO[bytes], name: str) -> None:
    position = file.tell()
    file.seek(0)
    scans = file.read().count(
        b"\xff\xda"
    )  # within the pixels' code 0xff is always followed by 0x00 or a restart marker
    file.seek(position)
    if scans > _MAX_JPEG_SCANS:
        raise ImageError(f"{name} is a JPEG of {scans} scans, which would take minutes to decode")


def _reduce(image: Any, preprocess: Preprocess) -> None:
    """Sets a JPEG to be decoded at 1/2, 1/4 or 1/8, if that leaves enough for `preprocess`."""
    turned = _orientation(image) >= 5
    width, height = image.size[::-1] if turned else image.size
    wanted = [REDUCING_GAP * side for side in preprocess.resized(width, height)]
    image.draft(None, tuple(wanted[::-1] if turned else wanted))


def _extent(rgb: Image.Image, orientation: int, width: int, height: int, reduction: int) -> Extent:
    """For `rgb` upright; `width` and `height` as the file has them. What was rounded up lies right and below there."""
    full_size = (height, width) if orientation >= 5 else (width, height)
    across, down = full_size[0] / reduction, full_size[1] / reduction
    left = rgb.width - across if orientation in (2, 3, 6, 7) else 0.0
    top = rgb.height - down if orientation in (3, 4, 7, 8) else 0.0
    return Extent(full_size, (left, top, left + across, top + down))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 when absent or when the EXIF data are damaged, which spoils no pixel."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB. Pillow's own conversion clips what is deeper than 8 bits to white or black, so that is scaled here."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        if image.format != "PPM":
            raise ImageError(f"{name} has 32-bit integer pixels, whose range is not known: {_CONVERT}")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")  # Pillow gives 0 to 65535
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(f"{name} has floating-point pixels outside 0 to 1, whose range is not known: {_CONVERT}")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
