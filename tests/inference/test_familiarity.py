"""How familiar an image is: fitted to held-out images, said by `vit predict`, the same on every engine."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.checkpoints import LABELS, write_tiny
from tests.helpers.familiar import own_samples, strangers, write_familiar
from vitcli import Prediction, load
from vitcli.checkpoint.familiarity import Facts, Familiarity, read_familiarity
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.errors import UsageError
from vitcli.inference.familiarity import LEAST_IMAGES, familiarise, fit
from vitcli.inference.predict import Model

WIDTHS = (12, 12, 8)
FACTS = Facts("own", 400, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_familiar(tmp_path_factory.mktemp("familiar") / "mine")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the model's kind and two strangers."""
    place = tmp_path_factory.mktemp("pictures")
    samples = own_samples(2, seed=5)
    for i in range(2):
        samples.image(i).save(place / f"own{i}.png")
    for i, image in enumerate(strangers(2)):
        image.save(place / f"stranger{i}.png")
    return place


def drawn(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Signatures (n, W) of a simple world, or of one that lies `shift` deviations off."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(sum(WIDTHS), sum(WIDTHS)))
    return ((rng.normal(size=(n, sum(WIDTHS))) + shift) @ mixing).astype(np.float32)


def fitted(n: int = 400, classes: int = 4) -> Familiarity:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (n, classes)).astype(np.float32)
    known = np.zeros(sum(WIDTHS), np.float32)
    return fit(drawn(n, 1), logits, rng.integers(0, classes, n), WIDTHS, known=known, facts=FACTS)


class TestStatistics:
    def test_own_images_are_spread_evenly_and_strangers_are_at_the_bottom(self) -> None:
        found = fitted()
        shares = found.share(found.score(drawn(2000, 2)))
        for share in (0.05, 0.25, 0.5, 0.9):  # of 400 and 2000 draws
            assert (shares < share).mean() == pytest.approx(share, abs=0.06)
        assert found.share(found.score(drawn(200, 3, shift=3.0))).max() < 0.01

    def test_reference_scores_are_of_images_that_took_no_part(self) -> None:
        """With hardly more images than numbers a distance from one's own mean says nothing."""
        found = fitted(LEAST_IMAGES)
        shares = found.share(found.score(drawn(2000, 2)))
        assert 0.3 < shares.mean() < 0.75  # in-sample references would put new images at 0

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
    def test_sets_hold_the_truth_as_often_as_promised(self, level: float) -> None:
        """Over 400 draws of 99 calibration and 100 test images; a set may be empty, and is never too small on average.

        The labels are drawn from other probabilities than the model's, as in life.
        """
        rng, classes, rounds = np.random.default_rng(3), 6, 400
        hits = []
        for _ in range(rounds):
            logits = rng.normal(0, 2, (199, classes))
            truth = np.exp(logits * 0.6)
            truth /= truth.sum(axis=1, keepdims=True)
            labels = (truth.cumsum(axis=1) > rng.random((199, 1))).argmax(axis=1)
            said = np.exp(logits)
            said /= said.sum(axis=1, keepdims=True)
            chosen = said[np.arange(199), labels]
            found = replace(fitted_once(), truths=np.sort(chosen[:99]).astype(np.float32))
            least = found.least_probability(level)
            assert least is not None
            hits.append((chosen[99:] >= least).mean())
        error = np.std(hits) / np.sqrt(rounds)
        assert np.mean(hits) == pytest.approx(level, abs=max(2 * error, 0.011))  # 1/(n+1) above at most

    def test_too_few_images_leave_no_class_out(self) -> None:
        assert replace(fitted_once(), truths=np.array([0.5, 0.9], np.float32)).least_probability(0.9) == 0

    def test_too_few_images_make_no_statistics(self, tmp_path: Path) -> None:
        checkpoint = resolve(str(write_tiny(tmp_path / "m")))
        assert familiarise(checkpoint, own_samples(LEAST_IMAGES - 1)) is None


_ONCE: list[Familiarity] = []


def fitted_once() -> Familiarity:
    if not _ONCE:
        _ONCE.append(fitted())
    return _ONCE[0]


def said(model: Model, pictures: Path, **more: Any) -> list[Prediction]:
    return list(model.predict([pictures], **more))


class TestPredict:
    def test_own_images_and_strangers(self, folder: Path, pictures: Path) -> None:
        found = said(load(folder), pictures, reject=0.01)
        values = [p.familiarity for p in found]
        assert all(0 <= value <= 1 for value in values if value is not None)
        assert [p.unknown for p in found] == [False, False, True, True]
        assert all(p.labels for p in found)  # what it would have said is there

    @pytest.mark.parametrize("form", ["onnx", "onnx with probabilities", "torch"])
    def test_every_engine_says_the_same(self, folder: Path, pictures: Path, tmp_path: Path, form: str) -> None:
        expected = said(load(folder), pictures, reject=0.05, sets=0.8)
        model = load(folder, engine="torch") if form == "torch" else None
        if model is None:
            options = ["--softmax"] if form != "onnx" else []
            made = CliRunner().invoke(app, ["export", str(folder), "--out", str(tmp_path / "m.onnx"), *options])
            assert made.exit_code == 0, made.stderr
            model = load(tmp_path / "m.onnx")
        for one, other in zip(said(model, pictures, reject=0.05, sets=0.8), expected, strict=True):
            assert one.familiarity == pytest.approx(other.familiarity, abs=1.5 / 120)  # rounding may pass one image
            assert (one.unknown, [s.label for s in one.set or ()]) == (
                other.unknown,
                [s.label for s in other.set or ()],
            )

    def test_a_set_is_the_likely_classes(self, folder: Path, pictures: Path) -> None:
        model = load(folder)
        assert model.familiarity is not None
        least = model.familiarity.least_probability(0.8)
        for one in said(model, pictures, sets=0.8, top_k=3):
            assert one.set is not None
            assert [s.label for s in one.set] == [s.label for s in one.labels if s.probability >= (least or 0)]

    def test_without_statistics_nothing_is_said(self, tmp_path: Path, pictures: Path) -> None:
        model = load(write_tiny(tmp_path / "m"))
        assert [p.familiarity for p in said(model, pictures)] == [None] * 4
        for wish in ({"reject": 0.05}, {"sets": 0.9}):
            with pytest.raises(UsageError, match="no statistics of its own held-out images"):
                model.predict([pictures], **wish)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 5.0, float("nan")])
    def test_a_share_is_between_none_and_all(self, folder: Path, share: float) -> None:
        for wish in ("reject", "sets"):
            with pytest.raises(UsageError, match="between 0 and 1"):
                load(folder).predict([], **{wish: share})

    def test_evaluation_sees_the_same_logits(self, folder: Path, tmp_path: Path) -> None:
        from vitcli.inference.evaluate import evaluate

        bare = write_tiny(tmp_path / "bare")
        mine, theirs = (evaluate(str(m), own_samples(20), LABELS).logits for m in (folder, bare))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


class TestCommand:
    def test_json(self, folder: Path, pictures: Path) -> None:
        result = run(pictures, "-m", folder, "--json", "--reject", "5%", "--sets", "90%")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["sets"] == 0.9
        for one in document["predictions"]:
            assert one["unknown"] == (one["familiarity"] < 0.05)
            assert set(one["set"]) <= set(LABELS)

    def test_csv(self, folder: Path, pictures: Path) -> None:
        result = run(pictures, "-m", folder, "--csv", "--reject", "0.05", "--sets", "0.9")
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert list(rows[0])[5:] == ["familiarity", "unknown", "set"]
        assert all(row["unknown"] == str(float(row["familiarity"]) < 0.05).lower() for row in rows)
        assert all(set(json.loads(row["set"])) <= set(LABELS) for row in rows)

    def test_people_read_it_below_the_bars(self, folder: Path, pictures: Path) -> None:
        text = " ".join(run(pictures, "-m", folder).stdout.split())
        assert text.count("trained on ramps (cat, dog, bird), and this looks like none of it") == 2
        assert "unknown" not in text
        rejected = run(pictures, "-m", folder, "--reject", "1%", "--sets", "90%").stdout
        assert rejected.count("unknown") == 2
        assert rejected.count("of the time it is one of") + rejected.count("no class is likely enough") == 2

    def test_without_statistics(self, tmp_path: Path, pictures: Path) -> None:
        bare = write_tiny(tmp_path / "m")
        document = json.loads(run(pictures, "-m", bare, "--json").stdout)
        assert {*document["predictions"][0]} == {"path", "labels"}
        assert run(pictures, "-m", bare, "--csv").stdout.startswith("path,rank,label,probability,error\n")
        refused = run(pictures, "-m", bare, "--reject", "5%")
        assert refused.exit_code == 2
        assert "vit evaluate --calibrate writes them" in " ".join(refused.stderr.split())

    @pytest.mark.parametrize("text", ["5 %%", "0", "100%", "much", "nan", "-5%", "inf"])
    def test_shares_that_are_none(self, folder: Path, pictures: Path, text: str) -> None:
        for option in ("--reject", "--sets"):
            result = run(pictures, "-m", folder, f"{option}={text}")
            assert result.exit_code == 2
            assert "between 0 and 1" in " ".join(result.stderr.split())


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A data set with a validation split that is large enough."""
    for split, n in (("train", 6), ("val", 120), ("test", 6)):
        samples = own_samples(n, seed=n)
        for i in range(n):
            place = tmp_path / "flowers" / split / LABELS[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            samples.image(i).save(place / f"{i}.png")
    return tmp_path / "flowers"


class TestWhereTheyComeFrom:
    def test_calibration_writes_them(self, flowers: Path, tmp_path: Path) -> None:
        base = write_tiny(tmp_path / "m")
        arguments = [
            "evaluate",
            str(base),
            "--data",
            str(flowers),
            "--calibrate",
            "--out",
            str(tmp_path / "c"),
            "--json",
        ]
        # Random weights are at chance, where no temperature fits: labels are made its answers, two in three.
        for i, one in enumerate(load(base).predict([flowers / "val"], top_k=1)):
            label = one.labels[0].label if i % 3 else LABELS[i % 2]
            place = flowers / "val" / label / f"n{i}.png"
            place.parent.mkdir(exist_ok=True)
            Path(one.path).rename(place)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["calibration"]["familiar"] == 120
        found = read_familiarity(resolve(str(tmp_path / "c")))
        assert found is not None
        assert (found.facts.data, found.facts.images) == ("flowers", 120)
        assert found.facts.temperature == document["temperature"]
        assert read_familiarity(resolve(str(base))) is None

    def test_the_end_of_a_run_writes_them(self, flowers: Path, tmp_path: Path) -> None:
        from vitcli.data.sources import open_data
        from vitcli.training.report import keep_familiarity

        best = write_tiny(tmp_path / "best")
        keep_familiarity(best, open_data(flowers))
        found = read_familiarity(resolve(str(best)))
        assert found is not None
        assert found.facts == Facts("flowers", 120, 1.0)


@pytest.mark.parametrize("name", ["fashion-vit", "photo-vit"])
def test_bundled_models_know_strangers(name: str) -> None:
    model = load(name)
    assert model.familiarity is not None
    flat = [Image.new("RGB", (80, 80), colour) for colour in ((0, 90, 250), (250, 0, 250))]
    assert all((p.familiarity or 0) < 0.05 for p in model.predict(flat))
