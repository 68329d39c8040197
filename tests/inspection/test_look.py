"""`inspect` from Python: without a terminal, with what was measured and what was found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.checkpoints import TINY, write_tiny
from tests.helpers.terminal import vit
from vitcli.errors import UsageError
from vitcli.inspection.distance import Distances
from vitcli.inspection.look import ASPECTS, inspect


def test_needs_no_terminal(here: Path) -> None:
    program = """
import sys
from vitcli.inspection.folder import write_folder
from vitcli.inspection.look import inspect
from pathlib import Path
write_folder(Path("out"), inspect("a", ["heads", "filters", "rollout"], images=["images"]))
names = {".".join(name.split(".")[:2]) for name in sys.modules}
print(sorted(names & {"vitcli.cli", "typer", "rich"}))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert (here / "out" / "report.html").exists()


def test_gives_what_the_command_prints(here: Path) -> None:
    found = inspect("a", ["attention-distance", "attention", "locality"], images=["images"], layers=[1, 2])
    line = "inspect a --attention-distance --attention --locality --images images --layers 1,2 --json"
    document = json.loads(vit(line).stdout)
    assert [exhibit.name for exhibit in found.exhibits] == list(document["exhibits"])
    for exhibit in found.exhibits:
        assert json.loads(json.dumps(exhibit.as_dict())) == document["exhibits"][exhibit.name]
    assert found.images == document["images"]


def test_gives_each_aspects_own_result(here: Path) -> None:
    found = inspect({"one": "a", "two": "b"}, ["attention-distance", "filters"], images=["images"])
    assert {aspect: list(models) for aspect, models in found.results.items()} == {
        "filters": ["one", "two"],
        "attention-distance": ["one", "two"],
    }
    distances = found.results["attention-distance"]["two"]
    assert isinstance(distances, Distances)
    assert distances.paper.values.shape == (4, TINY.depth, TINY.num_heads)


def test_tells_notes_and_progress(here: Path) -> None:
    notes: list[str] = []
    told: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.append((title, done, total))

    inspect("a", ["heads"], count=9, say=notes.append, progress=progress)
    assert notes == ["looking with 9 built-in photographs of Caltech-101; --images or --data takes yours"]
    assert told == [("a", 8, 9), ("a", 9, 9)]


def test_each_model_has_its_own_class_names(here: Path) -> None:
    """Of two models side by side, the second one's answers are not called by the first one's names."""
    write_tiny(here / "renamed", labels=["x", "y", "z"])
    found = inspect({"before": "a", "after": "renamed"}, ["logit-lens"], images=["images"])
    (lens,) = found.exhibits
    answer, title = lens.records.columns.index("answer"), lens.records.columns.index("model")
    named = {name: {row[answer] for row in lens.records.rows if row[title] == name} for name in ("before", "after")}
    assert named["after"] <= {"x", "y", "z"}
    assert not named["before"] & {"x", "y", "z"}


def test_one_bad_image_is_said_once(here: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    found = inspect({"one": "a", "two": "b"}, ["heads", "locality"], images=[str(bad), "images"])
    assert len(found.failed) == 1
    assert "bad.png" in found.failed[0]
    assert len(found.watched) == len(found.images) - 1 == 4


def test_an_unknown_aspect(here: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("no aspect 'token' to look at. Did you mean 'tokens'")):
        inspect("a", ["token"])


def test_a_layer_that_is_not_there(here: Path) -> None:
    with pytest.raises(UsageError, match="numbers from 1 to 2"):
        inspect("a", ["attention"], layers=[3])


def test_images_are_not_opened_for_parameters_alone(here: Path) -> None:
    assert inspect("a", ["filters"]).images == []
    with pytest.raises(UsageError, match="--filters looks at weights alone"):
        inspect("a", ["filters", "posemb"], images=["images"])


def test_every_aspect_is_an_option_and_every_file_is_listed() -> None:
    names = {aspect.name for aspect in ASPECTS}
    options = set(re.findall(r"--([a-z-]+)", vit("inspect --help").stdout))
    assert names <= options
    room = Path(sys.modules["vitcli.inspection.look"].__file__ or "").parent
    written = sum(
        len(re.findall(r"^\w+ = Of\w+\(", path.read_text("utf-8"), re.MULTILINE)) for path in room.glob("*.py")
    )
    assert written == len(ASPECTS) == len(names)


def test_arrays_are_of_the_titles_where_there_are_several(here: Path) -> None:
    one = inspect("a", ["filters"]).exhibits[0]
    two = inspect({"x": "a", "y": "b"}, ["filters"]).exhibits[0]
    assert set(one.arrays) == {"components", "explained"}
    assert set(two.arrays) == {f"{title}.{name}" for title in "xy" for name in one.arrays}
    np.testing.assert_array_equal(one.arrays["components"], two.arrays["x.components"])
