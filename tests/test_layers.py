"""Imports point one way (docs: design): cli → tasks → (data, checkpoint, report) → (images, model) → (errors, text)."""

import ast
from pathlib import Path

import pytest

import vitcli

ROOT = Path(vitcli.__file__).parent
TASKS = {"training", "inference", "inspection", "comparison"}
GROUND = {"errors", "metrics", "privacy", "text"}
MAY_IMPORT = {
    "cli": TASKS | {"data", "checkpoint", "report", "images", "model"} | GROUND,
    **{task: {"data", "checkpoint", "report", "images", "model"} | GROUND for task in TASKS},
    "data": {"images"} | GROUND,
    "checkpoint": {"images", "model"} | GROUND,
    "report": GROUND,
    "images": GROUND,
    "model": GROUND,
    "errors": set(),
    "metrics": set(),
    "privacy": set(),
    "text": set(),
}
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
    """Imports in `source` that a module of `room` may not have."""
    own = {name.split(".")[1] for name in imports_of(source) if name.startswith("vitcli.")}
    top = {name.split(".")[0] for name in imports_of(source)}
    wrong = {f"vitcli.{name}" for name in own if name in MAY_IMPORT and name not in MAY_IMPORT[room] | {room}}
    return wrong if room == "cli" else wrong | (top & TERMINAL)


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in GROUND)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert violations(room, path.read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("model", "from vitcli.checkpoint import load", {"vitcli.checkpoint"}),
        ("training", "def f():\n    import vitcli.inference.engines", {"vitcli.inference"}),
        ("data", "import rich.table", {"rich"}),
        ("images", "from typer import Typer", {"typer"}),
        ("checkpoint", "from vitcli.model.vit import VisionTransformer", set()),
        ("cli", "import typer", set()),
    ],
)
def test_the_check_can_fail(room: str, source: str, wrong: set[str]) -> None:
    assert violations(room, source) == wrong
