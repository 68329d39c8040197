"""The terminal's contract: streams, formats, exit codes, one line per error. Everything runs in this process."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.checkpoints import LABELS, write_tiny
from vitcli.cli import train as train_command
from vitcli.cli.app import app
from vitcli.cli.picture import half_blocks
from vitcli.training.recipe import Recipe


def vit(line: str, **options: object) -> Result:
    """`vit LINE` without a terminal; a bug shows its traceback."""
    result = CliRunner().invoke(app, shlex.split(line), **options)  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def shell(line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60)


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

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIT_DEBUG", "1")
        with pytest.raises(Exception, match=r"config\.json"):
            vit("predict images/a.png -m images")

    def test_the_bundled_default_says_what_it_knows(self) -> None:
        result = vit("predict images/a.png --jsonl")
        assert "fashion-vit (bundled) knows T-shirt/top" in result.stderr
        assert "-m imagenet" in result.stderr

    def test_an_unknown_option_is_a_usage_error(self) -> None:
        assert vit("predict --modle x a.png").exit_code == 2


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
        architecture, model_args, recipe = train_command._model_and_recipe(
            None, None, {"lr": 0.5}, {"img_size": [8, 8]}, {"mixup": 0.7, "depth": 3}
        )
        assert architecture == train_command.DEFAULT_ARCHITECTURE
        assert model_args == {"depth": 3, "img_size": [8, 8]}
        assert (recipe.lr, recipe.mixup, recipe.epochs) == (0.5, 0.7, Recipe().epochs)


def test_half_blocks_carry_two_pixels_each() -> None:
    image = Image.fromarray(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8))
    text = half_blocks(image.resize((1, 2)), columns=2)
    assert text.plain == "▀"
    assert str(text.spans[0].style) == "#ff0000 on #0000ff"


def test_python_api_is_lazy_and_public() -> None:
    import vitcli

    assert callable(vitcli.load)
    assert callable(vitcli.predict)
    assert "numpy" in sys.modules
