"""Work in parts: all shards together are one process's result, byte for byte; what is there is not done again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.helpers.checkpoints import LABELS, write_tiny
from tests.helpers.process import environment, imported_by, python
from tests.helpers.terminal import invoke, vit
from vitcli import evaluate
from vitcli.cli.values import shard_alone
from vitcli.errors import UsageError, VitError
from vitcli.inference import part_forms
from vitcli.inference.embed import Embedding
from vitcli.inference.joining import join
from vitcli.inference.part_forms import VectorFiles
from vitcli.inference.parts import Parts
from vitcli.inference.shards import Shard
from vitcli.text import command

COUNT = 17  # images, of which one cannot be read and one is named twice


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`model`, another `model2`, class folders `data`, and `list` with names that are not UTF-8, too.

    The names are relative, so that each time the same images are in a shard.
    """
    place, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    write_tiny(place / "model")
    write_tiny(place / "model2", seed=1)
    for i in range(COUNT - 2):
        folder = place / "data" / LABELS[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 70, 3), np.uint8)).save(folder / f"{i}.png")
    (place / "data" / "dog" / "broken.png").write_text("no image")
    strange = os.fsencode(place / "data" / "cat") + b"/caf\xe9.png"
    os.rename(place / "data" / "cat" / "3.png", strange)
    names = sorted(os.fsencode(path.relative_to(place)) for path in (place / "data").rglob("*.png"))
    (place / "list").write_bytes(b"\n".join([*names, names[0]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


def asked(place: Path, verb: str) -> str:
    if verb == "evaluate":
        return command("evaluate", place / "model", "--data", place / "data")
    return command(verb, "--from-file", place / "list", "-m", place / "model")


def in_shards(place: Path, verb: str, out: Path, count: int = 3, more: str = "--part-size 2") -> list[int]:
    """The exit codes of all shards."""
    line = f"{asked(place, verb)} {command('--out', out)} {more}"
    return [vit(f"{line} --shard {index}/{count}").exit_code for index in range(count)]


@pytest.fixture(scope="module")
def parts(place: Path) -> dict[str, Path]:
    """A folder of each command's parts."""
    found = {verb: place / f"parts of {verb}" for verb in ("predict", "embed", "evaluate")}
    for verb, folder in found.items():
        assert sorted(in_shards(place, verb, folder)) == [0, 0, 3]  # that of the broken file
    return found


class TestUnion:
    @pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
    def test_predictions(self, place: Path, parts: dict[str, Path], tmp_path: Path, form: str) -> None:
        whole = vit(f"{asked(place, 'predict')} --{form}")
        merged = invoke("predict", "--merge", parts["predict"], f"--{form}")
        assert (merged.stdout, merged.exit_code) == (whole.stdout, 3)
        assert "1 of the images could not be read" in merged.stderr
        written = invoke("predict", "--merge", parts["predict"], "-o", tmp_path / f"all.{form}")
        assert (written.stdout, written.exit_code) == ("", 3)
        assert (tmp_path / f"all.{form}").read_bytes() == whole.stdout_bytes

    def test_lines_of_all_parts_are_those_of_one_process(self, place: Path, parts: dict[str, Path]) -> None:
        """Whoever only puts the files together has every line once."""
        lines = [line for path in parts["predict"].iterdir() for line in path.read_text("utf-8").splitlines()[1:]]
        whole = vit(f"{asked(place, 'predict')} --jsonl").stdout.splitlines()
        assert sorted(lines) == sorted(whole)
        assert len(lines) == COUNT

    @pytest.mark.parametrize("name", ["e.parquet", "e.npz", "e.csv", "-"])
    def test_vectors(self, place: Path, parts: dict[str, Path], tmp_path: Path, name: str) -> None:
        results = []
        for line in (asked(place, "embed"), command("embed", "--merge", parts["embed"])):
            out = name if name == "-" else tmp_path / f"{len(results)}{name}"
            found = vit(f"{line} {command('-o', out)}")
            assert found.exit_code == 3
            results.append(found.stdout_bytes if name == "-" else Path(out).read_bytes())
        assert results[0] == results[1]
        assert len(results[0]) > 1000

    def test_a_folder_of_parts_is_a_table(self, parts: dict[str, Path]) -> None:
        table = pyarrow.parquet.read_table(parts["embed"])
        assert table.num_rows == COUNT
        assert table.column_names == ["path", "vector", "error"]

    def test_vectors_with_labels_and_of_tokens(self, place: Path, tmp_path: Path) -> None:
        line = f"{command('embed', '--data', place / 'data', '-m', place / 'model')} --what patches --dtype float16"
        vit(f"{line} {command('-o', tmp_path / 'one.npz')}")
        for index in range(2):
            vit(f"{line} {command('-o', tmp_path / 'p')} --shard {index}/2")
        vit(command("embed", "--merge", tmp_path / "p", "-o", tmp_path / "all.npz"))
        assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()

    def test_an_evaluation(self, place: Path, parts: dict[str, Path]) -> None:
        whole = vit(f"{asked(place, 'evaluate')} --json")
        merged = vit(f"{asked(place, 'evaluate')} --json {command('--merge', parts['evaluate'])}")
        assert (merged.stdout, merged.exit_code) == (whole.stdout, 3)
        assert json.loads(merged.stdout)["measures"]["n"] == COUNT - 2
        again = evaluate(place / "model", place / "data", parts=parts["evaluate"])
        assert again.measures == evaluate(place / "model", place / "data").measures

    @pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
    def test_no_bit_depends_on_who_else_is_in_a_part(self, place: Path, tmp_path: Path, engine: str) -> None:
        """torch's products do, on how many images are computed at once."""
        line = f"{asked(place, 'embed')} --engine {engine}"
        vit(f"{line} {command('-o', tmp_path / 'one.npz')}")
        for index in range(5):
            vit(f"{line} {command('-o', tmp_path / 'p')} --shard {index}/5 --part-size 1")
        vit(command("embed", "--merge", tmp_path / "p", "-o", tmp_path / "all.npz"))
        assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()

    def test_more_shards_than_images(self, place: Path, tmp_path: Path) -> None:
        assert in_shards(place, "predict", tmp_path / "p", 20).count(3) == 1
        whole = vit(f"{asked(place, 'predict')} --jsonl").stdout
        assert invoke("predict", "--merge", tmp_path / "p").stdout == whole

    def test_parts_of_vectors_need_no_pyarrow(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vit(f"{asked(place, 'embed')} {command('-o', tmp_path / 'one.npz')}")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        in_shards(place, "embed", tmp_path / "p")
        assert {path.suffix for path in (tmp_path / "p").iterdir()} == {".npz"}
        vit(command("embed", "--merge", tmp_path / "p", "-o", tmp_path / "all.npz"))
        assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


class TestRefused:
    """What is no whole result, in one line that says what to do."""

    def merged(self, folder: Path) -> str:
        result = invoke("predict", "--merge", folder)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1
        return result.stderr

    @pytest.fixture
    def folder(self, parts: dict[str, Path], tmp_path: Path) -> Path:
        shutil.copytree(parts["predict"], tmp_path / "p")
        return tmp_path / "p"

    def files(self, folder: Path, shard: int) -> list[Path]:
        return sorted(folder.glob(f"shard-0000{shard}-*"))

    def test_a_missing_part(self, folder: Path) -> None:
        self.files(folder, 1)[1].unlink()
        assert "part-000001 is missing: `--shard 1/3` makes it" in self.merged(folder)

    @pytest.mark.parametrize("left", [0, 1])
    def test_a_shard_that_is_not_done(self, folder: Path, left: int) -> None:
        for path in self.files(folder, 2)[left:]:
            path.unlink()
        assert "shard 2/3 is not done: `--shard 2/3` makes it" in self.merged(folder)

    def test_a_part_twice(self, folder: Path) -> None:
        shutil.copy(self.files(folder, 0)[0], folder / "shard-00002-of-00003.part-000000.jsonl")
        assert "a part is there twice" in self.merged(folder)

    def test_images_twice(self, folder: Path) -> None:
        """A file that says of itself that it is another one."""
        path, other = self.files(folder, 0)[0], self.files(folder, 1)[0]
        head, *rows = path.read_text("utf-8").splitlines()
        about = json.loads(head)
        about["vit"]["part"]["index"] = 1
        other.write_text("\n".join([json.dumps(about), *rows]))
        assert "its images are in other parts, too" in self.merged(folder)

    def test_rows_of_other_images(self, folder: Path) -> None:
        path = self.files(folder, 0)[0]
        path.write_text(path.read_text("utf-8").replace(".png", ".jpg"))
        assert "is damaged: its SHA-256 is not what its first line says; remove it" in self.merged(folder)

    @pytest.mark.parametrize("content", [b"", b"\x00\xff", b"{}\n", b'{"vit": 3}\n', b'{"vit": {"part": {}}}\n'])
    def test_a_damaged_part(self, folder: Path, content: bytes) -> None:
        self.files(folder, 0)[0].write_bytes(content)
        assert "is damaged" in self.merged(folder)

    @pytest.mark.parametrize("model", ["model2", "model"])
    def test_parts_of_another_model_or_other_wishes(
        self, folder: Path, place: Path, tmp_path: Path, model: str
    ) -> None:
        line = command("predict", "--from-file", place / "list", "-m", place / model, "-o", tmp_path / "o")
        vit(f"{line} --shard 2/3 --part-size 2" + (" --top 2" if model == "model" else ""))
        for path in self.files(tmp_path / "o", 2):
            shutil.copy(path, folder)
        said = "another model" if model == "model2" else "top 2, not None"
        assert f"was made with {said}" in self.merged(folder)
        assert "not one result" in self.merged(folder)

    def test_parts_of_another_list(self, folder: Path, place: Path, tmp_path: Path) -> None:
        names = (place / "list").read_bytes().splitlines()
        (tmp_path / "list").write_bytes(b"\n".join(names[:-3]))
        line = command("predict", "--from-file", tmp_path / "list", "-m", place / "model", "-o", tmp_path / "o")
        vit(f"{line} --shard 2/3 --part-size 2")
        for path in self.files(folder, 2):
            path.unlink()
        for path in self.files(tmp_path / "o", 2):
            shutil.copy(path, folder)
        assert "of another list of images than other shards" in self.merged(folder)

    def test_an_evaluation_of_another_model_or_other_images(
        self, place: Path, parts: dict[str, Path], tmp_path: Path
    ) -> None:
        line = command("evaluate", place / "model2", "--data", place / "data", "--merge", parts["evaluate"])
        assert "were made with another model" in vit(line).stderr
        shutil.copytree(place / "data" / "dog", tmp_path / "dog")
        line = command("evaluate", place / "model", "--data", tmp_path, "--merge", parts["evaluate"])
        assert "are of other images than this split's" in vit(line).stderr

    def test_no_parts(self, tmp_path: Path) -> None:
        assert "holds no parts" in self.merged(tmp_path)
        assert "no such folder" in self.merged(tmp_path / "x")

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("predict a.png --shard 0/2", "--shard needs --out"),
            ("predict a.png --shard 2/2 -o p", "the first is 0/n"),
            ("predict a.png --shard -o p", "none of them is there"),
            ("predict a.png --part-size 3", "--part-size is of --shard"),
            ("predict a.png -o a.txt", "must end in .jsonl"),
            ("predict a.png -o a.csv --csv", "the ending of --out"),
            ("predict a.png --merge p", "--merge joins"),
            ("embed a.png --shard 0/2 -o -", "a folder, not -"),
            ("embed a.png --merge p -o e.npz", "--merge joins"),
            ("evaluate --data d --shard 0/2", "--shard needs --out"),
            ("evaluate --data d --shard 0/2 -o p --json", "--merge scores them"),
            ("evaluate --data d --shard 0/2 -o p --few-shot 1", "for one model as it is"),
            ("evaluate --data d --shard 0/2 -o p --merge p", "one after the other"),
        ],
    )
    def test_options_that_do_not_go_together(self, line: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RANK", "WORLD_SIZE", "VIT_SHARD"):
            monkeypatch.delenv(name, raising=False)
        result = vit(line)
        assert result.exit_code == 2
        assert said in result.stderr

    @pytest.mark.parametrize(
        ("words", "becomes"),
        [
            (["--shard", "-o", "p"], ["--shard", "auto", "-o", "p"]),
            (["-o", "p", "--shard"], ["-o", "p", "--shard", "auto"]),
            (["--shard", "photos/"], ["--shard", "auto", "photos/"]),
            (["--shard", "1/4", "x"], ["--shard", "1/4", "x"]),
            (["--", "--shard", "x"], ["--", "--shard", "x"]),
            (["--shard", "7"], ["--shard", "7"]),
        ],
    )
    def test_a_shard_alone(self, words: list[str], becomes: list[str]) -> None:
        assert shard_alone(words) == becomes


class TestGoingOn:
    def test_what_is_there_is_not_done_again(self, place: Path, tmp_path: Path) -> None:
        folder = tmp_path / "p"
        in_shards(place, "predict", folder)
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        gone = sorted(folder.iterdir())[1]
        content = gone.read_bytes()
        gone.unlink()
        result = vit(f"{asked(place, 'predict')} {command('-o', folder)} --shard 0/3")  # its part size is theirs
        assert "images were done before" in result.stderr
        assert gone.read_bytes() == content
        assert {path: path.stat().st_mtime_ns for path in before if path != gone} == {
            path: time for path, time in before.items() if path != gone
        }

    def test_a_shard_that_is_done_reads_no_image(self, place: Path, parts: dict[str, Path]) -> None:
        whole = next(index for index in range(3) if not Shard(index, 3).has("data/dog/broken.png"))
        words = ("embed", "--from-file", place / "list", "-m", place / "model", "--shard", f"{whole}/3")
        assert "onnxruntime" not in imported_by(*words, "-o", parts["embed"])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("model2", "was made with another model"),
            ("--top 1", "was made with top None, not 1"),
            ("list", "is of another list of images"),
            ("--shard 0/4", "holds parts of 3 shards, not 4"),
            ("--part-size 5", "holds parts of 2 images"),
        ],
    )
    def test_other_work_is_refused(
        self, place: Path, parts: dict[str, Path], tmp_path: Path, change: str, said: str
    ) -> None:
        (tmp_path / "list").write_bytes(b"\n".join((place / "list").read_bytes().splitlines()[1:]))
        words = ["predict", "-o", parts["predict"], "-m", place / ("model2" if change == "model2" else "model")]
        words += ["--from-file", (tmp_path if change == "list" else place) / "list"]
        words += change.split() if change.startswith("--") else []
        result = vit(command(*words) + ("" if "--shard" in change else " --shard 0/3"))
        assert result.exit_code == 2
        assert said in result.stderr

    @pytest.mark.parametrize(("verb", "name"), [("predict", "all.csv"), ("embed", "all.parquet"), ("embed", "all.npz")])
    def test_one_file_goes_on_where_it_stopped(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
    ) -> None:
        whole, cut = tmp_path / f"whole-{name}", tmp_path / name
        line = asked(place, verb)
        assert vit(f"{line} {command('-o', whole)}").exit_code == 3
        monkeypatch.setattr(Parts, "_write", failing_after(3))
        with pytest.raises(Killed):
            vit(f"{line} {command('-o', cut)} --part-size 2")
        monkeypatch.undo()
        assert not cut.exists()
        assert len(list((tmp_path / f"{name}.parts").iterdir())) == 3
        result = vit(f"{line} {command('-o', cut)}")
        assert result.exit_code == 3
        assert f"6 of {COUNT} images were done before" in result.stderr
        assert cut.read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([cut.name, whole.name])

    def test_a_file_that_is_there_is_not_made_of_what_an_earlier_run_left(self, place: Path, tmp_path: Path) -> None:
        """Killed between the file's coming and the parts' going; the pictures may be other ones by now."""
        out = tmp_path / "all.jsonl"
        Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "a.png")
        line = command("predict", tmp_path / "a.png", "-m", place / "model", "-o", out)
        vit(line)
        red = out.read_bytes()
        left = tmp_path / "all.jsonl.parts"
        vit(command("predict", tmp_path / "a.png", "-m", place / "model", "-o", left, "--shard", "0/1"))
        os.utime(out)
        assert vit(line).exit_code == 2
        Image.new("RGB", (64, 64), (0, 0, 255)).save(tmp_path / "a.png")
        vit(f"{line} --force")
        assert out.read_bytes() != red
        assert not (tmp_path / "all.jsonl.parts").exists()

    def test_told_to_stop(self, place: Path, tmp_path: Path) -> None:
        """SIGTERM: exit code 75, and the line says how to go on."""
        process = subprocess.Popen(
            [
                *[sys.executable, "-m", "vitcli", "predict", "--from-file", "-", "-m", str(place / "model")],
                *["-o", str(tmp_path / "a.jsonl"), "--part-size", "1"],
            ],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert process.stdin
        process.stdin.write((place / "list").read_bytes() + b"\n")
        process.stdin.flush()  # and stays open
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("a.jsonl.parts/*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75
        assert b"give the same command again" in said
        assert list((tmp_path / "a.jsonl.parts").glob("*.jsonl"))

    def test_killed_at_random_moments(self) -> None:
        """`python -m tests.fuzz.part_kills` is the long version."""
        options = ("--light", "--kills", 3, "--processes", 2, "--images", 40, "--only", "predict")
        result = python("-m", "tests.fuzz.part_kills", *options)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "6 kills" in result.stdout
        assert "0 faults" in result.stdout


class Killed(BaseException):
    pass


def failing_after(parts: int) -> Any:
    """`Parts._write`, which ends the process in the place of the one after so many."""
    real, written = Parts._write, iter(range(parts))

    def write(self: Any, *arguments: Any) -> int:
        if next(written, None) is None:
            raise Killed
        return real(self, *arguments)

    return write


class TestProcesses:
    """`torchrun -m vitcli …`: each process does its share, the first one joins them."""

    def test_two(self, place: Path, tmp_path: Path) -> None:
        vit(f"{asked(place, 'embed')} {command('-o', tmp_path / 'one.npz')}")
        out = ["-o", str(tmp_path / "all.npz"), "--part-size", "2"]
        result = python(
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vitcli", "embed",
            "--from-file", place / "list", "-m", place / "model", *out, CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip
        assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "one.npz").read_bytes(), result.stderr
        assert not (tmp_path / "all.npz.parts").exists()
        # The broken image: the first process says so, once all were done, and torchrun's summary has its exit code.
        assert re.search(r"rank +: 0 .*\n +exitcode +: 3", result.stderr)

    def test_results_of_several_need_a_place(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        for more in ("--jsonl", ""):
            result = vit(f"{asked(place, 'predict')} {more}")
            assert result.exit_code == 2
            assert "where --out names a file" in result.stderr


class TestMechanism:
    """Parts of numbers, without images."""

    def work(self, folder: Path, items: list[str], shard: Shard, size: int = 3, **options: Any) -> Any:
        def compute(names: Iterator[str]) -> Iterator[Embedding]:
            return (Embedding(name, np.full(2, len(name), np.float32)) for name in names)

        parts = Parts(folder, VectorFiles((2,), ending=".npz"), {"dtype": "float32"}, shard, size=size, **options)
        return parts.work(items, str, compute)

    @pytest.mark.parametrize("n", [0, 1, 3, 6, 7, 40])
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_all_rows_once_and_in_order(self, tmp_path: Path, n: int, count: int) -> None:
        items = [f"{i:x}" * (1 + i % 3) for i in range(n)]
        done = [self.work(tmp_path, items, Shard(i, count)) for i in range(count)]
        joined = join(tmp_path, VectorFiles((2,), ending=".npz"))
        assert joined.images == sum(one.images for one in done) == n
        rows = list(joined.rows)
        assert [row.path for row in rows] == items
        assert all(row.vector is not None and row.vector[0] == len(row.path) for row in rows)
        again = [self.work(tmp_path, items, Shard(i, count)) for i in range(count)]
        assert [one.before for one in again] == [one.images for one in done]

    def test_a_list_that_grew_or_shrank(self, tmp_path: Path) -> None:
        items = [str(i) for i in range(10)]
        self.work(tmp_path, items, Shard())
        for other in (items[:9], items[:6], [*items, "x"], [*items, "x", "y", "z"], items[::-1]):
            with pytest.raises(UsageError, match="of another list of images"):
                self.work(tmp_path, other, Shard())
        self.work(tmp_path, items, Shard())

    def test_texts_come_back_as_they_were(self, tmp_path: Path) -> None:
        rows = [
            Embedding("caf\udce9", None, "caf\udce9: no", "l\ud800", "val"),
            Embedding("\\udce9", np.array([np.inf, -0.0], np.float16), None, "a", "train"),
            Embedding("ü\n", np.array([1, 2], np.float16), None, None, None),
        ]
        for ending in (".npz", ".parquet"):
            form, path = VectorFiles((2,), labelled=True, ending=ending), tmp_path / f"part{ending}"
            form.write(path, {"dtype": "float16"}, rows)
            found = form.rows(path)
            for one, other in zip(found, rows, strict=True):
                assert (one.path, one.error, one.label, one.split) == (
                    other.path,
                    other.error,
                    other.label,
                    other.split,
                )
                assert (one.vector is None) == (other.vector is None)
                if one.vector is not None and other.vector is not None:
                    assert one.vector.tobytes() == other.vector.tobytes()

    @pytest.mark.parametrize("ending", [".npz", ".parquet"])
    def test_damage_is_one_line(self, tmp_path: Path, ending: str) -> None:
        """And never other rows without a word."""
        items, form = [str(i) for i in range(20)], VectorFiles((2,), ending=ending)

        def compute(names: Iterator[str]) -> Iterator[Embedding]:
            return (Embedding(name, np.full(2, int(name), np.float32)) for name in names)

        Parts(tmp_path, form, {"dtype": "float32"}, Shard(), size=20).work(items, str, compute)
        (path,) = tmp_path.iterdir()
        sound, rng = path.read_bytes(), np.random.default_rng(0)
        refused = 0
        for _ in range(60):
            damaged = bytearray(sound)
            for place in rng.integers(0, len(sound), 2):
                damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged[: int(rng.integers(1, len(sound)))] if rng.random() < 0.2 else damaged)
            try:
                rows = list(join(tmp_path, form).rows)
            except VitError as error:
                refused += "\n" not in str(error)
                continue
            assert [(row.path, row.vector is not None and row.vector[0], row.error) for row in rows] == [
                (name, float(name), None) for name in items
            ]
        assert refused > 20

    def test_a_part_is_not_larger_than_memory_likes(self) -> None:
        assert part_forms.part_bytes((768,), 1024) == 1024
        assert part_forms.part_bytes((196, 768), 1024) == 111
        assert part_forms.part_bytes(None, 1024) == 1024
        assert part_forms.part_bytes((10**9,), 1024) == 1
