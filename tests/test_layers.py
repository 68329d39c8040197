"""Imports point down the floors of the house, and no two files import each other (docs/design.md, "The house").

Tests are alike: what two of them share is in tests/helpers or a conftest.py.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import vitcli

ROOT = Path(vitcli.__file__).parent
FLOORS = (
    {"__main__"},
    {"cli"},
    {"comparison", "serve"},
    {"training"},
    {"inspection", "inference"},
    {"checkpoint"},
    {"data", "onnx"},
    {"model", "images", "report"},
    {"storage"},
    {"files"},
    {"errors", "machine", "metrics", "privacy", "text"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TERMINAL = {"typer", "rich"}


def imports_of(source: str) -> set[str]:
    """Dotted names of the modules that Python `source` imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(room: str, source: str) -> set[str]:
    """Imports in `source` that a module of `room` may not have: of its own floor or above, or of the terminal."""
    own = {name.split(".")[1] for name in imports_of(source) if name.startswith("vitcli.")}
    top = {name.split(".")[0] for name in imports_of(source)}
    wrong = {f"vitcli.{name}" for name in own & FLOOR.keys() if name != room and FLOOR[name] <= FLOOR[room]}
    return wrong if room in ("cli", "__main__") else wrong | (top & TERMINAL)


def circles(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that reach themselves, where `imports` says what each imports."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imports.get(waiting.pop(), set()) - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    return sorted(name for name in imports if name in reached(name))


MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(["vitcli", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert violations(room, path.read_text("utf-8")) == set()


def test_every_room_has_its_floor() -> None:
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} == FLOOR.keys()


def test_no_two_files_import_each_other() -> None:
    """Imports inside functions count: they hide a circle, they do not open it."""
    names = {name_of(path) for path in MODULES}
    assert circles({name_of(path): imports_of(path.read_text("utf-8")) & names for path in MODULES}) == []


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("model", "from vitcli.checkpoint import load", {"vitcli.checkpoint"}),
        ("inference", "def f():\n    import vitcli.training.fit", {"vitcli.training"}),
        ("inspection", "from vitcli.inference.engines import open_engine", {"vitcli.inference"}),
        ("data", "from vitcli.onnx import graph", {"vitcli.onnx"}),
        ("data", "import rich.table", {"rich"}),
        ("images", "from typer import Typer", {"typer"}),
        ("text", "from vitcli.errors import VitError", {"vitcli.errors"}),
        ("training", "from vitcli.inference.engines import open_engine", set()),
        ("checkpoint", "from vitcli.model.vit import VisionTransformer", set()),
        ("cli", "import typer", set()),
    ],
)
def test_the_check_can_fail(room: str, source: str, wrong: set[str]) -> None:
    assert violations(room, source) == wrong


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(imports) == ["a", "b", "c"]
    assert circles({**imports, "c": set()}) == []


TESTS = Path(__file__).parent


def borrowed(source: str) -> set[str]:
    """Modules of tests that Python `source` imports, or names in text that it runs: `test_x` or `….test_x`."""
    named = set(re.findall(r"^\s*(?:from|import)\s+([\w.]+)", source, re.MULTILINE))
    return {name for name in imports_of(source) | named if any(part[:5] == "test_" for part in name.split("."))}


def test_no_test_module_is_imported() -> None:
    wrong = {str(path.relative_to(TESTS)): borrowed(path.read_text("utf-8")) for path in TESTS.rglob("*.py")}
    assert {path for path, names in wrong.items() if names} == set()


def test_the_longest_files_are_there() -> None:
    """A name that is gone would be begun late and without a word."""
    source = (TESTS / "conftest.py").read_text("utf-8")
    (names,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LONGEST"
    ]
    assert [name for name in names if not (TESTS / name).is_file()] == []


def test_a_borrowed_test_is_found() -> None:
    assert borrowed("from tests.helpers.runs import MODEL") == set()
    for line in ("from tests.cli import test_cli", "import test_cli", "CHILD = '''\nimport test_cli\n'''"):
        assert borrowed(line), line
