"""The map of the features: its trustworthiness (scikit-learn's), its components, and what the page shows."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness as oracle

from tests.helpers.checkpoints import LABELS, write_tiny
from tests.helpers.data import write_class_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.terminal import invoke
from vitcli.inference.embed import embed
from vitcli.inspection import feature_map
from vitcli.inspection.feature_map import placed, principal, trustworthiness


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed here does not decide what the tests see."""
    monkeypatch.setattr(feature_map.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(("n", "k"), [(4, 1), (30, 5), (30, 14), (300, 7)])
def test_trustworthiness_is_scikit_learns(n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    features = rng.normal(size=(n, 6))
    for points in (features[:, :2], rng.normal(size=(n, 2))):
        assert trustworthiness(features, points, k) == pytest.approx(oracle(features, points, n_neighbors=k))
    assert trustworthiness(features, features, k) == 1
    with pytest.raises(ValueError, match="neighbours"):
        trustworthiness(features, features[:, :2], n)


@pytest.mark.parametrize("shape", [(20, 6), (5, 9), (4, 1)])
def test_principal_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape)
    found, count = principal(features), min(2, shape[1])
    np.testing.assert_allclose(np.abs(found[:, :count]), np.abs(PCA(count).fit_transform(features)), atol=1e-9)
    assert found.shape == (len(features), 2)
    np.testing.assert_array_equal(principal(features), found)


def test_tsne_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE")
    monkeypatch.setattr(feature_map.importlib.util, "find_spec", lambda name: name == "openTSNE" or None)
    features = np.concatenate([np.random.default_rng(i).normal(8 * i, 1, (20, 4)) for i in range(3)])
    points, method = placed(features)
    assert method == "t-SNE (openTSNE)"
    assert trustworthiness(features, points, 5) > 0.9
    np.testing.assert_array_equal(placed(features)[0], points)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_class_stripes(tmp_path / "data", {name: i for i, name in enumerate(LABELS)}, each=5)


def test_the_map_is_of_what_embed_gives(data: Path, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", replace(SMALL, num_classes=3))
    result = invoke("inspect", model, "--map", "-d", data, "--json", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["exhibits"]["map"]
    features = {one.path: one.vector.astype(np.float64) for one in embed(data=data, model=str(model))}
    rows = {row[0]: row for row in found["rows"]}
    assert rows.keys() == features.keys()
    assert {Path(name).parent.name for name in rows} == {row[1] for row in rows.values()} == set(LABELS)
    expected = principal(np.stack([features[name] for name in rows]))
    np.testing.assert_allclose([row[2:4] for row in rows.values()], expected, atol=1e-4)
    trust = oracle(np.stack(list(features.values())), np.stack([rows[name][2:4] for name in features]), n_neighbors=5)
    assert f"trustworthiness {trust:.4f} for 5 neighbours, by two principal components" in found["findings"][0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<i tabindex="0"') == 15
    assert page.count("data:image/png;base64") == 15
    assert all(f"{row[1]}: {name}" in page for name, row in rows.items())
    assert "<script" not in page
    with (tmp_path / "out" / "map.csv").open() as file:
        assert len(list(csv.reader(file))) == 16
    assert (tmp_path / "out" / "map.png").stat().st_size > 5000


def test_two_models_lie_side_by_side(data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        write_tiny(tmp_path / name, replace(SMALL, num_classes=3), seed=seed)
    result = invoke(
        "inspect", "--before", tmp_path / "one", "--after", tmp_path / "other", "--map", "-d", data,
        "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert re.search(r"before: trustworthiness 0\.\d{4}", result.stdout)
    assert re.search(r"after: trustworthiness 0\.\d{4}", result.stdout)
    assert (tmp_path / "out" / "report.html").read_text().count('class="dots"') == 2


def test_too_few_images(data: Path, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", replace(SMALL, num_classes=3))
    result = invoke("inspect", model, "--map", "-d", data, "--count", 3, "--device", "cpu")
    assert result.exit_code == 2
    assert "--map lays out 4 images or more, not 3" in result.stderr
