"""Commands on archives say what they say of the files in them, bit for bit, and give each image an address."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_class_stripes
from tests.helpers.shards import write_shards, write_tar
from tests.helpers.terminal import vit
from vitcli import embed, load
from vitcli.data.sources import read_splits
from vitcli.inference.evaluate import evaluate


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a folder of photos and the same as shards."""
    root = tmp_path_factory.mktemp("place")
    write_tiny(root / "model")
    write_class_stripes(root / "photos", {"bird": 0, "cat": 1, "dog": 2}, each=5)
    write_shards(root / "shards", read_splits(root / "photos"), each=4)
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


def test_vectors_of_members_are_those_of_files() -> None:
    one = [found.vector for found in embed(["photos"], "model")]
    other = list(embed(["shards/train-{000..003}.tar"], "model"))
    assert np.array_equal(np.stack(one), np.stack([found.vector for found in other]))
    assert other[5].path == "shards/train-001.tar#000005.png"
    (again,) = embed([other[5].path], "model")
    assert np.array_equal(again.vector, one[5])
    labelled = list(embed(None, "model", data="shards"))
    assert [found.label for found in labelled] == ["bird"] * 5 + ["cat"] * 5 + ["dog"] * 5


def test_evaluation_of_shards_is_that_of_the_folder() -> None:
    one, other = (evaluate(load("model"), data, split="train") for data in ("photos", "shards"))
    assert np.array_equal(one.probabilities, other.probabilities)
    assert np.array_equal(one.labels, other.labels)


def test_a_broken_archive_is_one_failed_image_among_others() -> None:
    data = write_tar(Path("broken.tar"), {f"{i}.png": Path(f"photos/bird/{i}.png").read_bytes() for i in range(5)})
    data.write_bytes(data.read_bytes()[:3500])
    result = vit("predict -m model broken.tar photos/cat/0.png --jsonl")
    assert result.exit_code == 3
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["path"] for one in said] == ["broken.tar#0.png", "broken.tar#1.png", "broken.tar", "photos/cat/0.png"]
    assert ["error" in one for one in said] == [False, False, True, False]


def test_similar_pictures_among_members() -> None:
    assert vit("embed shards -m model -o e.npz").exit_code == 0
    result = vit("similar e.npz shards/train-002.tar#000009.png -m model -k 1 --json")
    assert "shards/train-002.tar#000009.png" in result.stdout
    assert result.exit_code == 0
    for among in ("photos", "shards", "'shards/*.tar'", "shards/train-002.tar"):
        found = vit(f"similar {among} shards/train-002.tar#000009.png -m model -k 1 --json")
        assert '"similarity": 1.0' in found.stdout or "0.99999" in found.stdout
        assert found.exit_code == 0
