"""Tar shards: the same data set as the folder that they were made of, a fresh index, hostile contents."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.data import write_class_stripes
from tests.helpers.shards import png, write_shards, write_tar
from vitcli.data import index
from vitcli.data.samples import FileSamples, Splits
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import AmbiguousData, DataError, ImageError, UsageError
from vitcli.images.preprocess import Preprocess

CLASSES = {"ant": 0, "bee": 1, "cat": 2}
SEEN = Preprocess((16, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitcli" / "indexes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_class_stripes(tmp_path / "photos", CLASSES, each=7)


@pytest.fixture
def shards(tmp_path: Path, folder: Path) -> Path:
    return write_shards(tmp_path / "shards", read_splits(folder))


def labels_of(found: Splits) -> list[str]:
    return [found.classes[label] for samples in found.named.values() for label in samples.labels]


def test_shards_are_the_folder_that_they_were_made_of(folder: Path, shards: Path) -> None:
    """Classes, order, drawn validation split, pixels for training and for scoring."""
    one, other = open_data(folder), open_data(shards)
    assert one.classes == other.classes
    for mine, theirs in ((one.train, other.train), (one.val, other.val)):
        assert mine.labels.tolist() == theirs.labels.tolist()
        for i in range(len(mine)):
            assert np.array_equal(mine.reduced(i, SEEN), theirs.reduced(i, SEEN))
            assert np.array_equal(mine.load(i, SEEN), theirs.load(i, SEEN))
            assert mine.size(i) == theirs.size(i)


def test_what_names_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_splits(shards)
    assert whole.named["train"].names[0] == f"{shards}/train-000.tar#000000.png"
    for named in ("train-{000..004}.tar", "train-*.tar", "train-{000,001,002,003,004}.tar", "tr{ai,}n-00{0..4}.tar"):
        if "{ai" in named:
            with pytest.raises(DataError, match=r"trn-000\.tar does not exist"):
                read_splits(f"{shards}/{named}")
            continue
        found = read_splits(f"{shards}/{named}")
        assert (found.named["train"].fingerprint, found.root) == (whole.named["train"].fingerprint, shards)
    monkeypatch.chdir(shards)
    assert labels_of(read_splits("train-{004..000}.tar"))[0] == "cat"  # the order that is asked for
    assert len(labels_of(read_splits("train-001.tar"))) == 5
    for named, said in (("no-*.tar", "matches nothing"), ("{0..99999999}.tar", "more than 1000000 names")):
        with pytest.raises((DataError, UsageError), match=said):
            read_splits(named)


def test_names_of_shards_and_folders_say_the_split(tmp_path: Path) -> None:
    one = {"0.png": png(), "0.txt": b"a"}
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-0", "test/000", "data/test/001"):
        write_tar(tmp_path / "d" / f"{name}.tar", one)
    found = read_splits(tmp_path / "d")
    assert {split: len(samples) for split, samples in found.named.items()} == {"train": 2, "val": 1, "test": 2}
    write_tar(tmp_path / "d" / "extra.tar", one)
    with pytest.raises(AmbiguousData, match=r"and others, 'extra\.tar'"):
        read_splits(tmp_path / "d")


@pytest.mark.parametrize(
    ("beside", "classes"),
    [
        ([{".cls": b"2"}, {".cls": b"10\n"}], ("2", "10")),  # numbers in their order
        ([{".cls": b"b"}, {".cls": b"10"}], ("10", "b")),
        ([{".txt": "caf\u00e9".encode()}, {".txt": "cafe\u0301".encode()}], ("caf\u00e9",)),
        ([{".json": b'{"label": "x"}'}, {".json": b'{"label": 3}'}], ("3", "x")),
        ([{".cls": b"0", ".json": b'{"label": "zero"}', ".txt": b"a caption"}, {".json": b'"one"'}], ("one", "zero")),
        ([{".cls": b"4", ".txt": b"a caption", ".json": b'{"width": 3}'}, {".cls": b"5"}], ("4", "5")),
    ],
)
def test_labels(tmp_path: Path, beside: list[dict[str, bytes]], classes: tuple[str, ...]) -> None:
    members = {}
    for i, labels in enumerate(beside):
        members |= {f"d/{i}.png": png(i), **{f"d/{i}{kind}": text for kind, text in labels.items()}}
    assert read_splits(write_tar(tmp_path / "a.tar", members)).classes == classes


def test_numbers_have_the_names_that_classes_txt_gives_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(), "0.cls": b"1", "1.png": png(1), "1.cls": b"0"})
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    found = read_splits(tmp_path)
    assert (found.classes, found.named["train"].labels.tolist()) == (("dog", "cat"), [1, 0])
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(DataError, match="labels up to 1 but only 1 class names"):
        read_splits(tmp_path)


def test_several_labels_and_groups(tmp_path: Path) -> None:
    said = [{"labels": ["sea", "sky"], "group": 7}, {"labels": []}, {"labels": ["sky"], "group": "8"}]
    members = {}
    for i, one in enumerate(said):
        members |= {f"{i}.png": png(i), f"{i}.json": json.dumps(one).encode()}
    found = read_splits(write_tar(tmp_path / "a.tar", members))
    assert found.classes == ("sea", "sky")
    assert found.named["train"].labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert found.named["train"].groups == ("7", "", "8")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"0.png": png()}, "0.png has no label beside it"),
        ({"0.png": png(), "0.txt": b"a", "1.cls": b"b"}, "1.cls has no image beside it"),
        ({"0.png": png(), "0.txt": b" \n"}, "0.txt: no label"),
        ({"0.png": png(), "0.txt": b"\xff\xfe"}, "0.txt: not UTF-8"),
        ({"0.png": png(), "0.txt": b"one\ntwo"}, "several lines"),
        ({"0.png": png(), "0.txt": b"x" * 5000}, "5000 bytes are no label"),
        ({"0.png": png(), "0.json": b"{"}, "0.json: not JSON"),
        ({"0.png": png(), "0.json": b"[" * 100_000}, "0.json: "),
        ({"0.png": png(), "0.json": b'{"label": 1.5}'}, "label 1.5 is not text"),
        ({"0.png": png(), "0.json": b'{"label": true}'}, "label True is not text"),
        ({"0.png": png(), "0.json": b'{"label": "a", "labels": ["a"]}'}, "both label and labels"),
        ({"0.png": png(), "0.json": b'{"labels": ["a", "a"]}'}, "a label twice"),
        ({"0.png": png(), "0.txt": b"a", "0.jpg": png()}, "have one label between them"),
        ({"0.png": png(), "0.txt": b"a", "1.png": png(), "1.json": b'{"labels": ["a"]}'}, "a label and others labels"),
        ({"x\x1b[31m\n.png": png()}, r"x\\x1b\[31m\\n.png has no label"),
        ({"__MACOSX/0.png": png(), "notes.md": b"x"}, "gives no image a label"),
        ({}, "gives no image a label"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        read_splits(write_tar(tmp_path / "a.tar", members))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"and 5 more$"):
        read_splits(write_tar(tmp_path / "a.tar", {f"{i}.png": png() for i in range(25)}))


def test_an_index_is_read_again_until_the_archive_changes(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = labels_of(read_splits(shards))
    with monkeypatch.context() as patch:
        patch.setattr(index, "members", None)  # no header is read
        assert labels_of(read_splits(shards)) == whole
    first = shards / "train-000.tar"
    data, times = first.read_bytes(), first.stat()
    first.write_bytes(data.replace(b"ant", b"cow"))  # of the same size
    assert labels_of(read_splits(shards)) == ["cow" if i < 5 else label for i, label in enumerate(whole)]
    first.write_bytes(data)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))  # and of the same date
    assert labels_of(read_splits(shards)) == whole


def test_a_damaged_index_is_made_again(shards: Path, cache: Path) -> None:
    whole = labels_of(read_splits(shards))
    rng = np.random.default_rng(0)
    for attempt in range(60):
        for file in cache.iterdir():
            data = bytearray(file.read_bytes())
            if attempt % 3 == 0:
                data = data[: rng.integers(len(data))]
            else:
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
        assert labels_of(read_splits(shards)) == whole
        for file in cache.iterdir():
            file.unlink()


def test_an_index_beside_counts_unless_it_is_older(shards: Path, cache: Path) -> None:
    read_splits(shards)
    archive = shards / "train-000.tar"
    named = index.index_of(archive)
    known = index.signature(archive)
    assert known is not None
    lying = index.Index(
        named.names, named.starts, named.sizes, (("x",),), np.zeros_like(named.codes), ("",), named.in_group
    )
    index.write(index.beside(archive), lying, known)
    assert index.index_of(archive).labels == (("x",),)
    os.utime(archive, ns=(2 * 10**18, 2 * 10**18))
    assert index.index_of(archive).labels == named.labels


def test_a_shard_that_is_cut_off_is_named(shards: Path) -> None:
    path = shards / "train-002.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"train-002\.tar: it is (cut off|damaged)"):
        read_splits(shards)


def test_an_image_in_an_archive_passes_the_same_gates(tmp_path: Path) -> None:
    members = {"0.png": b"not an image", "0.txt": b"a", "1.png": png()[:40], "1.txt": b"b", "2.png": b"", "2.txt": b"b"}
    samples = read_splits(write_tar(tmp_path / "a.tar", members)).named["train"]
    for i, said in enumerate(("is not an image", "damaged", "is empty")):
        with pytest.raises(ImageError, match=rf"a\.tar#{i}\.png.*{said}"):
            samples.image(i)


def test_parts_of_shards_stay_what_they_were(shards: Path) -> None:
    samples = read_splits(shards).named["train"]
    assert isinstance(samples, FileSamples)
    mask = np.arange(len(samples)) % 3 == 1
    some, rest = samples.keep(mask), samples.keep(~mask)
    both = some.joined(rest)
    expected = [*np.flatnonzero(mask), *np.flatnonzero(~mask)]
    assert [both.name(i) for i in range(len(both))] == [samples.name(i) for i in expected]
    assert [both.image(i).tobytes() for i in range(len(both))] == [samples.image(i).tobytes() for i in expected]
    assert len({samples.fingerprint, some.fingerprint, rest.fingerprint, both.fingerprint}) == 4


def test_shards_beside_images_are_left_alone(folder: Path, shards: Path) -> None:
    (folder / "ant" / "old.tar").write_bytes((shards / "train-000.tar").read_bytes())
    assert read_splits(folder).kind == "folders"
