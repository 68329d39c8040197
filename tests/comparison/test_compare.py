"""`vit compare`: subsets, the queue, intervals (checked by simulation), and whole studies on a tiny data set."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data import write_idx
from tests.helpers.process import environment, imported_by
from tests.helpers.terminal import vit
from vitcli.cli.compare import shares, stages
from vitcli.comparison import work
from vitcli.comparison.cells import Cells
from vitcli.comparison.compare import begin, carry_out, compare, resume
from vitcli.comparison.queue import folder_of, results, work_through
from vitcli.comparison.report import _curves, accuracy_figure
from vitcli.comparison.results import Findings, Point, Size, crossover, points
from vitcli.comparison.study import Cell, Pretraining, Study, contender, read_study, write_study
from vitcli.comparison.tables import sentence
from vitcli.comparison.work import copies_needed
from vitcli.data.samples import ArraySamples
from vitcli.data.sources import open_data
from vitcli.data.split import subset
from vitcli.errors import UsageError, VitError
from vitcli.images.copies import Rule
from vitcli.inference.evaluate import evaluate
from vitcli.metrics import t_interval
from vitcli.model.architectures import ARCHITECTURES
from vitcli.model.cost import cost
from vitcli.training.build import build_task, parameters, vit_config
from vitcli.training.lock import locked
from vitcli.training.recipe import Recipe
from vitcli.training.settings import Settings

RESULT = {
    "images": 100,
    "test_accuracy": 0.5,
    "validation_accuracy": 0.5,
    "failed": 0,
    "few_shot": {},
    "cpu_seconds": 1.0,
}
MODELS = {name: {"architecture": name, "model_args": {"img_size": [28, 28]}} for name in ("vit", "cnn")}
STUDY = Study("data", "abc", MODELS, (0.1, 1.0), 2, 4.0, 10.0, {"lr": 0.001})
SMALL = "--models vit-small,test_resnet --sizes 30%,100% --seeds 2 --epochs 1 --set batch_size=8 --workers 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that brightness tells apart, 40 training and 10 test images of 8×8 pixels."""
    place = tmp_path_factory.mktemp("compare")
    (place / "data").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 10)):
        labels = np.arange(count) % 2
        write_idx(place / "data", split, rng.integers(0, 100, (count, 8, 8)) + 120 * labels[:, None, None], labels)
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


class TestSubset:
    def test_nested_and_stratified(self, place: Path) -> None:
        data = open_data(place / "data")
        kept: list[set[str]] = []
        for share in (0.05, 0.1, 0.5, 1.0):
            part = subset(data, share, seed=3)
            kept.append({part.train.name(i) for i in range(len(part.train))})
            before, after = (np.bincount(one.train.labels) for one in (data, part))
            assert after.tolist() == [max(1, round(share * count)) for count in before]
            assert part.val is data.val
            assert part.test is data.test
        for smaller, larger in itertools.pairwise(kept):
            assert smaller < larger
        assert len(kept[-1]) == len(data.train)

    def test_the_seed_decides(self, place: Path) -> None:
        data = open_data(place / "data")
        a, b, c = (subset(data, 0.3, seed).train.fingerprint for seed in (0, 0, 1))
        assert a == b != c


class TestStudy:
    def test_cells(self) -> None:
        names = [cell.name for cell in STUDY.cells()]
        assert names[:4] == ["vit-10%-seed0", "cnn-10%-seed0", "vit-100%-seed0", "cnn-100%-seed0"]
        assert len(names) == len(set(names)) == 8

    def test_less_data_gets_more_passes(self) -> None:
        assert STUDY.epochs_of(1.0) == 4
        assert STUDY.epochs_of(0.25) == 8
        assert STUDY.epochs_of(0.01) == 10

    def test_kept(self, tmp_path: Path) -> None:
        study = Study(**{**vars(STUDY), "pretrainings": (Pretraining("small", "x", 0.5),)})
        write_study(tmp_path / "s", study)
        assert read_study(tmp_path / "s") == study
        write_study(tmp_path / "s", study)  # the same goes on
        (tmp_path / "s" / "study.json").rename(tmp_path / "kept")
        (tmp_path / "s" / "cells").mkdir()
        with pytest.raises(UsageError, match="holds no study"):
            write_study(tmp_path / "s", study)
        (tmp_path / "kept").rename(tmp_path / "s" / "study.json")
        (tmp_path / "killed").mkdir()
        (tmp_path / "killed" / ".study.json.0123.tmp").touch()  # by a process that died, or is at it
        write_study(tmp_path / "killed", study)
        with pytest.raises(UsageError, match="holds another study"):
            write_study(tmp_path / "s", STUDY)
        (tmp_path / "s" / "study.json").write_text('{"data": 1}')
        with pytest.raises(VitError, match="is damaged"):
            read_study(tmp_path / "s")


class TestCopies:
    """`--cache`, which belongs to the study."""

    def test_where_they_are_kept_may_change_but_not_whether(self, tmp_path: Path) -> None:
        kept = {kind: replace(STUDY, cache=kind) for kind in ("none", "ram", "disk")}
        write_study(tmp_path / "s", kept["ram"])
        write_study(tmp_path / "s", kept["disk"])
        assert read_study(tmp_path / "s").cache == "ram"
        with pytest.raises(UsageError, match="holds another study"):
            write_study(tmp_path / "s", kept["none"])

    @pytest.mark.parametrize("kind", ["ram", "disk"])
    def test_cells_share_them(self, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        rng, made = np.random.default_rng(0), Counter[str]()
        for split, count in (("train", 12), ("val", 2), ("test", 2)):
            for label, shade in (("dark", 0), ("light", 150)):
                (tmp_path / "data" / split / label).mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 100, (12, 12, 3)) + shade
                    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / label / f"{i}.png")
        real = Rule.copy

        def copy(self: Rule, path: Path) -> Any:
            made[str(path)] += 1
            return real(self, path)

        monkeypatch.setattr(Rule, "copy", copy)
        options: dict[str, Any] = {"models": ["vit-small"], "sizes": [0.5, 1.0], "seeds": 1, "epochs": 2, "cache": kind}
        options |= {"settings": {"batch_size": 4}, "out": tmp_path / "study"}
        study = begin(tmp_path / "data", **options)
        assert (study.study.cache, copies_needed(study)[0].rule.least) == (kind, 1.0)
        found = carry_out(study, workers=0)
        assert len(found.cells) == 2
        assert len(made) == 2 * 12 + 2 * 2
        assert set(made.values()) == {1}
        again = begin(tmp_path / "data", **options | {"cache": "auto"})
        assert again.study == study.study  # what is free now does not make another study of it


class TestQueue:
    def test_a_finished_cell_is_never_done_again(self, tmp_path: Path) -> None:
        worked: list[str] = []

        def work(cell: Cell, place: Path) -> Mapping[str, Any]:
            worked.append(cell.name)
            if len(worked) == 4:
                raise KeyboardInterrupt
            return {**RESULT, "x": len(worked)}

        with pytest.raises(KeyboardInterrupt):
            list(work_through(tmp_path, STUDY, work))
        assert len(results(tmp_path, STUDY)) == 3
        rest = dict(work_through(tmp_path, STUDY, work))
        assert len(rest) == 5
        assert worked.count("cnn-100%-seed0") == 2, "the one that was interrupted"
        assert len(worked) == 9
        assert list(work_through(tmp_path, STUDY, work)) == []

    def test_two_processes_share_the_cells(self, tmp_path: Path) -> None:
        """What another process holds is left to it; locks are real."""
        cells = list(STUDY.cells())
        held = folder_of(tmp_path, cells[2])
        held.mkdir(parents=True)
        with locked(held):
            done = dict(work_through(tmp_path, STUDY, lambda cell, place: RESULT))
        assert set(cells) - set(done) == {cells[2]}

    @pytest.mark.parametrize("without", [None, *RESULT])
    def test_a_damaged_result(self, tmp_path: Path, without: str | None) -> None:
        """Cut off, or without any one of the numbers that the table is made of."""
        cell = next(STUDY.cells())
        folder_of(tmp_path, cell).mkdir(parents=True)
        left = json.dumps({name: value for name, value in RESULT.items() if name != without})
        (folder_of(tmp_path, cell) / "result.json").write_text(left if without else '{"test_acc')
        with pytest.raises(VitError, match="remove it, and the cell is done again"):
            results(tmp_path, STUDY)

    def test_what_only_some_seeds_were_scored_on_is_left_out(self) -> None:
        (point,) = points(
            {
                Cell("vit", 1.0, seed): {**RESULT, "few_shot": few}
                for seed, few in enumerate([{"1": 0.2, "5": 0.4}, {"5": 0.6}])
            }
        )
        assert point.few_shot == {"5": pytest.approx(0.5)}


def curve(model: str, accuracies: Mapping[int, tuple[float, ...]]) -> list[Point]:
    return [
        Point(
            model,
            images / 1000,
            images,
            tuple(range(len(values))),
            values,
            float(np.mean(values)),
            t_interval(values),
            {},
            1.0,
        )
        for images, values in accuracies.items()
    ]


class TestResults:
    def test_points(self) -> None:
        found = {
            cell: {"test_accuracy": 0.5 + 0.1 * cell.seed, "images": int(100 * cell.share), "few_shot": {"5": 0.4},
                   "cpu_seconds": 2.0 + cell.seed}
            for cell in STUDY.cells()
        }  # fmt: skip
        first = points(found)[0]
        assert (first.model, first.share, first.images) == ("vit", 0.1, 10)
        assert first.accuracies == (0.5, 0.6)
        assert first.mean == pytest.approx(0.55)
        assert first.few_shot == {"5": 0.4}
        assert first.cpu_seconds == 2.5

    def test_a_crossing_between_two_sizes(self) -> None:
        cnn = curve("cnn", {100: (0.70, 0.71), 1000: (0.80, 0.81), 10000: (0.85, 0.86)})
        vit_ = curve("vit", {100: (0.50, 0.51), 1000: (0.79, 0.80), 10000: (0.88, 0.89)})
        found = crossover(cnn + vit_, "cnn", "vit")
        assert found.images == pytest.approx(1000 * 10**0.25)  # from −0.01 to +0.03 on a logarithmic axis
        assert found.chance == 1.0, "differences do not vary"

    def test_none_seen(self) -> None:
        cnn = curve("cnn", {100: (0.7, 0.71), 1000: (0.8, 0.81)})
        vit_ = curve("vit", {100: (0.5, 0.51), 1000: (0.6, 0.61)})
        found = crossover(cnn + vit_, "cnn", "vit")
        assert (found.images, found.chance) == (None, 0.0)
        ahead = crossover(cnn + vit_, "vit", "cnn")
        assert ahead.images is None, "ahead from the start is no crossing"
        assert (ahead.ahead, found.ahead) == (True, False)
        assert sentence(ahead) == "cnn is ahead of vit at every size"
        assert sentence(found) == "vit does not pass cnn: no crossover seen"

    def test_seeds_are_paired_by_their_number(self) -> None:
        """Of a study that still runs, each model may have done other seeds."""
        both = [
            Point("cnn", 0.1, 100, (0, 1), (0.2, 0.9), 0.55, None, {}, 1.0),
            Point("vit", 0.1, 100, (1,), (0.8,), 0.8, None, {}, 1.0),
            Point("cnn", 1.0, 1000, (0, 1), (0.2, 0.9), 0.55, None, {}, 1.0),
            Point("vit", 1.0, 1000, (0, 2), (0.3, 0.1), 0.2, None, {}, 1.0),
        ]
        found = crossover(both, "cnn", "vit")
        assert found.images == pytest.approx(100 * 10**0.5)  # from 0.8 − 0.9 to 0.3 − 0.2

    def test_intervals_hold_what_they_promise(self) -> None:
        """2000 simulated studies of 3 seeds: 95 % of the intervals hold the true mean, within simulation error."""
        rng = np.random.default_rng(0)
        inside = 0
        for _ in range(2000):
            found = t_interval(tuple(rng.normal(0.8, 0.02, 3)))
            assert found is not None
            inside += found.low <= 0.8 <= found.high
        assert abs(inside / 2000 - 0.95) < 0.015  # three standard errors

    def test_the_crossovers_interval_holds_the_true_one(self) -> None:
        """300 simulated studies with a crossing at √(1000·10000) images; Student's t is wide with 3 seeds."""
        rng = np.random.default_rng(1)
        truth, inside, wide = np.sqrt(1000 * 10000), 0, 0
        for _ in range(300):
            draws = {n: tuple(rng.normal(0.8, 0.004, 3)) for n in (100, 1000, 10000)}
            gap = {100: -0.1, 1000: -0.05, 10000: 0.05}
            other = {n: tuple(x + gap[n] + rng.normal(0, 0.004) for x in draws[n]) for n in draws}
            found = crossover(curve("cnn", draws) + curve("vit", other), "cnn", "vit")
            assert found.interval is not None
            inside += found.interval.low <= truth <= found.interval.high
            wide += found.interval.low < 1100 and found.interval.high > 9000
        assert inside / 300 >= 0.93
        assert wide / 300 < 0.1, "and not by holding everything"


class TestContenders:
    @pytest.mark.parametrize("side", [8, 28, 64, 224, 500])
    @pytest.mark.parametrize("name", ["vit-small", "vit", "hybrid", "resnet-small"])
    def test_can_be_built_for_any_image(self, name: str, side: int) -> None:
        found = contender(name, side)
        assert max(found.model_args["img_size"]) <= max(64, 1.25 * min(side, 224))
        if found.architecture in ARCHITECTURES:
            config = vit_config(found.architecture, found.model_args, 10)
            assert min(config.grid) >= 2

    @pytest.mark.parametrize("side", [28, 64, 96, 128, 224])
    def test_sizes_and_costs_are_near(self, place: Path, side: int) -> None:
        """The hybrid has about the parameters of the larger ViT, the small ResNet about its multiply–adds."""
        found, data = {}, open_data(place / "data")
        for name in ("vit", "hybrid", "resnet-small"):
            chosen = contender(name, side)
            task = build_task(Settings(chosen.architecture, chosen.model_args, str(data.root), Recipe()), data)
            found[name] = parameters(task.model), work._macs(task.model, task.preprocess.size)
        assert 0.75 < found["hybrid"][0] / found["vit"][0] < 1.25
        assert 0.5 < found["resnet-small"][1] / found["vit"][1] < 1.5
        if side > 96:
            assert 0.75 < found["resnet-small"][0] / found["vit"][0] < 1.25
            assert 0.75 < found["hybrid"][1] / found["vit"][1] < 1.25

    def test_any_of_timms(self) -> None:
        assert contender("resnet18", 28).architecture == "resnet18"
        assert contender("resnet18", 28).model_args == {"img_size": [64, 64]}


def table(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((folder / "results.csv").read_text("utf-8").splitlines()))
    assert all(float(row["cpu_seconds"]) > 0 for row in rows)
    return [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A study that ran without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = vit(f"compare --data data {SMALL} --out whole")
    assert result.exit_code == 0, result.output
    assert "vit-small" in result.stdout
    assert "±" in result.stdout
    return place / "whole"


class TestCommand:
    def test_what_a_study_leaves(self, whole: Path) -> None:
        assert {path.name for path in whole.iterdir()} == {
            "study.json", "sizes.json", "cells", "accuracy.png", "accuracy.svg", "results.csv", "report.html",
        }  # fmt: skip
        rows = table(whole)
        assert len(rows) == 8
        assert {"few_shot_1", "few_shot_10", "validation_accuracy"} <= set(rows[0])
        assert len({row["few_shot_1"] for row in rows}) > 1
        data = open_data(whole.parent / "data")
        assert {int(row["images"]) for row in rows if row["share"] == "1.0"} == {len(data.train)}
        assert "<script" not in (whole / "report.html").read_text()

    def test_again_does_nothing_and_shows_the_same(self, whole: Path, here: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.glob("cells/*/result.json")}
        result = vit(f"compare --data data {SMALL} --out whole --json")
        document = json.loads(result.stdout)
        assert document["schema"] == "vit.compare/1"
        assert [p["mean"] for p in document["points"]]
        assert {path: path.stat().st_mtime_ns for path in whole.glob("cells/*/result.json")} == before
        assert vit("compare --resume whole --csv").stdout.startswith("model,pretraining,pretraining_images,share")

    def test_resumed_where_its_data_were_moved_to(self, here: Path, tmp_path: Path) -> None:
        """Done in part, then the data move: it ends with the table and the weights of one that stayed."""
        for name in ("data", "before"):
            shutil.copytree(here / "data", tmp_path / name)
        line = "--models vit-small --sizes 100% --seeds 2 --epochs 1 --set batch_size=8 --workers 0"
        line = f"compare --data {tmp_path / 'data'} --pretrain a=50% --pretrain-data {tmp_path / 'before'} {line}"
        assert vit(f"{line} --out {tmp_path / 'study'}").exit_code == 0
        done = {path: path.read_bytes() for path in (tmp_path / "study").glob("cells/*seed1/*/best/*.safetensors")}
        assert len(done) == 2
        shutil.rmtree(next((tmp_path / "study").glob("cells/*seed1")))
        shown = (tmp_path / "study" / "results.csv").read_text()
        (tmp_path / "data").rename(tmp_path / "moved")
        (tmp_path / "before").rename(tmp_path / "moved before")
        resumed = f"compare --resume {tmp_path / 'study'} --workers 0"
        for there, code, said in [
            ("", 1, "data does not exist; if the data moved, say where they are with --data"),
            (f"--data {tmp_path / 'moved'}", 1, "before does not exist; if the data moved, say where they are with"),
            (f"--data {tmp_path / 'nowhere'}", 1, "nowhere does not exist"),
        ]:
            result = vit(f"{resumed} {there}")
            assert (result.exit_code, said in " ".join(result.stderr.split())) == (code, True), result.stderr
        result = vit(f"{resumed} --data {tmp_path / 'moved'} --pretrain-data '{tmp_path / 'moved before'}'")
        assert result.exit_code == 0, result.output
        assert {path: path.read_bytes() for path in done} == done
        without_time = [row.rpartition(",")[0] for row in (tmp_path / "study" / "results.csv").read_text().split()]
        assert without_time == [row.rpartition(",")[0] for row in shown.split()]

    @pytest.mark.parametrize("option", ["--data", "--pretrain-data"])
    def test_moved_data_must_be_those_of_the_study(self, whole: Path, here: Path, tmp_path: Path, option: str) -> None:
        rng = np.random.default_rng(5)
        for split in ("train", "t10k"):
            write_idx(tmp_path, split, rng.integers(0, 100, (40, 8, 8)), np.arange(40) % 2)
        result = vit(f"compare --resume whole --dry-run {option} {tmp_path}")
        assert result.exit_code == 2
        said = {
            "--data": "does not hold the data that whole began with",
            "--pretrain-data": "pre-trained on 0 data sets",
        }
        assert said[option] in " ".join(result.stderr.split())

    def test_from_python_it_is_the_same_study(
        self, whole: Path, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same arguments go on with the command's study, which is done; nothing is printed."""
        told: list[str] = []
        arguments: dict[str, Any] = {"sizes": (1, 0.3), "seeds": 2, "epochs": 1, "settings": {"batch_size": 8}}
        found = compare("data", models=["vit-small", "test_resnet"], **arguments, out="whole", note=told.append)
        assert (told, capsys.readouterr()) == ([], ("", ""))
        shown = json.loads(vit("compare --resume whole --json").stdout)["points"]
        assert [point.mean for point in found.points] == [point["mean"] for point in shown]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sizes": [0.5, 0.5]}, "an amount of data is there twice"),
            ({"sizes": [50]}, "a share is not above 0 and at most 1"),
            ({"seeds": 0}, "it has 0 cells"),
            ({"models": ["a/b"]}, "is not a model with its image size"),
            ({"pretrainings": [Pretraining("a b", "data", 1.0)]}, "cannot be the name of a pre-training"),
            ({"finetune_scale": 2.0}, "belongs to pretrainings"),
        ],
    )
    def test_from_python_what_no_study_is(self, here: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            compare("data", **arguments, out="wrong")
        assert not (here / "wrong").exists()

    def test_what_it_does_is_told(self, here: Path) -> None:
        notes: list[str] = []
        stages: list[str] = []
        compare(
            "data", models=["vit-small"], sizes=[1.0], seeds=1, epochs=1, settings={"batch_size": 8}, workers=0,
            out="told", note=notes.append, progress=lambda what, done, total: stages.append(what),
        )  # fmt: skip
        assert [note.partition(":")[0] for note in notes] == ["vit-small-100%-seed0"]
        assert "vit-small-100%-seed0" in stages

    def test_under_torchrun_only_the_first_process_shows_the_table(
        self, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And each trains by itself: what torchrun tells of the others is forgotten."""
        for rank in ("0", "1"):
            for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
                monkeypatch.setenv(name, value)
            result = vit("compare --resume whole")
            assert result.exit_code == 0, result.output
            assert bool(result.stdout) == (rank == "0")
            assert bool(result.stderr) == (rank == "0")
            assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)

    def test_a_finished_study_is_shown_without_torch(self, whole: Path, here: Path) -> None:
        kept = (whole / "sizes.json").read_bytes()
        assert imported_by("compare", "--resume", "whole", "--json") & {"torch", "timm", "torchvision"} == set()
        (whole / "sizes.json").unlink()
        assert vit("compare --resume whole").exit_code == 0
        assert (whole / "sizes.json").read_bytes() == kept, "and measured again where that was lost"

    @pytest.mark.parametrize("damage", ["", "[]", "{}", '{"vit-small": {"params": "1", "macs": 1, "bias": 0}}'])
    def test_damaged_sizes(self, whole: Path, here: Path, damage: str) -> None:
        shutil.copytree(whole, here / "damaged", dirs_exist_ok=True)
        (here / "damaged" / "sizes.json").write_text(damage)
        result = vit("compare --resume damaged")
        assert result.exit_code == 1
        assert "sizes.json" in result.stderr
        assert "remove it, and the models are measured again" in result.stderr

    def test_killed_in_the_middle_it_ends_with_the_same_table(
        self, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, events = work._tell, 0

        def dying(event: Any, bar: Any) -> None:
            nonlocal events
            events += 1
            if events in (7, 30):  # inside a run
                raise KeyboardInterrupt
            real(event, bar)

        monkeypatch.setattr(work, "_tell", dying)
        codes = [vit(f"compare --data data {SMALL} --out cut").exit_code for _ in range(3)]
        assert codes == [130, 130, 0]
        assert table(here / "cut") == table(whole)
        for path in whole.glob("cells/*/run/best/model.safetensors"):
            assert (here / "cut" / path.relative_to(whole)).read_bytes() == path.read_bytes()

    def test_two_processes_share_it_and_one_is_killed(self, whole: Path, here: Path) -> None:
        """SIGKILL inside a run: the other process ends with the table of one that was never disturbed."""
        line = [*SMALL.replace(",test_resnet", "").split(), "--out", "shared"]
        command = [sys.executable, "-m", "vitcli", "compare", "--data", "data", *line]
        logs = [here / f"shared-{i}.log" for i in range(2)]
        with ExitStack() as stack:
            files = [stack.enter_context(log.open("w")) for log in logs]
            both = [
                stack.enter_context(subprocess.Popen(command, stderr=file, stdout=file, env=environment()))
                for file in files
            ]
            while "to go" not in logs[0].read_text() and both[0].poll() is None:
                time.sleep(0.02)
            both[0].kill()
            assert both[1].wait(timeout=300) == 0, logs[1].read_text()
        assert table(here / "shared") == [row for row in table(whole) if row["model"] == "vit-small"]
        done = [{line.partition(":")[0] for line in log.read_text().splitlines() if "to go" in line} for log in logs]
        assert done[0], "the killed one had done something"
        assert not done[0] & done[1], "no cell was done twice"

    def test_seconds_of_a_killed_process_count(self, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cell = whole / "cells" / "vit-small-100%-seed0"
        before = json.loads((cell / "result.json").read_text())["cpu_seconds"]
        kept = float((cell / "cpu_seconds").read_text())
        assert 0 < kept <= before, "of the last epoch; scoring comes after it"
        subject = resume(whole)
        (cell / "cpu_seconds").write_text("1000")
        again = work.Worker(subject).work(
            next(c for c in subject.study.cells() if c.name == cell.name), cell, workers=0
        )
        assert again["cpu_seconds"] > 1000
        (cell / "cpu_seconds").write_text(f"{kept}")

    def test_the_test_split_is_read_once(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After the best epoch is chosen, for accuracy and few-shot accuracy in one pass."""
        study = Study(
            str(here / "data"), open_data(here / "data").fingerprint, {"vit-small": asdict(contender("vit-small", 8))},
            (1.0,), 1, 2.0, 2.0, {"batch_size": 8, "micro_batch": 8},
        )  # fmt: skip
        subject = Cells(study, here / "unread")
        size = work.model_sizes(subject)["vit-small"]
        chosen = contender("vit-small", 8)
        assert size.macs == cost(vit_config(chosen.architecture, chosen.model_args, 2)).macs  # attention included
        read: list[str] = []
        test = subject.data.test
        assert isinstance(test, ArraySamples)
        real = ArraySamples.image

        def image(self: ArraySamples, i: int, *shrink: Any) -> Any:
            if "t10k" in self.source:
                read.append(f"{len(list((here / 'unread').glob('cells/*/run/best')))} {i}")
            return real(self, i)

        monkeypatch.setattr(ArraySamples, "image", image)
        carry_out(subject, workers=0)
        assert {entry.split()[0] for entry in read} == {"1"}, "never before there was a best checkpoint"
        assert sorted(read) == sorted(f"1 {i}" for i in range(len(test)))

    @pytest.mark.parametrize("model", ["vit-small", "test_resnet"])
    def test_the_accuracy_is_that_of_vit_evaluate(self, whole: Path, model: str) -> None:
        cell = whole / "cells" / f"{model}-100%-seed1"
        test = open_data(whole.parent / "data").test
        assert test is not None
        found = evaluate(cell / "run" / "best", test, ("0", "1")).measures.top1
        assert json.loads((cell / "result.json").read_text())["test_accuracy"] == found

    def test_small_images_do_not_overrule_the_user(self, here: Path) -> None:
        study = {}
        for change in ("", "--set crop_padding=3", "--recipe compare"):
            document = json.loads(vit(f"compare --data data --models vit-small {change} --dry-run --json").stdout)
            study[change] = document["study"]
        assert study[""]["fitted"] == ["crop_scale", "crop_padding", "randaugment"]
        assert study["--set crop_padding=3"]["fitted"] == ["crop_scale", "randaugment"]
        assert study["--set crop_padding=3"]["recipe"]["crop_padding"] == 3
        assert study["--recipe compare"]["fitted"] == []
        assert study[""]["epochs"] == 10

    def test_a_test_image_that_cannot_be_read(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        for split, n in (("train", 8), ("test", 4)):
            for label in ("a", "b"):
                (tmp_path / "d" / split / label).mkdir(parents=True)
                for i in range(n):
                    pixels = rng.integers(0, 120, (8, 8, 3), np.uint8) + 120 * (label == "b")
                    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "d" / split / label / f"{i}.png")
        (tmp_path / "d" / "test" / "a" / "0.png").write_bytes(b"no image")
        line = (
            f"compare --data {tmp_path / 'd'} --models vit-small --sizes 100% --seeds 1 --epochs 1 --set batch_size=4"
        )
        result = vit(f"{line} --workers 0 --out {tmp_path / 's'} --json")
        assert result.exit_code == 3, result.output
        assert "1 test image could not be read" in result.stderr
        assert json.loads(result.stdout)["failed"] == 1

    def test_stopped_it_says_how_the_study_goes_on(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        signals = iter([signal.SIGTERM])

        def stopping(event: Any, bar: Any) -> None:
            for one in signals:  # a second one would end the process at once
                os.kill(os.getpid(), one)

        monkeypatch.setattr(work, "_tell", stopping)
        result = vit(f"compare --data data {SMALL} --out stopped")
        assert result.exit_code == 75
        assert "to go on: vit compare --resume stopped" in result.stderr

    def test_there_is_a_report_before_the_end(self, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done = iter(range(3))

        def working(self: object, cell: Cell, place: Path, workers: int | None = None) -> Mapping[str, Any]:
            if next(done) == 2:
                raise KeyboardInterrupt
            return {**RESULT, "validation_accuracy": 0.5, "failed": 0}

        subject = Cells(read_study(whole), here / "early")
        monkeypatch.setattr(work.Worker, "work", working)
        with pytest.raises(KeyboardInterrupt):
            carry_out(subject, workers=0)
        assert "6 cells of 8 still to come" in (here / "early" / "report.html").read_text()
        assert len(table(here / "early")) == 2

    def test_pretraining_then_a_higher_resolution(self, here: Path) -> None:
        line = "compare --data data --models vit-small,test_resnet --seeds 1 --epochs 1 --set batch_size=8 --workers 0"
        result = vit(f"{line} --pretrain small=20%,large=100% --pretrain-data data --finetune-scale 2 --out two --csv")
        assert result.exit_code == 0, result.output
        rows = list(csv.DictReader(result.stdout.splitlines()))
        assert [(row["model"], row["pretraining"]) for row in rows] == [
            ("vit-small", "small"), ("vit-small", "large"), ("test_resnet", "small"), ("test_resnet", "large"),
        ]  # fmt: skip
        total = len(open_data(here / "data").train)
        assert [int(row["pretraining_images"]) for row in rows] == 2 * [2 * round(0.2 * total / 2), total]
        for model, size in (("vit-small", 16), ("test_resnet", 128)):
            best = here / "two" / "cells" / f"{model}-100%-after-small-seed0" / "run" / "best"
            config = json.loads((best / "config.json").read_text())
            assert config["pretrained_cfg"]["input_size"] == [3, size, size]

    def test_pretraining_data_that_changed(self, here: Path, tmp_path: Path) -> None:
        shutil.copytree(here / "data", tmp_path / "other")
        line = f"compare --data data --models vit-small --pretrain a={tmp_path / 'other'} --dry-run --json"
        study = json.loads(vit(line).stdout)["study"]
        assert study["pretrainings"][0]["fingerprint"] == study["fingerprint"], "the same images"
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "study.json").write_text(json.dumps(study))
        assert vit(f"compare --resume {tmp_path / 'study'} --dry-run").exit_code == 0
        rng = np.random.default_rng(5)
        write_idx(tmp_path / "other", "train", rng.integers(0, 100, (40, 8, 8)), np.arange(40) % 2)
        result = vit(f"compare --resume {tmp_path / 'study'} --dry-run")
        assert result.exit_code == 2
        assert "other changed since" in " ".join(result.stderr.split())

    def test_the_plan_alone_writes_nothing(self, here: Path) -> None:
        result = vit(f"compare --data data {SMALL} --out planned --dry-run")
        assert "8 cells, 0 of them done" in result.stderr
        assert "in all" in result.stderr
        document = json.loads(vit(f"compare --data data {SMALL} --out planned --dry-run --json").stdout)
        assert (document["cells"], document["done"]) == (8, 0)
        assert set(document["seconds"]) == set(document["study"]["models"])
        assert not (here / "planned").exists()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("--sizes 0%", "write different percentages"),
            ("--sizes ten", "write different percentages"),
            ("--models resnt18", "Did you mean 'resnet18'"),
            ("--models vit,vit", "write different names"),
            ("--models vit,,hybrid", "write different names"),
            ("--pretrain a=5%,a=10% --pretrain-data data", "two sets of one name"),
            ("--set epochs=3", "a study has --epochs for that"),
            ("--set seed=3", "a study has --seeds for that"),
            ("--set 'lrs=[1e-3, 1e-2]'", "a study has --set lr for that"),
            ("--recipe fashion-vit", "the recipe fashion-vit has a [model] part"),
            ("--dry-run --csv", "--json prints it"),
            ("--pretrain small=5%", "--pretrain-data is missing"),
            ("--pretrain-data data", "belong to --pretrain"),
            ("--set epocs=1", "no recipe setting 'epocs'"),
            ("--epochs 0", "--epochs 0: a number above 0"),
            ("--most-epochs 0", "--most-epochs 0: a number above 0"),
        ],
    )
    def test_wrong_usage(self, here: Path, line: str, message: str) -> None:
        result = vit(f"compare --data data --out wrong {line}")
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (here / "wrong").exists()

    def test_without_a_test_split(self, here: Path, tmp_path: Path) -> None:
        for path in (here / "data").glob("train*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        result = vit(f"compare --data {tmp_path} --out wrong")
        assert result.exit_code == 1
        assert "has no test split" in result.stderr


def test_one_seed_says_nothing_of_chance() -> None:
    found = [
        Point(model, share, int(1000 * share), (0,), (accuracy,), accuracy, None, {"5": 0.5}, 1.0)
        for model, accuracies in (("vit", (0.3, 0.9)), ("resnet18", (0.5, 0.6)))
        for share, accuracy in zip((0.1, 1.0), accuracies, strict=True)
    ]
    one = crossover(found, "resnet18", "vit")
    assert one.images is not None
    assert one.chance is None
    assert sentence(one).endswith("one seed: no uncertainty")


@pytest.mark.parametrize(
    ("models", "pairs"),
    [
        ("vit,hybrid,resnet18", {("hybrid", "vit"), ("resnet18", "vit"), ("resnet18", "hybrid")}),
        ("deit_tiny_patch16_224,resnet18", {("resnet18", "deit_tiny_patch16_224")}),
        (
            "vit_tiny_r_s16_p8_224,vit_tiny_patch16_224,vit-small",
            {("vit_tiny_r_s16_p8_224", "vit_tiny_patch16_224"), ("vit_tiny_r_s16_p8_224", "vit-small")},
        ),
    ],
)
def test_who_may_pass_whom(models: str, pairs: set[tuple[str, str]]) -> None:
    study = replace(STUDY, models=dict.fromkeys(models.split(","), MODELS["vit"]))
    found = [
        Point(m, s, int(100 * s), (0, 1), (0.5, 0.6), 0.55, None, {}, 1.0) for m in study.models for s in study.shares
    ]
    findings = Findings(study, {}, {name: Size(1, 1, work._inductive_bias(name)) for name in study.models})
    findings.__dict__["points"] = found
    assert {(one.incumbent, one.challenger) for one in findings.crossings} == pairs


def test_the_figure_shows_what_grows() -> None:
    """Training images, but after pre-training on several sets the size of those."""
    study = replace(STUDY, models={"vit": MODELS["vit"]}, shares=(1.0,), seeds=1)
    assert _curves(Findings(study, {Cell("vit", 1.0, 0): RESULT}, {})) == (
        "training images", {"vit": [(100, 0.5, 0.5, 0.5)]},
    )  # fmt: skip
    sets = (Pretraining("small", "x", 0.1), Pretraining("large", "x", 1.0))
    cells = {
        Cell("vit", 1.0, 0, one): {**RESULT, "pretraining_images": int(3000 * one.share), "test_accuracy": one.share}
        for one in sets
    }
    assert _curves(Findings(replace(study, pretrainings=sets), cells, {})) == (
        "pre-training images", {"vit": [(300, 0.1, 0.1, 0.1), (3000, 1.0, 1.0, 1.0)]},
    )  # fmt: skip


def test_the_figures_axes() -> None:
    """Ticks are the amounts of data, within one decade too, and no accuracy is below 0 or above 1."""
    drawing = accuracy_figure("training images", {"vit": [(110, 0.2, -0.4, 0.8), (270, 0.5, 0.4, 1.6)]})
    (axes,) = drawing.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["110", "270"]
    assert not list(axes.xaxis.get_minorticklocs())
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert 1 <= top <= 1.05


def test_a_smaller_micro_batch_is_the_same_run() -> None:
    settings = Settings("vit_tiny_patch16_224", {}, "data", Recipe(micro_batch=8, batch_size=32))
    kept = json.loads(json.dumps(settings.as_dict()))
    kept["recipe"]["micro_batch"] = 4
    assert work._as_begun(kept, settings) == settings
    kept["recipe"]["lr"] = 1.0
    assert work._as_begun(kept, settings) != settings


def test_shares_and_stages() -> None:
    assert shares("30%, 1,100%", "--sizes") == (0.01, 0.3, 1.0)
    assert [stage.share for stage in stages("a=5%,b=50%", "x")] == [0.05, 0.5]
    assert stages(None, None) == ()
    with pytest.raises(UsageError, match="write name="):
        stages("5%", "x")
