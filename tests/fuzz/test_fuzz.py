"""The short version of `python -m tests.fuzz`, and that its judgement can fail."""

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.damage import Pairs, damaged_bytes, damaged_json, damaged_tree, dump_json
from tests.fuzz.engine import Ended, verdict
from tests.helpers.process import ROOT, environment


def test_damaged_files_of_every_kind_end_as_documented() -> None:
    """In a process of its own: it forks, which is safe only before the first thread."""
    line = [sys.executable, "-m", "tests.fuzz", "--cases", "40", "--seed", "1"]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


TRACEBACK = b"""Traceback (most recent call last):
  File "/x/vitcli/training/folder.py", line 7, in read_config
    y
KeyError: 1
"""


@pytest.mark.parametrize(
    ("command", "ended", "wrong"),
    [
        ("check", (0, b"fine\n", b"a note\n"), ""),
        ("check", (3, b"", b"left out: a\n"), ""),
        ("check", (1, b"", b"error: what is wrong\n"), ""),
        ("check", (1, b"", b"what is wrong\n"), "exit code 1 without an error"),
        ("check", (1, b"", TRACEBACK), "traceback: KeyError in read_config (training/folder.py)"),
        ("check", (4, b"", b""), "exit code 4"),
        ("check", (-signal.SIGSEGV, b"", b""), "killed by SIGSEGV"),
        ("check", (-signal.SIGALRM, b"", b""), "over 5 s"),
        ("check", (0, b"", b"", 5.5), "over 5 s"),
        ("check", (0, b"", b"", 1.0, 2 << 30), "over 1 GiB"),
        ("check", (0, b"\x1b[31m", b""), "control character U+001B on stdout"),
        ("check", (1, b"", b"error: \x07\n"), "control character U+0007 on stderr"),
        ("check", (0, "\x9b".encode(), b""), "control character U+009B on stdout"),
        ("check", (0, "\u202e".encode(), b""), "control character U+202E on stdout"),
        ("check", (0, b"\xff", b""), "control character U+DCFF on stdout"),
        ("check", (0, b"", b"a.py:3: UserWarning: odd\n"), "Python's UserWarning on stderr"),
        ("check --json", (0, b'{"a": [0.5]}', b""), ""),
        ("check --json", (0, b'{"a": NaN}', b""), "stdout is not valid JSON"),
        ("check --json", (0, b"", b""), "stdout is not valid JSON"),
        ("check --json", (0, b'{"a": 1e999}', b""), "a is not finite"),
        ("predict --jsonl", (3, b'{"labels": [{"probability": 1.5}]}\n', b""), "probability is not between 0 and 1"),
    ],
)
def test_the_judgement(tmp_path: Path, command: str, ended: tuple[object, ...], wrong: str) -> None:
    code, stdout, stderr, cpu, memory = (*ended, *(0.1, 0)[len(ended) - 3 :])  # type: ignore[misc]
    assert verdict(command, Ended(code, stdout, stderr, cpu, 1.0, memory), tmp_path) == wrong  # type: ignore[arg-type]


def test_a_file_left_half_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / ".a.json.123.tmp").touch()
    assert verdict("check", Ended(0, b"", b"", 0.1, 0.1, 0), tmp_path) == "left half-written: .tmp"


def test_a_case_is_made_again_by_its_number() -> None:
    for damage, sound in ((damaged_bytes, bytes(range(256))), (damaged_json, '{"a": [1, {"b": "c"}], "d": null}')):
        made = [[damage(sound, random.Random(f"x/{n}")) for n in range(100)] for _ in range(2)]  # type: ignore[operator]
        assert made[0] == made[1]
        assert len(set(made[0])) > 50


def test_damage_knows_no_depth() -> None:
    """What is nested deeper than Python's stack is walked and written like anything else."""
    text = "[" * 20_000 + '{"a": 1}' + "]" * 20_000
    tree: Any = Pairs([("a", 1)])
    for _ in range(20_000):
        tree = [tree]
    assert dump_json(tree) == text
    assert any(dump_json(damaged_tree(tree, random.Random(n))) != text for n in range(5))
