"""The documentation says what is: every command is in the reference, and the README's commands exist and run."""

import importlib.util
import re
import shlex
import shutil
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from vitcli.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def make_cli() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(make_cli: ModuleType) -> None:
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert written == make_cli.reference(), "run: python docs/make_cli.py"


def test_every_command_has_help_and_is_in_the_readme(make_cli: ModuleType) -> None:
    assert {"predict", "train", "models"} <= set(make_cli.command_names())
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__doc__
    for name in make_cli.command_names():
        assert f"vit {name}" in README


def readme_commands() -> list[str]:
    """Lines `$ vit …` of the README."""
    return re.findall(r"^\$ (vit .*)$", README, re.MULTILINE)


def test_the_readme_shows_commands() -> None:
    assert len(readme_commands()) >= 3


@pytest.mark.parametrize(
    "command", [line for line in readme_commands() if line.startswith(("vit predict", "vit models"))]
)
def test_the_readmes_commands_run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command.partition(" | ")[0])[1:])
    assert result.exit_code == 0, result.output


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in one session, as a reader would type it, on a data set of two classes."""
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == page.count("```python") >= 6
    pictures = {"Dress": ROOT / "docs/images/dress.png", "Sneaker": ROOT / "docs/images/sneaker.png"}
    for (name, picture), split in product(pictures.items(), ("train", "val", "test")):
        folder = tmp_path / "photos" / split / name
        folder.mkdir(parents=True)
        for i in range(4):
            shade = Image.open(picture).point(lambda value, i=i, split=split: min(255, value + i + 8 * len(split)))
            shade.save(folder / f"{i}.png")
    shutil.copy(pictures["Dress"], tmp_path / "photo.jpg")  # the format is told by content
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert {"compare", "evaluate", "explain", "finetune", "inspect", "load", "predict"} <= names.keys()
    assert names["prediction"].labels[0].label == "Dress"
    assert names["result"].measures.n == 8
    assert names["tuned"].labels == ("Dress", "Sneaker")
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "heads.png").is_file()
    assert names["why"].label == "Dress"
    assert (tmp_path / "why.png").is_file()
    assert [point.model for point in names["study"].points] == ["vit-small"] * 2
    assert names["weights"].shape == (2, 12, 281, 281)


def named_in_the_tree(tree: str) -> set[str]:
    """Paths below vitcli/, without suffix, that the README's tree names: rooms, and the files in them."""
    found, room = set(), ""
    for indent, names in re.findall(r"^( +)(\S+(?:, \S+)*)  ", tree, re.MULTILINE):
        room = "" if len(indent) == 2 else room
        found |= {room + name for name in names.split(", ")}
        room = room or names
    return found


def test_the_tree_is_true() -> None:
    tree = README.partition("```text\nvitcli/\n")[2].partition("```")[0].partition("tests/")[0]
    named = named_in_the_tree(tree)
    assert {"model/", "model/vit", "training/learner", "checkpoint/tensor_file", "files", "images/decode"} <= named
    package = ROOT / "vitcli"
    assert {name for name in named if not (package / name).exists() and not (package / f"{name}.py").exists()} == set()
    rooms = {path.name + "/" for path in package.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= named


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_are_named_exist() -> None:
    """Modules and tests in backticks, as paths in the package or below tests/."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)\b", page.read_text("utf-8")):
            places = (ROOT, ROOT / "vitcli", ROOT / "tests")
            assert any((place / name).is_file() for place in places), f"{page.name}: {name}"


def test_every_json_document_is_described() -> None:
    written = (ROOT / "docs" / "output.md").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in (ROOT / "vitcli").rglob("*.py"))
    schemas = set(re.findall(r'"(vit\.[a-z.-]+/[0-9]+)"', code))
    assert {"vit.predict/1", "vit.compare/1"} <= schemas
    assert {schema for schema in schemas if f'"{schema}"' not in written} == set()
