"""Nobody waits without knowing for what: downloads, digests and the reading of data, on a terminal and in a pipe."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import fake_hub
from tests.helpers.checkpoints import write_tiny
from tests.helpers.process import environment
from tests.helpers.terminal import invoke
from vitcli.cli import console as progress

REPO = "someone/vit"


@pytest.fixture
def hub(hub: fake_hub.FakeHub, tmp_path: Path) -> fake_hub.FakeHub:
    """With one model."""
    hub.add(REPO, {path.name: path.read_bytes() for path in write_tiny(tmp_path / "model").iterdir()})
    return hub


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("cat", "dog", "bird"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (i, len(name), 0)).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", REPO, "--json"),
        ("predict", "-m", REPO, "--json", "IMAGE"),
        ("evaluate", REPO, "--data", "DATA", "--json"),
        ("finetune", "-m", REPO, "--data", "DATA", "--dry-run", "--tune", "head", "--json"),
        ("train", "--teacher", REPO, "--data", "DATA", "--dry-run", "--json", "--set", "img_size=32"),
        ("convert", REPO, "--dry-run", "--json"),
        ("resize-posemb", REPO, "-o", "OUT", "--size", "96"),
        ("export", REPO, "-o", "OUT.onnx"),
        ("push", REPO, "a/b", "--license", "mit", "--dry-run"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_may_download_says_so_in_one_line(
    arguments: tuple[str, ...], hub: fake_hub.FakeHub, data: Path, tmp_path: Path
) -> None:
    places = {"DATA": data, "IMAGE": data / "cat" / "0.png", "OUT": tmp_path / "out", "OUT.onnx": tmp_path / "x.onnx"}
    said = [line for line in invoke(*(places.get(a, a) for a in arguments)).stderr.splitlines() if "download" in line]
    told = [line for line in said if re.fullmatch(r"downloading model\.safetensors \(\d+\.\d MB\)", line)]
    assert len(told) == 1
    again = invoke(*(places.get(a, a) for a in arguments)).stderr
    assert "downloading" not in again


@pytest.mark.parametrize("arguments", [("inspect", REPO), ("inspect", REPO, "--weights")])
def test_on_a_terminal_there_is_a_bar_with_sizes(arguments: tuple[str, ...], hub: fake_hub.FakeHub) -> None:
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "vitcli", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=other, env=environment(TERM="xterm", COLUMNS="100")
    )
    os.close(other)
    said = b""
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # its last writer is gone
            break
        if not block:
            break
        said += block
    os.close(terminal)
    assert b"download" not in process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert re.search(rb"downloading model\.safetensors.*\d+.*(kB|bytes|MB)", said)
    assert (b"checking model.safetensors" in said) == ("--weights" in arguments)


def test_the_reading_of_many_files_is_said_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("train", "--data", data, "--dry-run", "--json", "--set", "img_size=32")
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert invoke(*arguments).stderr.count("reading the data: 12 files") == 1
    monkeypatch.setattr(progress, "PATIENCE", 1e9)
    assert "reading the data" not in invoke(*arguments).stderr
