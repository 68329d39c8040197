"""`vit bench`: every way is measured or said not to be, and what is marked is what predict takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoints import write_tiny
from tests.helpers.terminal import invoke
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.resolve import resolve
from vitcli.inference import bench as module
from vitcli.inference.bench import MANY, ONE, Cost, Way, bench, defaults, ways
from vitcli.inference.predict import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH", 0.05)


def only(monkeypatch: pytest.MonkeyPatch, *chosen: Way) -> None:
    monkeypatch.setattr(module, "ways", lambda checkpoint: list(chosen))


def test_ways_are_measured_and_the_defaults_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    int8 = Way("onnxruntime", "cpu", "int8", 1)
    only(monkeypatch, int8)
    result = invoke("bench", folder, "--json", "--seconds", 60)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["schema"], document["image_size"]) == ("vit.bench/1", [64, 64])
    assert [(one["precision"], one["batch"], one["default_for"]) for one in document["ways"]] == [
        ("fp32", 1, [ONE]),
        ("fp32", 2, [MANY]),
        ("int8", 1, []),
    ]
    for one in document["ways"]:
        assert one["error"] is None
        assert one["images_per_second"] == pytest.approx(1000 * one["batch"] / one["milliseconds"])
        assert 20 < one["memory"] / 2**20 < 500


def test_the_table_marks_them_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    result = invoke("bench", folder, "--seconds", 60)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "fp32" in line]
    assert line.rstrip().endswith(f"{ONE} and {MANY}")  # one core: both are the same way


def test_the_defaults_are_those_of_predict(folder: Path) -> None:
    model = load(folder)
    for images, name in ((1, ONE), (10**6, MANY)):
        assert defaults(model.checkpoint)[name].engine == model.choose(images).engine
    assert set(defaults(model.checkpoint).values()) <= set(ways(model.checkpoint))


def test_a_way_that_fails_or_dies_or_has_no_time_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = Way("onnxruntime", "cpu", "int8", 0)
    only(monkeypatch, impossible)
    *good, failed = bench(resolve(str(folder)), seconds=60)
    assert [cost.error for cost in good] == [None]
    assert failed.way == impossible
    assert "ZeroDivisionError" in str(failed.error)
    assert {cost.error for cost in bench(resolve(str(folder)), seconds=0)} == {"no time left"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "_measure", _dies)
        assert {cost.error for cost in bench(resolve(str(folder)), seconds=60)} == {"its process died"}


def _dies(*_: Any) -> None:
    import os

    os._exit(3)


def test_batches_of_one_engine_share_a_process_and_grow() -> None:
    known = [
        Way("torch", "cuda", "fp16", 64),
        Way("onnxruntime", "cpu", "fp32", 1),
        Way("onnxruntime", "cpu", "fp32", 2),
        Way("torch", "cuda", "fp16", 1),
    ]
    assert [[way.batch for way in group] for group in module._groups(known)] == [[1, 64], [1], [2]]


def test_where_nothing_can_be_measured_it_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(checkpoint: Checkpoint, **_: Any) -> Any:
        yield Cost(Way("onnxruntime", "cpu", "fp32", 1), (), error="the weights are damaged")

    monkeypatch.setattr(module, "bench", none)
    result = invoke("bench", folder)
    assert (result.exit_code, "the weights are damaged" in result.stderr) == (1, True)
