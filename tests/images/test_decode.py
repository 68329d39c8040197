"""A zoo of image files, each made here: what must be read, how, and what must be refused in one line."""

import errno
import io
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.data import rgb16_png
from tests.helpers.process import python
from vitcli.errors import ImageError
from vitcli.images import decode as decoding
from vitcli.images.decode import open_image

ORIENTATION = 0x0112


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green, blue, gray in reading order: shows every turn and flip."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 255, 0), (width // 2, 0, width, height // 2))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    image.paste((90, 90, 90), (width // 2, height // 2, width, height))
    return image


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean())


def one_line(error: pytest.ExceptionInfo[ImageError], name: str) -> str:
    text = str(error.value)
    assert text.startswith(name)
    assert "\n" not in text
    return text


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 1.0),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 1.0),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"big_tiff": True}, 0),
        ("PPM", {}, 0),
        ("GIF", {}, 0),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 2.0),
        ("JPEG2000", {}, 0),
    ],
)
def test_every_listed_format_whatever_its_name(
    format: str, options: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.jpg"
    path.write_bytes(saved(quadrants(), format, **options))
    image = open_image(path)
    assert image.mode == "RGB"
    assert difference(image, quadrants()) <= tolerance  # lossy formats: their own error


def turned(orientation: int) -> Image.Image:
    """What a camera stores, such that `orientation` turns it into `quadrants()`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    return quadrants() if undo is None else quadrants().transpose(undo)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}}.get(format, {})
    data = saved(turned(orientation), format, exif=exif.tobytes(), **options)
    assert difference(open_image(data), quadrants()) < 3  # JPEG and AVIF lose a little at the edges


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_turn_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert difference(open_image(saved(quadrants(), "PNG", exif=exif.tobytes())), quadrants()) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, on the EXIF data
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"MM\0*" + b"\xff" * 40,
        b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\xff\xff" * 20,
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\x08\0\0\0" + b"\x01\0" + struct.pack("<HHII", ORIENTATION, 2, 2**31, 7),
        b"Exif\0\0" + bytes(60_000),
    ],
)
def test_damaged_exif_spoils_nothing(exif: bytes) -> None:
    assert difference(open_image(saved(quadrants(), "JPEG", subsampling=0, exif=exif)), quadrants()) < 3
    assert difference(open_image(png_chunks(saved(quadrants(), "PNG"), {b"eXIf": exif})), quadrants()) == 0


def test_ten_megabytes_of_exif_are_read() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x9286] = b"x" * (10 << 20)  # the user's comment
    data = png_chunks(saved(turned(6), "PNG"), {b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0")})
    assert difference(open_image(data), quadrants()) == 0


def png_chunks(data: bytes, extra: dict[bytes, bytes]) -> bytes:
    """`data` with chunks put in after the header."""
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in extra.items()
    )
    return data[:33] + chunks + data[33:]


def ramp(dtype: str) -> np.ndarray:
    """Levels 0 to 255, each repeated, spread over the range of `dtype`."""
    return (np.tile(np.arange(256), (4, 1)).astype(np.uint32) * 257).astype(dtype)


def write_tiff(pixels: np.ndarray, sample_format: int) -> bytes:
    """A minimal gray TIFF in the byte order of `pixels`, since Pillow writes little-endian integers only."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width = pixels.shape
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, pixels.dtype.itemsize * 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, pixels.nbytes),
        (339, 3, sample_format),
    ]
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(order + ("I" if kind == 4 else "HH"), *((value,) if kind == 4 else (value, 0)))
        directory += struct.pack(order + "HHI", tag, kind, 1) + packed
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8 + pixels.nbytes)
    return head + pixels.tobytes() + directory + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: saved(Image.fromarray(ramp("uint16")), "PNG"), id="gray 16-bit PNG"),
        pytest.param(lambda: saved(Image.fromarray(ramp("uint16")), "TIFF"), id="gray 16-bit TIFF"),
        pytest.param(lambda: write_tiff(ramp(">u2"), 1), id="gray 16-bit TIFF, big-endian"),
        pytest.param(lambda: write_tiff((ramp("uint16") / 65535).astype("<f4"), 3), id="float TIFF, 0 to 1"),
        pytest.param(lambda: b"P5 256 4 65535\n" + ramp(">u2").tobytes(), id="gray 16-bit PGM"),
        pytest.param(lambda: rgb16_png(ramp(">u2")), id="RGB 16-bit PNG"),
    ],
)
def test_deep_images_keep_all_256_levels(data: Callable[[], bytes]) -> None:
    """Pillow's convert("RGB") clips these to 255 or makes them black."""
    image = open_image(data())
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], ramp("uint16") >> 8)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: write_tiff((ramp("uint16") / 255).astype("<f4"), 3), id="float, 0 to 257"),
        pytest.param(lambda: write_tiff(np.full((2, 2), np.nan, "<f4"), 3), id="float, NaN"),
        pytest.param(lambda: write_tiff(ramp("<i4"), 2), id="32-bit integers"),
    ],
)
def test_pixels_of_unknown_range_are_refused(data: Callable[[], bytes]) -> None:
    with pytest.raises(ImageError, match="range is not known") as error:
        open_image(data(), name="deep.tif")
    one_line(error, "deep.tif")


def test_transparency_lies_on_white() -> None:
    """Pillow's convert("RGB") drops alpha and shows the colour that was hidden under it."""
    rgba = Image.new("RGBA", (4, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 51))  # a fifth
    image = open_image(saved(rgba, "PNG"))
    assert [image.getpixel((x, 0)) for x in range(4)] == [
        (255, 255, 255),
        (255, 0, 0),
        (204, 204, 204),
        (255, 255, 255),
    ]

    la = Image.new("LA", (2, 1), (0, 0))
    la.putpixel((1, 0), (70, 255))
    assert [open_image(saved(la, "PNG")).getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (70,) * 3]


def test_transparent_palettes_and_colour_keys() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\0\xff"):
        image = open_image(saved(palette, "PNG", transparency=transparency))
        assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 200, 0)]
    assert open_image(saved(palette, "GIF", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(saved(palette, "PNG")).getpixel((0, 0)) == (200, 0, 0)
    keyed = png_chunks(saved(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"), {b"tRNS": struct.pack(">HHH", 9, 9, 9)})
    assert open_image(keyed).getpixel((0, 0)) == (255, 255, 255)


def test_one_bit_gray_and_cmyk() -> None:
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    for format in ("PNG", "TIFF", "PPM"):
        image = open_image(saved(bits, format))
        assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]
    assert open_image(saved(Image.new("L", (8, 8), 77), "PNG")).getpixel((3, 3)) == (77, 77, 77)
    for format in ("TIFF", "JPEG"):  # Pillow writes CMYK JPEGs inverted, with Adobe's marker
        red = open_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format)).getpixel((8, 8))
        assert np.abs(np.subtract(red, (255, 0, 0))).max() <= 4  # type: ignore[arg-type]


def test_ycck_is_read() -> None:
    """A CMYK JPEG whose Adobe marker says that its first three channels are YCC: other colours, no failure."""
    cmyk = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    transform = cmyk.index(b"Adobe") + 11
    ycck = open_image(cmyk[:transform] + b"\2" + cmyk[transform + 1 :])
    assert (ycck.mode, ycck.size) == ("RGB", (16, 16))
    assert ycck.getpixel((8, 8)) != open_image(cmyk).getpixel((8, 8))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_animations_show_their_first_frame(format: str) -> None:
    others = [Image.new("RGB", (64, 48), (0, 0, level)) for level in (40, 90)]
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}}.get(format, {})
    data = saved(quadrants(), format, save_all=True, append_images=others, **options)
    assert difference(open_image(data), quadrants()) < 4


def test_long_animations_cost_one_frame() -> None:
    frame = saved(Image.new("L", (200, 200), 5), "GIF")
    start = frame.index(b"\x2c")
    data = frame[:start] + frame[start:-1] * 10_000 + b";"
    began = time.monotonic()
    assert open_image(data).getpixel((0, 0)) == (5, 5, 5)
    assert time.monotonic() - began < 5


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 0.5, 0.99])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_truncated_files(format: str, share: float, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    data = saved(noise, format)
    path = tmp_path / f"half.{format.lower()}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError) as error:
        open_image(path)
    one_line(error, str(path))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\xff", "not an image"),
        (b"just some text, which is longer than a header", "not an image"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg/>", "SVG"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\xff\xd8\xff\xf7" + bytes(20), "JPEG-LS"),
        (b"P7\nWIDTH 4\n", "format that is not read"),
        (b"PF\n4 4\n-1.0\n" + bytes(192), "format that is not read"),
        (saved(Image.new("RGB", (300, 20)), "TGA"), "TGA"),
        (saved(Image.new("RGB", (32, 32)), "ICO"), "format that is not read"),
        (b"v/1\1\2\0\0\0" + bytes(40), "format that is not read"),
        (saved(Image.new("LA", (300, 20)), "TGA", compression="tga_rle"), "TGA"),
        (saved(Image.new("P", (30, 20)), "TGA", id_section=b"made by"), "TGA"),
        (b"8BPS\0\1" + bytes(20), "format that is not read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-LFS"),
        (b"PK\x03\x04" + bytes(40), "not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
        (b"\xff\xd8\xff\xe1\0", "damaged"),
        (b"P6 2 2 255\n", "damaged"),
        (b"P6 -1 2 255\n", "damaged"),
    ],
)
def test_what_is_no_image_says_what_it_is(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=said) as error:
        open_image(path)
    one_line(error, str(path))


def test_a_name_cannot_reach_the_terminal_unescaped() -> None:
    with pytest.raises(ImageError) as error:
        open_image(b"", name="a\x1b[31m\nb\u202e.png")
    assert str(error.value) == r"a\x1b[31m\nb\u202e.png is empty"


def declares(width: int, height: int) -> bytes:
    """A small PNG whose header claims this size."""
    data = saved(Image.new("L", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (8001, 8000)]
)
def test_bombs_are_refused_before_decoding(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than 64 million") as error:
        open_image(declares(width, height), name="bomb.png")
    assert str(width) in one_line(error, "bomb.png")
    assert "limit" not in str(error.value)  # which no command can raise


def test_one_limit_of_pixels_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("L", (300, 200)), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 50_000)
    with pytest.raises(ImageError, match=r"more than 0\.05 million"):
        open_image(data)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 60_000)
    assert open_image(data).size == (300, 200)
    large = saved(Image.new("1", (10_000, 9_500)), "PNG")  # above the limit at which Pillow itself would warn
    monkeypatch.setattr(decoding, "MAX_PIXELS", 95_000_000)
    assert open_image(large).size == (10_000, 9_500)


def test_files_too_large_to_be_images_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "endless.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    os.truncate(path, decoding.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match="larger than 512 MiB"):
        open_image(path)


def test_compressed_metadata_bombs() -> None:
    bomb = zlib.compress(bytes(100 << 20), 9)
    for chunk in ({b"zTXt": b"Comment\0\0" + bomb}, {b"iCCP": b"profile\0\0" + bomb}):
        data = png_chunks(saved(quadrants(), "PNG"), chunk)
        try:
            assert difference(open_image(data), quadrants()) == 0
        except ImageError as error:
            assert "too large" in str(error)  # noqa: PT017 (either outcome is fine, a crash is not)


def test_jpegs_of_ten_thousand_scans_are_refused_quickly() -> None:
    data = saved(quadrants(2000, 2000), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff", start + 20)]
    began = time.monotonic()
    with pytest.raises(ImageError, match="scans"):
        open_image(data[:start] + scan * 10_000 + data[start:])
    assert time.monotonic() - began < 5


def test_tiff_directories_that_refer_to_themselves() -> None:
    data = write_tiff(ramp("<u2"), 1)
    looping = data[:-4] + data[4:8]  # the next directory is this one
    assert open_image(looping).size == (256, 4)


def test_a_hundred_thousand_tiff_directories(tmp_path: Path) -> None:
    data = write_tiff(ramp("<u2"), 1)
    directory = data[struct.unpack("<I", data[4:8])[0] : -4]
    chain = bytearray(data[:-4])
    for _ in range(100_000):
        chain += struct.pack("<I", len(chain) + 4) + directory
    path = tmp_path / "chain.tif"
    path.write_bytes(chain + bytes(4))
    began = time.monotonic()
    assert open_image(path).size == (256, 4)
    assert "animated" in decoding.oddities(path)
    assert time.monotonic() - began < 5


def test_things_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    link = tmp_path / "loop.jpg"
    link.symlink_to(link)
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.jpg")
    server.close()
    cases = [
        (folder, "is a folder"),
        (pipe, "pipe or device"),
        (Path("/dev/zero"), "pipe or device"),
        (Path("socket.jpg"), "cannot be opened"),
        (tmp_path / "gone.jpg", "does not exist"),
        (folder / "gone.jpg" / "x", "does not exist"),
        (link, "cannot be opened"),
        (tmp_path / ("n" * 300), "cannot be opened"),
        (Path("a\0b"), "cannot be opened"),
    ]

    def check() -> None:
        for path, said in cases:
            with pytest.raises(ImageError, match=said):
                open_image(path)
        done.set()

    done = threading.Event()
    threading.Thread(target=check, daemon=True).start()
    assert done.wait(20), "waited for a pipe, or a case failed (see above)"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(saved(quadrants(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        open_image(path)


def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, to whom nothing is refused."""

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png cannot be opened: Permission denied"):
        open_image(tmp_path / "secret.png")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tif", tmp_path / "bad.jpg"
    good.write_bytes(saved(quadrants(), "TIFF"))
    bad.write_bytes(saved(quadrants(), "JPEG")[:200])
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for _ in range(5):
        kept.append(open_image(good))
        for path in (bad, tmp_path):
            with pytest.raises(ImageError):
                open_image(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_a_jpeg_imports_its_decoder_and_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(quadrants(), "JPEG"))
    code = f"""
import sys
from pathlib import Path
import vitcli.data.sources, vitcli.images.find
from vitcli.images.preprocess import Preprocess, load
load(Path({str(path)!r}), Preprocess())
print(*sys.modules)
"""
    modules = python("-c", code).stdout.split()
    assert "PIL.JpegImagePlugin" in modules
    assert not {"torch", "timm", "torchvision", "scipy", "PIL.WebPImagePlugin", "PIL.PngImagePlugin"} & set(modules)


_SEEDS = [saved(quadrants(24, 16), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much before it gives up
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_any_damage_gives_an_image_or_an_image_error(data: bytes, changes: list[tuple[int, int]], share: float) -> None:
    damaged = bytearray(data if share > 0.5 else data[: int(2 * share * len(data))])
    for position, value in changes:
        if damaged:
            damaged[position % len(damaged)] = value
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "MAX_PIXELS", 10**6)
            assert open_image(bytes(damaged)).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_disk_that_fails_while_it_is_read_is_not_called_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 512:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    class Place:
        def __str__(self) -> str:
            return "disk/a.png"

        def open(self) -> io.BytesIO:
            file = io.BytesIO()
            Image.effect_noise((90, 90), 60).save(file, "PNG")
            return Failing(file.getvalue())

    with pytest.raises(ImageError, match=r"^disk/a\.png cannot be opened: Input/output error$"):
        open_image(Place())  # type: ignore[arg-type]
