"""Folders of records: within their limit, shared, whole or not there."""

import os
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.helpers.process import environment
from vitcli.errors import VitError
from vitcli.storage.records import Folder, Memory, bytes_below, opened_folder


def about(root: Path, rule: str = "r") -> dict[str, str]:
    return {"of": str(root), "rule": rule}


def fill(home: Path, root: Path, rule: str, size: int = 1000, limit: int = 1 << 20) -> Path:
    with opened_folder(home, about(root, rule), size, limit) as folder:
        folder.write("one", bytes(size))
        return folder.path


def test_runs_share_what_one_has_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opened_folder(home, about(tmp_path), 10, 1000) as first, opened_folder(home, about(tmp_path), 10, 1000) as two:
        first.write("key", b"value")
        assert two.read("key") == b"value"
        assert two.read("other") is None
    with opened_folder(home, about(tmp_path, "other rule"), 10, 1000) as other:
        assert other.read("key") is None
    assert home.stat().st_mode & 0o777 == 0o700


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old, used, third = (fill(home, tmp_path, name) for name in "abc")
    for age, folder in enumerate((used, third, old)):
        os.utime(folder / ".lock", (1000 - age, 1000 - age))
    room = bytes_below(home) - bytes_below(old)
    with opened_folder(home, about(tmp_path, "d"), 500, room + 500):
        assert [folder.exists() for folder in (old, used, third)] == [False, True, True]


def test_one_that_is_in_use_stays(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opened_folder(home, about(tmp_path, "a"), 10, 1000) as held:
        held.write("one", bytes(1000))
        with opened_folder(home, about(tmp_path, "b"), 1000, 1000):
            assert held.read("one") == bytes(1000)
    with opened_folder(home, about(tmp_path, "b"), 1000, 1000):
        assert not held.path.exists()


def test_one_that_has_outgrown_its_limit_begins_anew(tmp_path: Path) -> None:
    """As after many originals that changed and were copied again."""
    with opened_folder(tmp_path / "home", about(tmp_path), 10, 2000) as held:
        held.write("one", bytes(1900))
        with opened_folder(tmp_path / "home", about(tmp_path), 10, 1000) as also:
            assert also.read("one") == bytes(1900)  # it is in use
    with opened_folder(tmp_path / "home", about(tmp_path), 10, 1000) as alone:
        assert alone.read("one") is None


def test_those_of_data_that_are_gone_go(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    gone = fill(tmp_path / "home", data, "a")
    assert fill(tmp_path / "home", tmp_path, "b").exists()
    assert gone.exists()
    shutil.rmtree(data)
    fill(tmp_path / "home", tmp_path, "b")
    assert not gone.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from vitcli.storage import records
with records.opened_folder(Path(sys.argv[1]), {"of": sys.argv[1], "rule": "r"}, 10, 1000) as folder:
    folder.write("whole", b"whole")
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    folder.write("half", b"half")
"""


def test_a_killed_writer_leaves_nothing_half(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    result = subprocess.run([sys.executable, "-c", KILLED, str(home)], env=environment(), check=False)
    assert result.returncode == -9
    assert list(home.rglob("*.tmp"))
    with opened_folder(home, about(home), 10, 1000) as folder:
        assert (folder.read("whole"), folder.read("half")) == (b"whole", None)
    assert not list(home.rglob("*.tmp"))


def test_what_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "nowhere")
    folder.write("key", b"value")
    assert folder.read("key") is None
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(VitError, match=r"cannot keep copies in .*; --cache none goes without"),
        opened_folder(tmp_path / "file" / "home", about(tmp_path), 1, 1),
    ):
        pass


def _write(memory: Memory, key: str) -> None:
    memory.write(key, key.encode() * 3)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_memory_is_shared_with_children(method: str) -> None:
    memory = Memory(5000)
    memory.claim(["a", "b"])
    memory.claim(["b", "c"])
    child = get_context(method).Process(target=_write, args=(memory, "b"))  # type: ignore[attr-defined]
    child.start()
    child.join()
    assert (memory.read("b") or b"")[:3] == b"bbb"
    assert not any(memory.read("a") or b"")
    memory.write("unclaimed", b"x")
    assert memory.read("unclaimed") is None
    memory.write("a", bytes(9000))  # would reach into its neighbour
    assert (memory.read("b") or b"")[:3] == b"bbb"
