"""Classes that stay where new ones are learnt: their rows of the head, and what is forgotten of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_class_stripes
from tests.helpers.finetuning import RECIPE, SMALL, settings_of
from tests.helpers.runs import run_to_end
from tests.helpers.terminal import invoke
from vitcli.checkpoint.load import load_any, load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import UsageError
from vitcli.inference.evaluate import evaluate
from vitcli.training import train as training
from vitcli.training.build import build_task, heads_of
from vitcli.training.keeping import forgotten, require_keepable
from vitcli.training.logistic import fit_head
from vitcli.training.settings import Settings

OLD = ("left", "middle", "right")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "base", replace(SMALL, num_classes=3), labels=OLD)


def kept_settings(base: Path, data: Path, tune: str = "all", **more: Any) -> Settings:
    checkpoint = resolve(str(base))
    return settings_of(base, data, tune, keep=checkpoint.labels, **more)


def head(folder: Path) -> torch.Tensor:
    return load_model(resolve(str(folder))).head.weight.detach()


@pytest.mark.parametrize("tune", ["all", "head", "lora"])
def test_old_rows_are_where_training_begins(tune: str, base: Path, tmp_path: Path) -> None:
    """In the checkpoint's order, whatever the order and spelling of the data's folders; the new one begins at zero."""
    data = write_class_stripes(tmp_path / "more", {"Right": 2, "left": 0, "another": 3})
    settings = kept_settings(base, data, tune, rank=2 if tune == "lora" else 0)
    samples = training.open_settings_data(settings)
    assert samples.classes == (*OLD, "another")
    assert sorted(np.unique(samples.train.labels)) == [0, 2, 3]
    found = build_task(settings, samples).model.head
    old = load_model(resolve(str(base))).head
    assert torch.equal(found.weight[:3], old.weight)
    assert torch.equal(found.bias[:3], old.bias)
    assert not found.weight[3].any()
    assert not found.bias[3]


def test_a_head_alone_is_solved_beside_the_old_rows(base: Path, tmp_path: Path) -> None:
    data = write_class_stripes(tmp_path / "more", {"left": 0, "middle": 1, "right": 2, "another": 3}, each=8)
    settings = kept_settings(base, data, "head")
    run_to_end(settings, tmp_path / "run")
    found = load_model(resolve(str(tmp_path / "run" / "best")))
    old = load_model(resolve(str(base)))
    assert torch.equal(found.head.weight[:3], old.head.weight)
    assert torch.equal(found.head.bias[:3], old.head.bias)
    assert found.head.weight[3].any()
    result = evaluate(str(tmp_path / "run" / "best"), data)
    assert result.measures.classes[3].recall == 1


def test_a_head_beside_old_rows_is_at_its_minimum() -> None:
    """The gradient of the penalised loss by the new rows alone vanishes there."""
    torch.manual_seed(0)
    x, labels = torch.randn(60, 5).double(), torch.arange(60) % 4  # float32 ends where the loss no longer falls
    kept = torch.randn(3, 5).double(), torch.randn(3).double()
    fitted = fit_head(x, labels, 4, 0, kept=kept)
    assert torch.equal(fitted.weight[:3], kept[0])
    assert torch.equal(fitted.bias[:3], kept[1])
    std, mean = x.std(dim=0, unbiased=False), x.mean(dim=0)
    weight = (fitted.weight[3:] * std).requires_grad_()  # on standardised features
    bias = (fitted.bias[3:] + fitted.weight[3:] @ mean).requires_grad_()
    logits = torch.cat([x @ kept[0].T + kept[1], (x - mean) / std @ weight.T + bias], dim=1)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (loss + fitted.penalty / 2 * (weight.square().sum() + bias.square().sum())).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias), atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [("0", "1", "2"), ("2", "0", "1"), ("1", "x", "0", "2")])
def test_rows_of_known_classes_are_where_training_begins(labels: tuple[str, ...], tmp_path: Path) -> None:
    """Without --keep-classes, too: in whatever order, and where the checkpoint knows more."""
    known = write_tiny(tmp_path / "known", replace(SMALL, num_classes=len(labels)), labels=labels)
    data = write_class_stripes(tmp_path / "data", {"0": 0, "1": 1, "2": 2})
    settings = settings_of(known, data)
    task = build_task(settings, training.open_settings_data(settings))
    assert torch.equal(task.model.head.weight, head(known)[[labels.index(name) for name in "012"]])
    assert "where training begins" in task.notes[0]


def test_a_cnn_keeps_its_rows_too(tmp_path: Path) -> None:
    data = write_class_stripes(tmp_path / "data", {name: i for i, name in enumerate(OLD)})
    small = replace(RECIPE, epochs=0.3, ema_decay=0.0)
    run_to_end(Settings("resnet10t", {}, str(data), small), tmp_path / "cnn")
    cnn = tmp_path / "cnn" / "best"
    settings = kept_settings(cnn, write_class_stripes(tmp_path / "more", {"another": 3}))
    (found,) = heads_of(build_task(settings, training.open_settings_data(settings)).model)
    (old,) = heads_of(load_any(resolve(str(cnn))))
    assert torch.equal(found.weight[:3], old.weight)
    assert not found.weight[3].any()


class TestForgetting:
    def data(self, tmp_path: Path, old: bool) -> Path:
        """New images to learn from, and where `old` some of two old classes among the test images."""
        folder = tmp_path / "more"
        write_class_stripes(folder / "train", {"another": 3})
        write_class_stripes(
            folder / "test", {"another": 3, **({"left": 0, "right": 2} if old else {})}, each=4, first=20
        )
        return folder

    def test_is_measured_by_both_checkpoints_on_the_same_images(self, base: Path, tmp_path: Path) -> None:
        data = self.data(tmp_path, old=True)
        result = invoke(
            "finetune", "-m", base, "-d", data, "--keep-classes", "--tune", "all", "--epochs", 6, "--lr", 0.003,
            "--out", tmp_path / "run", "--json", "--device", "cpu",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "no training images of the 3 old classes" in result.stderr
        found = json.loads(result.stdout)["forgotten"]
        of_old = write_class_stripes(tmp_path / "old", {"left": 0, "right": 2}, each=4, first=20)
        before = evaluate(str(base), of_old).measures.top1
        after = evaluate(str(tmp_path / "run" / "best"), of_old).measures.top1
        assert found == {"n": 8, "classes": 2, "before": before, "after": after}
        said = f"8 images of 2 of the 3 old classes: accuracy {before:.4f} before, {after:.4f} now"
        assert said in result.stderr
        assert said in (tmp_path / "run" / "report.html").read_text()

    def test_is_said_where_it_cannot_be_measured(self, base: Path, tmp_path: Path) -> None:
        result = invoke(
            "finetune", "-m", base, "-d", self.data(tmp_path, old=False), "--keep-classes", "--tune", "head",
            "--out", tmp_path / "run", "--device", "cpu",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "what was forgotten of the 3 old classes is not known" in result.stderr
        assert "forgotten of the 3 old classes is not known" in (tmp_path / "run" / "report.html").read_text()
        assert resolve(str(tmp_path / "run")).labels == (*OLD, "another")

    def test_a_run_goes_on_with_its_classes(self, base: Path, tmp_path: Path) -> None:
        data = self.data(tmp_path, old=True)
        settings = kept_settings(base, data)
        run_to_end(settings, tmp_path / "run")
        again, samples = training.resumed(tmp_path / "run", epochs=3)
        assert again.start == settings.start
        assert samples.classes == (*OLD, "another")
        assert samples.known == 3
        assert run_to_end(again, tmp_path / "run")

    def test_nothing_is_made_up_without_old_images(self, base: Path, tmp_path: Path) -> None:
        data = self.data(tmp_path, old=False)
        samples = training.open_settings_data(kept_settings(base, data))
        evaluation = evaluate(
            str(write_tiny(tmp_path / "m", replace(SMALL, num_classes=4), labels=samples.classes)), data
        )
        assert forgotten(str(base), evaluation, samples) is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"labels": ()}, "no names"),
        ({"outputs": "embedding"}, "no classes"),
        ({"outputs": "labels"}, "multi-label"),
        ({"vit": replace(SMALL, num_classes=3, head_hidden=40)}, "hidden layer"),
    ],
)
def test_what_cannot_be_kept_is_refused(how: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = {"vit": replace(SMALL, num_classes=3), "labels": OLD} | how
    checkpoint = resolve(str(write_tiny(tmp_path / "model", said.pop("vit"), **said)))
    with pytest.raises(UsageError, match=message):
        require_keepable(checkpoint)


def test_whose_classes_must_be_said(tmp_path: Path) -> None:
    result = invoke("finetune", "-d", tmp_path, "--keep-classes")
    assert result.exit_code == 2
    assert "name the model whose classes are kept" in result.stderr
