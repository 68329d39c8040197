"""Parquet in Hugging Face's layout: the same data set as the folder, whatever lies in its columns, hostile files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.data import write_class_stripes
from tests.helpers.shards import png, write_tar
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import AmbiguousData, DataError, ImageError
from vitcli.images.decode import open_image
from vitcli.images.find import find_images, where
from vitcli.images.preprocess import Preprocess
from vitcli.storage import parquet as storage

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SEEN = Preprocess((16, 16))
NAMES = ["zebra", "ant", "cow"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_groups", storage.lru_cache(storage._groups.__wrapped__))
    return tmp_path / "cache" / "vitcli" / "rows"


def class_label(names: Any) -> dict[bytes, bytes]:
    """What the `datasets` library writes into a schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write(path: Path, images: list[bytes | None], each: int = 3, names: Any = None, **columns: Any) -> Path:
    """A file with groups of `each` rows."""
    paths = columns.pop("paths", [None] * len(images))
    image = [{"bytes": one, "path": name} for one, name in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(class_label(names) if names else None), path, row_group_size=each)
    return path


def test_rows_are_the_folder_that_they_were_made_of(tmp_path: Path) -> None:
    folder = write_class_stripes(tmp_path / "photos", {"a": 0, "b": 1, "c": 2}, each=7)
    found = read_splits(folder)
    source = found.named["train"]
    images = [Path(source.name(i)).read_bytes() for i in range(len(source))]
    labels = [found.classes[label] for label in source.labels]
    for k, part in enumerate((slice(0, 8), slice(8, 21))):
        write(tmp_path / "rows" / f"train-{k}.parquet", images[part], label=labels[part])
    one, other = open_data(folder), open_data(tmp_path / "rows")
    assert one.classes == other.classes
    for mine, theirs in ((one.train, other.train), (one.val, other.val)):
        assert mine.labels.tolist() == theirs.labels.tolist()
        for i in np.random.default_rng(0).permutation(len(mine)).tolist():
            assert np.array_equal(mine.reduced(i, SEEN), theirs.reduced(i, SEEN))
            assert mine.size(i) == theirs.size(i)


def test_two_kinds_of_shards_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.parquet", [png()], label=["a"])
    write_tar(tmp_path / "d" / "b.tar", {"0.png": png(), "0.txt": b"a"})
    with pytest.raises(AmbiguousData, match=r"two kinds, '\.parquet', '\.tar': name one kind, as '.*/\*\.parquet'"):
        read_splits(tmp_path / "d")
    assert len(read_splits(f"{tmp_path}/d/*.parquet").named["train"]) == 1


@pytest.mark.parametrize(
    ("columns", "names", "classes", "labels"),
    [
        ({"label": [2, 0, 1]}, NAMES, ("ant", "cow", "zebra"), [1, 2, 0]),
        ({"label": [2, 0, 10]}, None, ("0", "2", "10"), [1, 0, 2]),
        ({"label": ["b", "a", "b"]}, None, ("a", "b"), [1, 0, 1]),
        ({"label": pa.array(["b", "a", "b"]).dictionary_encode()}, None, ("a", "b"), [1, 0, 1]),
        ({"label": [2, 0, 1], "coarse": [0, 0, 0]}, NAMES, ("ant", "cow", "zebra"), [1, 2, 0]),
        ({"labels": [["b", "a"], [], ["b"]]}, None, ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        ({"label": [0, 2, 0]}, NAMES, ("cow", "zebra"), [1, 0, 1]),  # a class without images is none
    ],
)
def test_labels(tmp_path: Path, columns: Any, names: Any, classes: tuple[str, ...], labels: list[Any]) -> None:
    found = read_splits(write(tmp_path / "a.parquet", [png(i) for i in range(3)], 2, names, **columns))
    assert (found.classes, found.named["train"].labels.tolist()) == (classes, labels)


def test_a_test_split_whose_labels_are_kept_back_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train-0.parquet", [png(i) for i in range(3)], names=NAMES, label=[0, 1, 2])
    write(tmp_path / "d" / "test-0.parquet", [png(i) for i in range(2)], names=NAMES, label=[-1, -1])
    found = read_splits(tmp_path / "d")
    assert list(found.named) == ["train"]
    assert "left out, since their label is not told (-1): 2 images of test" in found.notes


@pytest.mark.parametrize(
    ("columns", "names", "said"),
    [
        ({"label": [0, 1, 3]}, NAMES, "row 2: label 3 is neither text nor the number of a class"),
        ({"label": [0, -2, 1]}, NAMES, "row 1: label -2"),
        ({"label": [0, None, 1]}, NAMES, "row 1: no label"),
        ({"label": [0.5, 1.5, 2.5]}, None, r"row 0: label 0\.5 is neither text"),
        ({"label": [True, False, True]}, None, "row 0: label True"),
        ({"label": ["a", " ", "b"]}, None, "row 1: label   is neither"),
        ({"label": [0, 1, 2]}, ["a", "a", "b"], "not all different"),
        ({"label": [0, 1, 2]}, ["a", 7, "b"], "not all different texts"),
        ({"labels": [["a", "a"], [], []]}, None, "row 0: a label twice"),
        ({"animal": ["a", "b", "c"]}, None, "no column `label`: 'image', 'animal'"),
        ({"label": ["a", "b", "c"], "labels": ["a", "b", "c"]}, None, "no column `label`|2 columns of labels"),
        ({"label": ["a", "b", "c"], "img": [b"1", b"2", b"3"]}, None, "2 columns of images, image, img"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, columns: Any, names: Any, said: str) -> None:
    path = write(tmp_path / "a.parquet", [png(i) for i in range(3)], names=names, **columns)
    with pytest.raises(DataError, match=said) as error:
        read_splits(path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_images_that_are_named_instead_of_held_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(png(1))
    (tmp_path / "out.png").write_bytes(png(2))
    paths = ["1.png", "../out.png", str(tmp_path / "out.png"), "gone.png", None]
    path = write(tmp_path / "in" / "a.parquet", [None] * 5, paths=paths, label=list("abcde"))
    samples = read_splits(path).named["train"]
    assert samples.image(0).getpixel((0, 0)) == (1, 90, 30)
    for i in range(1, 5):
        with pytest.raises(ImageError, match=rf"a\.parquet#{i}"):
            samples.image(i)


def test_any_order_costs_each_group_twice(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once and again it is kept, and from then on one image is read at a time; damage there is noticed."""
    path = write(tmp_path / "a.parquet", [png(i) for i in range(30)], each=10, label=["a", "b"] * 15)
    monkeypatch.setattr(storage, "IN_MEMORY", 0)
    samples, unpacked = read_splits(path).named["train"], []
    whole = storage.Table._unpacked
    monkeypatch.setattr(storage.Table, "_unpacked", lambda self, group: unpacked.append(group) or whole(self, group))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 10)).tolist()
    for i in order:
        assert samples.image(i).getpixel((0, 0)) == (i, 90, 30)
    assert sorted(unpacked) == [0, 0, 1, 1, 2, 2]
    for file in cache.rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            file.write_bytes(data)
    for i in order[:60]:
        assert samples.image(i).getpixel((0, 0)) == (i, 90, 30)


def test_rows_of_a_file_are_images_with_addresses(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [png(i) for i in range(5)] + [b"no image"], label=list("abcdef"))
    found = list(find_images([path]))
    assert [one.name for one in found] == [f"{path}#{i}" for i in range(6)]
    assert [open_image(one.source).getpixel((0, 0)) for one in found[:5]] == [(i, 90, 30) for i in range(5)]
    assert [where(one.name) for one in found] == [one.source for one in found]
    for address, said in ((found[5].name, "is not an image"), (f"{path}#6", "6 rows"), (f"{path}#x", "have numbers")):
        with pytest.raises(ImageError, match=said):
            open_image(next(find_images([address])).source)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", [png(i) for i in range(6)], label=list("ababab")).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "b.parquet"
    for attempt in range(150):
        data = bytearray(whole)
        if attempt % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            for _ in range(attempt % 5 + 1):
                data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        said = None
        try:
            samples = read_splits(path).named["train"]
            for i in range(len(samples)):
                samples.image(i)
        except (DataError, ImageError) as error:
            said = str(error)
        assert said is None or ("\n" not in said and "b.parquet" in said)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [png()], label=["a"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(Exception, match=r"Parquet needs the extra `data`: pip install 'vitcli\[data\]'"):
        read_splits(path)
