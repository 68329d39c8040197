"""A run that reads shards, or over a network, is the run that reads the folder: bit for bit, however it is stopped."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import store as stores
from tests.helpers.data import write_class_stripes
from tests.helpers.runs import MODEL, RECIPE, run_and_signal, run_to_end, state_digest, without_rates
from tests.helpers.shards import write_shards
from vitcli.data.sources import read_splits
from vitcli.errors import Stopped, VitError
from vitcli.storage import remote
from vitcli.training import train as training
from vitcli.training.settings import Settings

SETTINGS = Settings("vit_tiny_patch16_224", MODEL, "", replace(RECIPE, epochs=3))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_TOLD", {})
    monkeypatch.setattr(remote, "_FOLDERS", {})
    monkeypatch.setattr(remote, "_DOWN", {})
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(remote, "_blocks", remote.lru_cache(remote._blocks.__wrapped__))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_class_stripes(tmp_path / "photos", {"a": 0, "b": 1, "c": 2}, each=12)


def begin(settings: Settings, folder: Path) -> Settings:
    training.begin(settings, training.open_settings_data(settings), folder)
    return settings


def assert_same(one: Path, other: Path) -> None:
    assert state_digest(one) == state_digest(other)
    assert without_rates(one) == without_rates(other)


def test_the_same_bits_as_from_the_folder(tmp_path: Path, photos: Path) -> None:
    shards = write_shards(tmp_path / "shards", read_splits(photos), each=7)
    settings = replace(SETTINGS, data=str(photos), cache="ram")
    run_to_end(settings, tmp_path / "one")
    theirs = begin(replace(settings, data=str(shards / "train-*.tar")), tmp_path / "other")
    with pytest.raises(Stopped):
        run_and_signal(theirs, tmp_path / "other", 2, signal.SIGTERM)
    run_to_end(theirs, tmp_path / "other", workers=2)
    assert_same(tmp_path / "one", tmp_path / "other")


def test_a_store_that_fails_stops_a_run_and_loses_nothing(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("aiohttp")
    run_to_end(replace(SETTINGS, data=str(photos), val_fraction=0.0), tmp_path / "one")
    with stores.running(tmp_path) as store:
        settings = begin(replace(SETTINGS, data=f"{store.url}/photos", val_fraction=0.0), tmp_path / "other")
        # Drawing no split reads the files all the same, so the cache would have them all.
        for file in (tmp_path / "cache" / "vitcli" / "blocks").rglob("*"):
            file.unlink() if file.is_file() else None
        remote._blocks.cache_clear()
        store.good = 20
        with pytest.raises(
            VitError, match=r"png cannot be opened: the store answers 503, .*; all until .* goes on"
        ) as error:
            run_to_end(settings, tmp_path / "other", workers=2)
        assert "\n" not in str(error.value)
        store.good = 10**9
        run_to_end(settings, tmp_path / "other", workers=0)
    assert_same(tmp_path / "one", tmp_path / "other")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    yield "s3://photos-of-a-test"
    server.stop()


@pytest.mark.filterwarnings("ignore")  # of botocore and of moto's server
def test_the_same_bits_over_s3(tmp_path: Path, photos: Path, bucket: str) -> None:
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir(bucket)
    shards = write_shards(tmp_path / "shards", read_splits(photos), each=7)
    for path in [*shards.iterdir(), *photos.rglob("*.png")]:
        system.pipe(f"{bucket}/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    assert read_splits(f"{bucket}/photos").named["train"].fingerprint == read_splits(photos).named["train"].fingerprint
    run_to_end(replace(SETTINGS, data=str(photos)), tmp_path / "one")
    theirs = begin(replace(SETTINGS, data=f"{bucket}/shards/train-{{000..005}}.tar"), tmp_path / "other")
    with pytest.raises(Stopped):
        run_and_signal(theirs, tmp_path / "other", 2, signal.SIGTERM)
    run_to_end(theirs, tmp_path / "other", workers=2)
    assert_same(tmp_path / "one", tmp_path / "other")
