"""MNIST-style IDX files, written here byte by byte."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcli.data import idx
from vitcli.data.samples import ArraySamples
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import DataError, UsageError
from vitcli.images.preprocess import Preprocess


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 4), dtype=np.uint8)


def write(folder: Path, split: str = "train", n: int = 60, labels: np.ndarray | None = None, gz: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    labels = np.arange(n, dtype=np.uint8) % 3 if labels is None else labels.astype(np.uint8)
    pixels = images(n, seed=len(split))
    for name, array in ((f"{split}-images-idx3-ubyte", pixels), (f"{split}-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)


@pytest.mark.parametrize("gz", [False, True])
def test_the_three_splits(tmp_path: Path, gz: bool) -> None:
    write(tmp_path, "train", gz=gz)
    write(tmp_path, "t10k", 9, gz=gz)
    data = open_data(tmp_path, val_fraction=0.2)
    assert data.kind == "idx"
    assert data.classes == ("0", "1", "2")
    assert len(data.train) + len(data.val) == 60
    assert data.test is not None
    assert len(data.test) == 9
    # Every image keeps its label and its place in the file.
    for samples, pixels in ((data.train, images(60, 5)), (data.val, images(60, 5)), (data.test, images(9, 4))):
        assert isinstance(samples, ArraySamples)
        assert samples.labels.dtype == np.int64
        assert np.array_equal(samples.images, pixels[samples.indices])
        assert np.array_equal(samples.labels, samples.indices % 3)
        name = samples.name(len(samples) - 1)
        assert Path(name.partition("[")[0]).is_file()
        assert name.endswith(f"[{samples.indices[-1]}]")


def test_images_are_gray_rgb_and_load_like_any_other(tmp_path: Path) -> None:
    write(tmp_path)
    data = open_data(tmp_path)
    assert isinstance(data.train, ArraySamples)
    image = data.train.image(3)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat(data.train.images[3][..., None], 3, axis=2))
    preprocess = Preprocess((5, 4), 1.0)
    assert np.array_equal(data.train.load(3, preprocess), preprocess(image))


def test_a_validation_file_is_used_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "val", 7)
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val), data.test) == (60, 7, None)


def test_labels_that_do_not_count_from_zero(tmp_path: Path) -> None:
    write(tmp_path, "train", 40, labels=np.tile([3, 26], 20))
    write(tmp_path, "test", 3, labels=np.array([26, 3, 26]))
    data = open_data(tmp_path)
    assert data.classes == ("3", "26")
    assert data.test is not None
    assert data.test.labels.tolist() == [1, 0, 1]


def test_class_names_in_a_file_or_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    labels = np.arange(60, dtype=np.uint8) % 3
    known = {hashlib.sha256(labels.tobytes()).hexdigest(): ("x", "y", "z")}
    monkeypatch.setattr(idx, "_KNOWN_LABELS", known)
    assert open_data(tmp_path).classes == ("x", "y", "z")
    (tmp_path / "classes.txt").write_bytes("\ufeffa b\r\nc\r\n\r\nd\r\n".encode())
    assert open_data(tmp_path).classes == ("a b", "c", "d")


def test_fashion_mnist_is_known_by_its_labels_only() -> None:
    (names,) = idx._KNOWN_LABELS.values()
    assert len(names) == 10
    assert (names[0], names[9]) == ("T-shirt/top", "Ankle boot")


@pytest.mark.parametrize(
    ("class_names", "said"),
    [
        (["a", "b"], "labels up to 2"),
        (["a", "b", "b"], "not all different"),
        (["a", "b", "c", "d"], "no training images of 'd'"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path: Path, class_names: list[str], said: str) -> None:
    write(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(class_names))
    with pytest.raises(DataError, match=said):
        open_data(tmp_path)


GOOD = idx_bytes(images(6))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an IDX file"),
        (b"<!DOCTYPE html><html>", "not an IDX file"),
        (GOOD[:-1], "shorter than its header"),
        (GOOD + b"\0", "longer than its header"),
        (idx_bytes(images(6), kind=13), "type 13"),
        (idx_bytes(np.zeros(6, np.uint8)) + bytes(20), "in 1 dimensions"),
        (idx_bytes(np.zeros((6, 0, 4), np.uint8)), "no images"),
        (idx_bytes(images(5)), "5 images but train-labels-idx1-ubyte 6 labels"),
        (struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 2**31), "claims"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, said: str) -> None:
    write(tmp_path, n=6)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as error:
        open_data(tmp_path)
    assert str(path) in str(error.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    write(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for data in (whole[:-9], whole[: len(whole) // 2], b"no gzip at all", whole[:30] + b"\xff" * 30 + whole[60:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            open_data(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "t10k")
    with pytest.raises(DataError, match="no training split, only test"):
        open_data(tmp_path)
    assert list(read_splits(tmp_path).named) == ["test"]
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        open_data(tmp_path)


def test_two_data_sets_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "emnist-digits-train")
    with pytest.raises(DataError, match="two data sets"):
        open_data(tmp_path)


def test_unpacked_files_beside_packed_ones_count_once(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, gz=True)
    assert len(read_splits(tmp_path).named["train"]) == 60


def test_the_fingerprint_follows_pixels_labels_and_split(tmp_path: Path) -> None:
    write(tmp_path)
    first = open_data(tmp_path).fingerprint
    assert open_data(tmp_path).fingerprint == first
    assert open_data(tmp_path, val_fraction=0.3).fingerprint != first
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    assert open_data(tmp_path).fingerprint != first
    (tmp_path / "classes.txt").unlink()
    assert open_data(tmp_path).fingerprint == first
    path = tmp_path / "train-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert open_data(tmp_path).fingerprint != first


@pytest.mark.parametrize(("name", "split"), [("Training", "train"), ("emnist-digits-testing", "test"), ("dev", "val")])
def test_splits_of_idx_files_have_the_usual_names(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path, name)
    assert set(read_splits(tmp_path).named) == {split}


def test_idx_files_and_images_that_are_passed_over_are_not_silent(tmp_path: Path) -> None:
    write(tmp_path, "train")
    (tmp_path / "cat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "cat" / "1.png")
    found = read_splits(tmp_path)
    assert found.left_out == (str(tmp_path / "cat" / "1.png"),)
    assert "no label is given: 1 image" in found.notes[0]
    with pytest.raises(UsageError, match="which says the splits"):
        read_splits(tmp_path, folders="classes")
    write(tmp_path, "more", 9)
    with pytest.raises(DataError, match="is 'more' train, val or test"):
        read_splits(tmp_path)
