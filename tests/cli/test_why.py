"""`vit predict --why`: pictures, a page, what other output says of them, and what is refused."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from tests.helpers.terminal import invoke, vit
from vitcli.cli import why
from vitcli.cli.why import file_names
from vitcli.images.find import ImageSource


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_tiny(tmp_path / "model")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_one_image_becomes_one_picture(here: Path) -> None:
    result = vit("predict --why 0.png -m model -o out --json")
    document = json.loads(result.stdout)
    first = document["predictions"][0]["labels"][0]
    assert document["page"] is None
    assert document["predictions"][0]["why"] == {
        "label": first["label"], "index": first["index"], "method": "gradient-rollout", "file": "out/0-why.png",
    }  # fmt: skip
    assert [path.name for path in (here / "out").iterdir()] == ["0-why.png"]
    with Image.open(here / "out" / "0-why.png") as picture:
        assert picture.size == (2 * 192 + 3, 192)
    assert "what spoke is drawn in out" in result.stderr


def test_several_become_a_page_and_a_bad_one_is_passed_over(here: Path) -> None:
    (here / "bad<b>.png").write_bytes(b"no image")
    result = invoke("predict", "--why", "0.png", "bad<b>.png", "1.png", "-m", "model", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["page"] == "why/why.html"
    assert [one.get("why", {}).get("file") for one in document["predictions"]] == [
        "why/0-why.png",
        None,
        "why/1-why.png",
    ]
    page = (here / "why" / "why.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2
    assert "1.png: what spoke for " in page
    assert "<script" not in page


def test_the_class_that_is_asked_for_is_drawn(here: Path) -> None:
    drawn = {}
    for label in LABELS:
        document = json.loads(vit(f"predict --why --why-class {label} 0.png -m model -o {label} --json").stdout)
        assert document["predictions"][0]["why"]["label"] == label
        drawn[label] = (here / label / "0-why.png").read_bytes()
    assert len(set(drawn.values())) == len(LABELS)


def test_every_kind_of_output_names_the_file(here: Path) -> None:
    (line,) = vit("predict --why 0.png -m model --jsonl").stdout.splitlines()
    assert json.loads(line)["why"]["file"] == "why/0-why.png"
    rows = list(csv.DictReader(io.StringIO(vit("predict --why 0.png nowhere.png -m model --csv").stdout)))
    assert {row["why"] for row in rows if row["path"] == "0.png"} == {"why/0-why.png"}
    assert {row["why"] for row in rows if row["path"] == "nowhere.png"} == {""}
    assert "why/0-why.png" in vit("predict --why 0.png -m model").stdout
    assert "why" not in vit("predict 0.png -m model --csv").stdout


def test_a_terminal_shows_the_map(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from vitcli.cli import console
    from vitcli.cli.views import predictions

    seen = []
    real = console.half_blocks
    monkeypatch.setattr(console, "stdout", lambda: Console(force_terminal=True, color_system="truecolor", width=100))
    monkeypatch.setattr(console, "half_blocks", lambda *given: seen.append(given) or real(*given))
    assert "▀" in vit("predict --why 0.png -m model").stdout
    ((picture, columns),) = seen
    assert picture.width > picture.height * 1.9
    assert columns == predictions.WHY_COLUMNS


def test_an_image_from_standard_input(here: Path) -> None:
    document = json.loads(vit("predict --why - -m model --json", input=(here / "0.png").read_bytes()).stdout)
    assert document["predictions"][0]["why"]["file"] == "why/standard-input-why.png"


def test_of_many_labels_the_asked_one_is_explained_though_none_holds(here: Path) -> None:
    write_tiny(here / "labels", outputs="labels", thresholds=(0.999999,) * 3)
    (line,) = vit("predict --why 0.png -m labels --jsonl").stdout.splitlines()
    assert json.loads(line) == {"path": "0.png", "labels": []}
    (line,) = vit("predict --why --why-class dog 0.png -m labels --jsonl").stdout.splitlines()
    assert json.loads(line)["why"]["label"] == "dog"


def test_no_picture_lies_where_an_image_or_another_picture_is(here: Path) -> None:
    sources = [Path("a/cat.jpg"), Path("b/cat.png"), Path("out/CAT-why.png"), Path("c/" + "x" * 250 + ".png")]
    files = file_names([ImageSource(str(path), path) for path in sources], Path("out"))
    assert [file.name for file in files[:3]] == ["cat-2-why.png", "cat-3-why.png", "CAT-why-why.png"]
    assert len(files[3].name.encode()) < 100
    odd = file_names([ImageSource("..", b""), ImageSource("\x1b[2J/é\udce9.png", b"")], Path("out"))
    assert [file.name for file in odd] == ["image-why.png", "é-why.png"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("0.png -m model -o out", "--out goes with --why"),
        ("0.png -m model --why-class dog", "--why-class goes with --why"),
        ("0.png -m model --why --why-class hog", "has no class called 'hog'. Did you mean 'dog'?"),
        ("0.png -m model --why --precision int8", "leave one of them out"),
        ("0.png 1.png 2.png -m model --why", "at most 2 images"),
        ("0.png -m features --why", "no classes"),
        ("0.png -m model.onnx --why", "name its checkpoint"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, line: str
) -> None:
    monkeypatch.setattr(why, "MOST", 2)
    if "features" in arguments:
        write_tiny(here / "features", replace(TINY, num_classes=0))
    if "onnx" in arguments:
        assert vit("export model -o model.onnx").exit_code == 0
    result = invoke("predict", *arguments.split())
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stdout == ""
    assert not (here / "why").exists()


def test_a_folder_that_cannot_be_made(here: Path) -> None:
    (here / "file").touch()
    result = invoke("predict", "0.png", "-m", "model", "--why", "-o", "file")
    assert result.exit_code == 1
    assert "cannot write to file" in result.stderr
