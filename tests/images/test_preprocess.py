"""The preprocessing against its reference, timm's evaluation transform, and the bounds of its faster way."""

import contextlib
import io
import itertools
import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config

from vitcli.errors import CheckpointError
from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess, load

MODES = ("center", "squash", "border")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """The hardest image for rounding: every pixel independent."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with edges and a little sensor noise, as a camera gives at its own resolution."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    pixels += rng.normal(0, 4, (height, width, 1)).astype(np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def timm_transform(preprocess: Preprocess) -> Callable[[Image.Image], np.ndarray]:
    config = preprocess.to_config()
    config["input_size"] = tuple(config["input_size"])
    transform = create_transform(**config, is_training=False)
    return lambda image: transform(image).numpy()


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 47)])
@pytest.mark.parametrize("mode", MODES)
def test_exact_is_timms_transform_bit_for_bit(size: tuple[int, int], mode: str) -> None:
    # Landscape, portrait, odd, smaller than the crop, the crop itself, very long, one pixel.
    shapes = [(120, 90), (91, 121), (20, 20), (size[1], size[0]), (37, 260), (1, 1)]
    for interpolation, crop_pct in itertools.product(FILTERS, (0.875, 0.9, 1.0, 1.15)):
        preprocess = Preprocess(size, crop_pct, mode, interpolation)  # type: ignore[arg-type]
        reference = timm_transform(preprocess)
        for width, height in shapes:
            image = noise(width, height)
            ours, theirs = preprocess(image, exact=True), reference(image)
            assert ours.dtype == theirs.dtype == np.float32
            assert ours.shape == (3, *size)
            assert np.array_equal(ours, theirs), (interpolation, crop_pct, width, height)


def test_exact_is_timms_transform_at_the_usual_size() -> None:
    preprocess = Preprocess((224, 224), 0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for image in (noise(500, 375), photo(1201, 900)):
        assert np.array_equal(preprocess(image, exact=True), timm_transform(preprocess)(image))


def test_gray_models_see_what_timms_dataset_gives_them() -> None:
    preprocess = Preprocess((28, 28), 1.0, mean=(0.5,), std=(0.25,))
    image = noise(40, 31)
    expected = timm_transform(preprocess)(image.convert("L"))  # timm converts when it opens the file
    assert np.array_equal(preprocess(image, exact=True), expected)
    assert preprocess.pixels(image).shape == (28, 28, 1)


def test_channels_last_pixels_are_what_is_normalised() -> None:
    preprocess = Preprocess((24, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = preprocess.pixels(noise(100, 90))
    assert pixels.shape == (24, 32, 3)
    assert pixels.dtype == np.uint8
    expected = (pixels / 255 - preprocess.mean) / preprocess.std
    # float32 against float64 of numbers below 10
    np.testing.assert_allclose(preprocess(noise(100, 90)), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(224, 224), (160, 256)])
def test_resizing_the_crop_alone_differs_by_rounding(mode: str, size: tuple[int, int]) -> None:
    for interpolation, crop_pct in itertools.product(FILTERS, (0.875, 1.0, 1.15)):
        preprocess = Preprocess(size, crop_pct, mode, interpolation)  # type: ignore[arg-type]
        image = photo(613, 407)
        difference = np.abs(preprocess.pixels(image).astype(int) - preprocess.pixels(image, exact=True))
        assert difference.max() <= 2, (interpolation, crop_pct)  # two passes, each rounded to a whole level
        assert difference.mean() < 0.02


def test_nearest_pixels_are_the_same_ones_either_way() -> None:
    for width, height in ((64, 64), (97, 41), (20, 33)):
        preprocess = Preprocess((64, 64), 0.9, interpolation="nearest")
        image = noise(width, height)
        assert np.array_equal(preprocess.pixels(image), preprocess.pixels(image, exact=True))


@pytest.mark.parametrize(("mode", "orientation"), [("squash", 1), ("border", 1), *(("center", o) for o in range(1, 9))])
def test_large_jpegs_are_decoded_in_full(mode: str, orientation: int) -> None:
    """JPEG's reduced scales are 0.1 of 255 away on average, which changes the first class of a photograph in forty."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    preprocess = Preprocess((28, 32), 0.9, mode)  # type: ignore[arg-type]
    for seed, (width, height) in enumerate([(1023, 769), (901, 1337), (1601, 1205)]):
        data = jpeg(photo(width, height, seed), exif=exif.tobytes())
        assert open_image(data).size == ((width, height) if orientation < 5 else (height, width))
        default = load(data, preprocess) * np.reshape(preprocess.std, (3, 1, 1)) * 255
        exact = load(data, preprocess, exact=True) * np.reshape(preprocess.std, (3, 1, 1)) * 255
        assert np.abs(default - exact).max() <= 1.01  # rounding alone
        assert np.abs(default - exact).mean() < 0.005


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_the_default_differs_by_rounding_whatever_the_shape(crop_pct: float) -> None:
    """Pillow may resize the other axis first for a part than for the whole, which rounds other numbers."""
    noisy = noise(64, 64).resize((1208, 1208), Image.Resampling.BICUBIC)
    for width, height in ((671, 1138), (708, 1203), (263, 375), (276, 448), (1138, 671), (448, 276), (640, 480)):
        image = noisy.crop((0, 0, width, height))
        preprocess = Preprocess((224, 224), crop_pct)
        difference = np.abs(preprocess.pixels(image).astype(int) - preprocess.pixels(image, exact=True))
        assert difference.max() <= 2, (width, height)
        assert difference.mean() < 0.005, (width, height)


def test_load_is_decoding_and_preprocessing(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(photo(900, 700)))
    preprocess = Preprocess((96, 96))
    assert np.array_equal(load(path, preprocess, exact=True), timm_transform(preprocess)(Image.open(path)))
    assert np.array_equal(load(path, preprocess), load(path.read_bytes(), preprocess))
    assert np.array_equal(load(path, preprocess), preprocess(open_image(path)))


def test_exact_is_timms_transform_of_the_upright_picture(tmp_path: Path) -> None:
    """timm leaves a photograph lying as the sensor lay; we turn it, in the exact mode as well."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    path.write_bytes(jpeg(photo(300, 200), exif=exif.tobytes()))
    preprocess = Preprocess((96, 96))
    exact, transform = load(path, preprocess, exact=True), timm_transform(preprocess)
    assert np.array_equal(exact, transform(ImageOps.exif_transpose(Image.open(path))))
    assert not np.array_equal(exact, transform(Image.open(path)))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (20000, 30)])
@pytest.mark.parametrize("mode", MODES)
def test_extreme_aspect_ratios_cost_little_memory(size: tuple[int, int], mode: str, exact: bool) -> None:
    """60000 × 1 resized in full to a height of 256 would be 11.8 GB; the crop is known first."""
    image = Image.new("RGB", size, (10, 20, 30))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is None:
        pytest.skip("needs /proc")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (400 << 20), hard))
    try:
        pixels = Preprocess((224, 224), crop_mode=mode).pixels(image, exact=exact)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert pixels.shape == (224, 224, 3)
    assert pixels[111, 111].tolist() == [10, 20, 30]


def test_configs_round_trip_through_json_and_agree_with_timms_reading() -> None:
    preprocess = Preprocess((288, 256), 0.95, "border", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.4, 0.3))
    config = json.loads(json.dumps(preprocess.to_config()))
    assert Preprocess.from_config(config) == preprocess
    for cfg in (config, {"crop_mode": None}, {"input_size": [3, 64, 64], "interpolation": "lanczos", "tag": "x"}):
        theirs = resolve_data_config(pretrained_cfg=cfg)
        ours = Preprocess.from_config(cfg).to_config()
        assert ours == {name: list(value) if isinstance(value, tuple) else value for name, value in theirs.items()}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("crop_pct", value) for value in (0, -1, 1.6, True, "0.9", float("nan"), float("inf"), 10**400, 1e-300, [1])],
        *[
            ("input_size", value)
            for value in ([3, 0, 224], [3, 224], [3, 10**6, 10**6], [3, 224.0, 224], 224, [4, 8, 8])
        ],
        *[("crop_mode", value) for value in ("centre", "", 3, ["center"])],
        *[("interpolation", value) for value in ("evil", "random", 2, ["bicubic"])],
        *[("mean", value) for value in ("0.5", [0.5], [0.5, 0.5], ["0.5"] * 3, [None] * 3, 0.5, {"r": 1})],
        *[("std", value) for value in ([0.5, 0, 0.5], [0.5, 0.5, -1], [0.5, 0.5], [0.5, 0.5, float("inf")], [])],
    ],
)
def test_senseless_config_values_are_refused_by_name(field: str, value: object) -> None:
    config = {"input_size": [3, 224, 224], field: value}
    with pytest.raises(CheckpointError, match=field):
        Preprocess.from_config(config)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(Preprocess().to_config(), _json)))
def test_any_json_gives_a_preprocessing_or_one_clean_error(config: dict[str, object]) -> None:
    with contextlib.suppress(CheckpointError):
        preprocess = Preprocess.from_config(config)
        assert preprocess.pixels(Image.new("RGB", (5, 3)), exact=True).shape == (*preprocess.size, preprocess.in_chans)
