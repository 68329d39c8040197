"""A run that reads shards is the run that reads the folder, bit for bit: stopped anywhere, by any number of workers."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.data import write_class_stripes
from tests.helpers.runs import MODEL, RECIPE, run_and_signal, run_to_end, state_digest, without_rates
from tests.helpers.shards import write_shards
from vitcli.data.sources import read_splits
from vitcli.errors import Stopped
from vitcli.training.settings import Settings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kept", ["none", "ram"])
def test_the_same_bits_as_from_the_folder(tmp_path: Path, kept: str) -> None:
    folder = write_class_stripes(tmp_path / "photos", {"a": 0, "b": 1, "c": 2}, each=12)
    shards = write_shards(tmp_path / "shards", read_splits(folder), each=7)
    settings = Settings("vit_tiny_patch16_224", MODEL, str(folder), replace(RECIPE, epochs=3), cache=kept)  # type: ignore[arg-type]
    run_to_end(settings, tmp_path / "one")
    theirs = replace(settings, data=str(shards / "train-*.tar"))
    with pytest.raises(Stopped):
        run_to_end_after(theirs, tmp_path / "other")
    run_to_end(theirs, tmp_path / "other", workers=2)
    assert state_digest(tmp_path / "one") == state_digest(tmp_path / "other")
    assert without_rates(tmp_path / "one") == without_rates(tmp_path / "other")


def run_to_end_after(settings: Settings, folder: Path) -> None:
    """A run that is begun, and stopped in the middle of an epoch."""
    from vitcli.training import train as training

    training.begin(settings, training.open_settings_data(settings), folder)
    run_and_signal(settings, folder, 3, signal.SIGTERM)
