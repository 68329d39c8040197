"""Labels in doubt: flipped ones are found, nothing is changed, and what is written can be read back as data."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from tests.helpers.checkpoints import write_tiny
from tests.helpers.data import write_stripes
from tests.helpers.finetuning import SMALL
from tests.helpers.terminal import invoke
from vitcli.checkpoint.resolve import resolve
from vitcli.data.sources import read_splits
from vitcli.errors import DataError
from vitcli.training.doubts import Doubts, doubts
from vitcli.training.logistic import fit_head, held_out_logits

CLASSES = ("left, or -1", "middle", "right")
FLIPPED = {7, 20, 41, 58}


def stripes(folder: Path, n: int = 90) -> Path:
    """Files in three classes that a tiny model tells apart, `FLIPPED` under the class after theirs; a third is test."""
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 40, (30, 30), dtype=np.uint8)
        pixels[:, 10 * (i % 3) : 10 * (i % 3) + 10] += 200
        name = CLASSES[(i + (i in FLIPPED)) % 3]
        path = folder / ("test" if i % 5 == 0 else "train") / name / f"-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("doubts")
    write_tiny(place / "model", SMALL, seed=1)
    stripes(place / "photos")
    return place


@pytest.fixture(scope="module")
def result(place: Path) -> Doubts:
    return doubts(resolve(str(place / "model")), read_splits(place / "photos"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_flipped_labels_come_first_with_their_class(result: Doubts) -> None:
    assert {int(Path(one.name).stem[1:]) for one in result.doubted} == FLIPPED
    assert result.labels[: len(FLIPPED)] == result.doubted
    assert all(one.suggested == CLASSES[int(Path(one.name).stem[1:]) % 3] for one in result.doubted)
    assert {one.split for one in result.doubted} == {"train", "test"}
    assert len(result.labels) == 90
    assert [one.own for one in result.labels] == sorted(one.own or 0 for one in result.labels)


def test_each_fold_is_judged_by_a_head_that_has_not_seen_it() -> None:
    """scikit-learn's solution of the same problem, with the penalty that each fold's own images choose."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    x = rng.normal(0, 1, (120, 6)).astype(np.float32) + np.eye(3, 6, dtype=np.float32)[labels] * 2
    folds = np.arange(120) // 40
    logits = held_out_logits(torch.from_numpy(x), torch.from_numpy(labels), 3, folds, seed=0)
    for fold in range(3):
        kept = folds != fold
        penalty = fit_head(torch.from_numpy(x[kept]), torch.from_numpy(labels[kept]), 3, 0).penalty
        mean, std = x[kept].mean(0), x[kept].std(0)
        oracle = LogisticRegression(C=1 / (penalty * kept.sum()), tol=1e-8, max_iter=5000)
        oracle.fit((x[kept] - mean) / std, labels[kept])
        expected = oracle.predict_proba((x[~kept] - mean) / std)
        found = logits[torch.from_numpy(~kept)].softmax(dim=1).numpy()
        assert np.abs(found - expected).max() < 2e-3


def test_the_command_changes_nothing_and_its_list_is_data(place: Path, tmp_path: Path) -> None:
    before = contents(place)
    listed, sheet = tmp_path / "review.csv", tmp_path / "sheet.html"
    found = invoke("check", place / "photos", place / "model", "--labels", "--json", "-o", listed, "--html", sheet)
    assert found.exit_code == 0, found.output
    assert contents(place) == before
    document = json.loads(found.stdout)
    assert document["schema"] == "vit.labels/1"
    assert {int(Path(one["name"]).stem[1:]) for one in document["doubted"]} == FLIPPED
    assert sheet.read_text().count("<img") == len(FLIPPED)

    def pairs(data: Path) -> set[tuple[str, str, str]]:
        splits = read_splits(data)
        return {
            (split, str(samples.path(i).resolve()), splits.classes[samples.labels[i]])
            for split, samples in splits.named.items()
            for i in range(len(samples))
        }

    assert pairs(listed) == pairs(place / "photos")  # until somebody has reviewed it
    with listed.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["doubted"] for row in rows[:5]] == ["yes"] * 4 + [""]
    for row in rows:
        if row["doubted"]:
            row["label"] = row["suggested"]
    with listed.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    corrected = {(Path(path).stem, label) for _, path, label in pairs(listed)}
    assert corrected == {(f"-{i}", CLASSES[i % 3]) for i in range(90)}


def test_the_list_lies_beside_the_pictures_or_anywhere(place: Path, tmp_path: Path) -> None:
    stripes(tmp_path / "photos", 30)
    assert invoke("check", tmp_path / "photos", place / "model", "--labels", "-o", tmp_path / "a.csv").exit_code == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.csv").rename(tmp_path / "moved" / "a.csv")
    (tmp_path / "photos").rename(tmp_path / "moved" / "photos")
    assert sum(map(len, read_splits(tmp_path / "moved" / "a.csv").named.values())) == 30


def lonely(folder: Path) -> Iterator[str]:
    """Lines of a manifest in which two images of one group are all that there is of a class."""
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        alone = {"label": "rare", "group": "anna"} if i in (3, 4) else {"label": path.parent.name}
        yield json.dumps({"file_name": str(path), **alone})


def test_a_class_in_one_group_is_not_judged(place: Path, tmp_path: Path) -> None:
    """Nobody else knows it: to call its labels wrong would be a guess."""
    (tmp_path / "m.jsonl").write_text("\n".join(lonely(place / "photos")))
    found = doubts(resolve(str(place / "model")), read_splits(tmp_path / "m.jsonl"))
    assert found.alone == ("rare",)
    assert [(one.label, one.group, one.suggested, one.doubted) for one in found.labels[-2:]] == [
        ("rare", "anna", None, False)
    ] * 2
    assert "rare" not in {one.label for one in found.doubted}


def test_copies_do_not_vouch_for_each_other(place: Path, tmp_path: Path) -> None:
    """A wrong label on every copy of a picture is still found."""
    data = stripes(tmp_path / "photos", 60)
    (wrong,) = data.rglob("-7.png")
    for i in range(4):
        (wrong.parent / f"copy-{i}.png").write_bytes(wrong.read_bytes())
    found = doubts(resolve(str(place / "model")), read_splits(data))
    assert {Path(one.name).name for one in found.doubted} >= {"-7.png", *(f"copy-{i}.png" for i in range(4))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model"], "only --labels"),
        (["--out", "x.csv"], "only --labels"),
        (["--labels", "--no-near"], "--no-near would change nothing"),
        (["--labels", "--out", "x.txt"], "must end in .csv"),
        (["--labels", "--html", "none/x.html"], "no such folder"),
        (["--labels", "--out", "data.csv", "--force"], "the data itself"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("file_name,label\n")
    refused = invoke("check", "data.csv", *options)
    assert refused.exit_code == 2
    assert said in " ".join(refused.stderr.split())


def test_idx_files_have_no_list_but_a_sheet(place: Path, tmp_path: Path) -> None:
    (tmp_path / "idx").mkdir()
    write_stripes(tmp_path / "idx", np.where(np.arange(60) == 8, 0, np.arange(60) % 3), 30)
    arguments = ["check", tmp_path / "idx", place / "model", "--labels"]
    assert invoke(*arguments, "-o", tmp_path / "x.csv").exit_code == 2
    shown = invoke(*arguments, "--html", tmp_path / "x.html")
    assert shown.exit_code == 0, shown.output
    assert "labels are probably wrong" in shown.stderr


def test_one_class_and_too_few_images_are_errors(place: Path, tmp_path: Path) -> None:
    stripes(tmp_path / "one", 1)
    with pytest.raises(DataError, match="only one class"):
        doubts(resolve(str(place / "model")), read_splits(tmp_path / "one"))
    stripes(tmp_path / "two", 2)
    with pytest.raises(DataError, match="too few images"):
        doubts(resolve(str(place / "model")), read_splits(tmp_path / "two"))
