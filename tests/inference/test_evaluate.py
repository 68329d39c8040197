"""`vit evaluate`: the numbers of predict, classes matched by name, calibration, two models, few-shot."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn.linear_model import Ridge
from typer.testing import CliRunner

from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.cli.views.evaluation import _measures
from vitcli.data.sources import read_splits
from vitcli.errors import CheckpointError, DataError, UsageError
from vitcli.inference.calibrate import calibrate, fit_temperature
from vitcli.inference.evaluate import evaluate, pairs
from vitcli.inference.few_shot import BIAS, L2, STD_EPS, few_shot, fit
from vitcli.inference.predict import load
from vitcli.metrics import t_quantile

Invoke = Callable[..., Any]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with three classes; among the images a rotated, a transparent and a large JPEG."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, n in (("train", 8), ("test", 6)):
        for label in LABELS:
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    gradient = np.linspace(0, 255, 1500).astype(np.uint8)
    large = Image.fromarray(np.stack([np.tile(gradient, (1200, 1))] * 3, axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "test" / "cat" / "large.jpg", exif=exif)
    large.convert("RGBA").resize((90, 90)).save(folder / "test" / "dog" / "alpha.png")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def document(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


class TestEvaluate:
    @pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
    def test_probabilities_are_those_of_predict_bit_for_bit(self, base: Path, photos: Path, engine: Any) -> None:
        model, splits = load(str(base), engine=engine), read_splits(photos)
        samples = splits.named["test"]
        found = evaluate(model, samples, splits.classes)
        assert len(found.names) == 20
        predictions = load(str(base), engine=engine).predict(list(found.names), top_k=3)
        for prediction, shares in zip(predictions, found.probabilities, strict=True):
            expected = {score.index: score.probability for score in prediction.labels}
            assert [expected[i] for i in range(3)] == shares.tolist()

    def test_classes_are_matched_by_name(self, base: Path, photos: Path, tmp_path: Path) -> None:
        """A model whose classes are in another order gives the same answers and other indices."""
        other = write_tiny(tmp_path / "other", labels=("dog", "bird", "cat"))
        splits = read_splits(photos)
        first, second = (evaluate(str(m), splits.named["test"], splits.classes) for m in (base, other))
        np.testing.assert_array_equal(first.logits, second.logits)
        true = [[e.classes[label] for label in e.labels] for e in (first, second)]
        assert true[0] == true[1]
        assert first.labels.tolist() != second.labels.tolist()

    def test_a_split_without_a_class_is_scored_and_said(self, base: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "test", tmp_path / "some", ignore=shutil.ignore_patterns("bird"))
        result = invoke(base, "--data", tmp_path / "some")
        assert result.exit_code == 0
        assert "no images of 1 of the model's 3 classes ('bird')" in " ".join(result.stderr.split())

    def test_a_class_that_the_model_does_not_know(self, base: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "test", tmp_path / "more")
        shutil.copytree(photos / "test" / "cat", tmp_path / "more" / "lynx")
        result = invoke(base, "--data", tmp_path / "more")
        assert result.exit_code == 1
        assert "lynx" in result.stderr
        assert "--ignore-unknown-classes" in result.stderr
        left = document(base, "--data", tmp_path / "more", "--ignore-unknown-classes")
        assert left["measures"]["n"] == 20

    def test_an_unreadable_image_is_named_and_counted(self, base: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "test", tmp_path / "bad")
        (tmp_path / "bad" / "cat" / "0.png").write_bytes(b"not an image")
        result = invoke(base, "--data", tmp_path / "bad", "--json")
        assert result.exit_code == 3
        found = json.loads(result.stdout)
        assert found["measures"]["n"] == 19
        assert "0.png" in found["failed"][0]["name"]

    def test_forms(self, base: Path, photos: Path, tmp_path: Path) -> None:
        found = document(base, "--data", photos)
        assert (found["schema"], found["split"]) == ("vit.evaluate/1", "test")
        rows = list(csv.reader(io.StringIO(invoke(base, "--data", photos, "--csv").stdout)))
        assert rows[0] == ["measure", "class", "value"]
        assert float(next(row for row in rows if row[0] == "top1")[2]) == found["measures"]["top1"]
        people = invoke(base, "--data", photos, "--confusion", tmp_path / "c.png")
        for part in ("top-1 accuracy", "95 % interval", "images of", "precision"):
            assert part in people.stdout
        with Image.open(tmp_path / "c.png") as picture:
            assert picture.format == "PNG"

    def test_what_silence_gains_is_said_in_every_form(self, base: Path, photos: Path) -> None:
        found = document(base, "--data", photos)["selective"]
        assert [one["coverage"] for one in found["at"]] == [0.8, 0.9, 0.95]
        rows = {row[0]: float(row[2]) for row in csv.reader(io.StringIO(invoke(base, "--data", photos, "--csv").stdout))
                if row[0].startswith("accuracy_at")}  # fmt: skip
        assert rows == {f"accuracy_at_{one['coverage'] * 100:.0f}": one["accuracy"] for one in found["at"]}
        people = " ".join(invoke(base, "--data", photos).stdout.split())
        assert all(f"accuracy, {one['coverage']:.0%} surest {one['accuracy']:.4f}" in people for one in found["at"])

    def test_a_split_that_is_not_there(self, base: Path, photos: Path) -> None:
        assert document(base, "--data", photos, "--split", "val")["measures"]["n"] > 0  # drawn from train
        assert "'all' is not one of 'train', 'val', 'test'" in invoke(base, "--data", photos, "--split", "all").stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "name the labelled images"),
            (["--data", ".", "--json", "--csv"], "choose one of"),
            (["--data", ".", "--out", "x"], "belong to --calibrate"),
            (["--data", ".", "--seeds", "3"], "belongs to --few-shot"),
            (["a", "b", "c", "--data", "."], "one model, or two"),
            (["a", "b", "--data", ".", "--calibrate"], "two models are compared as they are"),
            (["--data", ".", "--confusion", "x.gif"], "must end in"),
        ],
    )
    def test_wrong_options(self, arguments: list[str], message: str) -> None:
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


class TestFromPython:
    """What the commands print, as values: by a name and a place, without a terminal."""

    def test_evaluate(self, base: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told: list[tuple[str, int, int]] = []
        found = evaluate(str(base), photos, progress=lambda *what: told.append(what))
        assert (told[-1][1:], capsys.readouterr()) == ((20, 20), ("", ""))
        shown = document(base, "--data", photos)
        assert (found.data, found.split) == (shown["data"], shown["split"]) == (str(photos), "test")
        assert (found.measures.top1, found.measures.nll) == (shown["measures"]["top1"], shown["measures"]["nll"])

    def test_what_should_be_known_is_told(self, base: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "test", tmp_path / "some", ignore=shutil.ignore_patterns("bird"))
        notes: list[str] = []
        assert evaluate(load(str(base)), str(tmp_path / "some"), note=notes.append).split == "all"
        assert any(note.startswith("no images of 1 of the model's 3 classes") for note in notes)

    def test_samples_without_classes(self, base: Path, photos: Path) -> None:
        with pytest.raises(UsageError, match="the names of their classes"):
            evaluate(str(base), read_splits(photos).named["test"])

    def test_pairs(self, base: Path, photos: Path, tmp_path: Path) -> None:
        other = write_tiny(tmp_path / "other", seed=1)
        found, shown = pairs(str(base), load(str(other)), photos), document(base, other, "--data", photos)
        assert [asdict(flip) for flip in found.flips] == shown["flips"]
        assert found.paired.p_value == shown["paired"]["p_value"]

    def test_few_shot(self, base: Path, photos: Path) -> None:
        shown = document(base, "--data", photos, "--few-shot", "1,5", "--seeds", 2)
        for model in (str(base), load(str(base))):
            found = few_shot(model, photos, [1, 5], seeds=2)
            assert [list(one.accuracies) for one in found.results] == [one["accuracies"] for one in shown["results"]]

    def test_calibrate(self, base: Path, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="so that split cannot be scored"):
            calibrate(str(base), photos, fit_on="test", split="test", out=tmp_path / "copy")
        with pytest.raises(CheckpointError, match="there already"):
            calibrate(str(base), photos, out=photos)
        assert not (tmp_path / "copy").exists()


class TestCalibration:
    def test_temperature_is_where_the_likelihood_is_greatest(self) -> None:
        """Labels drawn from softmax(z / 2.5) give 2.5 back; the likelihood is worse on both sides."""
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 4, (20_000, 5)).astype(np.float32)
        shares = np.exp(logits / 2.5 - (logits / 2.5).max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        labels = (shares.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
        found = fit_temperature(logits, labels)
        assert found == pytest.approx(2.5, rel=0.05)  # 20 000 draws

        def nll(t: float) -> float:
            z = logits.astype(np.float64) / t
            return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]).mean())

        assert nll(found) < min(nll(found * 1.01), nll(found / 1.01))

    def test_there_is_not_always_one(self) -> None:
        logits = np.eye(3, dtype=np.float32)
        with pytest.raises(DataError, match="surer would always be better"):
            fit_temperature(logits, np.arange(3))
        with pytest.raises(DataError, match="no better than chance"):
            fit_temperature(logits, np.array([1, 2, 0]))

    def test_stored_and_used_by_predict(self, photos: Path, tmp_path: Path) -> None:
        base = write_tiny(tmp_path / "mine")
        before = document(base, "--data", photos)
        # random weights are at chance: a split in which the model is right more often than not calibrates
        easy = tmp_path / "easy"
        for i, (name, answer) in enumerate(_answers(base, photos)):
            label = answer if i % 3 else LABELS[i % 2]
            for split in ("val", "test"):
                (easy / split / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(name, easy / split / label / f"{split}{i}.png")
        found = document(base, "--data", easy, "--calibrate", "--out", tmp_path / "copy")
        temperature = found["calibration"]["temperature"]
        assert found["measures"]["nll"] < found["calibration"]["before"]["nll"]
        assert resolve(str(tmp_path / "copy")).temperature == temperature
        again = calibrate(str(base), easy, out=tmp_path / "again")
        assert (again.temperature, again.folder) == (temperature, tmp_path / "again")
        assert again.after.measures.nll == found["measures"]["nll"]
        assert resolve(str(base)).temperature is None
        assert document(base, "--data", photos)["measures"] == before["measures"]
        name = next(iter(photos.glob("test/*/1.png")))
        said = CliRunner().invoke(app, ["predict", str(name), "-m", str(tmp_path / "copy")])
        assert f"calibrated, temperature {temperature:g}" in said.stderr

    @pytest.mark.parametrize("layout", ["no splits", "only train", "an empty validation split"])
    def test_without_a_validation_split_one_is_drawn(self, photos: Path, tmp_path: Path, layout: str) -> None:
        """The temperature is fitted on it and the rest is scored, which is said."""
        base, data = write_tiny(tmp_path / "mine"), tmp_path / "data"
        for i, (name, answer) in enumerate(_answers(base, photos)):
            folder = data / ("" if layout == "no splits" else "train") / (answer if i % 3 else LABELS[i % 2])
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(8):
                with Image.open(name) as image:
                    image.putpixel((0, 0), (copy, 0, 0))
                    image.save(folder / f"{i}-{copy}.png")
        if layout == "an empty validation split":
            for label in LABELS:
                (data / "val" / label).mkdir(parents=True)
        result = invoke(base, "--data", data, "--calibrate", "--out", tmp_path / "copy", "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["calibration"]["split"], found["split"]) == ("val", "train")
        assert found["calibration"]["n"] + found["measures"]["n"] == 8 * 24
        assert "scored on train, which is all that is left" in " ".join(result.stderr.split())
        assert ("there is no val split" in result.stderr.replace("\n", " ")) == (layout == "an empty validation split")
        asked = invoke(base, "--data", data, "--calibrate", "--split", "val", "--out", tmp_path / "other")
        assert asked.exit_code == 2
        assert "so that split cannot be scored" in " ".join(asked.stderr.split())

    def test_both_columns_have_a_heading(self, base: Path, photos: Path) -> None:
        result = evaluate(str(base), read_splits(photos).named["test"], LABELS)
        grid = _measures(result, result.measures)
        assert [column.header for column in grid.columns] == ["", "before", "after"]

    def test_an_exported_file_is_not_written_to(self, photos: Path, tmp_path: Path) -> None:
        exported = tmp_path / "model.onnx"
        made = CliRunner().invoke(app, ["export", str(write_tiny(tmp_path / "mine")), "--out", str(exported)])
        assert made.exit_code == 0, made.stderr
        result = invoke(exported, "--data", photos, "--calibrate", "--out", tmp_path / "copy")
        assert result.exit_code == 1
        assert "is an exported file, which is not changed" in " ".join(result.stderr.split())
        assert not (tmp_path / "copy").exists()

    def test_a_bundled_model_is_not_written_to(self, photos: Path) -> None:
        result = invoke("fashion-vit", "--data", photos, "--calibrate")
        assert result.exit_code == 1
        assert "--out FOLDER makes a calibrated copy" in result.stderr


def _answers(model: Path, photos: Path) -> list[tuple[str, str]]:
    return [(p.path, p.labels[0].label) for p in load(str(model)).predict(str(photos / "train"), top_k=1)]


class TestTwoModels:
    def test_paired(self, base: Path, photos: Path, tmp_path: Path) -> None:
        other = write_tiny(tmp_path / "other", seed=1)
        found = document(base, other, "--data", photos)
        flips, pair = found["flips"], found["paired"]
        assert len(flips) == pair["only_first"] + pair["only_second"]
        assert sum(flip["gained"] for flip in flips) == pair["only_second"]
        accuracies = [model["measures"]["top1"] for model in found["models"]]
        assert pair["difference"] == pytest.approx(accuracies[1] - accuracies[0])
        assert "McNemar" in invoke(base, other, "--data", photos).stdout

    def test_a_model_and_itself(self, base: Path, photos: Path) -> None:
        found = document(base, base, "--data", photos)
        assert found["flips"] == []
        assert found["paired"]["p_value"] == 1


class TestFewShot:
    @pytest.mark.parametrize("n", [12, 60])
    def test_is_regularised_least_squares(self, n: int) -> None:
        """scikit-learn's ridge on the same design, for fewer and for more images than features."""
        rng = np.random.default_rng(0)
        x, labels = rng.normal(3, 2, (n, 24)).astype(np.float32), rng.integers(0, 3, n)
        found = fit(x, labels, 3)
        standard = (x - x.mean(axis=0, dtype=np.float64)) / (x.std(axis=0, dtype=np.float64) + STD_EPS)
        design = np.concatenate([standard, np.full((n, 1), BIAS)], axis=1)
        ridge = Ridge(alpha=L2, fit_intercept=False, solver="svd").fit(design, 2 * np.eye(3)[labels] - 1)
        np.testing.assert_allclose(found.weight, ridge.coef_.T, rtol=1e-6, atol=1e-9)
        augmented = np.concatenate([design, np.sqrt(L2) * np.eye(25)])
        target = np.concatenate([2 * np.eye(3)[labels] - 1, np.zeros((25, 3))])
        np.testing.assert_allclose(found.weight, np.linalg.lstsq(augmented, target)[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(found.predict(x), (design @ ridge.coef_.T).argmax(axis=1))

    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30])
    def test_students_t(self, freedom: int) -> None:
        assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)

    def test_command(self, base: Path, photos: Path) -> None:
        found = document(base, "--data", photos, "--few-shot", "1,5", "--seeds", 4)
        assert [one["shots"] for one in found["results"]] == [1, 5]
        assert all(len(one["accuracies"]) == 4 for one in found["results"])
        assert found["features"] == TINY.embed_dim
        again = document(base, "--data", photos, "--few-shot", "1,5", "--seeds", 4)
        assert again == found
        assert "images a class" in invoke(base, "--data", photos, "--few-shot", "1").stdout

    def test_features_that_know_the_classes(self, tmp_path: Path) -> None:
        """Classes that the pixels give away are learnt from a few images: well above the third of chance."""
        rng = np.random.default_rng(0)
        for split, n in (("train", 10), ("test", 10)):
            for label, level in (("dark", 30), ("gray", 120), ("light", 220)):
                (tmp_path / split / label).mkdir(parents=True)
                for i in range(n):
                    pixels = np.clip(rng.normal(level, 10, (64, 64, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
        base = write_tiny(tmp_path / "base", replace(TINY, num_classes=5))
        found = document(base, "--data", tmp_path, "--few-shot", "5")
        assert found["results"][0]["mean"] > 0.9

    @pytest.mark.parametrize(
        ("shots", "message"), [("0", "from 1"), ("x", "write images a class"), ("50", "fewer than 50")]
    )
    def test_wrong_numbers(self, base: Path, photos: Path, shots: str, message: str) -> None:
        result = invoke(base, "--data", photos, "--few-shot", shots)
        assert result.exit_code in (1, 2)
        assert message in result.stderr
