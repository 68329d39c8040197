"""Random crops: timm's, of JPEGs that are decoded no larger than a crop needs; and how little that changes."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from vitcli.data.samples import FileSamples, Sample
from vitcli.images.copies import Copies, Rule, signatures
from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess
from vitcli.storage.records import Memory
from vitcli.training.augment import RandomCrop
from vitcli.training.seeds import reseed


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes and a camera's noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8))
    noisy = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> FileSamples:
    """JPEGs with odd sides, wide and high, of each kind of colour sampling, one of them turned; and a PNG."""
    folder = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
        ("wide.jpg", (1001, 747), {"subsampling": 2}),
        ("high.jpg", (653, 999), {"subsampling": 0}),
        ("turned.jpg", (1003, 750), {"subsampling": 1, "exif": turned}),
        ("turned-in-fours.jpg", (1003, 752), {"exif": turned}),
        ("long.jpg", (1397, 301), {"progressive": True}),
        ("gray.jpg", (805, 805), {}),
        ("plain.png", (301, 250), {}),
    ]
    for name, size, options in kinds:
        image = photo(*size)
        jpeg = {"quality": 92} if name.endswith("jpg") else {}
        (image.convert("L") if name.startswith("gray") else image).save(folder / name, **jpeg, **options)
    names = tuple(name for name, _, _ in kinds)
    return FileSamples(folder, names, np.zeros(len(names), np.int64))


def differences(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_of_an_image_at_hand_it_is_timms(interpolation: Any) -> None:
    image = photo(301, 200)
    theirs = RandomResizedCropAndInterpolation((32, 48), (0.3, 1.0), interpolation=interpolation)
    ours = RandomCrop((32, 48), 0.3, interpolation)
    for seed in range(12):
        reseed(seed)
        expected = theirs(image)
        reseed(seed)
        assert differences(ours(image), expected) == 0


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_a_crop_is_nearly_that_of_the_full_decode(photos: FileSamples, interpolation: Any) -> None:
    crop, sizes = RandomCrop((32, 32), 0.3, interpolation), set()
    for i, name in enumerate(photos.names):
        whole = photos.image(i)
        for seed in range(6):
            reseed(seed, i)
            expected = crop(whole)
            reseed(seed, i)
            difference = differences(crop(Sample(photos, i)), expected)
            reduced = name.endswith("jpg") and interpolation != "nearest"
            assert difference <= 0.25 if reduced else difference == 0, (name, seed, difference)
        sizes.add(photos.image(i, lambda *_: 4.9).size == whole.size)
    assert sizes == {True, False}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_whichever_way_it_is_turned(tmp_path: Path, orientation: int) -> None:
    """Of odd sides, the last row and column of the smaller decode reach over the edge: where, depends on the turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    crop, odd = RandomCrop((16, 16), 0.5, "bicubic"), (501, 379)
    scales = set()
    for size in (odd, (501, 376), (504, 379), (504, 376)):
        photo(168, 126).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{size}.jpg", quality=92, exif=exif)
        samples = FileSamples(tmp_path, (f"{size}.jpg",), np.zeros(1, np.int64))
        whole = samples.image(0)
        scales.add(round(whole.width / samples.image(0, lambda *_: 4).width))
        for seed in range(3):
            reseed(seed)
            expected = crop(whole)
            reseed(seed)
            assert differences(crop(Sample(samples, 0)), expected) <= 0.25, (size, seed)
    assert max(scales) == 4


def test_a_crop_of_a_copy_is_of_the_same_part(photos: FileSamples) -> None:
    """Drawn in the whole picture; resized twice, it differs by less than two levels."""
    crop, rule = RandomCrop((32, 32), 0.3, "bicubic"), Rule(Preprocess((32, 32)), least=0.3)
    store = Memory(rule.bytes)
    store.claim(map(str, map(photos.path, range(len(photos)))))
    copied = replace(photos, copies=Copies(rule, store, signatures(map(photos.path, range(len(photos))))))
    for i, name in enumerate(photos.names):
        for seed in range(4):
            reseed(seed, i)
            expected = crop(photos.image(i))
            for _ in ("made", "read"):
                reseed(seed, i)
                assert differences(crop(Sample(copied, i)), expected) <= 2, (name, seed)
        preprocess = Preprocess((32, 32), 0.9)
        assert differences(copied.reduced(i, preprocess), photos.reduced(i, preprocess)) <= 2, name


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_evaluation_sees_is_nearly_the_same(photos: FileSamples, mode: Any, channels: int) -> None:
    preprocess = Preprocess((32, 32), 0.9, mode, mean=(0.5,) * channels, std=(0.5,) * channels)
    for i, name in enumerate(photos.names):
        expected = preprocess.pixels(photos.image(i))
        found = photos.reduced(i, preprocess)
        assert found.shape == (32, 32, channels)
        assert differences(found, expected) <= 0.25 * name.endswith("jpg"), name


def test_no_more_is_decoded_than_that_needs(photos: FileSamples) -> None:
    """The size that is asked about is that of the upright picture; the answer is kept to."""
    for i, name in enumerate(photos.names):
        asked: list[tuple[int, int]] = []
        width, height = photos.image(i).size
        for times, scale in ((1.99, 1), (2, 2), (3.9, 2), (4, 4), (8, 8), (1000, 8)):

            def shrink(wide: int, high: int, asked: list[tuple[int, int]] = asked, times: float = times) -> float:
                asked.append((wide, high))
                return times

            found = open_image(photos.path(i), shrink=shrink).size
            expected = {"plain.png": 1, "turned.jpg": min(scale, 2)}.get(name, scale)  # 750 is no multiple of four
            assert found == (-(-width // expected), -(-height // expected)), (name, times)
        assert set(asked) <= {(width, height)}
        assert bool(asked) == name.endswith("jpg")


def test_a_tiny_jpeg_is_not_decoded_to_nothing() -> None:
    for side in (1, 3, 7, 9):
        file = io.BytesIO()
        Image.new("RGB", (side, side), "red").save(file, "JPEG")
        assert min(open_image(file.getvalue(), shrink=lambda *_: 100).size) >= 1
