"""`--cache`: the same bits wherever copies are kept, no original opened twice, and a choice that can be explained."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import write_tiny
from tests.helpers.finetuning import RECIPE as PLAIN
from tests.helpers.finetuning import SMALL, settings_of
from tests.helpers.runs import MODEL, RECIPE, run_to_end, state_digest
from vitcli.data.samples import FileSamples
from vitcli.errors import UsageError
from vitcli.images import copies as module
from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess
from vitcli.training import cache
from vitcli.training import train as training
from vitcli.training.cache import choose_cache, kept_in, needed
from vitcli.training.events import Evaluated, Featured
from vitcli.training.settings import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitcli" / "copies"


def write_photos(folder: Path, each: int = 16, size: tuple[int, int] = (150, 110)) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (("train", each), ("val", 4)):
        for label in ("cat", "dog", "owl"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                coarse.resize(size).save(folder / split / label / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def settings(photos: Path, kind: Any, **changes: Any) -> Settings:
    recipe = replace(RECIPE, epochs=2, **changes)
    return Settings("vit_tiny_patch16_224", MODEL, str(photos), recipe, cache=kind)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each original was decoded."""
    count: Counter[str] = Counter()

    def counting(source: Any, **options: Any) -> Any:
        count[str(source)] += 1
        return open_image(source, **options)

    for place in ("vitcli.images.copies", "vitcli.images.preprocess", "vitcli.data.samples"):
        monkeypatch.setattr(f"{place}.open_image", counting)
    return count


def test_the_same_bits_wherever_copies_are_kept(photos: Path, tmp_path: Path) -> None:
    """And by however many processes they are made or read."""
    digests = {}
    for name, kind, workers in (("ram", "ram", 2), ("cold", "disk", 0), ("warm", "disk", 2), ("none", "none", 0)):
        run_to_end(settings(photos, kind), tmp_path / name, workers=workers)
        digests[name] = state_digest(tmp_path / name)
    assert len({digests[name] for name in ("ram", "cold", "warm")}) == 1
    assert digests["none"] != digests["ram"]


def test_without_random_cuts_they_are_those_of_the_originals(photos: Path, tmp_path: Path) -> None:
    for kind in ("ram", "none"):
        run_to_end(settings(photos, kind, crop_scale=1.0, crop_padding=2), tmp_path / kind)
    assert state_digest(tmp_path / "ram") == state_digest(tmp_path / "none")


@pytest.mark.parametrize(("kind", "workers"), [("ram", 2), ("disk", 0)])
def test_a_second_epoch_opens_no_original(tmp_path: Path, kind: str, workers: int) -> None:
    data = write_photos(tmp_path / "photos")
    chosen = settings(data, kind)
    folder = tmp_path / "run"
    samples = training.open_settings_data(chosen)
    training.begin(chosen, samples, folder)
    evaluated = 0
    for event in training.train(chosen, samples, folder, device="cpu", workers=workers):
        if isinstance(event, Evaluated):
            evaluated += 1
            shutil.rmtree(data, ignore_errors=True)
    assert evaluated == 2


def test_the_next_run_opens_none_at_all(photos: Path, tmp_path: Path, opened: Counter[str]) -> None:
    run_to_end(settings(photos, "disk"), tmp_path / "one")
    assert set(opened.values()) == {1}
    opened.clear()
    run_to_end(settings(photos, "disk"), tmp_path / "two")
    assert not opened


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_the_phases_of_a_fine_tuning_share_them(photos: Path, tmp_path: Path, opened: Counter[str], kind: Any) -> None:
    base = write_tiny(tmp_path / "base", SMALL)
    chosen = replace(settings_of(base, photos, "head+all", replace(PLAIN, crop_scale=0.5)), cache=kind)
    events = run_to_end(chosen, tmp_path / "run")
    assert any(isinstance(event, Featured) for event in events)
    assert set(opened.values()) == {1}


def test_a_changed_original_is_copied_again(tmp_path: Path, opened: Counter[str]) -> None:
    data = write_photos(tmp_path / "photos", each=6)
    small = replace(settings(data, "disk"), recipe=replace(RECIPE, epochs=2, batch_size=4, micro_batch=2))
    run_to_end(small, tmp_path / "one")
    changed = data / "train" / "dog" / "3.jpg"
    Image.new("RGB", (90, 90), "red").save(changed)
    opened.clear()
    run_to_end(small, tmp_path / "two")
    assert opened == {str(changed): 1}
    run_to_end(replace(small, cache="ram"), tmp_path / "three")
    assert state_digest(tmp_path / "two") == state_digest(tmp_path / "three")


def test_a_run_goes_on_as_it_began(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its copies fit no longer: then they are made again each time, with the same bits."""
    chosen = settings(photos, "ram")
    run_to_end(chosen, tmp_path / "whole")
    half = tmp_path / "half"
    samples = training.open_settings_data(chosen)
    training.begin(chosen, samples, half)
    for event in training.train(chosen, samples, half, device="cpu"):
        if isinstance(event, Evaluated):
            break
    del event
    again, data = training.resumed(half)
    assert again.cache == "ram"
    monkeypatch.setattr(cache, "SHARE", 0.0)
    copies = needed(data, Preprocess((16, 16)), 0.6)
    assert kept_in("ram", copies) == "none"
    list(training.train(again, data, half, device="cpu"))
    assert state_digest(half) == state_digest(tmp_path / "whole")
    assert json.loads((half / "run.json").read_text())["cache"] == "ram"


class TestChoice:
    """By what the images are, what is free, and who else trains."""

    @pytest.fixture
    def copies(self, photos: Path) -> Callable[..., Any]:
        def of(side: int = 16, least: float = 0.5) -> list[cache.Needed]:
            return needed(training.open_settings_data(settings(photos, "none")), Preprocess((side, side)), least)

        return of

    def test_large_images_are_copied_into_memory(self, copies: Any) -> None:
        found = choose_cache("auto", copies(), again=True, processes=1)
        assert found.cache == "ram"
        assert found.why.startswith("ram: 60 copies, up to 0 MiB of ")

    def test_or_onto_the_disk_where_that_is_full_or_not_shared(
        self, copies: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert choose_cache("auto", copies(), again=True, processes=2).cache == "disk"
        monkeypatch.setattr(cache, "memory_free", lambda _: 1000)
        assert choose_cache("auto", copies(), again=True, processes=1).cache == "disk"
        monkeypatch.setattr(cache, "SHARE", 1e-9)
        full = choose_cache("auto", copies(), again=True, processes=1)
        assert full.cache == "none"
        assert "none: copies take up to" in full.why

    @pytest.mark.parametrize(("side", "least", "again"), [(128, 1.0, True), (64, 0.5, True), (16, 0.5, False)])
    def test_not_where_that_gains_nothing(self, copies: Any, side: int, least: float, again: bool) -> None:
        found = choose_cache("auto", copies(side, least), again=again, processes=1)
        assert (found.cache, found.why) == ("none", "")

    @pytest.mark.parametrize(
        ("wish", "options", "message"),
        [
            ("ram", {"processes": 2}, "under torchrun choose --cache disk"),
            ("ram", {"again": False}, "reads each image once; it would change nothing"),
            ("ram", {"full": True}, "--cache ram: copies take up to 0 MiB, more than the 0 MiB of memory"),
            ("disk", {"full": True}, "--cache disk: copies take up to 0 MiB, more than the 0 MiB of disk"),
            ("ram", {"idx": True}, "these are in memory already, leave it out"),
            ("disk", {"idx": True}, "these are in memory already, leave it out"),
        ],
    )
    def test_a_wish_that_cannot_be_met_is_refused(
        self, copies: Any, wish: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if options.pop("full", False):
            monkeypatch.setattr(cache, "SHARE", 0.0)
        found = [] if options.pop("idx", False) else copies()
        with pytest.raises(UsageError) as refused:
            choose_cache(wish, found, **{"again": True, "processes": 1, **options})
        assert message in str(refused.value)

    def test_images_that_cannot_be_read_do_not_decide(self, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"no image")
        samples = FileSamples(tmp_path, ("bad.jpg",), np.zeros(1, np.int64))
        found = [cache.Needed(samples, module.Rule(Preprocess((8, 8))))]
        assert choose_cache("auto", found, again=True, processes=1).cache == "none"
