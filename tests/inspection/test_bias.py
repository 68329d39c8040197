"""Inductive bias measured: equivariance and locality, where the answer is known by construction."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

from tests.helpers.fake_hub import running
from tests.helpers.inspecting import WIDE, build, images
from tests.helpers.terminal import vit
from vitcli.checkpoint.config import Description
from vitcli.checkpoint.write import save_model
from vitcli.errors import UsageError
from vitcli.images.preprocess import Preprocess
from vitcli.inspection.equivariance import equivariance, feature_maps, shifted, usual_shifts
from vitcli.inspection.locality import DROPS, TILES, drop, half_mass, locality, shuffle

CONFIG = replace(WIDE, img_size=(32, 32))  # 8×8 patches of 4 pixels


class Convolutions(nn.Module):
    """Two plain convolutions, strides 1 and 2, as a timm model shows its feature maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward_intermediates(self, x: Tensor, **_: Any) -> list[Tensor]:
        first = self.first(x).relu()
        return [first, self.second(first)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_intermediates(x)[-1].mean(dim=(2, 3)))


class TestEquivariance:
    def test_a_convolution_scores_1_at_shifts_that_its_stride_divides(self) -> None:
        found = equivariance(Convolutions(), [images(CONFIG, 3)], [1, 2, 4])
        assert found.layers == ("stage 0", "stage 1")
        assert_allclose(found.moved[0], 1, atol=1e-6)
        assert_allclose(found.moved[1, 1:], 1, atol=1e-6)
        assert found.moved[1, 0] < 0.9, "one pixel is half a cell of stride 2"
        assert (found.still < 0.9).all(), "standing still would not do"

    def test_a_vit_without_positions_scores_1_for_whole_patches(self) -> None:
        model = build(replace(CONFIG, pos_embed="none"))
        found = equivariance(model, [images(CONFIG, 2), images(CONFIG, 1, seed=5)], [2, 4, 8])
        assert found.layers == ("patches", "block 1", "block 2", "block 3")
        assert_allclose(found.moved[:, 1:], 1, atol=1e-5)  # sums over keys in another order
        assert (found.moved[:, 0] < 0.95).all()

    def test_position_embeddings_break_it(self) -> None:
        model = build(CONFIG)
        assert model.pos_embed is not None
        with torch.no_grad():
            model.pos_embed *= 20
        found = equivariance(model, [images(CONFIG, 2)], [4])
        assert found.moved[0] == pytest.approx(1.0, abs=1e-6)  # before they are added
        assert found.moved[-1] < 0.95

    def test_shifts_between_cells(self) -> None:
        row = torch.tensor([0.0, 1, 2, 3]).view(1, 1, 1, 4)
        assert_array_equal(shifted(row, 1, -1)[0, 0, 0], [3, 0, 1, 2])
        assert_allclose(shifted(row, 0.25, -1)[0, 0, 0], [0.75, 0.75, 1.75, 2.75])

    def test_maps_too_small_to_have_an_inside(self) -> None:
        small = replace(CONFIG, img_size=(8, 8))
        found = equivariance(build(small), [images(small, 1)], [8])
        assert np.isnan(found.moved).all()

    def test_usual_shifts(self) -> None:
        assert usual_shifts(16, 224) == [1, 8, 16, 32, 48]
        assert usual_shifts(16, 64) == [1, 8, 16]


class TestLocality:
    def test_the_gradient_of_a_convolution_stays_in_its_kernel(self) -> None:
        found = locality(Convolutions(), [images(CONFIG, 2)], (8, 8))
        for layer, (row, column, reach) in enumerate([(16, 16, 1), (16, 16, 2)]):  # 3×3, then 5×5 pixels
            inside = np.zeros((32, 32), bool)
            inside[row - reach : row + reach + 1, column - reach : column + reach + 1] = True
            assert found.fields[layer][~inside].sum() == 0
            assert found.fields[layer].sum() == pytest.approx(1)
        assert found.radius[0] <= 2**0.5
        assert found.radius[1] <= 8**0.5, "around the pixel that a padded, strided cell is centred on"

    def test_a_patch_sees_itself_and_a_block_everything(self) -> None:
        found = locality(build(CONFIG), [images(CONFIG, 2)], (8, 8))
        patch = found.fields[0][16:20, 16:20]  # row 4, column 4
        assert patch.sum() == pytest.approx(1)
        assert (found.fields[1] > 0).all()
        assert found.radius[0] < found.radius[-1]

    def test_half_of_the_mass(self) -> None:
        field = np.zeros((9, 9))
        field[4, 4], field[4, 7], field[0, 0] = 0.3, 0.3, 0.4
        assert half_mass(field) == pytest.approx(np.hypot(4 - 2.4, 7 - 3.3))  # around (2.4, 3.3), its centre of mass
        disc = np.hypot(*(np.indices((401, 401)) - 200)) <= 200
        assert half_mass(disc / disc.sum()) == pytest.approx(200 / 2**0.5, rel=0.01)

    def test_shuffling_moves_whole_tiles(self) -> None:
        x = images(CONFIG, 2)
        mixed = shuffle(x, 4, torch.Generator().manual_seed(0))
        assert not torch.equal(mixed, x)

        def tiles(picture: Tensor) -> set[bytes]:
            cut = picture.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, -1)
            return {tile.numpy().tobytes() for tile in cut}

        for before, after in zip(x, mixed, strict=True):
            assert tiles(before) == tiles(after)

    def test_what_is_left_at_the_edge_stays(self) -> None:
        x = images(CONFIG, 1)
        mixed = shuffle(x, 7, torch.Generator().manual_seed(0))  # 28 of 32 pixels
        assert torch.equal(mixed[..., 28:, :], x[..., 28:, :])
        assert mixed.sum() == pytest.approx(x.sum().item(), abs=1e-2)

    @pytest.mark.parametrize("share", DROPS)
    def test_dropping_takes_so_many_patches(self, share: float) -> None:
        x = images(CONFIG, 3)
        holed = drop(x, (8, 4), share, torch.Generator().manual_seed(0))
        gone = (holed == 0).all(dim=1)
        assert gone.float().mean(dim=(1, 2)).tolist() == pytest.approx([share] * 3)
        assert torch.equal(holed[~(holed == 0)], x[~(holed == 0)])

    def test_answers_to_broken_pictures(self) -> None:
        """A model that only counts brightness keeps its answer when tiles move, and loses it when patches go."""

        class Brightness(Convolutions):
            def forward(self, x: Tensor) -> Tensor:
                mean = x.mean(dim=(1, 2, 3))
                return torch.stack([mean - 0.9, 0.9 - mean], dim=1)

        bright = torch.ones(6, 3, 32, 32)
        found = locality(Brightness(), [bright], (8, 8))
        assert found.shuffled == dict.fromkeys(TILES, 1.0)
        assert found.dropped == dict.fromkeys(DROPS, 0.0)

    def test_models_of_other_sizes_get_the_same_broken_pictures(self) -> None:
        class Recorder(Convolutions):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x)
                return super().forward(x)

        small = [torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(i)) + 0.1 for i in range(2)]
        large = [x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3) for x in small]
        both = []
        for batches in (small, large):
            seen: list[Tensor] = []
            locality(Recorder(), batches, (4, 4))
            both.append(seen)
        for one, other in zip(*both, strict=True):
            assert torch.equal(one, other[..., ::4, ::4])

    def test_features_are_no_answers(self) -> None:
        found = locality(build(replace(CONFIG, num_classes=0)), [images(CONFIG, 2)], (8, 8), answers=False)
        assert not found.shuffled
        assert not found.dropped


def test_a_model_without_feature_maps() -> None:
    with pytest.raises(UsageError, match="gives no feature maps"):
        feature_maps(nn.Linear(2, 2), torch.zeros(1, 2))


def save_cnn(folder: Path) -> None:
    import timm

    torch.manual_seed(0)
    cnn = timm.create_model("resnet10t", num_classes=3)
    save_model(
        folder, cnn, Description(architecture="resnet10t", labels=("a", "b", "c"), preprocess=Preprocess((64, 64)))
    )


class TestCommand:
    def test_a_cnn_beside_all_of_a_vit(self, here: Path) -> None:
        """It takes part in what it has, too."""
        save_cnn(here / "cnn")
        result = vit("inspect a --all --beside cnn --images images --json -o out")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)["exhibits"]
        assert {row[-1] for row in found["equivariance"]["rows"]} == {"a", "cnn"}
        assert "model" not in found["heads"]["columns"]
        assert (here / "out" / "figure-7.png").exists()

    def test_a_cnn_beside(self, here: Path) -> None:
        save_cnn(here / "cnn")
        line = "inspect a --equivariance --locality --beside cnn --images images --json -o out"
        result = vit(line)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert set(document["models"]) == {"a", "cnn"}
        rows = document["exhibits"]["equivariance"]["rows"]
        assert {row[-1] for row in rows} == {"a", "cnn"}
        assert (here / "out" / "equivariance.png").exists()
        assert (here / "out" / "locality.csv").exists()

    def test_a_cnn_of_timms_beside(self, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By its architecture alone, as in timm, from the Hub."""
        save_cnn(tmp_path / "cnn")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        with running() as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            hub.add("timm/resnet10t.c3_in1k", {file.name: file.read_bytes() for file in (tmp_path / "cnn").iterdir()})
            result = vit("inspect a --equivariance --beside resnet10t --images images --json")
        assert result.exit_code == 0, result.output
        assert "resnet10t" in list(json.loads(result.stdout)["models"])[1]

    def test_two_models_of_the_same_name(self, here: Path) -> None:
        shutil.copytree(here / "b", here / "other" / "a")
        document = json.loads(vit("inspect a --beside other/a --locality --images images --json").stdout)
        assert {title: model["name"] for title, model in document["models"].items()} == {"a": "a", "a-2": "other/a"}
        assert {row[-1] for row in document["exhibits"]["locality"]["rows"]} == {"a", "a-2"}

    def test_with_what_needs_no_images(self, here: Path) -> None:
        document = json.loads(vit("inspect a --filters --locality --images images --json").stdout)
        assert set(document["exhibits"]) == {"filters", "locality"}

    def test_wrong_usage(self, here: Path) -> None:
        result = vit("inspect a --heads --beside b")
        assert result.exit_code == 2
        assert "--beside goes with" in result.stderr
