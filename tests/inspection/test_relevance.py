"""Deletion and insertion: curves of a map that is right, of one that is not, and what `vit inspect` says of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import marked
from tests.helpers.checkpoints import TINY, write_tiny
from tests.helpers.terminal import invoke, vit
from vitcli.inspection.faithfulness import SHARES, curves, likeness, ranks
from vitcli.inspection.look import inspect
from vitcli.inspection.relevance import Relevance, exhibit, relevance


class Bright(nn.Module):
    """Class 0's logit is four times the sum of the cell in the middle of 3×3 cells of 2 pixels; class 1's is 0."""

    def forward(self, x: Tensor) -> Tensor:
        there = 4 * x[:, :, 2:4, 2:4].mean(dim=(1, 2, 3))
        return torch.stack([there, torch.zeros_like(there)], dim=1)


def test_curves_fall_and_rise_where_the_evidence_is() -> None:
    x = torch.ones(2, 1, 6, 6)
    maps = torch.zeros(2, 3, 3)
    maps[0, 1, 1] = 1  # right: the middle first
    maps[1] = 1
    maps[1, 1, 1] = 0  # wrong: the middle last
    found = curves(Bright(), x, torch.tensor([0, 0]), maps, (3, 3))
    there, gone = torch.tensor(4.0).sigmoid().item(), 0.5
    np.testing.assert_allclose(found.deletion[0], [there] + [gone] * 10, rtol=1e-6)
    np.testing.assert_allclose(found.insertion[0], [gone] + [there] * 10, rtol=1e-6)
    np.testing.assert_allclose(found.deletion[1], [there] * 10 + [gone], rtol=1e-6)
    np.testing.assert_allclose(found.areas[0], [gone + (there - gone) / 20, there - (there - gone) / 20], rtol=1e-6)
    np.testing.assert_allclose(found.gain[0], -found.gain[1], rtol=1e-6)


def test_labels_that_hold_by_themselves_are_sigmoids() -> None:
    found = curves(Bright(), torch.ones(1, 1, 6, 6), torch.tensor([1]), torch.ones(1, 3, 3), (3, 3), outputs="labels")
    np.testing.assert_allclose(found.deletion, 0.5)


def test_of_equal_cells_the_order_is_drawn() -> None:
    places = ranks(torch.zeros(50, 4, 4), (4, 4)).flatten(1)
    assert (places.sort(dim=1).values == torch.arange(16)).all()
    assert places[:, 0].unique().numel() > 8
    strongest = torch.zeros(50, 4, 4)
    strongest[:, 2, 3] = 1
    assert (ranks(strongest, (4, 4))[:, 2, 3] == 0).all()


def test_likeness_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 5, (4, 3, 5), generator=generator).float()  # with ties
    other = torch.rand(4, 3, 5, generator=generator)
    expected = [stats.spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(likeness(one, other), expected, rtol=1e-9)
    assert np.isnan(likeness(torch.zeros(1, 3, 3), other[:1, :, :3])).all()


def test_a_model_that_has_learnt_gains_and_a_drawn_order_does_not() -> None:
    model = marked.learnt(marked.cnn())
    x, _, _ = marked.pictures(32, 1, marks=2)
    found = relevance(model, x.split(16), marked.GRID)
    assert found.curves.deletion.shape == (32, len(SHARES))
    assert found.curves.gain.mean() > 0.2 > abs(found.drawn.gain.mean())
    assert np.nanmean(found.classes) < 0.5
    shown = exhibit({"one": found, "two": found})
    assert len(shown.table.rows) == 4
    assert "one: on " in shown.findings[0]
    assert shown.draw().axes


def test_the_command_gives_curves_of_two_checkpoints(here: Path) -> None:
    result = vit("inspect --before a --after b --relevance --images images --json -o out")
    document = json.loads(result.stdout)["exhibits"]["relevance"]
    assert document["columns"] == ["order", "share", "deletion", "insertion", "model"]
    assert len(document["rows"]) == 2 * 2 * len(SHARES)
    assert {row[0] for row in document["rows"]} == {"gradient-rollout", "drawn"}
    assert np.shape(document["arrays"]["before.deletion"]) == (4, len(SHARES))
    assert (here / "out" / "relevance.png").stat().st_size > 0
    assert "relevance.csv" in (here / "out" / "report.html").read_text(encoding="utf-8")
    text = vit("inspect a --relevance --images images").stdout
    assert "Relevance" in text
    assert "drawn" in text


def test_python_gives_its_own_result(here: Path) -> None:
    found = inspect("a", ["relevance"], images=["images"], count=2).results["relevance"]["a"]
    assert isinstance(found, Relevance)
    assert found.method == "gradient-rollout"


def test_models_without_classes_are_refused_by_name_and_left_out_of_all(here: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "features", replace(TINY, num_classes=0))
    result = invoke("inspect", tmp_path / "features", "--relevance", "--images", "images")
    assert result.exit_code == 2
    assert "--relevance: it has no classes" in result.stderr
    notes: list[str] = []
    for kind in ("one", "two"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "data" / kind / f"{i}.png").write_bytes((here / "images" / f"{i}.png").read_bytes())
    found = inspect(str(tmp_path / "features"), data=str(tmp_path / "data"), say=notes.append)
    assert "relevance" not in {exhibit.name for exhibit in found.exhibits}
    assert any("--relevance is left out, for it has no classes" in line for line in notes)
