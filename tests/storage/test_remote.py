"""Data behind addresses: the same as on a disk, fetched once, and nothing lost when the store fails."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.helpers import store as stores
from tests.helpers.data import write_class_stripes
from tests.helpers.shards import png, write_shards, write_tar
from tests.helpers.store import Store
from vitcli.data.pack import pack
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import DataError, ImageError, StoreError, VitError
from vitcli.files import open_file
from vitcli.images.decode import open_image
from vitcli.images.find import find_images, where
from vitcli.storage import blocks, remote
from vitcli.storage.remote import Remote


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, nothing remembered, and no long waits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_TOLD", {})
    monkeypatch.setattr(remote, "_FOLDERS", {})
    monkeypatch.setattr(remote, "_DOWN", {})
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "_blocks", remote.lru_cache(remote._blocks.__wrapped__))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """The address of a store in memory."""
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Store]:
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    with stores.running(tmp_path / "web") as store:
        yield store


def upload(folder: Path, address: str) -> str:
    """Copies a folder to a store; the folder's own address."""
    system = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe(f"{address}/{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"{address}/{folder.name}"


def same(one: Path | str, other: Path | str) -> None:
    """Both are one data set, image by image and split by split."""
    mine, theirs = open_data(one), open_data(other)
    assert mine.classes == theirs.classes
    for split in ("train", "val"):
        a, b = getattr(mine, split), getattr(theirs, split)
        assert a.labels.tolist() == b.labels.tolist()
        assert [a.image(i).tobytes() for i in range(len(a))] == [b.image(i).tobytes() for i in range(len(b))]


def test_folders_manifests_and_shards_are_those_of_a_disk(tmp_path: Path, memory: str) -> None:
    folder = write_class_stripes(tmp_path / "photos", {"a": 0, "b": 1, "c": 2}, each=12)
    same(folder, upload(folder, memory))
    assert open_data(folder).fingerprint == open_data(f"{memory}/photos").fingerprint  # a run goes on from either
    rows = "".join(f"{split}/{i}.png,{split}\n" for split in "abc" for i in range(9))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    remote._TOLD.clear(), remote._FOLDERS.clear()
    same(folder, upload(folder, memory))
    assert "left out, since no label is given: 9 images" in read_splits(f"{memory}/photos").notes[0]
    (folder / "metadata.csv").unlink()
    shards = write_shards(tmp_path / "shards", read_splits(folder), each=7)
    same(shards, upload(shards, memory))
    same(shards, f"{memory}/shards/train-{{000..005}}.tar")
    same(shards, f"{memory}/shards/*.tar")
    pack(folder, tmp_path / "packed", shards=3)
    same(folder, upload(tmp_path / "packed", memory))


def test_splits_by_folders_and_words_that_cannot_be_told(tmp_path: Path, memory: str) -> None:
    for split in ("train", "test"):
        write_class_stripes(tmp_path / "d" / split, {"a": 0, "b": 1})
    found = read_splits(upload(tmp_path / "d", memory))
    assert set(found.named) == {"train", "test"}
    assert found.named["test"].name(0) == f"{memory}/d/test/a/0.png"
    (tmp_path / "d" / "extra").mkdir()
    (tmp_path / "d" / "extra" / "1.png").write_bytes(png())
    remote._TOLD.clear(), remote._FOLDERS.clear()
    with pytest.raises(DataError, match="and other images in 'extra'"):
        read_splits(upload(tmp_path / "d", memory))


def test_addresses_name_images(tmp_path: Path, memory: str) -> None:
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").write_bytes(png(i))
    write_tar(tmp_path / "x.tar", {"in/7.png": png(7), "in/8.png": png(8)})
    address = upload(tmp_path / "d", memory)
    fsspec.filesystem("memory").put(str(tmp_path / "x.tar"), f"{memory}/x.tar")
    for named, shades in (
        (address, [0, 1, 2]), (f"{address}/1.png", [1]), (f"{address}/[02].png", [0, 2]),
        (f"{address}/{{2,0}}.png", [2, 0]), (f"{memory}/x.tar", [7, 8]), (f"{memory}/x.tar#in/8.png", [8]),
    ):  # fmt: skip
        found = list(find_images([named]))
        assert [open_image(one.source).getpixel((0, 0)) for one in found] == [(shade, 90, 30) for shade in shades]
        assert [where(one.name) for one in found] == [one.source for one in found]
    with pytest.raises(ImageError, match=r"memory://bucket/d/9\.png cannot be opened|does not exist"):
        open_image(next(find_images([f"{address}/9.png"])).source)


def test_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem, constants

    folder = write_class_stripes(tmp_path / "photos", {"a": 0, "b": 1, "c": 2}, each=9)
    write_shards(tmp_path / "hub" / "org" / "name" / "data", read_splits(folder), each=10)
    (tmp_path / "hub" / "org" / "name" / "README.md").write_text("a card")
    with stores.running(tmp_path / "hub", hub=True) as store:
        monkeypatch.setattr(constants, "ENDPOINT", store.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            store.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        HfFileSystem.clear_instance_cache()
        same(folder, "hf://datasets/org/name")
        found = read_splits("hf://datasets/org/name/data")
        assert found.named["train"].name(3) == "hf://datasets/org/name/data/train-000.tar#000003.png"


def test_a_web_server_is_read_by_ranges_and_once(tmp_path: Path, web: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(remote, "BLOCK", 1000)
    data = np.random.default_rng(0).integers(0, 256, 25_500, np.uint8).tobytes()
    (web.root / "a.bin").write_bytes(data)
    one = Remote(f"{web.url}/a.bin")
    assert one.read(4_200, 1_500) == data[4_200:5_700]
    ranges = [wanted for _, _, wanted in web.requests if wanted]
    assert ranges == ["bytes=4000-5999"]
    with open_file(one) as file:
        assert file.read() == data
    before = len(web.requests)
    remote._blocks.cache_clear()  # another process
    with open_file(one) as file:
        file.seek(-100, os.SEEK_END)
        assert file.read() == data[-100:]
    assert one.read(0, 25_500) == data
    assert len(web.requests) == before


def test_a_cache_that_was_damaged_is_not_believed(tmp_path: Path, web: Store) -> None:
    (web.root / "a.bin").write_bytes(b"x" * 5000)
    one = Remote(f"{web.url}/a.bin")
    assert one.read(0, 5000) == b"x" * 5000
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-100] + b"y" * 100)
    remote._blocks.cache_clear()
    assert one.read(0, 5000) == b"x" * 5000


@pytest.mark.parametrize("fault", [429, 500, 503, "reset", "short"])
def test_what_passes_is_waited_for(tmp_path: Path, web: Store, fault: object) -> None:
    write_tar(web.root / "a.tar", {f"{i}.png": png(i) for i in range(3)})
    web.faults = [fault] * 3
    found = list(find_images([f"{web.url}/a.tar"]))
    web.faults = [fault] * 2
    remote._blocks.cache_clear()
    assert [open_image(one.source).getpixel((0, 0)) for one in found] == [(i, 90, 30) for i in range(3)]


@pytest.mark.parametrize(
    ("fault", "said", "tries"),
    [(503, "the store answers 503, 7 times", 7), (403, "does not let us read it", 1), (404, "does not exist", 1)],
)
def test_what_does_not_pass_is_one_line(web: Store, fault: int, said: str, tries: int) -> None:
    web.always = fault
    with pytest.raises(ImageError, match=said) as error:
        open_image(Remote(f"{web.url}/a.png"))
    assert f"{web.url}/a.png" in str(error.value)
    assert "\n" not in str(error.value)
    assert sum(method == "HEAD" or bool(method) for method, *_ in web.requests) <= 2 * tries


def test_a_store_that_was_given_up_is_not_waited_for_again_and_again(web: Store) -> None:
    for i in range(4):
        (web.root / f"{i}.png").write_bytes(png(i))
    web.always = 503
    for i in range(3):
        with pytest.raises(StoreError, match="503, 7 times" if i == 0 else "503, as before"):
            open_image(Remote(f"{web.url}/{i}.png"))
    assert len(web.requests) == 2 * (7 + 1 + 1)  # HEAD and, since some stores do not know that, GET
    web.always = None
    assert open_image(Remote(f"{web.url}/3.png")).getpixel((0, 0)) == (3, 90, 30)
    web.faults = [503] * 4
    assert open_image(Remote(f"{web.url}/0.png")).getpixel((0, 0)) == (0, 90, 30)  # and is waited for again


def test_a_file_that_changes_is_another_one(web: Store) -> None:
    (web.root / "a.png").write_bytes(png(1))
    assert open_image(Remote(f"{web.url}/a.png")).getpixel((0, 0)) == (1, 90, 30)
    (web.root / "a.png").write_bytes(png(2))
    os.utime(web.root / "a.png", (2e9, 2e9))
    remote._TOLD.clear()  # the next run
    assert open_image(Remote(f"{web.url}/a.png")).getpixel((0, 0)) == (2, 90, 30)


def test_manifests_list_addresses(tmp_path: Path, web: Store) -> None:
    for i in range(2):
        (web.root / f"{i}.png").write_bytes(png(i))
    (tmp_path / "own.png").write_bytes(png(9))
    (tmp_path / "m.csv").write_text(f"path,label\n{web.url}/0.png,a\nown.png,b\n{web.url}/1.png,b\n")
    samples = read_splits(tmp_path / "m.csv").named["train"]
    assert [samples.image(i).getpixel((0, 0)) for i in range(3)] == [(0, 90, 30), (9, 90, 30), (1, 90, 30)]


def test_threads_share_what_was_fetched(web: Store) -> None:
    data = bytes(range(256)) * 20_000
    (web.root / "a.bin").write_bytes(data)
    one, found = Remote(f"{web.url}/a.bin"), []
    threads = [threading.Thread(target=lambda k=k: found.append(one.read(k * 300_000, 300_000))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(data[k * 300_000 : (k + 1) * 300_000] for k in range(8))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s4://bucket/x", "is no address that is read; known are s3://"),
        ("file:///etc/passwd", "is no address that is read"),
        ("simplecache::s3://b/x.png", "is no address that is read|does not exist"),
        ("memory://gone", "does not exist"),
    ],
)
def test_addresses_that_are_none(address: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_splits(address)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(VitError, match="gs:// needs gcsfs beside fsspec: pip install gcsfs"):
        read_splits("gs://bucket/photos")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(VitError, match=r"addresses need the extra `data`: pip install 'vitcli\[data\]'"):
        read_splits("s3://bucket/photos")


def test_the_cache_stays_within_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = blocks.Kept(tmp_path / "kept")
    monkeypatch.setattr(blocks, "_LOOK_EVERY", 1000)
    free = blocks.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(blocks.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(blocks, "SHARE", 0.6)
    for i in range(100):
        kept.write(str(i), bytes(300))
        if path := kept.path(str(i)):
            os.utime(path, (i, i))
    left = [i for i in range(100) if kept.read(str(i)) is not None]
    assert left[-1] == 99
    assert len(left) < 30
