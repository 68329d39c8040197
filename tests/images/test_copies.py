"""Copies of images: how large, made once, and neither damage nor a changed original is overlooked."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcli.errors import ImageError
from vitcli.images import copies as module
from vitcli.images.copies import Copies, Rule, Store, signatures
from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess, load_reduced
from vitcli.storage.records import Folder, Memory

SEEN = Preprocess((8, 8), 0.9)
RULES = [Rule(SEEN), Rule(SEEN, reduced=True), Rule(SEEN, least=0.5, reduced=True)]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    noise(0).save(path, quality=90)
    return path


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (61, 83, 3), dtype=np.uint8))


class Kept(dict[str, bytes]):
    """A store that can be looked into."""

    lasting = False

    def read(self, key: str) -> bytes | None:
        return self.get(key)

    def write(self, key: str, record: bytes) -> None:
        self[key] = record

    def remove(self, key: str) -> None:
        self.pop(key, None)


def store_of(kind: str, rule: Rule, folder: Path, key: Path) -> Store:
    if kind == "folder":
        folder.mkdir(exist_ok=True)
        return Folder(folder)
    memory = Memory(rule.bytes)
    memory.claim([str(key)])
    return memory


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_made_once_and_read_again(
    photo: Path, tmp_path: Path, rule: Rule, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies(rule, store_of(kind, rule, tmp_path / "kept", photo), signatures([photo]))
    first = copies.copy(photo).pixels
    photo.unlink()
    monkeypatch.setattr(module, "open_image", None)
    np.testing.assert_array_equal(copies.copy(photo).pixels, first)
    again = pickle.loads(pickle.dumps(copies))  # as a data worker gets it that is not forked
    np.testing.assert_array_equal(again.copy(photo).pixels, first)


def test_what_is_kept(photo: Path) -> None:
    seen, reduced, part = (Copies(rule, Kept(), {}).copy(photo).pixels for rule in RULES)
    np.testing.assert_array_equal(seen, SEEN.pixels(open_image(photo)))
    np.testing.assert_array_equal(reduced, load_reduced(photo, SEEN))
    height, width, _ = part.shape
    assert RULES[2].pixels == -(-4 * 64 * 2 // 3)  # the smallest part of 4 by 3 still has 8 pixels on each side
    assert 0.85 * RULES[2].pixels < height * width <= RULES[2].pixels
    assert width / height == pytest.approx(83 / 61, rel=0.1)


@pytest.mark.parametrize("size", [(5, 4), (13, 13), (2000, 1), (1, 2000), (900, 3)])
def test_no_copy_is_larger_than_its_original_or_its_place(tmp_path: Path, size: tuple[int, int]) -> None:
    path, rule = tmp_path / "image.png", RULES[2]
    Image.new("RGB", size, "red").save(path)
    kept = Copies(rule, Kept(), {}).copy(path).pixels
    assert kept.shape[0] * kept.shape[1] <= min(rule.pixels, size[0] * size[1])
    assert kept.nbytes < rule.bytes


@pytest.mark.parametrize(
    "change",
    [
        lambda path: noise(1).save(path, quality=50),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: (noise(1).save(path.with_name("new.jpg"), quality=90), path.with_name("new.jpg").replace(path)),
    ],
)
def test_of_an_original_that_changed_it_is_made_again(photo: Path, change: object) -> None:
    store = Kept()
    Copies(RULES[2], store, signatures([photo])).copy(photo)
    before = dict(store)
    change(photo)  # type: ignore[operator]
    found = Copies(RULES[2], store, signatures([photo])).copy(photo).pixels
    np.testing.assert_array_equal(found, RULES[2].copy(photo).pixels)
    assert store != before
    photo.unlink()
    with pytest.raises(ImageError, match="does not exist"):  # a file that is gone is not read from its copy
        Copies(RULES[2], store, signatures([photo])).copy(photo)


def test_they_are_named_by_content(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An original that was touched, renamed or written again as it was is not decoded again, nor is its double."""
    (tmp_path / "kept").mkdir()
    store = Folder(tmp_path / "kept")
    expected = Copies(RULES[2], store, signatures([photo])).copy(photo).pixels
    monkeypatch.setattr(module, "open_image", None)
    data = photo.read_bytes()
    for change in (
        lambda: os.utime(photo, ns=(1, 1)),
        lambda: photo.write_bytes(data),
        lambda: photo.with_name("double.jpg").write_bytes(data),
        lambda: photo.rename(photo.with_name("renamed.jpg")),
    ):
        change()
        for path in tmp_path.glob("*.jpg"):
            np.testing.assert_array_equal(Copies(RULES[2], store, signatures([path])).copy(path).pixels, expected)


def test_one_that_was_written_over_with_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """And the copy of what was there before goes."""
    photo, rule = tmp_path / "photo.jpg", RULES[2]
    (tmp_path / "kept").mkdir()
    found = []
    for seed in (0, 1):
        noise(seed).save(photo, quality=90)
        photo.write_bytes(photo.read_bytes().ljust(1 << 15))
        os.utime(photo, ns=(1, 1))
        found.append(Copies(rule, Folder(tmp_path / "kept"), signatures([photo])).copy(photo).pixels)
    np.testing.assert_array_equal(found[1], rule.copy(photo).pixels)
    assert (found[0] != found[1]).any()
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == 2


def test_no_damage_is_taken_for_a_copy(photo: Path) -> None:
    store, known = Kept(), signatures([photo])
    expected = Copies(RULES[2], store, known).copy(photo).pixels
    (key,), (whole,) = store.keys(), store.values()
    damaged = [whole[:n] for n in (0, 1, 20, len(whole) // 2, len(whole) - 1)] + [bytes(len(whole))]
    for place in [*range(40), *range(40, len(whole), 97)]:
        damaged.append(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    for record in damaged:
        store[key] = record
        np.testing.assert_array_equal(Copies(RULES[2], store, known).copy(photo).pixels, expected)
        assert store[key] == whole


def test_rules_that_give_other_pixels_have_other_names() -> None:
    others = [Preprocess((8, 8), 1.0), Preprocess((8, 9), 0.9), Preprocess((8, 8), 0.9, "squash")]
    others += [Preprocess((8, 8), 0.9, interpolation="bilinear"), Preprocess((8, 8), 0.9, mean=(0.5,), std=(0.5,))]
    rules = [*RULES, *(Rule(one) for one in others), Rule(SEEN, least=0.4, reduced=True)]
    assert len({rule.name for rule in rules}) == len(rules)
    assert Rule(Preprocess((8, 8), 0.9, std=(1, 1, 1))).name == RULES[0].name  # pixels know of no normalisation
