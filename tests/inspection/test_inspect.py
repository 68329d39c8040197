"""`vit inspect`: every measurement against an oracle of its own, on tiny models with grids that are not square.

References: a brute-force double loop, closed forms, the authors' formula written out in NumPy, matrix products, and
NumPy's SVD.
"""

import csv
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from torch import Tensor

from tests.helpers.checkpoints import LABELS, PREPROCESS, TINY, edit_config, write_tiny
from tests.helpers.inspecting import WIDE, build, images
from tests.helpers.terminal import vit
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header
from vitcli.errors import CheckpointError, UsageError
from vitcli.inference.predict import predict
from vitcli.inspection.distance import AttentionDistance, Distances, patch_distances
from vitcli.inspection.filters import filters
from vitcli.inspection.heads import ALIKE, HeadKinds
from vitcli.inspection.images import BATCH, CLOTHES, PHOTOGRAPHS, Feed, Sheet, built_in, from_files
from vitcli.inspection.lens import LogitLens
from vitcli.inspection.look import inspect
from vitcli.inspection.maps import AttentionMaps, Rollout
from vitcli.inspection.observe import Instrument, observe
from vitcli.inspection.overview import overview
from vitcli.inspection.positions import positions
from vitcli.inspection.tokens import TokenNorms
from vitcli.inspection.weights import weights
from vitcli.model.config import StemConfig, ViTConfig
from vitcli.model.vit import VisionTransformer

NO_FEED = Feed([], PREPROCESS, torch.device("cpu"))  # for instruments that are shown tensors
FAMILIES = {
    "class token": WIDE,
    "five prefix tokens": replace(WIDE, reg_tokens=4, no_embed_class=True),
    "no prefix": replace(WIDE, class_token=False, global_pool="avg"),
    "patches that are not square": replace(WIDE, img_size=(12, 24), patch_size=(4, 8)),
}


@torch.no_grad()
def all_weights(model: VisionTransformer, pixels: Tensor) -> np.ndarray[Any, Any]:
    """Attention (images, L, n, N, N) the long way: from the tokens before each block."""
    x, taken = model.embed(pixels), []
    for block in model.blocks:
        taken.append(block.attn.weights(block.norm1(x)))
        x = block(x)
    return torch.stack(taken, dim=1).double().numpy()


def shown(instrument: Any, layers: list[Tensor]) -> Any:
    """What `instrument` makes of one image whose layers have these weights (n, N, N)."""
    for layer, one in enumerate(layers):
        instrument.weights(layer, 0, one.clone())
    return instrument.result()


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> VisionTransformer:
    return build(FAMILIES[request.param])


class TestObserve:
    def test_what_flows_is_what_the_model_computes(self, model: VisionTransformer) -> None:
        """Block by block with attention taken apart, the tokens are those of a plain forward pass."""

        class Last(Instrument):
            watches_weights = True

            def tokens(self, layer: int, tokens: Tensor) -> None:
                self.seen = tokens

        last, pixels = Last(), images(model.config, 3)
        assert observe(model, [pixels], [last]) == 3
        with torch.no_grad():
            expected = model.intermediates(pixels, [f"blocks.{model.config.depth - 1}"])
        torch.testing.assert_close(last.seen, next(iter(expected.values())), rtol=1e-4, atol=1e-4)


class TestDistance:
    def measure(self, model: VisionTransformer, batches: list[Tensor]) -> Distances:
        instrument = AttentionDistance(model.config)
        observe(model, batches, [instrument])
        return instrument.result()

    def test_brute_force(self, model: VisionTransformer) -> None:
        config, pixels = model.config, images(model.config, 2)
        found, seen = self.measure(model, [pixels]), all_weights(model, pixels)
        prefix, (h, w), (down, right) = config.num_prefix_tokens, config.grid, config.stride
        for definition in ("paper", "renormalised"):
            expected = np.zeros((2, config.depth, config.num_heads))
            for place in np.ndindex(expected.shape):
                for q in range(h * w):
                    row = seen[place][prefix + q, prefix:]
                    far = [np.hypot((q // w - k // w) * down, (q % w - k % w) * right) for k in range(h * w)]
                    total = row.sum() if definition == "renormalised" else 1.0
                    expected[place] += sum(a * b for a, b in zip(row, far, strict=True)) / total / (h * w)
            assert_allclose(getattr(found, definition).values, expected, rtol=1e-4)  # float32 attention

    def test_the_authors_formula(self) -> None:
        """Issue 162 of google-research/vision_transformer: positions by linspace, the class row and column cut off."""
        config = replace(WIDE, img_size=(16, 16))
        model, pixels = build(config), images(config, 3)
        side, patch, width = 4, 4, 16
        line = np.linspace(0, width - patch, side)
        places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
        between = np.linalg.norm(places[:, None] - places[None], axis=-1)
        cut = all_weights(model, pixels)[..., 1:, 1:]
        expected = (cut * between).sum(axis=-1).mean(axis=-1).mean(axis=0)
        assert_allclose(self.measure(model, [pixels]).paper.mean, expected, rtol=1e-4)

    @pytest.mark.parametrize("prefix", [0, 1, 5])
    def test_closed_forms(self, prefix: int) -> None:
        """Even attention on 3×5 patches of 4 pixels, and attention of each token to itself."""
        config = replace(WIDE, class_token=prefix > 0, reg_tokens=max(prefix - 1, 0), global_pool="avg", depth=2)
        N = config.num_tokens
        even, self_only = torch.full((4, N, N), 1 / N), torch.eye(N).expand(4, N, N)
        found = shown(AttentionDistance(config), [even, self_only])
        mean = np.mean([4 * np.hypot(a - c, b - d) for a, b in np.ndindex(3, 5) for c, d in np.ndindex(3, 5)])
        assert_allclose(found.paper.mean[0], mean * 15 / N, rtol=1e-6)
        assert_allclose(found.renormalised.mean[0], mean, rtol=1e-6)
        assert found.uniform == pytest.approx(mean, rel=1e-6)
        assert patch_distances(WIDE).max() == pytest.approx(4 * np.hypot(2, 4))
        assert_array_equal(found.paper.mean[1], 0)
        assert_array_equal(found.renormalised.mean[1], 0)

    def test_the_batch_does_not_matter(self, model: VisionTransformer) -> None:
        pixels = images(model.config, 5)
        one, other = (self.measure(model, list(pixels.split(size))).paper.values for size in (5, 2))
        assert_allclose(one, other, rtol=1e-5)  # matrix products of another shape

    def test_standard_error(self, model: VisionTransformer) -> None:
        found = self.measure(model, [images(model.config, 6)]).paper
        assert_allclose(found.error, np.std(found.values, axis=0, ddof=1) / 6**0.5)
        assert np.isnan(self.measure(model, [images(model.config, 1)]).paper.error).all()

    def test_in_pixels_of_the_image_for_a_hybrid(self) -> None:
        config = ViTConfig(
            img_size=(32, 64), patch_size=(1, 1), embed_dim=8, depth=1, num_heads=1, stem=StemConfig((1, 1), 32)
        )
        assert patch_distances(config).max() == pytest.approx(np.hypot(3 * 8, 7 * 8))  # 4×8 cells of 8 pixels


class TestHeads:
    def test_closed_forms(self) -> None:
        config = replace(WIDE, depth=2)
        N = config.num_tokens
        even, first = torch.full((4, N, N), 1 / N), torch.zeros(4, N, N)
        first[:, :, 0] = 1  # all look at the class token
        found = shown(HeadKinds(config), [even, first])
        assert_allclose(found.entropy.mean, [[np.log(N)] * 4, [0] * 4], rtol=1e-6)
        assert_allclose(found.on_prefix.mean, [[1 / N] * 4, [1] * 4], rtol=1e-6)
        assert found.most_entropy == pytest.approx(np.log(N))

    def test_near_duplicates(self) -> None:
        config = replace(WIDE, depth=1)
        weights = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
        weights[0], weights[1] = torch.eye(16), torch.eye(16).flip(0)
        weights[3] = weights[2] * 0.99 + 0.01 * torch.eye(16)
        found = shown(HeadKinds(config), [weights])
        flat = weights.flatten(1).double().numpy()
        unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        assert_allclose(found.alike[0], unit @ unit.T, rtol=1e-5)
        assert [pair[:3] for pair in found.duplicates()] == [(0, 2, 3)]
        assert found.duplicates()[0][3] > ALIKE


class TestMaps:
    def test_rollout_is_the_product_of_the_layers(self, model: VisionTransformer) -> None:
        config, pixels = model.config, images(model.config, 3)
        rollout, attention = Rollout(config, NO_FEED, most=2), AttentionMaps(config, [0, 2], NO_FEED, most=2)
        observe(model, [pixels[:2], pixels[2:]], [rollout, attention])
        joint, found = torch.stack(rollout._joint).double().numpy(), rollout.result()
        seen = all_weights(model, pixels)
        for image in range(2):
            expected = np.eye(config.num_tokens)
            for layer in range(config.depth):
                step = seen[image, layer].mean(axis=0) + np.eye(config.num_tokens)
                expected = (step / step.sum(axis=1, keepdims=True)) @ expected
            assert_allclose(joint[image], expected, rtol=1e-4, atol=1e-7)
            assert_allclose(joint[image].sum(axis=1), 1, rtol=1e-5)
            prefix = config.num_prefix_tokens
            row = expected[0, prefix:] if prefix else expected.mean(axis=0)
            assert_allclose(found.rollout[image], row.reshape(config.grid), rtol=1e-4)
        rows = seen[:2, ::2, :, 0, prefix:] if prefix else seen[:2, ::2].mean(axis=-2)
        assert_allclose(attention.result().attention, rows.reshape(2, 2, 4, *config.grid), rtol=1e-4, atol=1e-7)
        assert len(found.rollout) == 2, "no more images than asked for"

    def test_masks_hold_the_mass_with_the_fewest_patches(self) -> None:
        config = replace(WIDE, depth=1)
        seen = torch.zeros(4, 16, 16)
        seen[:, 0, 1:6] = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.1])  # and 0.1 on the class token
        seen[:, 0, 0] = 0.1
        mask = shown(AttentionMaps(config, [0], NO_FEED, most=1), [seen]).masks(0.6)[0, 0, 0]
        assert_array_equal(mask.ravel()[:5], [0, 1, 0, 1, 0])  # 0.65 of 0.9
        assert mask.sum() == 2


class TestTokens:
    def test_norms_and_a_planted_artefact(self) -> None:
        config = replace(WIDE, depth=2)
        instrument = TokenNorms(config)
        tokens = torch.ones(3, config.num_tokens, 16)
        tokens[:, 0] = 2
        instrument.tokens(0, tokens)
        tokens = tokens.clone()
        tokens[1, 1 + 5 + 2] *= 3.5  # row 2, column 3 of the second image
        instrument.tokens(1, tokens)
        found = instrument.result()
        assert_allclose(found.prefix, 8)
        assert_allclose(found.patches[0], 4)
        expected = np.zeros((2, 3, 5))
        expected[1, 1, 2] = 1 / 3
        assert_allclose(found.places, expected)


class TestLens:
    def test_the_last_layer_is_the_model(self, model: VisionTransformer) -> None:
        pixels, lens = images(model.config, 4), LogitLens(model)
        observe(model, [pixels], [lens])
        with torch.no_grad():
            expected = model(pixels)
        assert_allclose(lens.result().logits[:, -1], expected.numpy(), rtol=1e-4, atol=1e-4)

    def test_the_last_layer_is_predict(self, tmp_path: Path) -> None:
        write_tiny(tmp_path / "m")
        paths = [str(tmp_path / f"{i}.png") for i in range(3)]
        for i, path in enumerate(paths):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)).save(path)
        checkpoint = resolve(str(tmp_path / "m"))
        model = load_model(checkpoint)
        lens = LogitLens(model)
        observe(model, Feed(from_files(paths, 9), checkpoint.preprocess, torch.device("cpu")), [lens])
        logits = lens.result().logits[:, -1]
        for row, prediction in zip(logits, predict(paths, str(tmp_path / "m")), strict=True):
            shares = np.exp(row) / np.exp(row).sum()
            assert LABELS[row.argmax()] == prediction.labels[0].label
            assert shares.max() == pytest.approx(prediction.labels[0].probability, rel=1e-4)

    def test_settled(self) -> None:
        model = build(WIDE)
        lens = LogitLens(model)
        answers = [[1, 0, 2], [0, 0, 2], [1, 0, 2]]  # of three images, layer by layer
        lens._logits = [[torch.nn.functional.one_hot(torch.tensor(layer), 5) * 10.0] for layer in answers]
        found = lens.result()
        assert_array_equal(found.settled, [2, 0, 0])
        assert_allclose(found.agrees, [1, 2 / 3, 1])
        sure = np.exp(10) / (np.exp(10) + 4)
        assert_allclose(found.confidence[[0, 2]], sure)

    def test_a_model_without_classes(self) -> None:
        with pytest.raises(UsageError, match="needs a model with classes"):
            LogitLens(build(replace(WIDE, num_classes=0)))


class TestFilters:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_numpys_svd(self, channels: int) -> None:
        model = build(replace(WIDE, in_chans=channels, embed_dim=64, num_heads=4))
        found = filters(model)
        points = model.patch_embed.proj.weight.detach().double().numpy().reshape(64, -1)
        _, lengths, directions = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
        flat = found.components.reshape(len(found.components), -1)
        assert len(flat) == min(28, 16 * channels)
        assert_allclose(abs((flat * directions[: len(flat)]).sum(axis=1)), 1, rtol=1e-9)
        assert_allclose(found.explained, lengths**2 / (lengths**2).sum(), rtol=1e-9)
        assert (flat[np.arange(len(flat)), abs(flat).argmax(axis=1)] > 0).all()
        pictures = found.pictures()
        assert pictures.shape[1:] == (4, 4, 3)
        assert pictures.min() >= 0
        assert pictures.max() == 1

    def test_of_a_hybrid_the_cnns(self) -> None:
        config = ViTConfig(
            img_size=(32, 32), patch_size=(1, 1), embed_dim=8, depth=1, num_heads=1, stem=StemConfig((1,), 32)
        )
        found = filters(build(config))
        assert found.of_cnn
        assert found.components.shape == (28, 3, 7, 7)


class TestPositions:
    def test_cosines(self, model: VisionTransformer) -> None:
        found = positions(model)
        assert model.pos_embed is not None
        skip = 0 if model.config.no_embed_class else model.config.num_prefix_tokens
        patches = model.pos_embed.detach().double().numpy()[0, skip:]
        for i, j in ((0, 1), (3, 8), (7, 7)):
            a, b = patches[i], patches[j]
            assert found.cosines[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def test_rows_and_columns_that_are_there(self) -> None:
        """An embedding that knows the row alone: same rows 1, other rows 0."""
        model = build(replace(WIDE, img_size=(16, 20)))
        assert model.pos_embed is not None
        with torch.no_grad():
            for patch in range(20):
                model.pos_embed[0, 1 + patch] = torch.nn.functional.one_hot(torch.tensor(patch // 5), 16) * 3.0
        found = positions(model)
        assert (found.same_row, found.same_column, found.elsewhere) == pytest.approx((1.0, 0.0, 0.0))
        assert found.neighbours == pytest.approx(16 / 31)  # 16 pairs beside, 15 above
        assert found.with_distance is not None
        assert found.with_distance < 0

    def test_none_to_look_at(self) -> None:
        with pytest.raises(CheckpointError, match="no learnt position embedding"):
            positions(build(replace(WIDE, pos_embed="none")))


class TestFeed:
    @pytest.mark.parametrize("sheet", [CLOTHES, PHOTOGRAPHS], ids=lambda sheet: sheet.called)
    def test_the_built_in_pictures(self, sheet: Sheet) -> None:
        found = sheet.pictures(128)
        assert len(found) == 128
        pixels = found[5].load(PREPROCESS)
        assert pixels.shape == (3, 64, 64)
        assert pixels.std() > 0.1
        digests = {picture.load(PREPROCESS).tobytes() for picture in found}
        assert len(digests) == 128

    def test_a_model_sees_what_it_was_trained_with(self) -> None:
        of = {name: built_in(resolve(name)) for name in ("photo-vit", "fashion-vit", "fashion-hybrid")}
        assert of == {"photo-vit": PHOTOGRAPHS, "fashion-vit": CLOTHES, "fashion-hybrid": CLOTHES}

    def test_a_bad_file_is_left_out(self, tmp_path: Path) -> None:
        for i in range(BATCH + 2):
            Image.new("RGB", (70, 70), (i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / "3.png").write_bytes(b"no image")
        feed = Feed(from_files([str(tmp_path)], 99), PREPROCESS, torch.device("cpu"))
        assert [len(batch) for batch in feed] == [BATCH, 1]
        assert [Path(picture.name).stem for picture in feed.shown] == [str(i) for i in range(BATCH + 2) if i != 3]
        assert len(feed.failed) == 1


class TestOverview:
    def test_facts_of_the_header(self, tmp_path: Path) -> None:
        folder = write_tiny(tmp_path / "m")
        found = overview(resolve(str(folder)))
        model = load_model(resolve(str(folder)))
        assert found.params == sum(p.numel() for p in model.parameters())
        assert found.bytes == (folder / "model.safetensors").stat().st_size
        assert [stage.shape for stage in found.stages] == [(3, 64, 64), (16, 48), (17, 48), (17, 48), (17, 48), (3,)]
        assert not found.odd

    def test_a_hybrids_cnn_is_a_stage_of_its_own(self, tmp_path: Path) -> None:
        vit = replace(TINY, patch_size=(1, 1), stem=StemConfig((1, 1), 32))
        cnn, patches = overview(resolve(str(write_tiny(tmp_path / "m", vit)))).stages[1:3]
        assert (cnn.name, cnn.shape) == ("cnn", (256, 8, 8))
        assert (patches.name, patches.shape, patches.params) == ("patches", (64, 48), 256 * 48 + 48)

    def test_what_disagrees_is_said(self, tmp_path: Path) -> None:
        folder = edit_config(
            write_tiny(tmp_path / "m"), pretrained_cfg__input_size=[3, 80, 80], model_args__img_size=[80, 80]
        )
        assert any("64x64 pixels" in line for line in overview(resolve(str(folder))).odd)
        folder = edit_config(write_tiny(tmp_path / "n"), model_args__depth=3)
        assert any("missing: blocks.2." in line for line in overview(resolve(str(folder))).odd)

    def test_weights(self, tmp_path: Path) -> None:
        folder = write_tiny(tmp_path / "m", seed=3)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["norm.bias"][1] = np.nan
        tensors["blocks.1.attn.proj.weight"][:, 16:32] *= 1e-4  # of the second of three heads
        save_file(tensors, path)
        found = weights(resolve(str(folder)))
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert [one.name for one in found.tensors if one.not_finite] == ["norm.bias"]
        assert found.dead == ((1, 1),)
        V = tensors["blocks.0.attn.qkv.weight"][96:112].astype(np.float64)
        P = tensors["blocks.0.attn.proj.weight"][:, :16].astype(np.float64)
        assert found.head_sizes[0][0] == pytest.approx(np.linalg.norm(P @ V))
        one = next(one for one in found.tensors if one.name == "head.weight")
        head = tensors["head.weight"]
        assert (one.mean, one.std) == pytest.approx((head.mean(), head.std()), rel=1e-4)  # of float32, here in float64


@pytest.fixture(scope="module")
def exhibits(place: Path) -> dict[str, Any]:
    write_tiny(place / "deep", replace(TINY, depth=4), seed=3)
    folder = write_tiny(place / "deep", replace(TINY, depth=4), seed=3)
    found = inspect(str(folder), images=[str(place / "images")])
    return {exhibit.name: exhibit for exhibit in found.exhibits}


class TestSentences:
    """Each sentence below a table says what the table says, and which column it speaks of."""

    def test_attention_distance(self, exhibits: dict[str, Any]) -> None:
        exhibit = exhibits["attention-distance"]
        first, *grows = exhibit.findings
        assert {line.partition(":")[0] for line in grows} == {"mean", "renormalised"}
        for line in grows:
            column = column_of(exhibit, line.partition(":")[0])
            assert f"from layer 1 to {len(column)} it goes from {column[0]} to {column[-1]} pixels" in line
            r = np.corrcoef(np.arange(len(column)), [float(cell) for cell in column])[0, 1]
            assert float(re.findall(r"depth ([+-][\d.]+)", line)[0]) == pytest.approx(r, abs=0.1)  # cells are rounded
        columns, rows = exhibit.records.columns, exhibit.records.rows
        even = float(re.findall(r"would give ([\d.]+) pixels", exhibit.words)[0])
        at, by = columns.index("layer"), columns.index("renormalised")
        last = len(exhibit.table.rows)
        wide = [sum(row[by] >= 0.8 * even for row in rows if row[at] == layer) for layer in (1, last)]
        assert re.findall(r"(\d+) of \d+", first) == [str(count) for count in wide]

    def test_heads(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["heads"].findings
        alike = [cell != "-" and float(cell) >= 0.95 for cell in column_of(exhibits["heads"], "most alike")]
        assert line.endswith("none") == (not any(alike))
        assert all(alike[int(layer) - 1] for layer in re.findall(r"layer (\d+)", line))

    def test_tokens(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["tokens"].findings
        shares = column_of(exhibits["tokens"], "artefacts")
        most = max(shares, key=lambda cell: float(cell.rstrip("%")))
        told = re.fullmatch(r"artefacts: most after layer (\d+), ([\d.]+%) of the patches, in \d+% of the images", line)
        assert (
            (shares[int(told[1]) - 1], told[2]) == (most, most) if told else (line, most) == ("no artefacts", "0.00%")
        )

    def test_logit_lens(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["logit-lens"].findings
        settled = [float(cell.rstrip("%")) >= 50 for cell in column_of(exhibits["logit-lens"], "settled")]
        assert f"after layer {settled.index(True) + 1} of {len(settled)}" in line

    def test_filters(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["filters"].findings
        records = exhibits["filters"].records
        columns, rows = records.columns, records.rows
        sums = [row[columns.index("cumulative")] for row in rows]
        assert f": {next(i for i, share in enumerate(sums, 1) if share >= 0.9)} components" in line

    def test_position_similarity(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["position-similarity"].findings
        cells = dict(exhibits["position-similarity"].table.rows)
        beside, far = cells["patches side by side"], cells["half the image apart"]
        assert [float(n) for n in re.findall(r"-?\d\.\d\d", line)] == pytest.approx(
            [float(beside), float(far)], abs=0.006
        )
        assert ("not more similar" in line) == (float(beside) <= float(far))

    def test_equivariance(self, exhibits: dict[str, Any]) -> None:
        exhibit = exhibits["equivariance"]
        assert exhibit.findings
        for line in exhibit.findings:
            shift, first, last = re.match(r"(\d+) pixels?: patches ([\d.-]+), block \d+ ([\d.-]+);", line).groups()  # type: ignore[union-attr]
            column = column_of(exhibit, f"{shift} px")
            assert (column[0], column[-1]) == (first, last)

    def test_locality(self, exhibits: dict[str, Any]) -> None:
        (line,) = exhibits["locality"].findings
        records = exhibits["locality"].records
        columns, rows = records.columns, records.rows
        kept = [row[columns.index("answers_kept")] for row in rows if row[0] in ("shuffled", "dropped")]
        said = re.findall(r"(?:\d×\d|\d+%) (\d+)%", line)
        assert said == [f"{share:.0%}".rstrip("%") for share in kept]

    def test_no_exhibit_is_forgotten(self, exhibits: dict[str, Any]) -> None:
        tested = {name.removeprefix("test_").replace("_", "-") for name in dir(TestSentences)}
        assert {name for name, exhibit in exhibits.items() if exhibit.findings} <= tested


def column_of(exhibit: Any, name: str) -> list[str]:
    return [row[exhibit.table.columns.index(name)] for row in exhibit.table.rows]


def test_buffers_are_no_parameters(tmp_path: Path) -> None:
    """What BatchNorm averages and counts is stored beside the weights, but not learnt."""
    model = timm.create_model("test_byobnet", pretrained=False)
    save_torch(model.state_dict(), tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors").parameters == sum(p.numel() for p in model.parameters())
    assert sum(b.numel() for b in model.buffers())


class TestCommand:
    def test_overview(self, here: Path) -> None:
        assert "17: class token + 16 patches" in vit("inspect a").stdout
        document = json.loads(vit("inspect a --weights --json").stdout)
        assert document["parameters"] > 0
        assert len(document["weights"]["sha256"]) == 64

    def test_the_digest_is_a_line_of_its_own(self, here: Path) -> None:
        """In the table of weights it would push every column to the right."""
        lines = vit("inspect a --weights").stdout.splitlines()
        digest = hashlib.sha256((here / "a" / "model.safetensors").read_bytes()).hexdigest()
        assert [line.split() for line in lines if digest in line] == [["sha256", digest]]
        weight = next(line for line in lines if line.startswith("norm.bias"))
        assert len(weight.rstrip()) < 80

    def test_everything_leaves_out_what_a_model_does_not_have(self, here: Path) -> None:
        write_tiny(here / "c", replace(TINY, num_classes=0, pos_embed="none"))
        result = vit("inspect c --all --images images -o out --json")
        assert result.exit_code == 0, result.output
        assert "--posemb is left out, for the model has no learnt position embedding" in result.stderr
        assert "--logit-lens is left out, for the model ends with features" in result.stderr
        document = json.loads(result.stdout)
        assert {"filters", "attention-distance", "locality"} < set(document["exhibits"])
        assert not {"position-similarity", "logit-lens"} & set(document["exhibits"])
        assert vit("inspect c --posemb").exit_code == 1, "what is asked for by name must be there"

    def test_a_model_of_one_patch(self, here: Path, recwarn: pytest.WarningsRecorder) -> None:
        write_tiny(here / "d", replace(TINY, img_size=(16, 16)))
        assert vit("inspect d --equivariance --attention-distance --posemb --images images -o out").exit_code == 0
        assert not recwarn

    def test_attention_of_every_chosen_layer_is_drawn(self, here: Path) -> None:
        for layers, lines in (("2", 4), ("all", 6)):  # four images of one layer; three of two
            assert vit(f"inspect a --attention --layers {layers} --images images -o out").exit_code == 0
            drawn = (here / "out" / "attention.svg").read_text("utf-8")
            assert drawn.count("<image") == lines * 4  # the input and three heads

    def test_everything_of_two_models_as_files(self, here: Path) -> None:
        result = vit("inspect --before a --after b --all --images images -o out")
        assert result.exit_code == 0, result.output
        names = {path.name for path in (here / "out").iterdir()}
        stems = ["filters", "position-similarity", "attention-distance", "heads", "tokens"]
        stems += ["logit-lens", "rollout", "attention", "equivariance", "locality"]
        assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "csv", "npz")} | {
            f"figure-7-{title}.{kind}" for title in ("before", "after") for kind in ("png", "svg")
        } | {"report.html"}  # fmt: skip
        rows = list(csv.DictReader((here / "out" / "attention-distance.csv").read_text("utf-8").splitlines()))
        with np.load(here / "out" / "attention-distance.npz") as file:
            arrays = dict(file)
        assert len(rows) == 2 * 2 * 3
        for row in rows:
            values = arrays[f"{row['model']}.paper"][:, int(row["layer"]) - 1, int(row["head"]) - 1]
            assert float(row["paper"]) == pytest.approx(values.mean())
        page = (here / "out" / "report.html").read_text()
        assert "Attention rollout" in page
        assert "<script" not in page
        assert 'src="http' not in page
        assert 'href="http' not in page

    def test_json(self, here: Path) -> None:
        document = json.loads(vit("inspect a --attention-distance --posemb --images images/1.png --json").stdout)
        found = document["exhibits"]
        assert set(found) == {"attention-distance", "position-similarity"}
        assert np.shape(found["attention-distance"]["arrays"]["paper"]) == (1, 2, 3)
        assert found["attention-distance"]["rows"][0][3] is None  # no standard error from one image

    def test_built_in_pictures_are_said(self, here: Path) -> None:
        result = vit("inspect a --rollout --count 3")
        assert "built-in photographs of Caltech-101" in result.stderr
        assert "picture 3" in result.stdout

    def test_a_bad_image_is_exit_3_and_none_at_all_is_1(self, here: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(b"no image")
        result = vit(f"inspect a --heads --images {tmp_path}/bad.png --images images")
        assert result.exit_code == 3
        assert "bad.png" in result.stderr
        result = vit(f"inspect a --heads --images {tmp_path}/bad.png")
        assert result.exit_code == 1
        assert "none of the 1 images" in result.stderr

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a --before a --after b --heads", "give one model, or two"),
            ("--before a --heads", "--before and --after go together"),
            ("a --heads --images images --data images", "two ways to say the same"),
            ("a --heads --layers 1", "would change nothing"),
            ("a --attention --layers 7", "numbers from 1 to 2"),
            ("a --images images", "say what to look at"),
            ("a --count 3", "--count changes nothing"),
            ("a --posemb --images images", "--images, --data and --count change nothing"),
            ("a --heads --device tpu", "--device tpu: write cpu, cuda"),
            ("a --heads --device cuda:99", "--device cuda:99: torch sees"),
            ("a --weights --heads", "--weights goes with the overview"),
        ],
    )
    def test_wrong_usage(self, here: Path, line: str, message: str) -> None:
        result = vit(f"inspect {line}")
        assert result.exit_code == 2
        assert message in result.stderr

    def test_at_another_size(self, here: Path) -> None:
        result = vit("inspect a --posemb --img-size 96x64")
        assert "resampled from 4×4 to 6×4" in result.stderr
