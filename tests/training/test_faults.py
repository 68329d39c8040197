"""What the world does to a run at work: full disks, removed folders, unreadable images, dying workers. Each ends in one
line that says what to do, spoils nothing that was saved, and the run goes on from there to the same bits."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.data import write_idx
from tests.helpers.process import python
from tests.helpers.runs import MODEL, RECIPE, run_to_end, state_digest
from vitcli.cli.app import app
from vitcli.comparison.queue import work_through
from vitcli.comparison.study import Study
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.images.preprocess import Preprocess
from vitcli.training import folder as running
from vitcli.training import train as training
from vitcli.training.augment import training_transform
from vitcli.training.batches import Plan, training_batches
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.estimate import estimate
from vitcli.training.events import Stepped, Uncompiled
from vitcli.training.faults import explained
from vitcli.training.fit import fit
from vitcli.training.folder import create_run_folder, read_config, write_config
from vitcli.training.learner import Learner
from vitcli.training.lock import locked
from vitcli.training.seeds import reseed
from vitcli.training.settings import Settings
from vitcli.training.state import load_state

SHORT = replace(RECIPE, epochs=2)
TINY = "--img-size 16 --patch-size 4 --set embed_dim=24 --set depth=2 --set num_heads=3 -b 16 --device cpu -j 0"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Ten steps of a tiny model on generated images."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_idx(folder, "train", rng.integers(0, 256, (100, 16, 16)), np.arange(100) % 3)
    return Settings("vit_tiny_patch16_224", MODEL, str(folder), SHORT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_to_end(settings, folder)
    return folder


@pytest.fixture
def saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save after every step."""
    monkeypatch.setattr(training, "fit", partial(fit, save_every=0.0))


def fails(settings: Settings, folder: Path, at: int = 0, do: Callable[[], object] | None = None, **options: Any) -> str:
    """The line with which a run ends, in which `do` happens after step `at`."""
    samples = training.open_settings_data(settings)
    if not folder.exists():
        training.begin(settings, samples, folder)

    def run() -> None:
        for event in training.train(settings, samples, folder, device="cpu", **options):
            if do and isinstance(event, Stepped) and event.step == at:
                do()

    with pytest.raises(VitError) as failed:
        run()
    assert "\n" not in str(failed.value)
    assert multiprocessing.active_children() == []  # they would outlast the program, while this error is alive
    return str(failed.value)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


class TestDisk:
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("number", [1, 6, 13])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_full_or_broken_while_saving(
        self, settings: Settings, whole: Path, tmp_path: Path, saving: None, call: str, number: int, code: int
    ) -> None:
        """The n-th call fails; what was saved before it is whole, and nothing is left half-written."""
        folder, real, count = tmp_path / "run", getattr(os, call), 0
        training.begin(settings, training.open_settings_data(settings), folder)
        with pytest.MonkeyPatch.context() as patch:

            def failing(*arguments: Any) -> Any:
                nonlocal count
                of_folder = call == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
                count += not of_folder  # which not every file system can do, so that it may fail
                if count == number and not of_folder:
                    raise OSError(code, os.strerror(code))
                return real(*arguments)

            patch.setattr(os, call, failing)
            line = fails(settings, folder)
        assert line.startswith(str(folder))
        assert f": {os.strerror(code)}; what was saved before is whole" in line
        assert line.endswith(f"vit train --resume {folder}")
        assert temporary_files(folder) == []
        run_to_end(settings, folder)
        assert state_digest(folder) == state_digest(whole)

    def test_full_while_data_workers_are_busy(
        self, settings: Settings, tmp_path: Path, saving: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They ignore signals, so they must be told to end: the program would wait for them for ever."""

        def failing() -> None:
            def fsync(_: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", fsync)

        assert "No space left on device" in fails(settings, tmp_path / "run", 2, failing, workers=2)

    def test_a_file_that_may_not_grow(self, settings: Settings, tmp_path: Path) -> None:
        """The kernel's own refusal, in the middle of a write, through the command."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        try:
            result = CliRunner().invoke(
                app, ["train", "--data", settings.data, "--out", str(tmp_path / "run"), "--epochs", "1", *TINY.split()]
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "model.safetensors: File too large" in result.stderr.splitlines()[-1]
        assert temporary_files(tmp_path) == []
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_place_that_cannot_be_written(self, settings: Settings, tmp_path: Path) -> None:
        """Below a file, and where not even root may make folders."""
        (tmp_path / "file").touch()
        for place in (tmp_path / "file" / "run", Path("/proc/vit/run")):
            result = CliRunner().invoke(app, ["train", "--data", settings.data, "--out", str(place), *TINY.split()])
            assert result.exit_code == 1
            assert f"error: cannot write to {place}: " in result.stderr.splitlines()[-1]

    def test_read_only_when_resumed(
        self, settings: Settings, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file system mounted anew. (Root may write whatever a mode says, so the refusal is a pretended one.)"""
        folder, real = shutil.copytree(whole, tmp_path / "run"), Path.open

        def refusing(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if folder in path.parents and mode != "r":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", refusing)
        result = CliRunner().invoke(app, ["train", "--resume", str(folder), "--epochs", "3"])
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1] == f"error: {folder}/.lock: Read-only file system"


class TestFolder:
    def test_removed_while_at_work(self, settings: Settings, tmp_path: Path, saving: None) -> None:
        folder = tmp_path / "run"
        line = fails(settings, folder, 3, lambda: shutil.rmtree(folder))
        assert line == f"{folder} was removed while its run was at work; nothing of it is left to go on with"
        assert not folder.exists()

    def test_removed_and_taken_by_another_run(self, settings: Settings, tmp_path: Path, saving: None) -> None:
        folder = tmp_path / "run"

        def taken() -> None:
            shutil.rmtree(folder)
            folder.mkdir()
            write_config(folder, {"another": "run"})

        assert "was removed while its run was at work" in fails(settings, folder, 3, taken)
        assert [path.name for path in folder.iterdir()] == ["run.json"]

    def test_two_runs_in_one(self, whole: Path) -> None:
        """The second one is refused, in this process and in another, and changes nothing of the first's."""
        imports = "from pathlib import Path; from vitcli.training.lock import locked"
        code = f"{imports}; locked(Path({str(whole)!r})).__enter__()"
        before = (whole / "run.json").read_bytes()
        with locked(whole):
            with pytest.raises(UsageError, match="another run is at work"), locked(whole):
                pass
            longer, _ = training.resumed(whole, 8)
            with pytest.raises(UsageError, match="another run is at work"):
                training.extend(longer, whole)
            other = python("-c", code)
        assert "UsageError: another run is at work" in other.stderr
        assert (whole / "run.json").read_bytes() == before

    def test_two_runs_begin_in_one_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first one's run.json comes between the second one's look and its lock."""
        folder, real = tmp_path / "run", running._require_empty

        def look(place: Path) -> None:
            real(place)
            folder.mkdir(exist_ok=True)
            write_config(folder, {"first": True})

        monkeypatch.setattr(running, "_require_empty", look)
        with pytest.raises(UsageError, match="is not empty"):
            create_run_folder(folder, {})
        assert read_config(folder) == {"first": True}


class TestChangedRun:
    """What `--resume` makes of a run that is no longer what it was."""

    @pytest.mark.parametrize(
        "option",
        [
            "--model vit_base_patch16_224", "--recipe paper", "--out x", "--batch-size 8", "--lr 1",
            "--img-size 32", "--patch-size 8", "--teacher x", "--seed 3", "--time-budget 5m", "--val-fraction 0.2",
            "--set depth=3",
        ],
    )  # fmt: skip
    def test_its_settings_are_its_own(self, whole: Path, option: str) -> None:
        result = CliRunner().invoke(app, ["train", "--resume", str(whole), *option.split()])
        assert result.exit_code == 2
        assert f"{option.split()[0]} would change nothing" in result.stderr

    def test_data_that_moved(self, settings: Settings, whole: Path, tmp_path: Path) -> None:
        """`--data` says where they are now; other data are refused, and without it the line says what to do."""
        folder, here = shutil.copytree(whole, tmp_path / "run"), tmp_path / "there"
        write_config(folder, {**read_config(folder), "data": str(tmp_path / "gone")})
        runner = CliRunner()
        result = runner.invoke(app, ["train", "--resume", str(folder)])
        assert result.exit_code == 1
        assert "gone does not exist; if the data moved, say where they are with --data" in result.stderr
        other = shutil.copytree(settings.data, tmp_path / "other")
        (images,) = other.glob("train-images*")
        images.write_bytes(images.read_bytes()[:-1] + b"\x01")
        result = runner.invoke(app, ["train", "--resume", str(folder), "--data", str(other)])
        assert result.exit_code == 2
        assert f"{other} does not hold the data that {folder} began with" in result.stderr
        shutil.copytree(settings.data, here)
        line = ["train", "--resume", str(folder), "--data", str(here), "--score", "none", "--device", "cpu"]
        result = runner.invoke(app, line)
        assert result.exit_code == 0, result.stderr
        assert read_config(folder)["data"] == str(here)
        assert training.resumed(folder)[0].data == str(here)

    @pytest.mark.parametrize("change", [{"depth": 3}, {"depth": 1}, {"embed_dim": 48}, {"patch_size": [8, 8]}])
    def test_another_model(self, settings: Settings, whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        folder = shutil.copytree(whole, tmp_path / "run")
        config = read_config(folder)
        write_config(folder, {**config, "model_args": {**config["model_args"], **change}})
        changed, data = training.resumed(folder, 3)
        with pytest.raises(CheckpointError, match=r"is not one of the model and recipe that its run\.json"):
            list(training.train(changed, data, folder, device="cpu"))

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({}, "is not that of a run"),
            ({"recipe": {"lr": "high"}}, "lr must be a number, not 'high'"),
            ({"recipe": None}, "is not that of a run"),
            ({"start": {"tune": "all"}}, "is not that of a run"),
            ({"fingerprint": None}, "changed since"),
            ({"data": "/gone"}, "does not exist"),
        ],
    )
    def test_a_damaged_run_json(self, whole: Path, tmp_path: Path, config: dict[str, Any], said: str) -> None:
        write_config(tmp_path, {**read_config(whole), **config} if config else {})
        result = CliRunner().invoke(app, ["train", "--resume", str(tmp_path)])
        assert result.exit_code in (1, 2)
        assert said in result.stderr
        assert isinstance(result.exception, SystemExit)


class TestMachine:
    """What the bits of a run depend on is in its run.json, and what differs on resumption is said and kept."""

    @pytest.mark.parametrize(
        ("name", "then", "said"),
        [
            ("threads", 99, "threads 99 then, 1 now"),
            ("device", "Quantum Q1", "device Quantum Q1 then, cpu now"),
            ("processor", "Z80", "processor Z80 then,"),
            ("instructions", "NONE", "instructions NONE then,"),
            ("python", "2.7", "python 2.7 then,"),
            ("processes", 8, "processes 8 then, 1 now"),
            ("versions", {"torch": "0.1"}, "torch 0.1 then,"),
            ("versions", {"libjpeg": "6b"}, "libjpeg 6b then,"),
            ("environment", {"MKL_CBWR": "COMPATIBLE"}, "MKL_CBWR COMPATIBLE then, not set now"),
        ],
    )
    def test_a_difference_is_said(self, whole: Path, name: str, then: Any, said: str) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("MKL_CBWR", raising=False)
                config = {**read_config(whole), "threads": 1}
                assert running.changed_since(config, "cpu") == []
                (found,) = running.changed_since({**config, name: then}, "cpu")
                assert found.startswith(said)
                older = {key: value for key, value in config.items() if key != name}
                assert running.changed_since(older, "cpu") == []  # written before this was looked at
        finally:
            torch.set_num_threads(threads)

    def test_a_variable_that_is_set_only_now(self, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
        found = running.changed_since(read_config(whole), "cpu")
        assert "ONEDNN_MAX_CPU_ISA not set then, SSE41 now" in found

    def test_it_is_remembered(self, settings: Settings, whole: Path, tmp_path: Path) -> None:
        """Back on the first machine the bits are still those of both."""
        folder = shutil.copytree(whole, tmp_path / "run")
        config, threads = read_config(folder), torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            assert f"threads {threads} then, {threads + 1} now" in running.changed_since(config, "cpu")
            training.extend(training.resumed(folder)[0], folder, "cpu")
        finally:
            torch.set_num_threads(threads)
        assert running.changed_since(read_config(folder), "cpu") == [f"a part of it had threads {threads + 1}"]


class TestLocks:
    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
    def test_a_file_system_without_them_is_not_another_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refusing(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.lockf", refusing)
        study = Study("d", "f", {"vit": {}}, (1.0,), 1, 1.0, 1.0, {})
        with pytest.raises(VitError) as failed, locked(tmp_path):
            pass
        with pytest.raises(VitError) as queued:  # not passed by for ever, as a cell that another process does
            list(work_through(tmp_path, study, lambda cell, place: {}))
        for error in (failed.value, queued.value):
            assert not isinstance(error, UsageError)
            assert f"its file system cannot lock files ({os.strerror(code)})" in str(error)
            assert "choose a folder on another file system" in str(error)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN])
    def test_held_by_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def refusing(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.lockf", refusing)
        with pytest.raises(UsageError, match="another run is at work"), locked(tmp_path):
            pass

    def test_where_there_is_no_fcntl(self, tmp_path: Path) -> None:
        """The module of runs can be imported, and says what it needs when a run begins; the command says so first."""
        code = (
            "import sys; sys.modules['fcntl'] = None\n"
            "from pathlib import Path; from vitcli.errors import VitError\n"
            "from vitcli.training.folder import locked\n"
            f"try: locked(Path({str(tmp_path)!r})).__enter__()\n"
            "except VitError as error: print(error)\n"
            "sys.platform = 'win32'\n"
            "from vitcli.__main__ import main; main()\n"
        )
        result = python("-c", code)
        assert result.stdout == "training needs a POSIX system (Linux, macOS); on Windows, WSL is one\n"
        assert result.stderr == "error: vit runs on Linux and macOS; on Windows, use it in WSL\n"
        assert result.returncode == 1


class TestTorch:
    """torch's own errors."""

    @pytest.mark.parametrize("planned", [True, False])
    def test_one_image_has_no_variance(self, settings: Settings, planned: bool) -> None:
        """Batch normalisation of one image whose map has one cell, in the plan and in the step."""
        recipe = replace(SHORT, batch_size=1, micro_batch=1, mixup=0.0, cutmix=0.0)
        small = Settings("resnet10t", {"img_size": [32, 32]}, settings.data, recipe)
        task = build_task(small, training.open_settings_data(small))
        one = iter([(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([0]), torch.tensor([0]))])
        work = partial(estimate, task, "cpu") if planned else partial(Learner(task, World(), 1).step, one, 0, 1e-3)
        with pytest.raises(UsageError, match="batch normalisation needs more than one image at once"):
            work()

    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
    def test_without_a_compiler_the_run_goes_on(
        self, settings: Settings, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One line instead of 139, the same bits as without --compile, and run.json says what was done."""
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nonexistent/g++",))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        torch._dynamo.reset()
        folder = tmp_path / "run"
        compiled = replace(settings, recipe=replace(SHORT, compile=True))
        events = run_to_end(compiled, folder)
        (said,) = [event for event in events if isinstance(event, Uncompiled)]
        assert "compiler" in said.why
        assert "\n" not in said.why
        assert read_config(folder)["recipe"]["compile"] is False
        assert state_digest(folder) == state_digest(whole)

    @pytest.mark.parametrize(
        "text",
        [
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback …\nRuntimeError: "
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n",
            "unable to open shared memory object </torch_1_2_0> in read-write mode: Too many open files (24)",
        ],
    )
    def test_a_small_shm(self, whole: Path, text: str) -> None:
        """As torch says it, with a /dev/shm of 64 KiB."""
        with pytest.raises(VitError) as failed, explained(running.Run(whole, {})):
            raise RuntimeError(text)
        line = str(failed.value)
        assert "\n" not in line
        assert line.startswith("no room for decoded images in /dev/shm (")
        assert "--workers 0 needs none; to go on from the last saved state: vit train --resume" in line


START = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    from vitcli.__main__ import main
    main()
"""


class TestWorkers:
    """Those that are not forked (the default from Python 3.14 on, and on macOS) get what they need pickled."""

    @pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
    def test_the_same_batches_however_they_start(self, settings: Settings, method: str) -> None:
        recipe = replace(SHORT, crop_scale=1.0, randaugment="rand-m9-n2-mstd0.5-inc1", crop_padding=2)
        task = build_task(replace(settings, recipe=recipe), training.open_settings_data(settings))
        plan = Plan.of(len(task.data.train), 16, 8, 0)
        begin = partial(training_batches, task.data.train, task.transform, plan, steps=range(2))
        before = multiprocessing.get_start_method()
        multiprocessing.set_start_method(method, force=True)
        try:
            found = list(begin(workers=1))
        finally:
            multiprocessing.set_start_method(before, force=True)
        for batch, expected in zip(found, begin(), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))

    @pytest.mark.parametrize("changes", [{}, {"crop_scale": 1.0}, {"randaugment": ""}, {"randaugment": "rand-m10"}])
    def test_an_augmentation_is_a_value(self, changes: dict[str, Any]) -> None:
        augment = training_transform(replace(RECIPE, **changes), Preprocess((16, 16)))
        copy = pickle.loads(pickle.dumps(augment))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
        for seed in range(20):
            reseed(seed)
            expected = augment(image)
            reseed(seed)
            assert torch.equal(copy(image), expected)

    @pytest.mark.parametrize("method", ["forkserver", "spawn"])
    def test_a_whole_run(self, settings: Settings, tmp_path: Path, method: str) -> None:
        program = tmp_path / "start.py"
        program.write_text(START)
        line = ["train", "--data", settings.data, "--out", str(tmp_path / "run"), "--epochs", "1", *TINY.split()]
        line[line.index("-j") + 1] = "1"
        result = python(program, method, *line)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "run" / "best" / "model.safetensors").exists()


class TestImages:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> Settings:
        """Two classes of twelve PNGs; six steps, of which two make an epoch."""
        rng = np.random.default_rng(0)
        for split, n in (("train", 9), ("val", 3)):
            for label in ("cat", "dog"):
                (tmp_path / "photos" / split / label).mkdir(parents=True)
                for i in range(n):
                    pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{i}.png")
        recipe = replace(RECIPE, epochs=3, batch_size=8, micro_batch=4)
        return Settings("vit_tiny_patch16_224", MODEL, str(tmp_path / "photos"), recipe)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_one_that_cannot_be_read_ends_the_run_with_its_state_saved(
        self, photos: Settings, tmp_path: Path, workers: int
    ) -> None:
        image, folder = tmp_path / "photos" / "train" / "cat" / "4.png", tmp_path / "run"
        content = image.read_bytes()
        line = fails(photos, folder, 1, lambda: image.write_bytes(bytes(len(content))), workers=workers)
        assert line.startswith(f"{image} is not an image")
        assert "`vit check` finds all such files" in line
        assert f"With the file restored, vit train --resume {folder} goes on" in line
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        steps = [line["step"] for line in lines if line["event"] == "stepped"]
        assert load_state(folder)[0].step == steps[-1]  # type: ignore[index]  # no step is lost
        image.write_bytes(content)
        run_to_end(photos, folder, workers=workers)
        run_to_end(photos, tmp_path / "whole")
        assert state_digest(folder) == state_digest(tmp_path / "whole")

    def test_one_of_validation(self, photos: Settings, tmp_path: Path) -> None:
        image = tmp_path / "photos" / "val" / "dog" / "1.png"
        line = fails(photos, tmp_path / "run", 1, image.unlink)
        assert line.startswith(f"{image} does not exist; `vit check`")

    def test_a_data_worker_that_is_killed(self, photos: Settings, tmp_path: Path) -> None:
        """As the kernel does when memory runs out."""

        def kill() -> None:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

        line = fails(replace(photos, recipe=replace(photos.recipe, epochs=50)), tmp_path / "run", 2, kill, workers=2)
        assert "a process that decodes images died (DataLoader worker" in line
        assert "fewer --workers need less" in line

    def test_a_bug_in_a_data_worker_ends_the_others(self, settings: Settings) -> None:
        """Its traceback holds the loader, which must not hold the workers."""

        def broken(_: Image.Image) -> torch.Tensor:
            raise ZeroDivisionError

        samples = training.open_settings_data(settings).train
        batches = training_batches(samples, broken, Plan.of(len(samples), 8, 4, 0), steps=range(9), workers=2)
        with pytest.raises(ZeroDivisionError) as failed:
            next(batches)
        assert failed.tb
        assert multiprocessing.active_children() == []


class TestNumbers:
    def test_weights_that_are_not_finite_are_never_saved(
        self, settings: Settings, tmp_path: Path, saving: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loss of a step is that of the weights before it: it does not tell."""
        real = Learner.step
        for poisoned in (3, 5):  # in the middle of an epoch, and at the end of one

            def step(self: Learner, batches: Any, step: int, lr: float, poisoned: int = poisoned) -> float:
                loss = real(self, batches, step, lr)
                if step + 1 == poisoned:
                    with torch.no_grad():
                        self.model.head.weight[0, 0] = torch.nan  # type: ignore[index,union-attr]
                return loss

            folder = tmp_path / str(poisoned)
            with monkeypatch.context() as patch:
                patch.setattr(Learner, "step", step)
                line = fails(settings, folder)
            assert line.startswith(f"weights are no longer finite after step {poisoned}: lower --lr")
            progress, tensors, _ = load_state(folder)  # type: ignore[misc]
            assert progress.step == poisoned - 1
            assert all(tensor.isfinite().all() for tensor in tensors.values())
            assert not (folder / "best").exists()

    def test_half_precision_that_overflows(self, settings: Settings) -> None:
        """A few steps are skipped and the scale finds itself; when every step would be, the run ends."""
        task = build_task(replace(settings, recipe=replace(SHORT, amp="fp16")), training.open_settings_data(settings))
        learner = Learner(task, World(), micro_batches=1)
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
        batch = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8) % 3, torch.arange(8)
        head, moved = task.model.head.weight, []
        for step in range(40):
            before = head.detach().clone()  # type: ignore[operator,union-attr]
            learner.step(iter([batch]), step, 1e-3)
            moved.append(not torch.equal(head, before))  # type: ignore[arg-type]
        assert not any(moved[:3])
        assert all(moved[-3:])
        head.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[operator,union-attr]
        with pytest.raises(VitError, match="fp16 gradients overflow at every step"):
            [learner.step(iter([batch]), step, 1e-3) for step in range(200)]

    def test_memory_that_runs_out_later(
        self, settings: Settings, whole: Path, tmp_path: Path, saving: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the first step smaller bites are tried (test_finetune); later the run ends, and can go on."""
        real = Learner.step

        def step(self: Learner, batches: Any, step: int, lr: float) -> float:
            if step == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation …")
            return real(self, batches, step, lr)

        folder = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", step)
            line = fails(settings, folder)
        assert line == (
            "out of memory: lower --set micro_batch, or set grad_checkpointing=true; "
            f"to go on from the last saved state: vit train --resume {folder}"
        )
        run_to_end(settings, folder)
        assert state_digest(folder) == state_digest(whole)
