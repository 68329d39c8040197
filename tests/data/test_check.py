"""`vit check`: every kind of trouble is found where it was put, and only there."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.data import rgb16_png, write_idx
from vitcli.cli.app import app
from vitcli.data.check import check, pairs, thumbnail


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A smooth picture that no other seed gives."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, train and test, 12 and 3 images each, all different."""
    seed = 0
    for split, n in (("train", 12), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(n):
                scene(seed).save(tmp_path / "photos" / split / label / f"{i}.png")
                seed += 1
    return tmp_path / "photos"


def kinds(folder: Path) -> dict[str, int]:
    return {finding.kind: finding.count for finding in check(folder).findings}


def test_a_clean_data_set(photos: Path) -> None:
    report = check(photos)
    assert report.findings == ()
    assert not report.spoiled
    assert report.counts == {"train": (12, 12), "test": (3, 3)}
    assert report.sizes == (96, 96, 80, 80)


def test_a_leak_is_known_by_its_pixels(photos: Path) -> None:
    """A copy saved in another format without loss is the same image."""
    Image.open(photos / "train" / "cat" / "0.png").save(photos / "test" / "cat" / "copy.bmp")
    report = check(photos)
    (leak,) = report.findings
    assert (leak.kind, leak.count, leak.grade) == ("leak", 1, "spoils a measurement")
    assert "0.png (train, cat) = " in leak.examples[0]
    assert "copy.bmp (test, cat)" in leak.examples[0]
    assert report.spoiled


def test_two_labels_and_plain_duplicates(photos: Path) -> None:
    shutil.copy(photos / "train" / "cat" / "1.png", photos / "train" / "dog" / "also.png")
    shutil.copy(photos / "train" / "dog" / "2.png", photos / "train" / "dog" / "again.png")
    assert kinds(photos) == {"two-labels": 1, "duplicates": 2}


def test_unreadable_files(photos: Path) -> None:
    whole = (photos / "train" / "cat" / "3.png").read_bytes()
    (photos / "train" / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    (photos / "test" / "dog" / "0.png").write_bytes(b"nothing")
    (finding,) = check(photos).findings
    assert (finding.kind, finding.count) == ("unreadable", 2)
    assert "3.png" in finding.examples[0]


def test_all_unreadable_files_are_named(photos: Path) -> None:
    for i in range(7):
        (photos / "train" / "cat" / f"{i}.png").write_bytes(b"nothing")
    (finding,) = check(photos).findings
    assert len(finding.examples) == finding.count == 7
    shown = CliRunner().invoke(app, ["check", str(photos)])
    assert "and 2 more; --json names all" in shown.stdout
    document = json.loads(CliRunner().invoke(app, ["check", str(photos), "--json"]).stdout)
    assert len(document["findings"][0]["examples"]) == 7


def test_one_class_is_nothing_to_learn(photos: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(photos / split / "dog")
    report = check(photos)
    assert "one-class" in kinds(photos)
    assert report.spoiled


def test_sixteen_bits_of_colour(photos: Path) -> None:
    gray = np.arange(100 * 90, dtype=">u2").reshape(100, 90)
    (photos / "train" / "cat" / "deep.png").write_bytes(rgb16_png(gray))
    assert kinds(photos) == {"16-bit": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((48, 40), Image.Resampling.LANCZOS),
        lambda image: Image.eval(image, lambda v: round(0.8 * v + 20)),
        lambda image: Image.open(_jpeg(image, 60)).convert("RGB"),
    ],
    ids=["smaller", "brighter", "recompressed"],
)
def test_near_copies(photos: Path, change: Any) -> None:
    with Image.open(photos / "train" / "cat" / "4.png") as image:
        change(image).save(photos / "test" / "cat" / "near.png")
    report = check(photos)
    assert {finding.kind: finding.count for finding in report.findings} == {"near-leak": 1}
    assert not report.spoiled
    assert check(photos, near=False).findings == ()


def _jpeg(image: Image.Image, quality: int) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file


def test_similar_pictures_are_told_apart_in_thousands() -> None:
    """3000 pictures, 50 of them a second time with noise: those pairs and no others, as comparing all would find."""
    rng = np.random.default_rng(0)
    scenes = [scene(seed, (16, 16)) for seed in range(3000)]
    noisy = [
        Image.fromarray(np.clip(np.asarray(scenes[i]) + rng.normal(0, 2, (16, 16, 3)), 0, 255).astype(np.uint8))
        for i in range(50)
    ]
    vectors = np.stack([v for v in map(thumbnail, scenes + noisy) if v is not None])
    brute = np.argwhere(np.triu(vectors @ vectors.T >= 0.995, k=1))
    assert len(brute) >= 50
    assert list(pairs(vectors)) == [tuple(pair) for pair in brute.tolist()]


def test_flat_pictures_are_not_compared() -> None:
    assert thumbnail(Image.new("RGB", (40, 40), "white")) is None


def test_classes(photos: Path) -> None:
    shutil.rmtree(photos / "test" / "dog")
    (photos / "test" / "lynx").mkdir()
    scene(99).save(photos / "test" / "lynx" / "0.png")
    for i in range(12):
        if i > 0:
            (photos / "train" / "dog" / f"{i}.png").unlink()
    assert kinds(photos) == {
        "class-without-training": 1,
        "class-not-measured": 1,
        "few-images": 1,
        "imbalance": 12,
    }


def test_names_in_two_spellings(photos: Path) -> None:
    (photos / "train" / "Cat").mkdir()
    for i in range(10):
        scene(200 + i).save(photos / "train" / "Cat" / f"{i}.png")
    assert kinds(photos)["similar-class-names"] == 1


@pytest.mark.parametrize("name", ["nan", "NaN", "<NA>", "None", "NULL", "NA", "NaT"])
def test_a_class_named_like_an_empty_cell(photos: Path, name: str) -> None:
    (photos / "train" / name).mkdir()
    for i in range(10):
        scene(200 + i).save(photos / "train" / name / f"{i}.png")
    assert kinds(photos)["empty-class-names"] == 1


def test_images_that_surprise(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = photos / "train" / "cat"
    scene(300).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10).save(folder / "deep.png")
    scene(301).convert("RGBA").save(folder / "alpha.png")
    scene(302).save(folder / "moving.gif", save_all=True, append_images=[scene(303)])
    scene(304, (20, 20)).save(folder / "tiny.png")
    found = kinds(photos)
    assert found == {"turned-by-exif": 1, "16-bit": 1, "transparent": 1, "animated": 1, "smaller": 1}
    assert not check(photos).spoiled


def test_huge_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcli.data.check.HUGE", 96 * 80 - 1)
    assert kinds(photos) == {"larger": 30}


def test_idx_and_manifest(tmp_path: Path, photos: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 12, 12))
    images[7] = images[3]
    (tmp_path / "idx").mkdir()
    write_idx(tmp_path / "idx", "train", images, np.arange(40) % 2)
    assert kinds(tmp_path / "idx") == {"duplicates": 1}
    rows = [f"{p},{p.parent.name},{p.parent.parent.name}" for p in photos.glob("*/*/*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    assert check(tmp_path / "list.csv").counts == {"train": (12, 12), "test": (3, 3)}


class TestCommand:
    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["check", *map(str, arguments)])

    def test_clean(self, photos: Path) -> None:
        result = self.invoke(photos)
        assert result.exit_code == 0, result.stderr
        assert "nothing found that would spoil a measurement" in result.stdout
        assert max(map(len, result.stdout.splitlines())) < 80

    def test_spoiled_is_3(self, photos: Path) -> None:
        shutil.copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "copy.png")
        result = self.invoke(photos, "--json")
        assert result.exit_code == 3
        document = json.loads(result.stdout)
        assert document["schema"] == "vit.check/1"
        assert document["findings"][0]["kind"] == "leak"
        assert document["counts"] == {"train": [12, 12], "test": [4, 3]}
        assert "→ remove them from train" in self.invoke(photos).stdout

    @pytest.mark.parametrize(("make", "message"), [(False, "does not exist"), (True, "holds no images")])
    def test_nothing_there(self, tmp_path: Path, make: bool, message: str) -> None:
        if make:
            (tmp_path / "empty").mkdir()
        result = self.invoke(tmp_path / "empty")
        assert result.exit_code == 1
        assert message in result.stderr
