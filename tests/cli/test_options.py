"""Each option is declared once: what two commands take is in `options`, and no two things go by one name."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from vitcli import cli

SOURCES = {path.name: path.read_text("utf-8") for path in Path(cli.__path__[0]).glob("*.py")}


def declared(source: str) -> dict[str, str]:
    """The aliases `NAME = Annotated[…]` in Python `source`: name → what is written behind it."""
    return {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Annotated[")
    }


def repeated(sources: dict[str, str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names, and declarations, that stand in more than one of `sources`, with the files where they do."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    bodies: defaultdict[str, list[str]] = defaultdict(list)
    for file, source in sources.items():
        for name, body in declared(source).items():
            names[name].append(file)
            bodies[body].append(file)
    return tuple({what: files for what, files in found.items() if len(files) > 1} for found in (names, bodies))


def test_no_option_is_declared_twice() -> None:
    assert {"DataOpt", "EngineOpt", "JsonOpt"} <= declared(SOURCES["options.py"]).keys()
    assert repeated(SOURCES) == ({}, {})


@pytest.mark.parametrize("name", [file for file in SOURCES if file not in ("app.py", "__init__.py")])
def test_no_command_takes_an_option_from_another_command(name: str) -> None:
    imported = {
        alias.name
        for node in ast.walk(ast.parse(SOURCES[name]))
        if isinstance(node, ast.ImportFrom) and node.module != "vitcli.cli.options"
        for alias in node.names
    }
    assert {alias for alias in imported if alias.endswith(("Opt", "Arg"))} == set()


def test_a_second_declaration_is_noticed() -> None:
    one = "from typing import Annotated\nXOpt = Annotated[int, 'x']"
    assert repeated({"a.py": one, "b.py": one.replace("'x'", "'y'")}) == ({"XOpt": ["a.py", "b.py"]}, {})
    assert repeated({"a.py": one, "b.py": one.replace("XOpt", "YOpt")})[1] == {"Annotated[int, 'x']": ["a.py", "b.py"]}
