"""Image file → RGB image, upright. Every byte is hostile until decoded: one file can fail, and only with ImageError.

Formats are told by content, from a short list; only the decoder of that one format is ever imported or run. Sizes are
checked before anything is decoded. Knows no model. Every pixel is decoded unless a caller can do with fewer: JPEG's own
reduced scales, 1/2 to 1/8, differ by little more than rounding, which training does not mind; yet they change the
first class of about one large photograph in forty (benchmarks/preprocess.py), so predictions have every pixel.
"""

import errno
import importlib
import io
import os
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from vitcli.errors import ImageError, StoreError
from vitcli.files import MAX_FILE_BYTES, NotAFileError, Where, open_file
from vitcli.images import layouts
from vitcli.text import safe

MAX_PIXELS = 64_000_000  # of one image
_MAX_JPEG_SCANS = 500  # a progressive file has about ten; each one is a pass over the whole image

_FORMATS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (  # first bytes, module, its class
    (re.compile(rb"\xff\xd8\xff(?!\xf7|\xe8..SPIFF)", re.DOTALL), "PIL.JpegImagePlugin", "JpegImageFile"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PIL.PngImagePlugin", "PngImageFile"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "PIL.WebPImagePlugin", "WebPImageFile"),
    (re.compile(rb"GIF8[79]a"), "PIL.GifImagePlugin", "GifImageFile"),
    (re.compile(rb"BM"), "PIL.BmpImagePlugin", "BmpImageFile"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "PIL.TiffImagePlugin", "TiffImageFile"),
    (re.compile(rb"P[1-6][\s#]"), "PIL.PpmImagePlugin", "PpmImageFile"),
    (
        re.compile(rb"....ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,20}?avi[fs])", re.DOTALL),
        "PIL.AvifImagePlugin",
        "AvifImageFile",
    ),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    (re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL), "pillow_heif.as_plugin", "HeifImageFile"),
)
_HEIF = "install pillow-heif, which the extra `vitcli[heif]` does"
_CONVERT = "convert it to JPEG or PNG first"
_NOT_FOR_IT = re.compile(
    "cannot handle|unsupported|not supported|not installed|unknown (pixel|raw) mode", re.IGNORECASE
)
_NOT_IMAGES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\xff\xd8\xff(?:\xf7|\xe8..SPIFF)", re.DOTALL), f"is a JPEG-LS image: {_CONVERT}"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), f"is a JPEG XL image: {_CONVERT}"),
    (re.compile(rb"....ftyp", re.DOTALL), "is a video, not an image"),
    (
        re.compile(rb".(?:\x01[\x01\x09].{5}|\0[\2\3\x0a\x0b]\0{5}).{8}[\x08\x0f\x10\x18\x20][\0-\x3f]", re.DOTALL),
        f"is a TGA image: {_CONVERT}",
    ),
    (
        re.compile(
            rb"8BPS|%!PS|SIMPLE  =|P[7Ff]\s|IIRO|IIU\0|FUJIFILMCCD|\0\0[\1\2]\0|v/1\x01|DDS |#\?RADIANCE|gimp xcf"
        ),
        f"is in an image format that is not read: {_CONVERT}",
    ),
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


Shrink = Callable[[int, int], float]
"""(Width, height) of an upright image → how many times smaller its sides may be decoded; called before any pixel is."""


def open_image(source: Where | bytes, *, name: str | None = None, shrink: Shrink | None = None) -> Image.Image:
    """The image in a file, or in a file's bytes: RGB, upright, first frame, transparency on white.

    A JPEG comes at 1/2, 1/4 or 1/8 of its size where `shrink`, which nothing else is asked of, allows so much
    (`scale_of` tells which). `name` is for messages. Raises ImageError.
    """
    name = _name_of(source, name)
    with _file_of(source, name) as file:
        # Decoders raise nearly anything on damaged files (ValueError, SyntaxError, struct.error, MemoryError, …).
        try:
            return _decode(file, name, shrink)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name} needs more memory than there is") from error
        except Exception as error:
            raise _fault(name, error) from error


_SUFFIXES = {
    "JpegImageFile": ".jpg", "PngImageFile": ".png", "WebPImageFile": ".webp", "GifImageFile": ".gif",
    "BmpImageFile": ".bmp", "TiffImageFile": ".tif", "PpmImageFile": ".ppm", "AvifImageFile": ".avif",
    "Jpeg2KImageFile": ".jp2", "HeifImageFile": ".heic",
}  # fmt: skip


def suffix_of(data: bytes, name: str) -> str:
    """What a file with this content is called at its end. Raises ImageError, with `name`, for none that is read."""
    return _SUFFIXES[_opener(io.BytesIO(data), name).__name__]


def scale_of(image: Image.Image, width: int, height: int) -> tuple[float, float]:
    """How many pixels of a picture of `width` × `height` one of its smaller `image` stands for, across and down.

    Decoded smaller, it has 1, 2, 4 or 8, and its last pixel on each side may reach over the edge; else it was resized.
    """
    for n in (1, 2, 4, 8):
        if image.size == (-(-width // n), -(-height // n)):
            return n, n
    return width / image.width, height / image.height


def image_size(source: Where | bytes, *, name: str | None = None) -> tuple[int, int]:
    """Width and height in pixels of the image in a file, as they lie in it, from its header. Raises ImageError.

    `source` and `name` as for `open_image`.
    """
    name = _name_of(source, name)
    with _file_of(source, name) as file:
        try:
            return _opened(file, name).size
        except ImageError:
            raise
        except Exception as error:
            raise _fault(name, error) from error


def oddities(path: Where) -> tuple[str, ...]:
    """What may surprise in a readable image, from its header: "turned by EXIF", "16-bit", "transparent", "animated".

    Raises ImageError when even that cannot be read.
    """
    name = safe(path)
    with _opened_file(path, name) as file:
        try:
            image = _opened(file, name)
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
            raise _fault(name, error) from error
    return tuple(what for what, is_so in found if is_so)


def _fault(name: str, error: Exception) -> ImageError:
    """What to say of a file that a decoder refused with `error`: some are sound, but of a kind that is not read."""
    if isinstance(error, OSError) and error.errno is not None:  # while it was read; a decoder's own have none
        return _unopened(name, error)
    said = safe(error) or type(error).__name__
    if _NOT_FOR_IT.search(str(error)):
        return ImageError(f"{name} has pixels of a kind that is not read ({said}): {_CONVERT}")
    return ImageError(f"{name} is damaged: {said}")


def _sixteen_bits(image: Image.Image) -> bool:
    """Whether colours have 16 bits, of which Pillow drops half: its mode is "RGB" then, and only the raw mode tells."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _moves(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is damaged does not matter
        return False


def _name_of(source: Where | bytes, name: str | None) -> str:
    return safe(name if name is not None else "image" if isinstance(source, bytes) else source)


def _file_of(source: Where | bytes, name: str) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else _opened_file(source, name)


def _opened_file(path: Where, name: str) -> IO[bytes]:
    """The file at `path`. Raises ImageError for whatever is no file that can be read."""
    try:
        return open_file(path)
    except NotAFileError as error:
        raise ImageError(f"{name} is a {'folder' if error.folder else 'pipe or device'}, not a file") from error
    except OSError as error:
        raise _unopened(name, error) from error


def _unopened(name: str, error: OSError) -> ImageError:
    """What to say of a file whose bytes are not to be had."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ImageError(f"{name} does not exist")
    kind = StoreError if isinstance(error, ConnectionError) else ImageError
    return kind(f"{name} cannot be opened: {error.strerror or safe(error)}")


def _decode(file: IO[bytes], name: str, shrink: Shrink | None) -> Image.Image:
    image = _opened(file, name)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} × {height} pixels, more than {MAX_PIXELS / 1e6:g} million: make it smaller first"
        )
    if image.info.get("progressive"):
        _check_scans(file, name)
    if shrink and isinstance(image, ImageFile.ImageFile) and image.format == "JPEG":
        turned = _orientation(image)
        _reduce(image, shrink(*(image.size[::-1] if turned >= 5 else image.size)), turned)
    raw, run_lengths = _raw_mode(image), any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ()))
    try:
        image.load()
    except ValueError as error:
        if run_lengths:
            raise ImageError(f"{name} is a run-length BMP that skips pixels, or is cut off: {_CONVERT}") from error
        raise
    orientation = _orientation(image)  # after loading: PNG keeps its EXIF behind the pixels, TIFF turns by itself
    rgb = _rgb(image, raw, name)
    return rgb if orientation == 1 else rgb.transpose(_UPRIGHT[orientation])


def _reduce(image: ImageFile.ImageFile, times: float, orientation: int) -> None:
    """Lets a JPEG be decoded at the smallest of its scales that is not more than `times` smaller on each side.

    The last row and column may then reach over the edge, which `scale_of` expects below and on the right; a scale of
    which they would lie elsewhere in the upright picture is not used.
    """
    width, height = image.size
    mirrored = [side for side, flips in ((width, (2, 3, 7, 8)), (height, (3, 4, 6, 7))) if orientation in flips]
    for scale in (8, 4, 2):
        if scale <= min(times, width, height) and not any(side % scale for side in mirrored):
            image.draft(None, (width // scale, height // scale))
            return


def _opened(file: IO[bytes], name: str) -> Image.Image:
    """The image in `file` with its header read. Raises ImageError where its pixels would not be read right."""
    opener = _opener(file, name)
    unread = {"TiffImageFile": layouts.unread_tiff, "Jpeg2KImageFile": layouts.unread_jpeg2000}.get(opener.__name__)
    if unread and (what := unread(file)):
        raise ImageError(f"{name} has {what}, and such files are not read: {_CONVERT}")
    file.seek(0)
    return opener(file)


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
            try:
                opener: Callable[[IO[bytes]], Image.Image] = getattr(importlib.import_module(module), plugin)
            except ImportError as error:
                raise ImageError(f"{name} is a HEIC image: {_HEIF}, or {_CONVERT}") from error
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


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 when absent or when the EXIF data are damaged, which spoils no pixel."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _raw_mode(image: Image.Image) -> str:
    """How pixels lie in the file, in Pillow's words ("L;4", "I;12", "RGB;16B"); known until they are loaded."""
    layout: Any = next((tile[3] for tile in getattr(image, "tile", ())), "")
    return str(layout[0] if isinstance(layout, (tuple, list)) and layout else layout)


def _rgb(image: Image.Image, raw: str, name: str) -> Image.Image:
    """8-bit RGB. Pillow's own conversion clips what is deeper than 8 bits to white or black, so that is scaled here.

    It also compares a PNG's transparent colour with pixels that were scaled before.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        eight = (pixels >> (4 if raw == "I;12" else 8)).astype(np.uint8)
        return Image.fromarray(eight if key is None else np.where(pixels == key, 255, eight)).convert("RGB")
    if image.mode == "I":
        if image.format != "PPM":
            raise ImageError(f"{name} has 32-bit integer pixels, whose range is not known: {_CONVERT}")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")  # Pillow gives 0 to 65535
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(f"{name} has floating-point pixels outside 0 to 1, whose range is not known: {_CONVERT}")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    if key is not None and raw == "RGB;16B":
        raise ImageError(f"{name} has 16-bit colours of which one is transparent: {_CONVERT}")
    if key is not None and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    if image.mode == "La":
        image = image.convert("LA")
    if image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # most programs that write this leave the fourth byte empty
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
