"""Names from a file for classes that have none: which files name them, and which are refused, in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import LABELS, write_tiny
from tests.helpers.terminal import vit
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.naming import named
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.write import store_temperature
from vitcli.errors import UsageError
from vitcli.inference.evaluate import evaluate
from vitcli.inference.predict import load

NAMELESS = [
    {"labels": ()},
    {"labels": ["LABEL_0", "LABEL_1", "LABEL_2"]},
    {"labels": ["class 0", "class 1", "class 2"]},
]
FILES = {
    "lines.txt": "cat\ndog\nbird\n",
    "windows.txt": "\ufeffcat\r\n dog \r\nbird\r\n\r\n",
    "no_end.txt": "cat\ndog\nbird",
    "list.json": '["cat", "dog", "bird"]',
    "id2label.json": '{"2": "bird", "0": "cat", "1": "dog"}',
    "label2id.json": '{"bird": 2, "cat": 0, "dog": 1}',
    "json_in.txt": '["cat", "dog",\n "bird"]',
}
REFUSED = {
    "": "no names in it",
    "\n \n": "no names in it",
    "cat\ndog": "2 names for the 3 classes",
    "cat\ndog\nbird\nfish": "4 names for the 3 classes",
    "cat\ndog\ncat": "classes 0 and 2 are both called 'cat'",
    "cat\ncaf\u00e9\ncafe\u0301": "classes 1 and 2 are both called",
    "cat\n\nbird": "line 2 is empty",
    "0 cat\n1 dog\n2 bird": "begin with their numbers",
    "0,cat\n1,dog\n2,bird": "begin with their numbers",
    "0: cat\n1: dog\n2: bird": "begin with their numbers",
    '["cat", "dog", 3]': "a JSON list of names was expected",
    '["cat", "dog", " "]': "a JSON list of names was expected",
    '{"0": "cat", "1": "dog", "3": "bird"}': "do not count the classes from 0 to 2",
    '{"0": "cat", "00": "dog", "1": "bird"}': "do not count the classes from 0 to 2",
    '{"cat": 0, "dog": 0, "bird": 1}': "do not count the classes from 0 to 2",
    '{"cat": 1, "dog": 2, "bird": 3}': "do not count the classes from 0 to 2",
    '{"0": "cat", "0": "dog", "1": "x", "2": "y"}': "appears twice",
    "[]": "no names in it",
}


@pytest.fixture
def nameless(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "nameless", labels=())


@pytest.mark.parametrize("name", FILES)
def test_one_name_a_line_or_json(name: str, nameless: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], "utf-8")
    checkpoint = named(resolve(str(nameless)), tmp_path / name)
    assert checkpoint.labels == LABELS
    assert checkpoint.notes == (), "that there are no names is no longer so"


def test_a_name_may_begin_with_a_bracket_or_a_number(nameless: Path, tmp_path: Path) -> None:
    for text in ("[background]\ndog\nbird", "3 cats\n4 cats\n5 cats", "0\n1\n2"):
        (tmp_path / "names").write_text(text)
        assert named(resolve(str(nameless)), tmp_path / "names").labels == tuple(text.split("\n"))


@pytest.mark.parametrize("how", NAMELESS)
def test_numbers_are_no_names(how: dict[str, list[str]], tmp_path: Path) -> None:
    checkpoint = resolve(str(write_tiny(tmp_path / "model", **how)))
    (tmp_path / "names.txt").write_text("a\nb\nc")
    assert named(checkpoint, tmp_path / "names.txt").labels == ("a", "b", "c")


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_fit_is_refused(text: str, nameless: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text, "utf-8")
    with pytest.raises(UsageError) as error:
        named(resolve(str(nameless)), tmp_path / "names.txt")
    assert str(error.value).startswith(f"--class-names {tmp_path}/names.txt: ")
    assert REFUSED[text] in str(error.value)


@pytest.mark.parametrize("command", ["predict", "evaluate", "convert"])
def test_every_command_refuses_in_one_line(command: str, nameless: Path, tmp_path: Path, images: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog")
    result = vit(f"{line(command, nameless, images, tmp_path)} --class-names {tmp_path}/names.txt")
    assert result.exit_code == 2
    assert result.stderr == f"error: --class-names {tmp_path}/names.txt: 2 names for the 3 classes of {nameless}\n"
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "convert"])
def test_names_that_are_there_are_not_overruled(command: str, tmp_path: Path, images: Path) -> None:
    model = write_tiny(tmp_path / "model")
    (tmp_path / "names.txt").write_text("x\ny\nz")
    result = vit(f"{line(command, model, images, tmp_path)} --class-names {tmp_path}/names.txt")
    assert result.exit_code == 2
    assert "has class names already, cat, dog, bird" in result.stderr


@pytest.mark.parametrize("command", ["predict", "evaluate", "convert"])
def test_files_that_are_none(command: str, nameless: Path, tmp_path: Path, images: Path) -> None:
    (tmp_path / "utf16.txt").write_text("cat\ndog\nbird", "utf-16")
    for file, said in (
        (tmp_path, "directory"),
        (tmp_path / "nowhere", "No such file"),
        (tmp_path / "utf16.txt", "UTF-8"),
    ):
        result = vit(f"{line(command, nameless, images, tmp_path)} --class-names {file}")
        assert result.exit_code == 2
        assert said in result.stderr


def test_a_model_without_classes_gets_no_names(tmp_path: Path, images: Path) -> None:
    (tmp_path / "names.txt").write_text("x\ny\nz")
    model = write_tiny(tmp_path / "model", labels=("e 0", "e 1", "e 2"), outputs="embedding")
    with pytest.raises(UsageError, match="has no classes that could be named"):
        named(resolve(str(model)), tmp_path / "names.txt")


def test_a_folder_is_scored_by_the_names(nameless: Path, tmp_path: Path, images: Path) -> None:
    """With the numbers alone nothing can be scored; with the names it is what the same model with names gives."""
    (tmp_path / "names.txt").write_text("cat\ndog\nbird")
    result = vit(f"evaluate {nameless} --data {images}")
    assert result.exit_code == 1
    assert "--class-names FILE" in result.stderr
    result = vit(f"evaluate {nameless} --data {images} --json --class-names {tmp_path}/names.txt")
    assert result.exit_code == 0, result.stderr
    known = evaluate(str(write_tiny(tmp_path / "known")), images)
    assert json.loads(result.stdout)["measures"]["confusion"] == [list(row) for row in known.measures.confusion]
    loaded = load(str(nameless), class_names=tmp_path / "names.txt")
    assert evaluate(loaded, images).measures == known.measures


def test_of_two_models_the_one_without_names_gets_them(nameless: Path, tmp_path: Path, images: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird")
    other = write_tiny(tmp_path / "other", seed=1)
    result = vit(f"evaluate {other} {nameless} --data {images} --json --class-names {tmp_path}/names.txt")
    assert result.exit_code == 0, result.stderr


def test_few_shot_does_not_ask_for_names(nameless: Path, tmp_path: Path, images: Path) -> None:
    result = vit(f"evaluate {nameless} --data {images} --knn 1 --class-names {tmp_path}/names.txt")
    assert result.exit_code == 2
    assert "--class-names would change nothing" in result.stderr


def test_a_conversion_keeps_the_names(nameless: Path, tmp_path: Path) -> None:
    """Of a checkpoint in timm's layout, too, which otherwise needs no conversion; the weights are the same."""
    (tmp_path / "names.json").write_text('["cat", "dog", "bird"]')
    assert vit(f"convert {nameless} -o {tmp_path}/x").exit_code == 1
    result = vit(f"convert {nameless} -o {tmp_path}/out --class-names {tmp_path}/names.json")
    assert result.exit_code == 0, result.stderr
    found = resolve(str(tmp_path / "out"))
    assert found.labels == LABELS
    before, after = (load_model(one).state_dict() for one in (resolve(str(nameless)), found))
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("out", [None, "copy"])
def test_a_calibrated_checkpoint_keeps_the_names(out: str | None, nameless: Path, tmp_path: Path) -> None:
    """The temperature was fitted by them; without them its scores could not be had again."""
    (tmp_path / "names.txt").write_text("cat\ndog\nbird")
    checkpoint = named(resolve(str(nameless)), tmp_path / "names.txt")
    folder = store_temperature(checkpoint, 2.0, out and tmp_path / out)
    assert resolve(str(folder)).labels == LABELS


def test_a_temperature_brings_no_names_of_its_own(nameless: Path) -> None:
    store_temperature(resolve(str(nameless)), 2.0)
    assert "label_names" not in json.loads((nameless / "config.json").read_text())


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, name in enumerate(LABELS):
        (tmp_path / "images" / name).mkdir(parents=True)
        for n in range(2):
            picture(2 * i + n).save(tmp_path / "images" / name / f"{n}.png")
    return tmp_path / "images"


def line(command: str, model: Path, images: Path, tmp_path: Path) -> str:
    return {
        "predict": f"predict -m {model} {images} --csv",
        "evaluate": f"evaluate {model} --data {images}",
        "convert": f"convert {model} -o {tmp_path}/out",
    }[command]
