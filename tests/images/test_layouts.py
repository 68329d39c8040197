"""Every layout of pixels that a file may have: read within rounding of an independent reader, or refused by name.

What a file holds is known here by construction; TIFFs are written by tifffile.
"""

import io
import itertools
import re
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitcli.errors import ImageError
from vitcli.images.decode import open_image

HEIGHT, WIDTH = 20, 33
Shares = np.ndarray  # of the full range, (H, W) or (H, W, bands), 0 to 1


def shares(bands: int | None = None) -> Shares:
    """A gradient that shows every turn, shift and exchange of bands."""
    gray = np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 7) % 256 / 255
    return gray if bands is None else np.stack([np.roll(gray, 5 * band, 1) for band in range(bands)], axis=2)


def on_white(colours: Shares, alpha: Shares) -> Shares:
    return colours * alpha[..., None] + 1 - alpha[..., None]


def check(data: bytes, expected: Shares, tolerance: float = 1.01) -> None:
    image = open_image(data)
    assert image.mode == "RGB"
    wanted = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
    assert image.size == wanted.shape[1::-1]
    assert np.abs(np.asarray(image) - 255.0 * wanted).max() <= tolerance


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        open_image(data, name="image")
    assert "damaged" not in str(error.value)
    return str(error.value)


# --- TIFF ---------------------------------------------------------------------------------------------------------


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def levels(values: Shares, dtype: str, bits: int | None = None) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind)
    most = 2**bits - 1 if bits else min(np.iinfo(kind).max, 2**53)
    return np.rint(values * most).astype(kind)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("more", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_gray_tiffs(order: str, white: str, dtype: str, more: dict[str, Any]) -> None:
    data = tiff(levels(shares(), dtype), photometric=white, byteorder=order, **more)
    expected = shares() if white == "minisblack" else 1 - shares()
    read = dtype == "u1" or (white == "minisblack" and dtype in ("u2", "f4"))
    if not read or (dtype == "f4" and order == ">" and "compression" in more):
        assert f"{8 * int(dtype[1])}-bit" in refusal(data)
    else:
        check(data, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14])
def test_gray_tiffs_of_unusual_depth(order: str, white: str, bits: int) -> None:
    pixels = levels(shares(), "u2" if bits > 8 else "u1", bits)
    if bits == 6:
        data = tiff(pixels, photometric=white, byteorder=order)
        data = data.replace(
            struct.pack(order + "HHIHH", 258, 3, 1, 8, 0), struct.pack(order + "HHIHH", 258, 3, 1, 6, 0)
        )
    else:
        pytest.importorskip("imagecodecs") if bits not in (1, 12) else None
        if bits == 12:
            data = packed_12_bits(pixels, order, white)
        else:
            data = tiff(
                pixels.astype(bool) if bits == 1 else pixels, photometric=white, byteorder=order, bitspersample=bits
            )
    if bits in (1, 2, 4) or (bits == 12 and order == "<" and white == "minisblack"):
        exact = pixels / (2**bits - 1)
        check(data, exact if white == "minisblack" else 1 - exact)
    else:
        assert f"{bits}-bit pixels" in refusal(data)


def packed_12_bits(pixels: np.ndarray, order: str, white: str) -> bytes:
    """Two pixels in three bytes, the first one's high bits first; a row begins with a whole byte."""
    rows = np.unpackbits(pixels.astype(">u2").view("u1").reshape(*pixels.shape, 2), axis=2)[..., 4:]  # (H, W, 12)
    packed = np.packbits(rows.reshape(len(rows), -1), axis=1)
    data = tiff(packed, photometric=white, byteorder=order)
    for tag, was, now in ((256, packed.shape[1], pixels.shape[1]), (258, 8, 12)):
        for kind, form in ((3, "HHIHxx"), (4, "HHII")):
            data = data.replace(
                struct.pack(order + form, tag, kind, 1, was), struct.pack(order + form, tag, kind, 1, now)
            )
    return data


@pytest.mark.parametrize("kind", [b"\2\0", b"\1\0", b"\7\0"], ids=["text", "bytes", "undefined"])
@pytest.mark.parametrize("tag", [254, 258, 259, 262, 277, 284, 338, 339])
def test_tags_that_hold_no_numbers_are_damage(tag: int, kind: bytes) -> None:
    """Pillow gives them as they are, and what they held was said on the terminal: 8 bits were a backspace."""
    pixels = np.zeros((4, 6, 4), np.uint8)
    data = bytearray(tiff(pixels, photometric="rgb", extrasamples=[2], planarconfig="contig", subfiletype=0))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = {struct.unpack_from("<H", data, at)[0]: at for at in range(start + 2, start + 2 + 12 * count, 12)}
    if tag not in entries:  # the last one is overwritten: order does not matter to the reader
        entries[tag] = max(entries.values())
        struct.pack_into("<HHII", data, entries[tag], tag, 3, 1, 8)
    data[entries[tag] + 2 : entries[tag] + 4] = kind
    with pytest.raises(ImageError) as error:
        open_image(bytes(data), name="image")
    assert str(error.value).isprintable()


def test_a_12_bit_tiff_is_as_bright_as_it_says() -> None:
    """Pillow puts 4095 where 65535 would be white, so that it came 16 times too dark."""
    check(packed_12_bits(np.full((4, 6), 4095), "<", "minisblack"), np.ones((4, 6)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(
    "more", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"compression": "zlib", "predictor": 2}]
)
def test_colour_tiffs(order: str, planes: str, dtype: str, more: dict[str, Any]) -> None:
    if "predictor" in more:
        pytest.importorskip("imagecodecs")
    for name, bands in (("rgb", 3), ("separated", 4)):
        pixels = levels(shares(bands), dtype)
        held = pixels if planes == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        data = tiff(held, photometric=name, planarconfig=planes, byteorder=order, **more)
        if planes == "separate" and dtype == "u2" and "compression" not in more:
            assert f"{bands} bands of 16 bits, one after the other" in refusal(data)
            continue
        exact = pixels / np.iinfo(pixels.dtype).max
        check(data, exact if bands == 3 else (1 - exact[..., :3]) * (1 - exact[..., 3:]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "bands", "planes", "extra"),
    list(
        itertools.product(
            ["u1", "u2", "f4"], [2, 4], ["contig", "separate"], ["unassalpha", "assocalpha", "unspecified"]
        )
    ),
)
def test_a_band_beside_the_colours(order: str, dtype: str, bands: int, planes: str, extra: str) -> None:
    alpha = np.clip(shares() * 2 - 0.5, 0, 1)
    colours = shares(bands - 1)
    if extra == "assocalpha":
        colours = colours * alpha[..., None]
    pixels = levels(np.dstack([colours, alpha]), dtype)
    held = pixels if planes == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    data = tiff(
        held, photometric="rgb" if bands == 4 else "minisblack", planarconfig=planes, extrasamples=[extra],
        byteorder=order,
    )  # fmt: skip
    contiguous = planes == "contig" and (dtype == "u1" or (dtype == "u2" and bands == 4))
    if extra != "unspecified" and (contiguous or (dtype, bands, planes, extra) == ("u1", 4, "separate", "unassalpha")):
        exact = pixels / np.iinfo(pixels.dtype).max
        shown = on_white(exact[..., :-1], exact[..., -1])
        if extra == "assocalpha":
            shown = exact[..., :-1] + 1 - exact[..., -1:]
        check(data, shown if bands == 4 else shown[..., 0], 3.01 if extra == "assocalpha" else 2.01)  # of 8 bits, twice
    else:
        assert re.search(rf"{bands} bands of {8 * int(dtype[1])}", refusal(data))


@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4"])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13, 224])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_pictures_of_many_bands_say_how_many(dtype: str, bands: int, planes: str) -> None:
    pixels = levels(shares(bands), dtype)
    held = pixels if planes == "contig" else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    said = refusal(tiff(held, photometric="minisblack", planarconfig=planes))
    assert f"{bands} bands of {8 * int(dtype[1])} " in said
    assert ("floating-point" in said) == (dtype[0] == "f")


@pytest.mark.parametrize("dtype", ["u4", "i1", "i2", "f2", "f4", "f8"])
def test_colours_of_unknown_range(dtype: str) -> None:
    assert "range is not known" in refusal(tiff(levels(shares(3), dtype), photometric="rgb"))


@pytest.mark.parametrize(
    ("photometric", "said"),
    [("cielab", "CIE Lab"), ("icclab", "ICC Lab"), ("logluv", "LogLuv"), ("cfa", "camera's raw")],
)
def test_other_colours_are_named(photometric: str, said: str) -> None:
    pixels = levels(shares(None if photometric == "cfa" else 3), "u1")
    assert said in refusal(tiff(pixels, photometric=photometric))


def test_palettes_ycbcr_pages_and_other_tiffs() -> None:
    rng = np.random.default_rng(0)
    indices, table = levels(shares(), "u1"), rng.integers(0, 65536, (3, 256)).astype("u2")
    check(tiff(indices, photometric="palette", colormap=table), table.T[indices] / 65535)
    assert "8-bit values" in refusal(tiff(indices, photometric="palette", colormap=(table // 257).astype("u2")))
    luma, blue, red = np.moveaxis(levels(shares(3), "u1").astype(float), 2, 0)
    colours = [luma + 1.402 * (red - 128), luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128)]
    expected = np.clip(np.dstack([*colours, luma + 1.772 * (blue - 128)]), 0, 255) / 255
    check(tiff(levels(shares(3), "u1"), photometric="ycbcr"), expected)
    stack = np.stack([levels(shares(), "u1")] * 3)
    for order in "<>":
        check(tiff(stack, photometric="minisblack", byteorder=order), shares())  # pages: the first one
    check(tiff(stack, photometric="minisblack", bigtiff=True, byteorder="<"), shares())
    assert "BigTIFF" in refusal(tiff(stack, photometric="minisblack", bigtiff=True, byteorder=">"))
    assert "volume of 3 slices" in refusal(tiff(stack, photometric="minisblack", volumetric=True))
    assert "preview" in refusal(tiff(stack[0], photometric="minisblack", subfiletype=1))


# --- PNG ----------------------------------------------------------------------------------------------------------


def png(samples: np.ndarray, depth: int, colours: int, extra: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    rows = []
    for row in samples.reshape(len(samples), -1):
        if depth >= 8:
            rows.append(row.astype(f">u{depth // 8}").tobytes())
        else:
            rows.append(np.packbits((row[:, None] >> np.arange(depth)[::-1]) & 1).tobytes())
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colours, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_pngs_with_and_without_a_transparent_level(depth: int) -> None:
    most = 2**depth - 1
    samples = np.rint(shares() * most).astype(int)
    check(png(samples, depth, 0), samples / most)
    for key in {0, 1, most // 3, most // 2, int(samples[3, 3]), most}:
        expected = np.where(samples == key, 1, samples / most)
        check(png(samples, depth, 0, [(b"tRNS", struct.pack(">H", key))]), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_pngs(depth: int) -> None:
    rng = np.random.default_rng(0)
    samples = np.rint(shares() * (2**depth - 1)).astype(int)
    table, alpha = rng.integers(0, 256, (2**depth, 3)), rng.integers(0, 256, 2**depth)
    palette = (b"PLTE", table.astype("u1").tobytes())
    check(png(samples, depth, 3, [palette]), table[samples] / 255)
    expected = on_white(table[samples] / 255, alpha[samples] / 255)
    check(png(samples, depth, 3, [palette, (b"tRNS", alpha.astype("u1").tobytes())]), expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_pngs(depth: int) -> None:
    most = 2**depth - 1
    samples = np.rint(shares(4) * most).astype(int)
    exact = samples / most
    check(png(samples[..., :3], depth, 2), exact[..., :3])
    check(png(samples, depth, 6), on_white(exact[..., :3], exact[..., 3]))
    check(png(samples[..., [0, 3]], depth, 4), on_white(exact[..., :1], exact[..., 3])[..., 0])
    key = samples[3, 3, :3]
    keyed = png(samples[..., :3], depth, 2, [(b"tRNS", struct.pack(">HHH", *key))])
    if depth == 8:
        check(keyed, np.where((samples[..., :3] == key).all(axis=2, keepdims=True), 1, exact[..., :3]))
    else:  # Pillow compares high bytes alone
        assert "16-bit colours of which one is transparent" in refusal(keyed)


# --- BMP ----------------------------------------------------------------------------------------------------------


def bmp(
    pixels: bytes, size: tuple[int, int], bits: int, *, compression: int = 0, header: int = 40,
    masks: tuple[int, ...] = (), palette: bytes = b"",
) -> bytes:  # fmt: skip
    """`size` is (width, height), negative height: top row first."""
    head = struct.pack("<IiiHHIIiiII", header, *size, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    if header == 40:
        head += packed
    else:
        head = (head + packed).ljust(header, b"\0")
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + palette + pixels


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
RGBA = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("masks", [BGRA, RGBA])
@pytest.mark.parametrize("alpha", ["none", "full", "mixed"])
def test_32_bit_bmps(header: int, masks: tuple[int, ...], alpha: str) -> None:
    colours = levels(shares(3), "u1")
    fourth = {"none": 0 * colours[..., 0], "full": 0 * colours[..., 0] + 255, "mixed": levels(shares(), "u1")}[alpha]
    ordered = colours[..., ::-1] if masks == BGRA else colours
    data = np.dstack([ordered, fourth])[::-1].tobytes()
    expected = shares(3) if alpha == "none" else on_white(colours / 255, fourth / 255)
    check(bmp(data, (WIDTH, HEIGHT), 32, compression=3, header=header, masks=masks), expected)
    if masks == BGRA:  # no bit fields: the fourth byte means nothing
        check(bmp(data, (WIDTH, HEIGHT), 32), shares(3))


@pytest.mark.parametrize("widths", [(5, 6, 5), (5, 5, 5), (4, 4, 4)])
@pytest.mark.parametrize("header", [40, 124])
def test_16_bit_bmps(widths: tuple[int, int, int], header: int) -> None:
    size = (WIDTH - 1, HEIGHT)
    most = 2 ** np.array(widths) - 1
    parts = np.rint(shares(3)[:, :-1] * most).astype(int)
    shifts = (widths[1] + widths[2], widths[2], 0)
    packed = sum(parts[..., band] << shifts[band] for band in range(3))
    masks = tuple(int(most[band]) << shifts[band] for band in range(3))
    data = bmp(packed[::-1].astype("<u2").tobytes(), size, 16, compression=3, header=header, masks=masks)
    if widths == (4, 4, 4):
        assert "bitfields" in refusal(data)
    else:
        check(data, parts / most, 1.6)  # Pillow's five bits are shifted, not rounded
    if widths == (5, 5, 5):
        check(bmp(packed[::-1].astype("<u2").tobytes(), size, 16), parts / most, 1.6)


def test_palette_and_run_length_bmps() -> None:
    table = np.random.default_rng(0).integers(0, 256, (256, 3))
    palette = np.pad(table[:, ::-1], ((0, 0), (0, 1))).astype("u1").tobytes()
    for bits in (1, 4, 8):
        indices = np.rint(shares() * (2**bits - 1)).astype("u1")
        rows = np.packbits(((indices[..., None] >> np.arange(bits)[::-1]) & 1).reshape(HEIGHT, -1).astype("u1"), axis=1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        colours = palette[: 4 * 2**bits]
        check(bmp(rows[::-1].tobytes(), (WIDTH, HEIGHT), bits, palette=colours), table[indices] / 255)
        check(bmp(rows.tobytes(), (WIDTH, -HEIGHT), bits, palette=colours), table[indices] / 255)
    runs = b"".join(b"".join(bytes([1, level]) for level in row) + b"\0\0" for row in indices[::-1])
    check(bmp(runs + b"\0\1", (WIDTH, HEIGHT), 8, compression=1, palette=palette), table[indices] / 255)
    skipping = b"\3\5\0\2\2\1\4\6\0\1"
    assert "skips pixels" in refusal(bmp(skipping, (10, 4), 8, compression=1, palette=palette))
    for bits, compression in ((2, 0), (64, 0), (0, 4), (0, 5), (24, 11)):
        assert "not read" in refusal(bmp(bytes(9000), (WIDTH, HEIGHT), bits, compression=compression))


# --- others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 100, 255, 256, 1023, 4095, 65535])
def test_portable_maps_of_any_depth(most: int) -> None:
    for kind, values in ((b"P5", shares()), (b"P6", shares(3))):
        pixels = np.rint(values * most).astype(">u2" if most > 255 else "u1")
        check(b"%s %d %d %d\n" % (kind, WIDTH, HEIGHT, most) + pixels.tobytes(), pixels / most)


def test_jpegs_of_more_than_8_bits_are_not_damaged() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xc0") + 4] = 12
    assert "12-bit" in refusal(bytes(data))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg2000_of_other_depths_is_named(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(levels(shares(), "u1")).convert(mode).save(file, "JPEG2000")
    check(file.getvalue(), shares())
    data = bytearray(file.getvalue())
    first = data.index(b"\xff\x4f\xff\x51") + 42
    bands = len(mode)
    for described, said in ((0x87, "signed"), (11, "12 bits"), (3, "4 bits")):
        data[first : first + 3 * bands : 3] = bytes([described]) * bands
        if (mode, described) != ("L", 11):
            assert said in refusal(bytes(data))


# --- HEIC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_upright(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    turns = dict(zip(range(2, 9), (0, 3, 1, 5, 2, 6, 4), strict=True))  # what undoes each, by Pillow's numbers
    upright = Image.fromarray(levels(shares(3), "u1")).resize((96, 64))
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow_heif.from_pillow(stored).save(file, exif=exif.tobytes(), quality=-1)
    shown = open_image(file.getvalue())
    assert shown.size == upright.size
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(upright)).mean() < 12
    unturned = np.abs(np.asarray(shown.transpose(Image.Transpose.ROTATE_180)).astype(int) - np.asarray(upright))
    assert unturned.mean() > 30


def test_heic_without_its_decoder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    for brand in (b"heic", b"heix", b"hevc", b"mif1"):
        said = refusal(b"\0\0\0\x20ftyp" + brand + b"\0\0\0\0mif1heic")
        assert "HEIC" in said
        assert "vitcli[heif]" in said


def test_avif_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    file = io.BytesIO()
    Image.fromarray(levels(shares(), "u1")).save(file, "AVIF", quality=100)
    data = file.getvalue()
    check(data, shares(), 4)
    assert data[8:12] == b"avif"
    check(data[:8] + b"mif1" + data[12:], shares(), 4)  # the general brand first, "avif" among the compatible ones
