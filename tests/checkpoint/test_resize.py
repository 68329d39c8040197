"""Resizing a checkpoint: patch embeddings against timm's, position embeddings by every kernel, and the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import resample_patch_embed as timms
from typer.testing import CliRunner

from tests.helpers.checkpoints import LABELS, PREPROCESS, TINY, write_tiny
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resize import resize
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header
from vitcli.cli.app import app
from vitcli.errors import CheckpointError, UsageError
from vitcli.model.resample import KERNELS, measure_positions, resample_patch_embed, resample_pos_embed, resize_matrix


class TestPatchEmbedding:
    @pytest.mark.parametrize("target", [(8, 8), (14, 14), (32, 32), (16, 8), (5, 7)])
    def test_is_timms(self, target: tuple[int, int]) -> None:
        weight = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        ours, theirs = resample_patch_embed(weight, target), timms(weight, list(target))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # timm inverts in float32

    def test_the_same_size_is_the_same_tensor(self) -> None:
        weight = torch.randn(6, 3, 16, 16)
        assert resample_patch_embed(weight, (16, 16)) is weight

    def test_a_larger_patch_responds_as_the_old_one_did(self) -> None:
        """⟨resize(x), ŵ⟩ = ⟨x, w⟩ for every patch x (FlexiViT, equation 3)."""
        weight, patch = torch.randn(6, 1, 4, 4).double(), torch.randn(16).double()
        larger = resample_patch_embed(weight, (7, 9)).flatten(1) @ (resize_matrix((4, 4), (7, 9)) @ patch)
        torch.testing.assert_close(larger, weight.flatten(1) @ patch)


class TestResize:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return write_tiny(tmp_path / "base", replace(TINY, reg_tokens=2))

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_image_size(self, base: Path, kernel: str) -> None:
        found = resize(resolve(str(base)), img_size=(96, 64), kernel=kernel)
        source = load_model(resolve(str(base)))
        assert found.model.config.grid == (6, 4)
        assert found.preprocess.size == (96, 64)
        expected = resample_pos_embed(source.pos_embed, (4, 4), (6, 4), 3, kernel)
        assert torch.equal(found.model.pos_embed, expected)
        assert torch.equal(found.model.pos_embed[:, :3], source.pos_embed[:, :3])
        assert found.model(torch.zeros(1, 3, 96, 64)).isfinite().all()

    def test_grid_and_image_size_are_one_wish(self, base: Path) -> None:
        models = [
            resize(resolve(str(base)), **wish).model.state_dict() for wish in ({"img_size": (32, 96)}, {"grid": (2, 6)})
        ]
        torch.testing.assert_close(models[0], models[1], rtol=0, atol=0)

    def test_nothing_to_do_changes_no_bit(self, base: Path) -> None:
        found = resize(resolve(str(base)), img_size=(64, 64))
        torch.testing.assert_close(
            found.model.state_dict(), load_model(resolve(str(base))).state_dict(), rtol=0, atol=0
        )
        assert found.round_trip == 0

    def test_smaller_patches_give_a_finer_grid(self, base: Path) -> None:
        found = resize(resolve(str(base)), patch_size=(8, 8))
        assert found.model.config.grid == (8, 8)
        assert found.model.patch_embed.proj.weight.shape[-2:] == (8, 8)
        assert found.patch_before == (16, 16)

    def test_a_grid_that_the_file_does_not_tell(self, tmp_path: Path) -> None:
        wide = write_tiny(tmp_path / "wide", replace(TINY, img_size=(32, 128)))
        config = wide / "config.json"
        checkpoint = resolve(str(wide))
        assert resize(checkpoint, from_grid=(2, 8)).model.config.grid == (2, 8)
        reshaped = resize(checkpoint, from_grid=(8, 2)).model.pos_embed  # as many patches, another shape: resampled
        assert not torch.equal(reshaped, load_model(checkpoint).pos_embed)
        with pytest.raises(UsageError, match="for 16 patches"):
            resize(checkpoint, from_grid=(3, 3))
        assert config.exists()

    @pytest.mark.parametrize(
        ("wish", "message"),
        [
            ({"img_size": (65, 64)}, "not a multiple of the patch's 16×16"),
            ({"img_size": (8, 8)}, "less than one patch"),
            ({"grid": (0, 3)}, "less than one patch"),
        ],
    )
    def test_sizes_that_cannot_be(self, base: Path, wish: dict[str, tuple[int, int]], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            resize(resolve(str(base)), **wish)  # type: ignore[arg-type]

    def test_a_cnn(self, tmp_path: Path) -> None:
        base = write_tiny(tmp_path, replace(TINY, pos_embed="none"))
        checkpoint = replace(resolve(str(base)), vit=None, architecture="resnet18")
        with pytest.raises(CheckpointError, match="resnet18 has no position embedding"):
            resize(checkpoint, img_size=(96, 96))

    @pytest.mark.parametrize(
        "name", ["aimv2_large_patch14_224", "eva02_enormous_patch14_clip_224", "vitamin_small_224"]
    )
    def test_other_transformers_have_one(self, name: str, base: Path) -> None:
        """What is said of a model that timm builds is true of its file."""
        checkpoint = replace(resolve(str(base)), vit=None, architecture=name)
        with pytest.raises(CheckpointError, match=f"{name} is no.* only theirs have position embeddings"):
            resize(checkpoint, img_size=(96, 96))


class TestMeasure:
    def test_equal_embeddings_are_alike(self) -> None:
        found = measure_positions(torch.ones(12, 5), (3, 4))
        assert found.neighbours == pytest.approx(1)
        assert found.far == pytest.approx(1)

    def test_against_numpy(self) -> None:
        patches = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
        unit = (patches / patches.norm(dim=1, keepdim=True)).numpy().reshape(3, 4, 5)
        near = [unit[i, j] @ unit[i, j + 1] for i in range(3) for j in range(3)]
        near += [unit[i, j] @ unit[i + 1, j] for i in range(2) for j in range(4)]
        far = [unit[i, j] @ unit[i, j + 2] for i in range(3) for j in range(2)]
        far += [unit[i, j] @ unit[i + 1, j] for i in range(2) for j in range(4)]
        found = measure_positions(patches, (3, 4))
        assert found.neighbours == pytest.approx(np.mean(near), abs=1e-6)
        assert found.far == pytest.approx(np.mean(far), abs=1e-6)

    def test_one_patch_has_no_neighbour(self) -> None:
        assert measure_positions(torch.ones(1, 5), (1, 1)).neighbours is None


class TestCommand:
    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["resize-posemb", *map(str, arguments)])

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return write_tiny(tmp_path / "base", TINY, temperature=1.5, dtype="float16")

    def test_timm_and_transformers_give_our_logits(self, base: Path, tmp_path: Path) -> None:
        import timm
        from transformers import AutoModelForImageClassification

        result = self.invoke(base, "--size", "96x64", "--out", tmp_path / "new", "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert [p["grid"] for p in document["positions"]] == [[4, 4], [6, 4]]
        image = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
        ours = load_model(resolve(str(tmp_path / "new")))
        theirs = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True).eval()
        hf = AutoModelForImageClassification.from_pretrained(tmp_path / "new", dtype=torch.float32).eval()
        with torch.inference_mode():
            expected = ours(image)
            torch.testing.assert_close(theirs(image), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(hf(pixel_values=image).logits, expected, rtol=1e-4, atol=1e-5)

    def test_what_the_checkpoint_carries_stays(self, base: Path, tmp_path: Path) -> None:
        for folder, size in (("one", 96), ("two", 128)):
            source = base if folder == "one" else tmp_path / "one"
            result = self.invoke(source, "--size", size, "--out", tmp_path / folder, "--posemb-kernel", "paper")
            assert result.exit_code == 0, result.stderr
        checkpoint = resolve(str(tmp_path / "two"))
        assert checkpoint.labels == LABELS
        assert checkpoint.temperature == 1.5
        assert checkpoint.preprocess == replace(PREPROCESS, size=(128, 128))
        changes = checkpoint.provenance["resized"]
        assert [change["grid"] for change in changes] == [[[4, 4], [6, 6]], [[6, 6], [8, 8]]]
        assert {change["kernel"] for change in changes} == {"paper"}
        kinds = {info.dtype for info in read_header(checkpoint.weights_path).tensors.values()}
        assert kinds == {"F16"}

    def test_the_report_for_people(self, base: Path, tmp_path: Path) -> None:
        result = self.invoke(base, "--grid", "8x6", "--patch-size", "8", "--out", tmp_path / "new")
        assert result.exit_code == 0, result.stderr
        report = " ".join(result.stdout.split())
        for line in (
            "64×64 64×48",
            "16×16 8×8",
            "4×4 8×6",
            "similarity of neighbours",
            "there and back",
            "kernel timm",
        ):
            assert line in report
        assert f"vit predict -m {tmp_path / 'new'}" in result.stderr

    def test_accuracy_and_picture_before_and_after(self, base: Path, tmp_path: Path) -> None:
        for label in LABELS[:2]:
            (tmp_path / "data" / label).mkdir(parents=True)
            for i in range(2):
                image = np.random.default_rng(i).integers(0, 256, (70, 70, 3), np.uint8)
                Image.fromarray(image).save(tmp_path / "data" / label / f"{label}{i}.png")
        wish = ("--size", 96, "--out", tmp_path / "new", "--picture", tmp_path / "tiles.svg", "--json")
        assert self.invoke(base, *wish, "--check", tmp_path / "nowhere").exit_code == 1
        assert not (tmp_path / "new").exists(), "what is to be checked is opened before anything is written"
        result = self.invoke(base, *wish, "--check", tmp_path / "data")
        assert result.exit_code == 0, result.output
        ((name, shares),) = json.loads(result.stdout)["accuracy"].items()
        assert name == "accuracy of 4 images"
        assert len(shares) == 2
        assert "<svg" in (tmp_path / "tiles.svg").read_text("utf-8")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "say what to resize to"),
            (["--size", "96", "--grid", "6"], "two ways to say the same"),
            (
                ["--size", "96", "--posemb-kernel", "cubic"],
                "'cubic' is not one of 'timm', 'paper', 'hf', 'torchvision', 'dinov2'",
            ),
            (["--size", "100"], "not a multiple"),
            (["--size", "big"], "one number of pixels"),
        ],
    )
    def test_wrong_wishes_write_nothing(self, base: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        result = self.invoke(base, "--out", tmp_path / "new", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        assert not (tmp_path / "new").exists()

    def test_nothing_is_overwritten(self, base: Path) -> None:
        result = self.invoke(base, "--size", 96, "--out", base)
        assert result.exit_code == 2
        assert "is there already" in result.stderr


def test_options_for_positions_need_positions(tmp_path: Path) -> None:
    bare = write_tiny(tmp_path / "bare", replace(TINY, pos_embed="none"))
    for option in (["--posemb-kernel", "paper"], ["--from-grid", "4x4"]):
        result = CliRunner().invoke(
            app, ["resize-posemb", str(bare), "--size", "96", "--out", str(tmp_path / "o"), *option]
        )
        assert result.exit_code == 2
        assert "has no position embedding" in result.stderr
        assert not (tmp_path / "o").exists()
