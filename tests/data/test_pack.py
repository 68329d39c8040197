"""`vit pack`: the same data set in shards, killed anywhere and gone on with, and what `vit check` says of damage."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.data import write_class_stripes, write_stripes
from tests.helpers.many_labels import write_quarters
from tests.helpers.process import environment
from vitcli.cli.app import app
from vitcli.data import pack as module
from vitcli.data.check import check
from vitcli.data.pack import pack
from vitcli.data.sources import open_data, read_splits
from vitcli.errors import DataError, UsageError
from vitcli.images.preprocess import Preprocess

SEEN = Preprocess((16, 16))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, first in (("train", 0), ("test", 50)):
        write_class_stripes(tmp_path / "photos" / split, {"a": 0, "b b": 1, "é": 2}, each=9, first=first)
    return tmp_path / "photos"


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix == ".tar"}


def manifest(root: Path) -> Path:
    (root / "m.csv").write_text(
        "path,label,split,group\n"
        + "".join(f"photos/train/a/{i}.png,x{i % 2},{'val' if i > 6 else 'train'},g{i // 2}\n" for i in range(9))
    )
    return root / "m.csv"


@pytest.mark.parametrize("kind", ["folders", "manifest", "several", "idx"])
def test_a_pack_is_the_data_it_was_made_of(tmp_path: Path, folder: Path, kind: str) -> None:
    (tmp_path / "idx").mkdir()
    write_stripes(tmp_path / "idx", np.arange(30) % 3, 12)
    makers: dict[str, Callable[[], Path]] = {
        "folders": lambda: folder, "manifest": lambda: manifest(tmp_path), "idx": lambda: tmp_path / "idx",
        "several": lambda: write_quarters(tmp_path / "quarters"),
    }  # fmt: skip
    data = makers[kind]()
    done = pack(data, tmp_path / "out", shards=4)
    one, other = read_splits(data), read_splits(tmp_path / "out")
    assert (one.classes, set(one.named)) == (other.classes, set(other.named))
    assert done.images == {split: len(samples) for split, samples in one.named.items()}
    for split, mine in one.named.items():
        theirs = other.named[split]
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert mine.groups == theirs.groups
        for i in range(len(mine)):
            assert np.array_equal(mine.reduced(i, SEEN), theirs.reduced(i, SEEN))


def test_the_split_that_is_drawn_is_the_same_and_costs_no_reading(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder / "train", tmp_path / "out")
    one = open_data(folder / "train")
    monkeypatch.setattr(module.FileSamples, "path", None)  # no image is opened
    other = open_data(tmp_path / "out")
    assert one.val.contents == other.val.contents
    assert one.train.labels.tolist() == other.train.labels.tolist()


def test_members_are_as_others_read_them(tmp_path: Path, folder: Path) -> None:
    """WebDataset groups by name up to the first dot: an image, a number, and what else there is."""
    pack(folder, tmp_path / "out", shards=3)
    names = sorted(contents(tmp_path / "out"))
    assert names == ["test-000.tar", "test-001.tar", "train-000.tar", "train-001.tar"]
    with tarfile.open(tmp_path / "out" / "train-001.tar") as archive:
        found = archive.getnames()
        assert found[:3] == ["000000018.png", "000000018.cls", "000000018.json"]
        cls, said = (archive.extractfile(found[i]) for i in (1, 2))
        assert cls is not None and said is not None  # noqa: PT018
        assert (cls.read(), json.loads(said.read())) == (b"2", {"label": "é", "file_name": "train/é/0.png"})


def test_larger_images_are_made_smaller_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, side in (("big.jpg", (400, 300)), ("big.png", (90, 200)), ("small.jpg", (40, 64))):
        path = tmp_path / "d" / name[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8)).save(path)
    done = pack(tmp_path / "d", tmp_path / "out", size=64)
    samples = read_splits(tmp_path / "out").named["train"]
    assert [samples.image(i).size for i in range(3)] == [(64, 85), (142, 64), (64, 40)]
    with tarfile.open(tmp_path / "out" / "train-000.tar") as archive:
        kept = archive.extractfile("000000002.jpg")
        assert kept is not None
        assert kept.read() == (tmp_path / "d" / "s" / "small.jpg").read_bytes()
    assert done.shards == 1


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path, folder: Path) -> None:
    (folder / "train" / "a" / "3.png").write_bytes(b"no image")
    (folder / "train" / "a" / "4.png").unlink()
    (folder / "train" / "a" / "4.png").mkdir()
    (folder / "train" / "a" / "5.png").write_bytes(b"")
    result = CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "out"), "--json"])
    assert result.exit_code == 3
    said = json.loads(result.stdout)
    assert said["images"] == {"train": 24, "test": 27}
    assert [one.split()[0].rpartition("/")[2] for one in said["left_out"]] == ["3.png", "5.png"]
    again = CliRunner().invoke(app, ["pack", str(folder), str(tmp_path / "out"), "--json"])  # all of it is there
    assert (again.exit_code, json.loads(again.stdout)) == (3, said | {"kept": 2})
    assert len(read_splits(tmp_path / "out").named["train"]) == 24


CHILD = "import sys; from vitcli.data.pack import pack; pack(sys.argv[1], sys.argv[2], size=20, shards=30)"


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    pack(folder, tmp_path / "whole", size=20, shards=30)
    out, rng = tmp_path / "out", np.random.default_rng(0)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(out)], env=environment())
        least = len(list(out.iterdir())) + rng.integers(12) if out.exists() else 1
        while child.poll() is None and not (out.exists() and len(list(out.iterdir())) > least):
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if out.exists() and not (out / "manifest.json").exists():
            with pytest.raises(DataError, match="half a pack"):
                open_data(out)
    done = pack(folder, out, size=20, shards=30)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
    assert 0 < done.kept < done.shards == 28


def test_every_moment_between_two_renames(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(folder, tmp_path / "whole", shards=3)
    real, left = os.replace, 0

    def failing(*args: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, "replace", failing)
    for before in range(8):
        left = before
        with pytest.raises(OSError, match="No space left"):
            pack(folder, tmp_path / f"out{before}", shards=3)
        left = 99
        pack(folder, tmp_path / f"out{before}", shards=3)
        assert contents(tmp_path / f"out{before}") == contents(tmp_path / "whole")


def test_another_pack_is_not_mixed_in(tmp_path: Path, folder: Path) -> None:
    pack(folder, tmp_path / "out")
    for change in ({"size": 16}, {"shards": 2}):
        with pytest.raises(UsageError, match="other data or settings"):
            pack(folder, tmp_path / "out", **change)
    (folder / "train" / "a" / "3.png").unlink()
    with pytest.raises(UsageError, match="the data changed"):
        pack(folder, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds something else"):
        pack(folder, tmp_path / "full")
    with pytest.raises(UsageError, match="lies in the data itself"):
        pack(folder, folder / "shards")


def test_damage_is_found(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    pack(folder, out, shards=4)
    assert not check(out, near=False).spoiled
    one = out / "train-000.tar"
    data = bytearray(one.read_bytes())
    data[700] ^= 1  # in a picture
    times = one.stat()
    one.write_bytes(data)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    (finding,) = [finding for finding in check(out, near=False).findings if finding.kind == "changed-shards"]
    assert finding.examples == ("train-000.tar",)
    with one.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"train-000\.tar is not as large as its manifest says"):
        read_splits(out)
    one.rename(out / "train-009.tar")
    with pytest.raises(DataError, match=r"shards are missing: 'train-000\.tar'"):
        read_splits(out)
