"""Which TIFF and JPEG 2000 files Pillow reads right: told from their headers, before a pixel is decoded.

They may hold nearly anything: bits and bands of any number, signed, floating, other colours than RGB. Pillow takes some
of it for something else without a word (12 bits as 16, white for black, one band of two). What is let through was
compared with another reader; all else is refused under its name. Tags: TIFF 6.0 and its supplements; markers: ISO/IEC
15444-1, A.5.1.
"""

from collections.abc import Mapping
from numbers import Number
from typing import IO, Any

_GRAY, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_COLOURS = {4: "a transparency mask", 8: "CIE Lab colours", 9: "ICC Lab colours", 10: "ITU Lab colours"}
_COLOURS |= {32803: "a camera's raw mosaic", 34892: "a camera's linear raw", 32844: "LogL light", 32845: "LogLuv light"}
_BANDS: dict[int | None, tuple[int, str]] = {  # how many, and what they are called
    **dict.fromkeys(_GRAY, (1, "gray")),
    **{_RGB: (3, "RGB"), _PALETTE: (1, "a palette"), _CMYK: (4, "CMYK"), _YCBCR: (3, "YCbCr")},
}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_NUMBERS = {_SIGNED: "signed ", _FLOAT: "floating-point "}
_UNCOMPRESSED, _JPEG = 1, 7
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000)  # fax, LZW, JPEG, Deflate, PackBits, LZMA, Zstandard
_PREMULTIPLIED, _ALPHA = 1, 2  # meanings of a band beside the colours; 0: unspecified
_REC_601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)


def unread_tiff(file: IO[bytes]) -> str | None:
    """What the first picture of a TIFF has that is not read, as "16-bit floating-point pixels"; None: all is well.

    `file` is read from its start. Raises what Pillow raises on damaged tags.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    head = file.read(8)
    if head.startswith(b"MM\0+"):
        return "64-bit offsets in big-endian order (BigTIFF)"
    if head.startswith(b"II+"):
        head += file.read(8)
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    return _unread(tags, little=head.startswith(b"II"))


def unread_jpeg2000(file: IO[bytes]) -> str | None:
    """What a JPEG 2000 picture has that is not read, as "4 bands of 16 bits"; None: all is well.

    `file` is read from its start.
    """
    file.seek(0)
    head = file.read(1 << 16)
    size = head.find(b"\xff\x4f\xff\x51")
    if size < 0 or len(head) < size + 42:
        return None  # left to the decoder, which will find it damaged
    bands = int.from_bytes(head[size + 40 : size + 42])
    described = [head[at : at + 3] for at in range(size + 42, size + 42 + 3 * bands, 3)]
    if any(len(band) < 3 for band in described):
        return f"{bands} bands"  # more than a header of 64 KiB describes
    bits = {(band[0] & 127) + 1 for band in described}
    if any(band[0] & 128 for band in described):
        return f"{_counted(bands)}signed integer pixels, whose range is not known"
    if len(bits) > 1 or len({band[1:] for band in described}) > 1:
        return f"{bands} bands of different kinds"
    deepest = max(bits)
    if bands not in (1, 2, 3, 4) or not 8 <= deepest <= (16 if bands == 1 else 8):  # others come too dark or clipped
        return _bits(bands, deepest)
    if bands in (2, 4) and b"cdef" not in head[:size] and not (bands == 4 and b"\0\0\0\x0c" in _colour(head[:size])):
        return f"{bands} bands, of which the last has no stated meaning"
    return None


def _colour(boxes: bytes) -> bytes:
    """The start of the box that names the colour space, which is empty when there is none."""
    at = boxes.find(b"colr\1")
    return boxes[at + 7 : at + 11] if at >= 0 else b""


def _unread(tags: Mapping[int, Any], little: bool) -> str | None:
    colours, bands = _first(tags, 262, None), _first(tags, 277, 1)
    if 50706 in tags or colours in (32803, 34892) or _first(tags, 254, 0) & 1:
        return "a camera's raw picture, or a preview in front of another picture"
    if _first(tags, 32997, 1) != 1:
        return f"a volume of {_first(tags, 32997, 1)} slices"
    if colours in _COLOURS:
        return _COLOURS[colours]
    depths, kinds, extra = _all(tags, 258, (1,)), _all(tags, 339, (_UNSIGNED,)), _all(tags, 338, ())
    if len(set(depths)) > 1 or len(set(kinds)) > 1 or len(depths) not in (1, bands):
        return f"{bands} bands of different kinds"
    bits, kind = depths[0], kinds[0]
    if fault := _bands(colours, bands, extra):
        return f"{_bits(bands, bits, _NUMBERS.get(kind, ''))}, {fault}"
    pixels = _pixels(colours, bands, bits, kind, little)
    compression = _first(tags, 259, _UNCOMPRESSED)
    if pixels:
        return _counted(bands) + pixels
    if compression != _UNCOMPRESSED and ((kind == _FLOAT and not little) or bits == 12):
        return f"compressed {bits}-bit {_NUMBERS.get(kind, '')}pixels"
    if bands > 1 and _first(tags, 284, 1) == 2 and not _planes(colours, bits, extra, compression):
        return f"{_bits(bands, bits)}, one after the other"
    return _compressed(tags, colours, compression)


def _pixels(colours: int, bands: int, bits: int, kind: int, little: bool) -> str | None:
    """What is wrong with the numbers that pixels are."""
    white = " whose 0 is white" if colours == 0 else ""
    if kind == _FLOAT and (bits != 32 or colours != 1 or bands > 1):
        return f"{bits}-bit floating-point pixels{white}, whose range is not known"
    if kind == _SIGNED or (kind == _UNSIGNED and bits > 16):
        return f"{bits}-bit {_NUMBERS.get(kind, '')}integer pixels, whose range is not known"
    if kind not in (_UNSIGNED, _FLOAT):
        return f"{bits}-bit pixels that are neither integers nor floating-point numbers"
    if kind == _UNSIGNED and bits not in _depths(colours, bands, little):
        return f"{bits}-bit pixels{white}"
    return None


def _bands(colours: int | None, bands: int, extra: tuple[Any, ...]) -> str | None:
    """What is wrong with a number of bands; None: it is that of the colours, or one more for a transparency."""
    own, name = _BANDS.get(colours, (0, "unknown"))
    if not own:
        return "of colours that are not known"
    alpha = bands == own + 1 and extra in ((_PREMULTIPLIED,), (_ALPHA,)) and (colours in _GRAY or colours == _RGB)
    if alpha or (bands == own and not extra):
        return None
    return f"of which {name} explains {own}" if bands > own else f"where {name} has {own}"


def _depths(colours: int, bands: int, little: bool) -> tuple[int, ...]:
    """Bits of unsigned pixels that are read."""
    if colours == 1 and bands == 1:
        return (1, 2, 4, 8, 12, 16) if little else (1, 2, 4, 8, 16)
    if colours == _PALETTE or (colours == 0 and bands == 1):
        return (1, 2, 4, 8)
    return (8, 16) if colours in (_RGB, _CMYK) else (8,)


def _planes(colours: int | None, bits: int, extra: tuple[Any, ...], compression: int) -> bool:
    """Whether bands that lie one after the other are read."""
    if bits == 16:
        return not extra and compression != _UNCOMPRESSED
    return colours not in (*_GRAY, _YCBCR) and extra in ((), (_ALPHA,))


def _compressed(tags: Mapping[int, Any], colours: int | None, compression: int) -> str | None:
    if compression not in _COMPRESSIONS:
        return f"compression of kind {compression}"
    if colours == _CMYK and _first(tags, 332, 1) != 1:
        return "inks other than CMYK"
    if colours == _PALETTE and max(_all(tags, 320, (0,))) in range(1, 256):
        return "a palette of 8-bit values where 16 are due"
    if colours == _YCBCR:
        sampled = compression != _JPEG and _all(tags, 530, (2, 2)) != (1, 1)
        coefficients = _all(tags, 529, _REC_601)
        other = len(coefficients) != 3 or any(abs(a - b) > 1e-3 for a, b in zip(coefficients, _REC_601, strict=True))
        if sampled or other or _all(tags, 532, _FULL_RANGE) != _FULL_RANGE:
            return "YCbCr colours of an unusual kind"
    return None


def _bits(bands: int, bits: int, kind: str = "") -> str:
    return f"{bands} {'band' if bands == 1 else 'bands'} of {bits} {kind}{'bit' if bits == 1 else 'bits'}"


def _counted(bands: int) -> str:
    return "" if bands == 1 else f"{bands} bands of "


def _all(tags: Mapping[int, Any], tag: int, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """The numbers of a tag. Raises ValueError where it holds text or bytes, which no tag that is asked for may."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    if not all(one is None or isinstance(one, Number) for one in values):
        raise ValueError(f"its tag {tag} does not hold numbers")
    return values


def _first(tags: Mapping[int, Any], tag: int, default: Any) -> Any:
    value = _all(tags, tag, (default,))
    return value[0] if value else default
