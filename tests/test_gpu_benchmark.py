"""benchmarks/gpu.py is ready for a GPU: all of it but the kill, which `test_kill` has, runs on this machine's CPU."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def script() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_runs_on_tiny_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script()
    monkeypatch.setattr(module, "killed_and_resumed", lambda device: device.type == "cpu")
    module.main(["--tiny", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    for line, begin in zip(
        lines[1:],
        ("vit_small_patch16_224, batch 8", "vit_base_patch16_224, batch 8", "vit_small_patch16_224, inference",
         "vit_small_patch16_224 with its own loader", "killed and resumed to the same bits: True"),
        strict=True,
    ):  # fmt: skip
        assert line.startswith(begin)


def test_what_there_is_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    script().main(["--tiny", "--device", "cpu", "--seconds", "-1"])
    assert capsys.readouterr().out.count("left out for time") == 5
