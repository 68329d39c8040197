"""Several labels an image: measures (scikit-learn's), thresholds, what predict, evaluate and export make of them."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_score, recall_score

from tests.helpers.checkpoints import edit_config, write_tiny
from tests.helpers.finetuning import SMALL
from tests.helpers.many_labels import QUARTERS, write_quarters
from tests.helpers.terminal import invoke
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.write import store_thresholds
from vitcli.errors import CheckpointError, DataError
from vitcli.inference.engines import probabilities
from vitcli.inference.evaluate import evaluate
from vitcli.inference.multilabel import (
    average_precision,
    best_threshold,
    best_thresholds,
    evaluate_labels,
    measure_labels,
)
from vitcli.inference.predict import predict

VIT = replace(SMALL, num_classes=4)
THRESHOLDS = (0.3, 0.5, 0.6, 0.4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model", VIT, labels=QUARTERS, outputs="labels", thresholds=THRESHOLDS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quarters(tmp_path / "data", each=1)


@pytest.mark.parametrize(("seed", "n", "values"), [(0, 2, 3), (1, 9, 3), (2, 40, 3), (3, 40, 1000), (4, 7, 1000)])
def test_measures_are_scikit_learns(seed: int, n: int, values: int) -> None:
    """With many equal probabilities, too."""
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, values + 1, (n, 5)) / (values + 1)
    truth = rng.integers(0, 2, (n, 5))
    truth[0] = 1  # each label holds somewhere
    limits = rng.uniform(0.1, 0.9, 5)
    found = measure_labels(shares, truth, list("abcde"), limits.tolist())
    said = (shares >= limits).astype(int)
    assert found.mean_average_precision == pytest.approx(average_precision_score(truth, shares, average="macro"))
    assert found.macro_f1 == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    assert found.micro_f1 == pytest.approx(f1_score(truth, said, average="micro", zero_division=0))
    assert found.exact == pytest.approx((said == truth).all(axis=1).mean())
    assert found.nll == pytest.approx(
        np.mean([log_loss(truth[:, k], shares[:, k], labels=[0, 1]) for k in range(5)]), rel=1e-9
    )
    for k, row in enumerate(found.labels):
        assert row.average_precision == pytest.approx(average_precision_score(truth[:, k], shares[:, k]))
        assert (row.precision or 0) == pytest.approx(precision_score(truth[:, k], said[:, k], zero_division=0))
        assert row.recall == pytest.approx(recall_score(truth[:, k], said[:, k]))
        assert row.f1 == pytest.approx(f1_score(truth[:, k], said[:, k], zero_division=0))


def test_a_label_that_never_holds_is_left_out_of_the_means() -> None:
    shares, truth = np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([[1, 0], [0, 0]])
    found = measure_labels(shares, truth, ["a", "b"])
    assert found.labels[1].average_precision is None
    assert found.mean_average_precision == found.macro_f1 == 1
    assert average_precision(shares[:, 1], truth[:, 1]) is None


@pytest.mark.parametrize(("seed", "n"), [(0, 1), (1, 2), (2, 8), (3, 30), (4, 30)])
def test_no_threshold_has_a_better_f1(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    shares, truth = rng.integers(1, 20, n) / 20, rng.integers(0, 2, n)
    truth[0] = 1
    chosen = best_threshold(shares, truth)

    def f1(limit: float) -> float:
        return f1_score(truth, shares >= limit, zero_division=0)

    assert f1(chosen) == pytest.approx(max(f1(limit) for limit in np.arange(0.025, 1.01, 0.05)))


def test_a_label_that_never_held_keeps_a_half() -> None:
    assert best_threshold(np.array([0.2, 0.9]), np.array([0, 0])) == 0.5


def test_every_label_above_its_threshold_is_predicted(model: Path, data: Path) -> None:
    images = [data.parent / row["file_name"] for row in csv.DictReader(data.read_text().splitlines())]
    whole = list(predict(images, str(model), top_k=4))
    for every, found in zip(whole, predict(images, str(model)), strict=True):
        assert found.labels == tuple(one for one in every.labels if one.probability >= THRESHOLDS[one.index])
    store_thresholds(model, [1.0, 1.0, 1.0, 1.0])
    assert all(one.labels == () for one in predict(images, str(model)))


def test_an_image_without_a_label_is_an_answer_in_every_form(model: Path, data: Path) -> None:
    store_thresholds(model, [1.0, 1.0, 1.0, 1.0])
    image = data.parent / "all-3-0.png"
    assert list(csv.reader(io.StringIO(invoke("predict", "-m", model, image, "--csv").stdout)))[1][:4] == [
        str(image), "", "", "",
    ]  # fmt: skip
    assert json.loads(invoke("predict", "-m", model, image, "--jsonl").stdout)["labels"] == []
    assert "no label is above its threshold" in invoke("predict", "-m", model, image).stdout
    assert len(json.loads(invoke("predict", "-m", model, image, "--jsonl", "--top", 2).stdout)["labels"]) == 2


def test_an_evaluation_is_of_predicts_probabilities(model: Path, data: Path) -> None:
    result = evaluate_labels(str(model), data)
    index = {one.path: one for one in predict(list(result.names), str(model), top_k=4)}
    for row, name in zip(result.probabilities, result.names, strict=True):
        assert {one.index: one.probability for one in index[name].labels} == dict(enumerate(row))
    rows = list(csv.DictReader(data.read_text().splitlines()))
    truth = np.array([[name in row["labels"].split(";") for name in QUARTERS] for row in rows], int)
    assert (result.labels == truth).all()
    assert result.measures == measure_labels(result.probabilities, truth, QUARTERS, THRESHOLDS)


def test_the_command_has_a_table_json_and_csv(model: Path, data: Path) -> None:
    measures = evaluate_labels(str(model), data).measures
    found = json.loads(invoke("evaluate", model, "-d", data, "--json").stdout)
    assert found["schema"] == "vit.evaluate-labels/1"
    assert found["measures"]["mean_average_precision"] == measures.mean_average_precision
    assert [one["threshold"] for one in found["measures"]["labels"]] == list(THRESHOLDS)
    table = invoke("evaluate", model, "-d", data).stdout
    assert f"{measures.mean_average_precision:.4f}" in table
    rows = list(csv.reader(io.StringIO(invoke("evaluate", model, "-d", data, "--csv").stdout)))
    assert ["average_precision", "two", str(measures.labels[1].average_precision)] in rows


def test_names_are_matched_and_unknown_ones_refused(model: Path, tmp_path: Path) -> None:
    write_quarters(tmp_path / "more", each=1)
    lines = (tmp_path / "more" / "labels.csv").read_text().replace("four", "Four").replace("one", "five")
    (tmp_path / "more" / "labels.csv").write_text(lines)
    with pytest.raises(DataError, match="does not know the class 'five'"):
        evaluate_labels(str(model), tmp_path / "more" / "labels.csv")
    result = evaluate_labels(str(model), tmp_path / "more" / "labels.csv", ignore_unknown=True)
    assert len(result.labels) == 8
    assert any("8 images left out" in line for line in result.notes)
    assert any("'Four' is the model's 'four'" in line for line in result.notes)


def test_one_label_an_image_says_nothing_of_others_unless_it_is_said_to(
    model: Path, data: Path, tmp_path: Path
) -> None:
    with (data.parent / "single.csv").open("w") as file:
        file.write("file_name,label\nall-1-0.png,four\nall-8-0.png,one\n")
    with pytest.raises(DataError, match="--multi-label says that no others hold"):
        evaluate_labels(str(model), data.parent / "single.csv")
    result = evaluate_labels(str(model), data.parent / "single.csv", multi_label=True)
    assert result.labels.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    assert any("the others are taken not to hold" in line for line in result.notes)


def test_calibration_fits_every_decision_and_chooses_thresholds_anew(model: Path, tmp_path: Path) -> None:
    data = write_quarters(tmp_path / "data", each=1, split="val")
    write_quarters(tmp_path / "data", each=1, first=10, split="test")
    result = invoke("evaluate", model, "-d", data, "--calibrate", "--out", tmp_path / "calibrated", "--json")
    assert result.exit_code == 0, result.stderr
    found, val = json.loads(result.stdout), evaluate_labels(str(model), data, split="val")

    def loss(temperature: float) -> float:
        return float(log_loss(val.labels.ravel(), probabilities(val.logits, temperature, "labels").ravel()))

    best = minimize_scalar(loss, bounds=(0.01, 100), method="bounded").x
    assert found["temperature"] == pytest.approx(best, rel=1e-3)
    cooled = replace(val, temperature=found["temperature"])
    assert resolve(str(tmp_path / "calibrated")).thresholds == best_thresholds(cooled.probabilities, val.labels)
    after = evaluate_labels(str(tmp_path / "calibrated"), data).measures
    assert [found["measures"][name] for name in ("nll", "macro_f1")] == [after.nll, after.macro_f1]
    assert found["split"] == "test"
    before = evaluate_labels(str(model), data).measures
    assert found["calibration"]["before"]["nll"] == before.nll
    table = invoke("evaluate", model, "-d", data, "--calibrate", "--out", tmp_path / "again").stdout
    assert f"temperature {found['temperature']:g}, fitted on val" in table
    assert [f"{before.nll:.4f}", f"{after.nll:.4f}"] in [line.split()[-2:] for line in table.splitlines()]


@pytest.mark.parametrize("option", ["--confusion x.png", "{model}"])
def test_what_is_for_one_class_an_image_is_refused(model: Path, data: Path, option: str) -> None:
    result = invoke("evaluate", model, *option.format(model=model).split(), "-d", data)
    assert result.exit_code == 2
    assert "multi-label" in result.stderr


@pytest.mark.parametrize(
    "line", ["evaluate {classes} -d {data}", "evaluate {model} -d {data} --knn 1", "check {data}", "compare -d {data}"]
)
def test_who_knows_one_class_an_image_says_so(line: str, model: Path, data: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "classes", VIT, labels=QUARTERS)
    result = invoke(*line.format(classes=tmp_path / "classes", model=model, data=data).split())
    assert result.exit_code in (1, 2)
    assert "several labels an image" in result.stderr
    with pytest.raises(DataError, match="several labels an image"):
        evaluate(str(tmp_path / "classes"), data)
    with pytest.raises(CheckpointError, match="one class an image"):
        evaluate_labels(str(tmp_path / "classes"), data)


def test_an_export_answers_as_the_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    result = invoke("export", model, "-o", tmp_path / "m.onnx", "--softmax")
    assert result.exit_code == 0, result.stderr
    ours, theirs = evaluate_labels(str(model), data), evaluate_labels(str(tmp_path / "m.onnx"), data)
    assert theirs.thresholds == ours.thresholds
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-5)


@pytest.mark.parametrize("values", [[0.5], "half", [0.5, 0.5, 0.5, 2], [0.5, 0.5, 0.5, True], {}])
def test_thresholds_that_are_none(model: Path, values: object) -> None:
    edit_config(model, vit__thresholds=values)
    with pytest.raises(CheckpointError, match=r"vit\.thresholds must be"):
        resolve(str(model))


def test_thresholds_are_for_labels_alone(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "classes", VIT, labels=QUARTERS)
    edit_config(folder, vit__thresholds=[0.5] * 4)
    with pytest.raises(CheckpointError, match="of which several may hold"):
        resolve(str(folder))
