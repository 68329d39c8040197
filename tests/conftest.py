"""What every test runs under, and how `pytest -n auto` (pytest-xdist) shares the tests out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import fake_hub

# Models here are so small that a second thread costs more than it gives, and several pytest processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; children inherit it
os.environ["VIT_LINEAR"] = "onednn"  # what is measured may differ from process to process, and with it the bits

TESTS = Path(__file__).parent
# Minutes rather than seconds: begun first, so that no process works alone at the end.
LONGEST = (
    "comparison/test_compare.py",
    "training/test_kill.py",
    "training/test_distributed.py",
    "training/test_faults.py",
    "training/test_finetune.py",
    "checkpoint/test_convert_source.py",
    "cli/test_cli.py",
    "fuzz/test_fuzz.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """A file stays in one process: its fixtures are runs and models that took seconds to make."""
    if getattr(config.option, "numprocesses", None):
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        rank = {TESTS / name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """A Hub of this machine, empty, and caches of the test's own."""
    for name in list(os.environ):
        if name.startswith("HF_") or name.upper().endswith("_PROXY") or name == "TRANSFORMERS_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
