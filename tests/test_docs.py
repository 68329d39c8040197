"""The documentation says what is: every command is in the reference, and the README's commands exist and run."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
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


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_json_document_is_described() -> None:
    written = (ROOT / "docs" / "output.md").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in (ROOT / "vitcli").rglob("*.py"))
    schemas = set(re.findall(r'"(vit\.[a-z.-]+/[0-9]+)"', code))
    assert {"vit.predict/1", "vit.compare/1"} <= schemas
    assert {schema for schema in schemas if f'"{schema}"' not in written} == set()
