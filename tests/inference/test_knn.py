"""k nearest neighbours against scikit-learn's, plain and weighted, and beside the few-shot table."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from tests.helpers.checkpoints import write_tiny
from tests.helpers.terminal import vit
from vitcli.errors import UsageError
from vitcli.inference.embed import embed
from vitcli.inference.knn import TEMPERATURE, knn, votes
from vitcli.metrics import wilson


def oracle(x: np.ndarray, y: np.ndarray, test: np.ndarray, k: int, *, weighted: bool) -> np.ndarray:
    """Classes by scikit-learn, cosine distances in float64."""
    weights = (lambda distances: np.exp((1 - distances) / TEMPERATURE)) if weighted else "uniform"
    found = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    return np.asarray(found.fit(x.astype(np.float64), y).predict(test.astype(np.float64)))


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_as_scikit_learn(seed: int, k: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    x, test = (rng.normal(size=(n, 6)).astype(np.float32) for n in (60, 40))
    y, truth = rng.integers(0, classes, 60), rng.integers(0, classes, 40)
    found = knn(x, y, test, truth, classes, k)
    for share, weighted in ((found.plain, False), (found.weighted, True)):
        correct = int((oracle(x, y, test, k, weighted=weighted) == truth).sum())
        assert share.accuracy == correct / 40
        assert share.interval == wilson(correct, 40)


def test_votes() -> None:
    found = votes(np.array([[0, 2, 2], [1, 1, 1]]), np.array([[1.0, 0.25, 0.5], [1, 2, 4]]), 3)
    np.testing.assert_array_equal(found, [[1, 0, 0.75], [0, 7, 0]])


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_images(k: int) -> None:
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(UsageError, match="there are 3 training images"):
        knn(x, np.arange(3), x, np.arange(3), 3, k)


def test_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 7)):
        for label, base in (("dark", 0), ("light", 90)):
            (tmp_path / "d" / split / label).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(base, base + 150, (6, 6, 3), np.uint8))
                picture.resize((70, 70)).save(tmp_path / "d" / split / label / f"{i}.png")
    model = write_tiny(tmp_path / "m")
    found = list(embed(model=model, data=tmp_path / "d"))
    sets = []
    for split in ("train", "test"):
        own = [one for one in found if one.split == split and one.vector is not None]
        sets += [np.stack([one.vector for one in own if one.vector is not None])]
        sets += [np.array([["dark", "light"].index(one.label or "") for one in own])]
    alone, both = (
        json.loads(vit(f"evaluate {model} --data {tmp_path / 'd'} --knn 5 {more} --json").stdout)
        for more in ("", "--few-shot 1,3")
    )
    for name, weighted in (("plain", False), ("weighted", True)):
        predicted = oracle(sets[0], sets[1], sets[2], 5, weighted=weighted)
        assert alone["knn"][name]["accuracy"] == (predicted == sets[3]).mean()
    assert (alone["knn"]["k"], alone["knn"]["images"], alone["n"], alone["results"]) == (5, 24, 14, [])
    assert both["knn"] == alone["knn"]
    assert [one["shots"] for one in both["results"]] == [1, 3]
    only = json.loads(vit(f"evaluate {model} --data {tmp_path / 'd'} --few-shot 1,3 --json").stdout)
    assert only == {**both, "knn": None}
    table = vit(f"evaluate {model} --data {tmp_path / 'd'} --knn 5 --few-shot 1").stdout
    assert "5 nearest of 24 images" in table
    assert "images a class" in table
    csv = vit(f"evaluate {model} --data {tmp_path / 'd'} --knn 5 --csv").stdout.splitlines()
    assert csv[1] == f"knn5,plain,{alone['knn']['plain']['accuracy']}"
    for line in ("--confusion x.png", "--calibrate", "--exact", "--split train", "--knn 25"):
        assert vit(f"evaluate {model} --data {tmp_path / 'd'} --knn 5 {line}").exit_code == 2, line
