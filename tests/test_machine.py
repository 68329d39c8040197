"""Devices, as torch and the system tell of them. The accelerators are made up: none of them is needed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcli import machine
from vitcli.cli.options import _checked_device
from vitcli.errors import UsageError


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which accelerator torch sees, and how many of it."""

    def seen(kind: str | None, count: int = 1) -> None:
        found = None if kind is None else SimpleNamespace(type=kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)

    return seen


@pytest.mark.parametrize(
    ("kind", "count", "expected", "names"),
    [
        (None, 0, "cpu", ["cpu"]),
        ("cuda", 2, "cuda", ["cpu", "cuda", "cuda:0", "cuda:1"]),
        ("mps", 1, "mps", ["cpu", "mps", "mps:0"]),
        ("xpu", 1, "xpu", ["cpu", "xpu", "xpu:0"]),
        ("npu", 1, "cpu", ["cpu"]),  # nothing here was made for it
    ],
)
def test_what_torch_sees_is_the_default(
    kind: str | None, count: int, expected: str, names: list[str], accelerator: Any
) -> None:
    accelerator(kind, count)
    assert machine.default_device() == expected
    assert machine.devices() == names
    for name in names:
        assert _checked_device(name) == name


@pytest.mark.parametrize(
    ("kind", "count", "asked", "there"),
    [
        (None, 0, "cuda", "only cpu"),
        ("cuda", 2, "cuda:2", "only cpu, cuda, cuda:0, cuda:1"),
        ("cuda", 1, "mps", "only cpu, cuda, cuda:0"),
        ("mps", 1, "cuda:0", "only cpu, mps, mps:0"),
    ],
)
def test_one_that_is_absent_is_answered_with_those_that_are_there(
    kind: str | None, count: int, asked: str, there: str, accelerator: Any
) -> None:
    accelerator(kind, count)
    with pytest.raises(UsageError, match=f"--device {asked}: torch sees no such device here, {there}"):
        _checked_device(asked)


@pytest.mark.parametrize("name", ["tpu", "gpu", "cuda:", "cuda:x", "cpu:0", "\x1b[31m", "CUDA"])
def test_what_is_no_device_at_all(name: str) -> None:
    with pytest.raises(UsageError, match="write cpu, cuda, mps, xpu, or cuda:1 for the second GPU"):
        _checked_device(name)


class TestWithoutTorch:
    """What may be seen of a GPU before torch is imported."""

    @pytest.fixture(autouse=True)
    def linux(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine.sys, "platform", "linux")
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)

    def built(self, monkeypatch: pytest.MonkeyPatch, build: str, *paths: str) -> None:
        monkeypatch.setattr("importlib.metadata.version", lambda _: f"2.14.1{build}")
        monkeypatch.setattr(Path, "exists", lambda path: str(path) in paths)

    @pytest.mark.parametrize("driver", machine.DRIVERS)
    def test_each_driver_counts(self, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """NVIDIA's, WSL2's, AMD's."""
        for build in ("", "+cu130", "+rocm7.0"):
            self.built(monkeypatch, build, driver)
            assert machine.gpu_visible()
        monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
        assert not machine.gpu_visible()

    def test_without_any_nothing_is_asked_of_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading its metadata takes as long as a tenth of a prediction."""
        self.built(monkeypatch, "")
        monkeypatch.setattr("importlib.metadata.version", None)
        assert not machine.gpu_visible()

    def test_a_torch_for_cpus_sees_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built(monkeypatch, "+cpu", *machine.DRIVERS)
        assert not machine.gpu_visible()

    def test_intels_build_and_apples_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built(monkeypatch, "+xpu", machine.INTEL)
        assert machine.gpu_visible()
        self.built(monkeypatch, "", machine.INTEL)
        assert not machine.gpu_visible()
        monkeypatch.setattr(machine.sys, "platform", "darwin")
        for processor, visible in (("arm64", True), ("x86_64", False)):
            monkeypatch.setattr(machine.platform, "machine", lambda processor=processor: processor)
            assert machine.gpu_visible() is visible


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "xpu"])
def test_memory_of_a_device_is_asked_of_its_own_module(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = SimpleNamespace(mem_get_info=lambda _: (5 << 30, 8 << 30))
    monkeypatch.setattr(torch, "get_device_module", lambda _: asked)
    assert machine.memory_free(device) == 5 << 30
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())  # Apple's says nothing
    assert machine.memory_free(device) is None


@pytest.mark.parametrize(
    ("cores", "processes", "side", "expected"),
    [(16, 1, 224, 16), (16, 4, 224, 4), (2, 8, 224, 1), (16, 1, 65, 16), (16, 1, 64, 4), (2, 1, 28, 2)],
)
def test_all_cores_of_a_process_decode_what_is_not_small(
    cores: int, processes: int, side: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as `torchrun` sets it; it is about computing
    assert machine.decoding_threads(side * side) == expected


@pytest.mark.parametrize(
    ("line", "folder", "most", "used"),
    [
        ("0::/job/step", "sys/fs/cgroup", "memory.max", "memory.current"),
        ("4:cpu,memory:/job/step", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
@pytest.mark.parametrize("level", ["job/step", "job", "."])
def test_no_more_memory_is_free_than_a_container_or_a_job_may_use(
    tmp_path: Path, line: str, folder: str, most: str, used: str, level: str
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/job\n{line}\n")
    (tmp_path / folder / "job/step").mkdir(parents=True)
    assert list(machine._left_by_groups(tmp_path)) == []
    for group in ("job/step", "job", "."):
        place = tmp_path / folder / group
        (place / most).write_text("1000\n" if group == level else "max\n")
        (place / used).write_text("700\n")
        (place / "memory.stat").write_text("anon 400\ninactive_file 100\n")
    assert list(machine._left_by_groups(tmp_path)) == [400]


def test_the_memory_of_this_machine_is_known() -> None:
    free = machine.memory_free("cpu")
    assert free is None or 0 <= free < 1 << 50
