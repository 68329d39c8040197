"""Learning several labels an image: losses in closed form, a whole run, and what transformers makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import pipeline

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_class_stripes
from tests.helpers.finetuning import RECIPE, SMALL, settings_of
from tests.helpers.many_labels import QUARTERS, write_quarters
from tests.helpers.terminal import invoke
from vitcli.checkpoint.resolve import resolve
from vitcli.data.sources import open_data, read_splits
from vitcli.data.split import folds
from vitcli.errors import DataError, UsageError
from vitcli.inference.multilabel import best_thresholds, evaluate_labels, measure_labels
from vitcli.inference.predict import predict
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.logistic import held_out_logits, logistic_regression
from vitcli.training.objective import asymmetric_loss, positive_weights
from vitcli.training.recipe import for_labels
from vitcli.training.validation import validate


class TestManifest:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("m.csv", 'file_name,labels\na.png,one;two\nb.png,\nc.png,two\n'),
            ("m.csv", 'file_name,labels\na.png,"[""one"", ""two""]"\nb.png,[]\nc.png, two \n'),
            ("m.jsonl", '{"file_name": "a.png", "labels": ["two", "one"]}\n{"file_name": "b.png", "labels": []}\n'
                        '{"file_name": "c.png", "labels": "two"}\n'),
        ],
    )  # fmt: skip
    def test_labels_as_text_and_as_lists(self, name: str, text: str, tmp_path: Path) -> None:
        for image in "abc":
            (tmp_path / f"{image}.png").touch()
        (tmp_path / name).write_text(text)
        found = read_splits(tmp_path / name)
        assert found.classes == ("one", "two")
        assert found.multi_label
        assert found.named["train"].labels.tolist() == [[1, 1], [0, 0], [0, 1]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file_name,labels\na.png,one;one\n", "a label twice in 'one', 'one'"),
            ("file_name,labels\na.png,one;;two\n", "no label"),
            ("file_name,labels,label\na.png,one,one\n", "one of them is enough"),
            ('file_name,labels\na.png,"[one, two"\n', "are no JSON list"),
            ("file_name,labels\na.png,\n", "gives no image a label"),
            ("file_name,labels,labels\na.png,one,two\n", "twice"),
        ],
    )
    def test_what_cannot_be_meant(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_splits(tmp_path / "m.csv")

    def test_lines_that_differ(self, tmp_path: Path) -> None:
        for image in "ab":
            (tmp_path / f"{image}.png").touch()
        (tmp_path / "m.jsonl").write_text('{"path": "a.png", "label": "x"}\n{"path": "b.png", "labels": ["x", "y"]}\n')
        with pytest.raises(DataError, match="labels here, label on lines before"):
            read_splits(tmp_path / "m.jsonl")

    def test_every_label_is_learnt_from_and_validated(self, tmp_path: Path) -> None:
        data = open_data(write_quarters(tmp_path / "data", each=2), val_fraction=0.2)
        assert data.train.labels.sum(axis=0).all()
        assert data.val.labels.sum(axis=0).all()
        assert len(data.train) + len(data.val) == 32


class TestLoss:
    def test_without_its_three_numbers_it_is_binary_cross_entropy(self) -> None:
        logits, labels = torch.randn(6, 4), torch.randint(0, 2, (6, 4))
        expected = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 6
        torch.testing.assert_close(asymmetric_loss(logits, labels, 0, 0, 0), expected)

    def test_asymmetric_in_closed_form(self) -> None:
        """Equations 4 and 5 of arXiv 2009.14119; a negative below the margin costs nothing."""
        p = torch.tensor([[0.8, 0.3, 0.04]], dtype=torch.float64)
        loss = asymmetric_loss(p.logit(), torch.tensor([[1, 0, 0]]), 1.0, 4.0, 0.05)
        expected = -(0.2 * np.log(0.8) + 0.25**4 * np.log(0.75))
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_extreme_logits_stay_finite(self) -> None:
        logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
        loss = asymmetric_loss(logits, torch.tensor([[0, 1]]), 1.0, 4.0, 0.05)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    def test_weights_make_both_sides_weigh_the_same(self, tmp_path: Path) -> None:
        data = open_data(write_quarters(tmp_path / "data", each=2), val_fraction=0.2)
        counts = data.train.labels.sum(axis=0)
        expected = torch.from_numpy((len(data.train) - counts) / counts).float()
        torch.testing.assert_close(positive_weights(data), expected)

    def test_what_mixes_labels_is_switched_off_and_said(self) -> None:
        mixing = replace(RECIPE, mixup=0.2, label_smoothing=0.1)
        recipe, said = for_labels(mixing, several=True)
        assert (recipe.mixup, recipe.label_smoothing) == (0, 0)
        assert said == "several labels an image: without mixup, label_smoothing"
        assert for_labels(mixing, several=False) == (mixing, None)
        with pytest.raises(UsageError, match="loss = asymmetric is for several labels"):
            for_labels(replace(RECIPE, loss="asymmetric"), several=False)

    def test_a_head_is_scikit_learns(self) -> None:
        """A logistic regression for each label, on the sum of their losses."""
        torch.manual_seed(0)
        x, labels = torch.randn(80, 5), torch.randint(0, 2, (80, 3))
        weight, bias = logistic_regression(x, labels, 3, penalty=0.05)
        for k in range(3):
            oracle = LogisticRegression(C=1 / (0.05 * 80), tol=1e-8, max_iter=1000).fit(x.numpy(), labels[:, k].numpy())
            np.testing.assert_allclose(weight[k].numpy(), oracle.coef_[0], atol=2e-3)
            np.testing.assert_allclose(bias[k].item(), oracle.intercept_[0], atol=2e-3)


@pytest.mark.parametrize("loss", ["auto", "asymmetric"])
def test_a_run_from_a_manifest_to_transformers(loss: str, tmp_path: Path) -> None:
    data = write_quarters(tmp_path / "data", each=3, split="train")
    write_quarters(tmp_path / "data", each=1, first=10, split="val")
    write_quarters(tmp_path / "data", each=1, first=20, split="test")
    base = write_tiny(tmp_path / "base", SMALL)
    result = invoke(
        "finetune", "-m", base, "-d", data, "--tune", "all", "--epochs", 12, "--lr", 0.01, "--batch-size", 16,
        "--set", "mixup=0.2", "--set", f"loss={loss}", "--set", "class_weights=true", "--set", "ema_decay=0",
        "--out", tmp_path / "run", "--json", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "without mixup" in result.stderr
    best, found = tmp_path / "run" / "best", json.loads(result.stdout)
    config = json.loads((best / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert found["best"]["validation"]["mean_average_precision"] > 0.6
    checkpoint = resolve(str(best))
    assert checkpoint.labels == tuple(sorted(QUARTERS))
    val = evaluate_labels(str(best), data, split="val")
    assert tuple(checkpoint.thresholds) == best_thresholds(val.probabilities, val.labels)
    test = evaluate_labels(str(best), data, split="test")
    assert found["measures"]["mean_average_precision"] == test.measures.mean_average_precision
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"Mean average precision {test.measures.mean_average_precision:.4f} on 16 test images" in page
    if loss == "auto":
        image = str(tmp_path / "data" / "test-9-20.png")
        theirs = pipeline("image-classification", model=str(best), device="cpu")(image, top_k=4)
        ours = next(iter(predict(image, str(best), top_k=4, exact=True)))
        assert [one["label"] for one in theirs] == [one.label for one in ours.labels]
        np.testing.assert_allclose(
            [one["score"] for one in theirs], [one.probability for one in ours.labels], atol=1e-5
        )


@pytest.mark.parametrize("tune", ["head", "all"])
def test_folds_answer_every_image_once(tune: str, tmp_path: Path) -> None:
    data = write_quarters(tmp_path / "data", each=3)
    base = write_tiny(tmp_path / "base", SMALL)
    result = invoke(
        "finetune", "-m", base, "-d", data, "--tune", tune, "--folds", 3, *(["--epochs", 1] if tune == "all" else []),
        "--out", tmp_path / "run", "--json", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found, checkpoint = json.loads(result.stdout), resolve(str(tmp_path / "run"))
    assert (found["measures"]["n"], found["split"]) == (48, "folds")
    said = checkpoint.provenance["cross_validation"]
    assert (said["folds"], said["images"]) == (3, 48)
    assert said["mean_average_precision"] == found["measures"]["mean_average_precision"]
    assert list(checkpoint.thresholds) == [one["threshold"] for one in found["measures"]["labels"]]
    assert "48 images, of 3 models" in (tmp_path / "run" / "report.html").read_text()
    if tune == "head":  # those of heads that have not seen them
        all_of_it = open_data(data, val_fraction=0.0).train
        fold = folds(all_of_it.contents or (), all_of_it.labels, 3)
        assert all(abs(all_of_it.labels[fold == k].sum(axis=0) - 8).max() <= 1 for k in range(3))  # of 24 each
        x, labels = load_file(tmp_path / "run" / "features.safetensors")["features"], torch.from_numpy(all_of_it.labels)
        logits = held_out_logits(x, labels, 4, fold, 0)
        measures = measure_labels(torch.sigmoid(logits.double()).numpy(), all_of_it.labels, QUARTERS)
        assert said["mean_average_precision"] == pytest.approx(measures.mean_average_precision, abs=1e-6)


def test_two_processes_validate_what_one_does(tmp_path: Path) -> None:
    """A ranking is of all images, whoever has looked at them."""
    data = open_data(write_quarters(tmp_path / "data", each=1), val_fraction=0.5)
    base = write_tiny(tmp_path / "base", replace(SMALL, num_classes=4), labels=QUARTERS, outputs="labels")
    settings = settings_of(base, tmp_path / "data" / "labels.csv", "all")
    task = build_task(settings, data)
    told: list[torch.Tensor] = []

    class Half(World):
        def add(self, tensor: torch.Tensor) -> None:
            told.append(tensor.clone())
            tensor.copy_(sum(told))

    second = validate(task.model, task, data.val, Half(1, 2))
    first = validate(task.model, task, data.val, Half(0, 2))
    assert first == validate(task.model, task, data.val, World())
    assert second != first


def test_class_folders_may_be_learnt_so_too(tmp_path: Path) -> None:
    """--multi-label: a sigmoid for each, though every picture has one label; kept for a run that goes on."""
    data = write_class_stripes(tmp_path / "data", {"left": 0, "middle": 1, "right": 2})
    base = write_tiny(tmp_path / "base", SMALL)
    result = invoke(
        "finetune", "-m", base, "-d", data, "--tune", "head", "--multi-label", "--out", tmp_path / "run",
        "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert resolve(str(tmp_path / "run")).outputs == "labels"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["multi_label"]
