"""The terminal's contract: streams, formats, exit codes, one line per error. Everything runs in this process."""

import copy
import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import vitcli
from tests.helpers.checkpoints import LABELS, random_tensors, write_tiny
from tests.helpers.process import environment
from tests.helpers.terminal import vit
from vitcli.checkpoint.tensor_file import write_tensors
from vitcli.cli.app import app
from vitcli.cli.console import half_blocks
from vitcli.cli.options import PosembKernelOpt
from vitcli.errors import Stopped, UsageError
from vitcli.model.resample import Kernel
from vitcli.text import as_json, command
from vitcli.training import run
from vitcli.training.recipe import Recipe


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint, three images and one file that is none."""
    place = tmp_path_factory.mktemp("place")
    write_tiny(place / "model")
    (place / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "[red]c.png"):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(place / "images" / name)
    (place / "images" / "broken.jpg").write_bytes(b"not an image")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "no-cache"))
    for name in ("VIT_MODEL", "VIT_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


class TestPredict:
    def test_jsonl_in_order_and_exit_3_for_a_bad_file(self) -> None:
        result = vit("predict -m model images/b.png images/broken.jpg images/a.png --jsonl -k 2")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["path"] for line in lines] == ["images/b.png", "images/broken.jpg", "images/a.png"]
        assert result.exit_code == 3
        assert "broken.jpg" in lines[1]["error"]
        assert [len(line.get("labels", [])) for line in lines] == [2, 0, 2]
        assert "1 of the images could not be read" in result.stderr

    def test_json_is_one_document_with_probabilities(self) -> None:
        result = vit("predict -m model images/a.png --json")
        document = json.loads(result.stdout)
        assert (document["schema"], document["model"]) == ("vit.predict/1", "model")
        (prediction,) = document["predictions"]
        assert {score["label"] for score in prediction["labels"]} == set(LABELS)
        shares = [score["probability"] for score in prediction["labels"]]
        assert sum(shares) == pytest.approx(1, abs=2e-6)  # six digits each
        assert shares == sorted(shares, reverse=True)
        assert result.exit_code == 0

    def test_csv_has_a_row_a_class(self) -> None:
        rows = list(csv.DictReader(io.StringIO(vit("predict -m model images/ --csv").stdout)))
        assert len(rows) == 3 * 3 + 1
        assert [row["rank"] for row in rows if row["path"].endswith("a.png")] == ["1", "2", "3"]

    def test_table_piped_has_no_colour_and_loses_nothing(self) -> None:
        result = vit("predict -m model images/a.png 'images/[red]c.png'")
        assert "\x1b" not in result.output
        assert "images/[red]c.png" in result.stdout  # not taken for markup
        assert all(label in result.stdout for label in LABELS)

    def test_formats_agree(self) -> None:
        table = vit("predict -m model images/a.png -k 1").stdout
        top = json.loads(vit("predict -m model images/a.png -k 1 --jsonl").stdout)["labels"][0]
        assert f"{top['probability']:6.1%}".strip() in table
        assert top["label"] in table

    def test_standard_input_and_lists_of_paths(self, place: Path, tmp_path: Path) -> None:
        plain = json.loads(vit("predict -m model images/a.png --jsonl").stdout)
        piped = json.loads(vit("predict -m model - --jsonl", input=(place / "images/a.png").read_bytes()).stdout)
        assert piped["labels"] == plain["labels"]
        (tmp_path / "list.txt").write_text("images/a.png\n\nimages/b.png\n")
        listed = vit(f"predict -m model --from-file {tmp_path / 'list.txt'} --jsonl").stdout.splitlines()
        assert [json.loads(line)["path"] for line in listed] == ["images/a.png", "images/b.png"]
        assert json.loads(listed[0]) == plain

    @pytest.mark.parametrize(
        ("line", "code", "message"),
        [
            ("predict", 2, "name images"),
            ("predict a.png --json --csv -m model", 2, "choose one of"),
            ("predict images/a.png -m nowhere/", 1, "nowhere"),
            ("predict images/a.png -m fashion-vt", 1, "Did you mean 'fashion-vit'"),
            ("predict images/a.png -m model --precision int8 --engine torch", 2, "int8"),
            ("predict images/a.png -m images", 1, "config.json"),
            ("predict -m model model/", 1, "no images in model/"),
        ],
    )
    def test_errors_are_one_line(self, line: str, code: int, message: str) -> None:
        result = vit(line)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stderr.startswith("error: ")

    def test_no_warning_of_a_library_is_shown(self, tmp_path: Path) -> None:
        """Pillow warns of a TIFF entry that points beyond the file; our own lines say what matters."""
        Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", software="x" * 40)
        content = bytearray((tmp_path / "a.tif").read_bytes())
        at = content.index(b"\x31\x01\x02\x00", int.from_bytes(content[4:8], "little"))  # the entry 305, text
        content[at + 4 : at + 8] = (10**6).to_bytes(4, "little")
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.warns(UserWarning, match="Tag data larger than file"):
            vit(f"predict -m model {tmp_path}/a.tif --json")
        found = shell(f"{sys.executable} -m vitcli predict -m model {tmp_path}/a.tif --json")
        assert (found.returncode, found.stderr) == (0, "")

    def test_any_name_gives_valid_output(self, place: Path, tmp_path: Path) -> None:
        raw = [
            b"-rf.jpg",
            b"two words.jpg",
            b"new\nline.jpg",
            b"[b].jpg",
            b"esc\x1b[31m.jpg",
            b"\xff\xfe.jpg",
            b"=1+1.jpg",
        ]
        raw += [name.encode() for name in ("é.jpg", "e\u0301.jpg", "😀.jpg", "right\u202eleft.jpg")] + [
            b"n" * 251 + b".jpg"
        ]
        for name in raw:
            Image.new("RGB", (20, 20)).save(tmp_path / os.fsdecode(name), "JPEG")
        lines = vit(f"predict -m model {tmp_path} --jsonl -k 1").stdout_bytes.decode().splitlines()
        assert len(lines) == len(raw)
        assert all(json.loads(line)["labels"] for line in lines)
        table, rows = (vit(f"predict -m model {tmp_path} {how} -k 1").stdout_bytes.decode() for how in ("", "--csv"))
        assert [len(row) for row in csv.reader(io.StringIO(rows))] == [5] * (1 + len(raw))
        assert not {"\x1b", "\u202e"} & set(table + rows)

    def test_nothing_to_see(self, tmp_path: Path) -> None:
        (tmp_path / ".hidden.jpg").touch()
        (tmp_path / "notes.txt").touch()
        result = vit(f"predict -m model {tmp_path}")
        assert result.exit_code == 1
        for left_out in ("1 hidden or system file", "1 file not called like an image"):
            assert left_out in result.stderr
        for nothing in (b"", b"x"):
            result = vit("predict -m model - --json", input=nothing)
            assert result.exit_code == 3
            assert json.loads(result.stdout)["predictions"][0]["error"].startswith("standard input is ")

    def test_outputs_that_end_or_fail(self, place: Path) -> None:
        """A reader that has had enough, and a full disk."""
        program = f"OMP_NUM_THREADS=1 {sys.executable} -m vitcli predict -m model --jsonl"
        images = " images/a.png" * 40
        closed = shell(f"{program} {images} | head -n 1; exit ${{PIPESTATUS[0]}}")
        assert (closed.returncode, closed.stderr) == (0, "")
        assert len(closed.stdout.splitlines()) == 1
        full = shell(f"{program} {images} > /dev/full")
        assert (full.returncode, full.stderr) == (1, "error: No space left on device\n")

    def test_poor_terminals(self, place: Path, tmp_path: Path) -> None:
        """No UTF-8, no width, no home that could be written: the same answer, no colour, no failure."""
        (tmp_path / "é.png").write_bytes((place / "images" / "a.png").read_bytes())
        poor = (
            "env -u HOME HF_HOME=/proc/none LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 COLUMNS=20 TERM=dumb NO_COLOR=1"
        )
        found = shell(f"{poor} {sys.executable} -m vitcli predict -m model {tmp_path}/*.png")
        assert found.returncode == 0, found.stderr
        assert all(label in found.stdout for label in LABELS)
        assert found.stdout.isascii()
        assert "\x1b" not in found.stdout + found.stderr

    @pytest.mark.parametrize("command", ["models", "predict -m model images/a.png", "inspect model", "--version"])
    def test_closed_streams(self, command: str) -> None:
        """Nobody's input and nobody's notes change nothing; data that cannot be written are an error of one line."""
        whole = shell(f"{sys.executable} -m vitcli {command}")
        for closed in ("<&-", "2>&-", "<&- 2>&-", "2>/dev/full"):
            found = shell(f"{sys.executable} -m vitcli {command} {closed}")
            assert (found.returncode, found.stdout) == (0, whole.stdout), closed
        found = shell(f"{sys.executable} -m vitcli {command} >&-")
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.endswith("error: standard input or output is closed\n")
        assert "Traceback" not in found.stderr

    def test_a_file_never_takes_the_number_of_a_closed_stream(self, place: Path) -> None:
        """Else what is said is written into it."""
        name = "a" * 30  # said in an error, while checkpoint and picture are open
        found = shell(f"{sys.executable} -m vitcli predict -m model images/a.png {name} --json <&- 2>&-")
        assert (found.returncode, len(json.loads(found.stdout)["predictions"])) == (3, 2)
        assert name.encode() not in (place / "model" / "model.safetensors").read_bytes()

    def test_wrong_usage_that_nobody_hears_keeps_its_exit_code(self) -> None:
        for closed in ("2>&-", "2>/dev/full"):
            assert shell(f"{sys.executable} -m vitcli predict --modle x {closed}").returncode == 2
            assert shell(f"{sys.executable} -m vitcli predict -m nothing images/a.png {closed}").returncode == 1

    @pytest.mark.parametrize("form", ["--jsonl", "--csv", ""])
    def test_a_list_of_any_names(self, form: str, place: Path, tmp_path: Path) -> None:
        """A list in the system's own bytes, with a mark of UTF-8 at its head, is as good as arguments."""
        picture, odd = (place / "images" / "a.png").read_bytes(), b"caf\xe9.png"
        (tmp_path / "a.png").write_bytes(picture)
        (tmp_path / os.fsdecode(odd)).write_bytes(picture)
        (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.png\r\n\n" + odd + b"\n-")
        go = f"cd {tmp_path}; PYTHONIOENCODING=utf-8:strict {sys.executable} -m vitcli predict -m {place}/model {form}"
        listed, piped = shell(f"{go} --from-file list </dev/null"), shell(f"{go} --from-file - <list")
        named = shell(f"{go} a.png caf$'\\xe9'.png ./-")
        assert (piped.returncode, piped.stdout) == (3, named.stdout)
        assert r"caf\udce9.png" in piped.stdout
        first = 2 if form == "--jsonl" else -1  # a "-" in a file is standard input; here it is empty
        assert listed.stdout.splitlines()[:first] == piped.stdout.splitlines()[:first]

    def test_lists_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "wide").write_bytes("a.png\n".encode("utf-16"))
        for file, why in ((tmp_path / "wide", "UTF-16"), ("/dev/zero", "longer than any path")):
            result = vit(f"predict -m model --from-file {file}")
            assert (result.exit_code, why in result.stderr) == (1, True), result.stderr
        assert vit("predict -m model - --from-file -", input=b"").exit_code == 2

    @pytest.mark.parametrize(
        ("raised", "code"),
        [(UsageError("u"), None), (OSError(2, "gone"), None), (KeyboardInterrupt(), 130), (Stopped("s"), 75)],
    )
    def test_debug_shows_the_traceback_of_every_boundary(
        self, raised: BaseException, code: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise raised

        monkeypatch.setattr("vitcli.checkpoint.catalog.list_models", fail)
        monkeypatch.setenv("VIT_DEBUG", "1")
        if code is None:
            with pytest.raises(type(raised)):
                vit("models")
        else:
            result = vit("models")
            assert result.exit_code == code
            assert ("Traceback" in result.stderr) == isinstance(raised, KeyboardInterrupt)

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIT_DEBUG", "1")
        with pytest.raises(Exception, match=r"config\.json"):
            vit("predict images/a.png -m images")

    def test_the_bundled_default_says_what_it_knows(self) -> None:
        result = vit("predict images/a.png --jsonl")
        assert "photo-vit (bundled) knows 200 kinds" in result.stderr
        assert "-m imagenet" in result.stderr

    @pytest.mark.parametrize("rest", ["predict -m model images/a.png", "evaluate model --data images"])
    def test_a_batch_size_that_would_do_nothing_is_refused(self, rest: str) -> None:
        result = vit(f"{rest} --batch-size 2")
        assert (result.exit_code, "--batch-size belongs to --engine torch" in result.stderr) == (2, True)
        assert "--batch-size" not in vit(f"{rest} --batch-size 2 --engine torch").stderr

    def test_an_unknown_option_is_a_usage_error(self) -> None:
        assert vit("predict --modle x a.png").exit_code == 2


@pytest.mark.parametrize("name", ["train", "finetune", "compare"])
def test_resume_refuses_every_option_that_would_do_nothing(name: str) -> None:
    """Whatever options there will be: only those that say how to go on are let through."""
    allowed = {"resume", "data", "score", "device", "workers", "dry_run", "json", "csv"}
    allowed |= {"pretrain_data"} if name == "compare" else {"epochs", "track"}
    found = next(c for c in typer.main.get_command(app).commands.values() if c.name == name)  # type: ignore[attr-defined]
    for option in found.params:
        if option.name in allowed or option.name == "help":
            continue
        words = {"tune": " lora", "posemb_kernel": " hf", "cache": " disk", "folds": " 2"}
        value = "" if option.type_descriptor.annotation is bool else words.get(option.name, " 1")
        result = vit(f"{name} --resume nowhere {option.opts[0]}{value}")
        assert result.exit_code == 2, option.name
        assert f"{option.opts[0]} would change nothing" in result.stderr, (option.name, result.stderr)


def test_kernels_are_those_of_the_model() -> None:
    assert get_args(get_args(PosembKernelOpt)[0])[0] == Kernel


class TestCommandsToType:
    def test_each_word_is_itself_to_a_shell(self) -> None:
        words = [
            "vit",
            "a b",
            "$HOME",
            "it's",
            "`id`",
            "é…",
            "-x;y",
            "",
            "a\nb\x1b[31m",
            "caf\udce9",
            "\u202etxt\\'",
            "*?",
        ]
        line = command(*words)
        assert line.isprintable()
        typed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
        assert typed.split(b"\0")[:-1] == [os.fsencode(word) for word in words]

    def test_every_printed_command_is_quoted_there(self) -> None:
        """What is put into a command by hand is not quoted."""
        commands = "predict|check|train|finetune|evaluate|inspect|compare|resize-posemb|convert|export|push"
        by_hand = re.compile(rf"\bvit ({commands})( [^\"'`]*)?\{{|--resume \{{| -m \{{")
        for file in Path(vitcli.__file__).parent.rglob("*.py"):
            for line in file.read_text("utf-8").splitlines():
                assert not by_hand.search(line), f"{file.name}: {line.strip()}"

    def test_the_next_step_after_names_with_spaces(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_tiny(tmp_path / "my $model")
        out = "an 'odd' name " * 8 + ".onnx"
        result = CliRunner().invoke(app, ["export", "my $model", "--out", out, "--force"])
        said = shlex.split(next(line for line in result.stderr.splitlines() if line.startswith("use it: ")))
        assert said == ["use", "it:", "vit", "predict", "-m", out, "IMAGE…"]


@pytest.mark.parametrize("length", [41, 201, 3000])
def test_what_is_piped_is_never_cut(length: int, place: Path, tmp_path: Path) -> None:
    """Neither a label nor a name; a terminal's lines are short."""
    label = "x" * length
    write_tiny(tmp_path / "m", labels=(label, "b", "c"))
    picture = tmp_path.joinpath(*["y" * 100] * 3, "a.png")
    picture.parent.mkdir(parents=True)
    picture.write_bytes((place / "images" / "a.png").read_bytes())
    data = tmp_path / "data" / label[:250]
    data.mkdir(parents=True)
    (data / "a.png").write_bytes(picture.read_bytes())
    for line in (f"predict -m {tmp_path}/m {picture}", f"inspect {tmp_path}/m"):
        assert label in vit(line).stdout
    assert str(picture) in vit(f"predict -m {tmp_path}/m {picture}").stdout
    assert label[:250] in vit(f"check {tmp_path}/data").stdout
    if length <= 250:
        assert label in vit(f"evaluate {tmp_path}/m --data {tmp_path}/data").stdout


class TestNumbersThatAreNone:
    """JSON has neither NaN nor infinities: where a number is none, --json says null, everywhere."""

    def test_one_writer(self) -> None:
        odd = {"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": -float("inf"), "d": True, "e": "NaN"}}
        assert as_json(odd) == '{"a": [null, 1.5, [null]], "b": {"c": null, "d": true, "e": "NaN"}}'
        package = Path(vitcli.__file__).parent / "cli"
        assert not [file.name for file in package.rglob("*.py") if "dumps(" in file.read_text("utf-8")]

    def test_damaged_weights_are_inspected(self, tmp_path: Path) -> None:
        tensors = random_tensors()
        for name, value in (("blocks.0.attn.qkv.weight", np.nan), ("blocks.1.attn.proj.weight", np.inf)):
            tensors[name] = np.full_like(tensors[name], value)
        write_tiny(tmp_path / "m")
        write_tensors(tmp_path / "m" / "model.safetensors", tensors, {})
        result = vit(f"inspect {tmp_path}/m --weights --json")
        weights = json.loads(result.stdout, parse_constant=pytest.fail)["weights"]
        assert weights["head_sizes"][0] == [None] * len(weights["head_sizes"][0])
        assert {one["name"]: one["not_finite"] for one in weights["tensors"]}["blocks.0.attn.qkv.weight"] > 0
        assert vit(f"inspect {tmp_path}/m --weights").exit_code == 0


HOSTILE = (
    "x",
    "",
    [],
    {},
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    [1, 2],
    {"a": 1},
    "\x1b[31m",
    "\ud800",
    1e308,
    ["a", "b", "c"],
)


@pytest.mark.parametrize("command", ["inspect m", "inspect m --json", "predict -m m images/a.png --jsonl"])
def test_a_damaged_config_is_one_line(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value of config.json, of every wrong kind: a documented exit code, no traceback, no control character."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes((place / "images" / "a.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    provenance = {"trained_by": "vit", "data": {"name": "x", "images": 3}, "epoch": 2, "validation_accuracy": 0.5,
                  "validation_images": 4, "teacher": "t", "resized": [{"kernel": "timm"}]}  # fmt: skip
    logits = np.array([[0.1, 0.2, 0.3]], np.float32)
    write_tiny(tmp_path / "m", provenance=provenance, temperature=1.5, base_model="b", selftest_logits=logits)
    whole = json.loads((tmp_path / "m" / "config.json").read_text("utf-8"))
    places = list(_places(whole))
    rng = np.random.default_rng(0)
    texts = [json.dumps(_with(whole, at, value)) for at in places for value in rng.choice(len(HOSTILE), 1)]
    own = [at for at in places if at[0] == "vit"]
    texts += [
        json.dumps(_with(whole, at, "@")).replace('"@"', text) for at in own for text in ("1e400", "[" * 90 + "]" * 90)
    ]
    for text in texts:
        (tmp_path / "m" / "config.json").write_text(text, encoding="utf-8")
        result = vit(command)
        assert result.exit_code in (0, 1, 3), text
        assert "\x1b" not in result.output
        if result.exit_code == 0 and "--json" in command.split():
            json.loads(result.stdout, parse_constant=pytest.fail)


def _places(value: object, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*before, key)
        yield from _places(part, (*before, key))


def _with(whole: Any, at: tuple[str | int, ...], value: Any) -> Any:
    changed = copy.deepcopy(whole)
    level = changed
    for step in at[:-1]:
        level = level[step]
    level[at[-1]] = HOSTILE[value] if isinstance(value, np.integer) else value
    return changed


def test_models_lists_the_bundled_one() -> None:
    document = json.loads(vit("models --json").stdout)
    bundled = {model["name"]: model for model in document["models"] if model["kind"] == "bundled"}
    assert bundled["fashion-vit"]["num_classes"] == 10
    assert bundled["fashion-vit"]["parameters"] < 3_000_000
    assert "fashion-vit" in vit("models").stdout


class TestTrain:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for label, channel in (("red", 0), ("green", 1)):
            (tmp_path / "data" / label).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 100, (20, 20, 3), np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
        return tmp_path

    OPTIONS = (
        "--img-size 16 --patch-size 8 --set embed_dim=24 --set depth=1 --set num_heads=3 --batch-size 8 "
        "--set micro_batch=8 --set mixup=0.0 --device cpu -j 0"
    )

    def test_from_class_folders_to_a_prediction(self, folders: Path) -> None:
        run = folders / "run"
        result = vit(f"train --data {folders / 'data'} {self.OPTIONS} --epochs 2 --out {run}")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(run / "best")
        assert "2 (11 to 11 training images each): green, red" in result.stderr
        assert {entry.name for entry in run.iterdir()} >= {"run.json", "metrics.jsonl", "best", "last", "LATEST.json"}
        image = folders / "data" / "red" / "0.png"
        for model in (run / "best", run):
            predicted = json.loads(vit(f"predict -m {model} {image} --jsonl").stdout)
            assert {score["label"] for score in predicted["labels"]} == {"red", "green"}
        again = vit(f"train --resume {run} -j 0")
        assert again.exit_code == 0  # nothing is left to do
        assert "can only add" in vit(f"train --resume {run} --epochs 1").stderr
        longer = vit(f"train --resume {run} --epochs 3 -j 0")
        assert longer.exit_code == 0, longer.stderr
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "lr" in line]
        assert steps == [1, 2, 3, 4, 5, 6]  # two steps an epoch
        assert json.loads((run / "run.json").read_text())["extended_from"] == [2.0]

    def test_going_on_with_less_than_there_was_is_said_aloud(self, folders: Path) -> None:
        """An older state, where the newest is damaged; other versions, where the bits may differ."""
        run, data = folders / "run", folders / "data"
        assert vit(f"train --data {data} {self.OPTIONS} --epochs 2 --out {run}").exit_code == 0
        assert "not to the same bits" not in vit(f"train --resume {run} -j 0").stderr
        longer = vit(f"train --resume {run} --epochs 3 -j 0")
        assert longer.exit_code == 0, longer.stderr
        assert "an older state" not in longer.stderr
        config = json.loads((run / "run.json").read_text())
        config["versions"]["torch"], config["processes"] = "1.0", 2
        (run / "run.json").write_text(json.dumps(config))
        newest = sorted((run / "checkpoints").iterdir())[-1]
        newest.write_bytes(newest.read_bytes()[:-1])
        said = " ".join(vit(f"train --resume {run} --epochs 4 -j 0").stderr.split())
        assert "goes on, but not to the same bits:" in said
        assert "torch 1.0 then" in said
        assert "processes 2 then, 1 now" in said
        assert f"goes on from step 4, an older state: {newest.name}" in said

    def test_without_a_home(self, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HF_HOME", "HF_HUB_CACHE"):
            monkeypatch.setenv(name, "/proc/none")
        result = vit(f"train --data {folders / 'data'} {self.OPTIONS} --epochs 1 --out {folders / 'run'}")
        assert result.exit_code == 0, result.stderr
        result = vit(
            f"finetune --data {folders / 'data'} -m {folders / 'run'} --tune head --out {folders / 'tuned'} -j 0"
        )
        assert result.exit_code == 0, result.stderr

    @pytest.mark.parametrize(
        ("side", "model"), [(28, "28x28 pixels, 7x7"), (64, "64x64 pixels, 8x8"), (150, "224x224")]
    )
    def test_without_a_model_one_fits_the_images(self, folders: Path, side: int, model: str) -> None:
        for path in (folders / "data").rglob("*.png"):
            Image.new("RGB", (side + 9, side)).save(path)
        result = vit(f"train --data {folders / 'data'} --dry-run")
        assert model in " ".join(result.stderr.split())

    def test_dry_run_leaves_the_disk_alone(self, folders: Path) -> None:
        before = sorted(folders.rglob("*"))
        result = vit(f"train --data {folders / 'data'} {self.OPTIONS} --out {folders / 'run'} --dry-run")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "24 train" in result.stderr or "22 train" in result.stderr
        assert sorted(folders.rglob("*")) == before

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("train", "--data is missing"),
            ("train --data {data} --set epoks=3", "Did you mean 'epochs'"),
            ("train --data {data} --set lr", "write name=value"),
            ("train --data {data} --img-size 17", "not a multiple"),
            ("train --data {data} --img-size big", "write one number of pixels"),
            ("train --data {data} --model vit_tyni_patch16_224", "Did you mean 'vit_tiny_patch16_224'"),
            ("train --data {data} --recipe fashion-vit --set num_heads=5", "not a multiple of 5 heads"),
            ("train --resume {data}", "is no run folder"),
            ("train --resume {data} --lr 3", "would change nothing"),
        ],
    )
    def test_wrong_usage(self, folders: Path, line: str, message: str) -> None:
        result = vit(line.format(data=folders / "data"))
        assert result.exit_code == 2
        assert message in result.stderr

    def test_data_that_are_none(self, tmp_path: Path) -> None:
        result = vit(f"train --data {tmp_path}")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")

    def test_options_reach_the_recipe(self) -> None:
        made = run.scratch_settings("x", None, None, {"lr": 0.5, "mixup": 0.7}, {"depth": 3, "img_size": [8, 8]})
        assert made.architecture == run.DEFAULT_ARCHITECTURE
        assert made.model_args == {"depth": 3, "img_size": [8, 8]}
        assert (made.recipe.lr, made.recipe.mixup, made.recipe.epochs) == (0.5, 0.7, Recipe().epochs)


def test_half_blocks_carry_two_pixels_each() -> None:
    image = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    text = half_blocks(image.resize((1, 2)), columns=2)
    assert text.plain == "▀"
    assert str(text.spans[0].style) == "#ff0000 on #0000ff"


def test_python_api_is_lazy_and_public() -> None:
    import vitcli

    for name in ("load", "predict", "evaluate", "finetune", "train", "inspect", "compare"):
        assert callable(getattr(vitcli, name))
        assert name in vitcli.__all__
    assert "numpy" in sys.modules
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vitcli.nothing
