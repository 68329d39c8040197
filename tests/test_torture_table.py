"""docs/torture.md names tests that exist, and leaves no entry out."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]*test_\w+\.py)::(\w+)`")
PAGE = (TESTS.parent / "docs" / "torture.md").read_text("utf-8")
COMPLETE = range(25, 159)


@cache
def collected(file: str) -> frozenset[str]:
    """What pytest collects from `file`, if that is there: classes called Test…, functions in them and at the top."""
    if not (TESTS / file).exists():
        return frozenset()
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[:4] == "Test"]
    bodies = [tree.body, *(node.body for node in classes)]
    return frozenset(node.name for node in classes) | {
        node.name for body in bodies for node in body if isinstance(node, ast.FunctionDef)
    }


def problems(page: str) -> list[str]:
    rows = ROW.findall(page)
    numbers = [int(number) for number, _, _ in rows]
    found = [f"{number} is missing" for number in COMPLETE if number not in numbers]
    if numbers != sorted(set(numbers)):
        found.append("entries are not in order, each once")
    for number, _, held_by in rows:
        if not TEST.search(held_by) and not held_by.startswith("none: "):
            found.append(f"{number} has neither a test nor a reason")
        for file, name in TEST.findall(held_by):
            if name not in collected(file):
                found.append(f"{number}: no {file}::{name}")
        if held_by.count("::") != len(TEST.findall(held_by)):
            found.append(f"{number}: a test is not written as `file.py::name`")
    return found


def test_every_entry_has_a_test_or_a_reason() -> None:
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("| 30 |", "| x |"), "30 is missing"),
        (("images/test_decode.py::test_truncated_files", "images/test_decode.py::test_gone"), "test_gone"),
        (("data/test_check.py::test_unreadable_files", "test_chek.py::test_unreadable_files"), "test_chek.py"),
        (("`images/test_find.py::test_a_path_that_exists_is_no_glob`", "some day"), "40 has neither"),
        (("`training/test_kill.py::test_signals", "training/test_kill.py::test_signals"), "68: a test is not written"),
        (("| 26 |", "| 25 |"), "each once"),
    ],
)
def test_the_check_can_fail(change: tuple[str, str], problem: str) -> None:
    assert change[0] in PAGE
    assert any(problem in line for line in problems(PAGE.replace(*change)))
