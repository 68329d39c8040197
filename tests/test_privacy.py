"""Nothing leaves the machine unasked, and nothing lies outside the output and our own cache (design decision 16)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vitcli
from tests.helpers.checkpoints import write_tiny

ROOT = Path(vitcli.__file__).parent.parent
SNEAKER = ROOT / "docs" / "images" / "sneaker.png"
GUARD = """
import socket
def refuse(*arguments, **more):
    open({told!r}, "a").write(f"{{arguments}}\\n")
    raise OSError("the network is guarded")
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
socket.socket.connect = refuse
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def environment(home: Path) -> dict[str, str]:
    """Of a user who never set anything: an empty home, and a guard that writes down every look-up of Python's."""
    guard = home.parent / "guard"
    guard.mkdir(exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD.format(told=str(home.parent / "asked")), encoding="utf-8")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, "HOME": str(home), "PYTHONPATH": f"{guard}{os.pathsep}{ROOT}"}


def vit(home: Path, *arguments: object, before: tuple[str, ...] = ()) -> str:
    command = [*before, sys.executable, "-m", "vitcli", *map(str, arguments)]
    done = subprocess.run(command, env=environment(home), cwd=home.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def left_in(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def asked(home: Path) -> str:
    told = home.parent / "asked"
    return told.read_text("utf-8") if told.exists() else ""


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_prediction_leaves_nothing_and_asks_nobody(home: Path, engine: str) -> None:
    vit(home, "predict", SNEAKER, "--engine", engine)
    assert left_in(home) == set()
    assert asked(home) == ""


@pytest.mark.parametrize(
    "arguments",
    [["inspect", "--filters", "--out", "figures"], ["export", "fashion-vit", "--out", "m.onnx"]],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_write_into_their_output_and_our_cache(home: Path, arguments: list[str]) -> None:
    vit(home, *arguments)
    assert {name for name in left_in(home) if not name.startswith(".cache/vitcli/")} == set()
    assert asked(home) == ""


def test_openvino_reports_nothing(home: Path) -> None:
    """Its import alone would."""
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    vit(home, "export", write_tiny(home.parent / "tiny"), "--to", "openvino", "--out", "m.xml")
    assert left_in(home) == set()
    assert asked(home) == ""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace sees what Python's guard does not")
def test_no_code_beside_python_looks_anything_up(home: Path) -> None:
    trace = home.parent / "trace"
    vit(home, "predict", SNEAKER, before=("strace", "-f", "-qq", "-e", "trace=connect,sendto,openat", "-o", str(trace)))
    lines = trace.read_text("utf-8", errors="replace").splitlines()
    assert any("model.safetensors" in line for line in lines), "the trace saw nothing"
    assert [line for line in lines if "AF_INET" in line or "resolv.conf" in line] == []


def test_the_package_switches_telemetry_off_whoever_imports_it() -> None:
    code = "import vitcli, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])"
    for given, found in ((None, "1 None"), ("0", "0 None")):  # whoever asks for it has it
        changes = {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **changes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == found


def test_a_style_that_the_user_gave_matplotlib_still_counts(home: Path) -> None:
    style = home / ".config" / "matplotlib" / "matplotlibrc"
    style.parent.mkdir(parents=True)
    style.write_text("figure.dpi: 77\n", encoding="utf-8")
    code = (
        "from vitcli.privacy import caches_into_ours as f; f(); import matplotlib as m; print(m.rcParams['figure.dpi'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(home), capture_output=True, text=True)
    assert done.stdout.split() == ["77.0"], done.stderr
