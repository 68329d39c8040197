"""A local Ray cluster of two nodes: what it computes is one process's file; a worker that is killed loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import write_tiny
from tests.helpers.process import environment
from tests.helpers.terminal import vit
from vitcli.text import command

COUNT = 90


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict a.png --on ray", "name it with --out"),
        ("embed a.png --on ray -o -", "name it with --out"),
        ("predict a.png --on http://x -o a.jsonl", "write ray, or ray://HOST"),
    ],
)
def test_what_it_needs(line: str, said: str) -> None:
    result = vit(line)
    assert result.exit_code == 2
    assert said in result.stderr


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    result = vit(command("predict", tmp_path / "a.png", "--on", "ray", "-o", tmp_path / "a.jsonl"))
    assert result.exit_code == 1
    assert "needs the extra `ray`: pip install 'vitcli[ray]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster in a process of its own: what Ray warns of is not for our filters."""
    pytest.importorskip("ray")
    code = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2, 'include_dashboard': False})\n"
        "cluster.add_node(num_cpus=2); print('address', cluster.address, flush=True); sys.stdin.read()\n"
        "cluster.shutdown()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdin
    assert process.stdout
    with process.stdout:
        yield next(line.split()[1] for line in process.stdout if line.startswith("address "))
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and images of which one is none."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    write_tiny(place / "model")
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (60, 70, 3), np.uint8)).save(place / f"{i:03d}.png")
    (place / "044.png").write_text("no image")
    return place


class TestCluster:
    def line(self, place: Path, verb: str, name: str) -> str:
        return command(verb, place, "-m", place / "model", "-o", place / name, "--part-size", "20")

    def started(self, place: Path, verb: str, name: str, address: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "vitcli", verb, str(place), "-m", str(place / "model"), "-o", str(place / name)]
        return subprocess.Popen(
            [*words, "--part-size", "20", "--on", "ray"],
            env=environment(RAY_ADDRESS=address), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def test_vectors_are_one_processs_and_a_killed_worker_loses_none(self, place: Path, address: str) -> None:
        assert vit(self.line(place, "embed", "one.parquet")).exit_code == 3
        process = self.started(place, "embed", "ray.parquet", address)
        killed: list[int] = []

        def kill() -> None:
            """A worker that computes, once there is one."""
            deadline = time.monotonic() + 200
            while not killed and time.monotonic() < deadline and process.poll() is None:
                for entry in Path("/proc").glob("[0-9]*"):
                    try:
                        title = (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if b"MapWorker" in title and b"ray::" in title and b"_Computing" in title:
                        os.kill(int(entry.name), signal.SIGKILL)
                        killed.append(int(entry.name))
                        break
                time.sleep(0.02)

        thread = threading.Thread(target=kill)
        thread.start()
        _, said = process.communicate(timeout=280)
        thread.join()
        assert process.returncode == 3, said
        assert "1 of the images could not be read" in said
        assert killed
        assert (place / "ray.parquet").read_bytes() == (place / "one.parquet").read_bytes()
        assert not (place / "ray.parquet.parts").exists()
