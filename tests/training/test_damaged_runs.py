"""Recipes, run folders and studies that are damaged, hundreds of each, seeded: every one ends in one clear line or goes
on, never in a traceback, never beyond bounds, and no control character of theirs reaches a terminal.

In process and without a step of training: what is read, and the model that it builds, is all that is tried.
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.helpers.data import write_idx
from tests.helpers.runs import MODEL, RECIPE, run_to_end
from vitcli.cli.app import app
from vitcli.cli.settings import assigned
from vitcli.comparison.queue import done, folder_of
from vitcli.comparison.study import Study, read_study, write_study
from vitcli.data.samples import DataSet
from vitcli.data.sources import open_data
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.files import read_typed, typed_value
from vitcli.training import train as training
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.fit import fit
from vitcli.training.folder import Run, read_config
from vitcli.training.learner import OutOfMemory, least_bytes, require_room
from vitcli.training.log import evaluations, read_metrics
from vitcli.training.recipe import Recipe, load_recipe, override
from vitcli.training.settings import Settings
from vitcli.training.state import Position, load_state, save_state
from vitcli.training.stop import StopFlag

# Values that something somewhere is not made for, as TOML and as JSON write them.
HOSTILE = [
    "-1", "0", "1", "3", "1000000", "9223372036854775807", "1e400", "nan", "-inf", "1e300", "-0.0", "true", '""', '"x"',
    r'"\u001b[31mred"', "[]", "[[]]", "[1, 2, 3]", '["a"]', "[1e400, 1]", "{}", "{ a = 1 }", "2026-11-27",
    '"' + "a" * 5000 + '"', "[" * 400 + "]" * 400, "9" * 5000, "0x" + "f" * 6000,
]  # fmt: skip
RECIPE_TEXT = """[model]
architecture = "vit_tiny_patch16_224"
img_size = [16, 16]
patch_size = [4, 4]
embed_dim = 24
depth = 2
num_heads = 3
mlp_ratio = 2.0
reg_tokens = 1
class_token = true
global_pool = "avg"
init_values = 0.1
head_hidden = 8
stem = { layers = [1], width = 32, block = "basic" }

[recipe]
epochs = 2.0
steps = 0
batch_size = 16
micro_batch = 8
optimizer = "adamw"
lr = 1e-3
lrs = [1e-3, 1e-2]
betas = [0.9, 0.999]
weight_decay = 0.05
warmup_steps = 3
schedule = "cosine"
clip_grad = 1.0
mixup = 0.2
randaugment = "rand-m9-n2-mstd0.5-inc1"
crop_scale = 0.5
crop_padding = 0
patience = 0
amp = ""
compile = false
seed = 0
"""


def one_line(error: BaseException) -> str:
    """What a user would read; it has to be printable, short and one line."""
    text = str(error)
    assert text.isprintable(), repr(text[:300])
    assert len(text) < 1500
    return text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_idx(folder, "train", rng.integers(0, 256, (40, 16, 16)), np.arange(40) % 3)
    return open_data(folder)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of a GiB free: what does not fit must be refused before it is asked for."""
    for module in ("build", "learner"):
        monkeypatch.setattr(f"vitcli.training.{module}.memory_free", lambda _: 1 << 28)


def damaged_texts(text: str, n: int) -> Iterator[bytes]:
    """`text` with one value replaced, or with bytes overwritten, removed or doubled."""
    rng = random.Random(0)
    lines = text.splitlines()
    for i in range(n):
        if i % 2:
            line = rng.choice([i for i, line in enumerate(lines) if "=" in line])
            changed = [*lines]
            changed[line] = f"{lines[line].partition('=')[0]}= {rng.choice(HOSTILE)}"
            if rng.random() < 0.1:
                changed[line] = f'"\\u001b[2J{line}" = 1'
            yield "\n".join(changed).encode()
        else:
            content = bytearray(text.encode())
            at = rng.randrange(len(content))
            end = at + rng.randrange(1, 30)
            content[at:end] = rng.choice([b"", rng.randbytes(end - at), content[at:end] * 2])
            yield bytes(content)


def settings_of(path: Path, data: DataSet) -> Settings:
    loaded = load_recipe(str(path))
    args = dict(loaded.model)
    return Settings(args.pop("architecture", "vit_tiny_patch16_224"), args, str(data.root), loaded.recipe)


class TestRecipes:
    def test_damaged_ones(self, tmp_path: Path, data: DataSet) -> None:
        path, read = tmp_path / "r.toml", 0
        for content in damaged_texts(RECIPE_TEXT, 200):
            path.write_bytes(content)
            try:
                settings = settings_of(path, data)
                task = build_task(settings, data)
                assert task.transform
                read += 1
            except VitError as error:
                one_line(error)
            else:
                assert sum(p.nbytes for p in task.model.parameters()) < 1 << 28
        assert 10 < read < 150

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"\xff\xfe[\x00", "not UTF-8 text at byte 0"),
            (b"a = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
            (b"[recipe]\nlr = 1e400", "inf is no number that a setting can have"),
            (b"[recipe]\nlr = nan", "nan is no number that a setting can have"),
            (b"[recipe]\nseed = " + b"9" * 100_00, "too many digits"),
            (b"[recipe]\nseed = 0x" + b"f" * 10_000, "more than 64 bits"),
            (b"[recipe]\n" + b"#" * 70_000, "larger than 64 KiB"),
            (b"recipe = 3", "recipe must be a section"),
            (b"[model]\ndepth = 1000000", "model.depth must be a whole number from 1 to 256, not 1000000"),
            (b"[model]\nin_chans = 1000000", "model.in_chans is not known"),
            (b"[model]\ndepth = [1]", "model.depth must be a whole number"),
            (b"[model]\narchitecture = [1]", "architecture must be a name"),
            (b'[model]\narchitecture = "resnet18"\nblock_size = 3', "model.block_size is not known"),
            (b'[model]\n"\\u001b[31m" = 3', r"model.\x1b[31m is not known"),
            (b'["\\u001b[31m"]', r"unknown section [\x1b[31m]"),
            (b'[recipe]\n"\\u001b[31m" = 3', r"no recipe setting '\x1b[31m'"),
            (b"[recipe]\nbetas = [0.9]", "betas must be a list of 2, not [0.9]"),
            (b"[recipe]\nbetas = [0.9, 1.0]", "two numbers from 0 to below 1"),
            (b'[recipe]\nrandaugment = "rand-n9999999"', "randaugment is 'rand-n9999999'"),
            (b'[recipe]\nrandaugment = "trivial"', "it must be written as timm does"),
            (b"[recipe]\nbatch_size = -4", "batch_size is -4"),
            (b"[recipe]\nbatch_size = 0", "batch_size is 0"),
            (b"[recipe]\nwarmup_steps = -2", "warmup_steps is -2, it must be at least -1"),
        ],
    )
    def test_what_is_said(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "r.toml"
        path.write_bytes(content)
        with pytest.raises(UsageError) as failed:
            load_recipe(str(path))
        line = one_line(failed.value)
        assert said in line
        assert line.startswith((str(path), "recipe: "))

    def test_a_folder_or_a_pipe_is_no_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").mkdir()
        with pytest.raises(UsageError, match="not a regular file"):
            load_recipe(str(tmp_path / "r.toml"))

    @pytest.mark.parametrize("value", HOSTILE)
    def test_set_goes_through_the_same_gate(self, data: DataSet, value: str) -> None:
        for name in (
            "lr",
            "seed",
            "betas",
            "randaugment",
            "amp",
            "compile",
            "depth",
            "img_size",
            "stem",
            "init_values",
        ):
            try:
                values = assigned([f"{name}={value}"])
                of_model = {key: one for key, one in values.items() if key not in Recipe.__dataclass_fields__}
                recipe = override(RECIPE, {k: one for k, one in values.items() if k not in of_model}, "--set")
                task = build_task(Settings("vit_tiny_patch16_224", {**MODEL, **of_model}, "", recipe), data)
                assert task.transform
            except VitError as error:
                one_line(error)

    @pytest.mark.parametrize("text", ["0.1\nseed = 5", "[1,\n2]\n[x]"])
    def test_set_is_one_value(self, text: str) -> None:
        """The rest would be dropped without a word; a text of two lines is what was typed."""
        assert assigned([f"lr={text}"]) == {"lr": text}

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            ({"depth": 256, "embed_dim": 1 << 14, "num_heads": 2}, "the weights of this model take"),
            ({"img_size": [1 << 14, 1 << 14], "patch_size": [1, 1]}, "gives 268435456 patches"),
            ({"global_pool": "token", "class_token": False}, "needs class_token"),
            ({"num_heads": 5}, "is not a multiple of 5 heads"),
        ],
    )
    def test_what_cannot_be_built_is_not_begun(self, data: DataSet, model: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            build_task(Settings("vit_tiny_patch16_224", {**MODEL, **model}, "", RECIPE), data)

    @pytest.mark.parametrize(
        ("architecture", "model"), [("resnet18", {"channels": [1 << 13] * 4}), ("vgg16", {}), ("convnext_xlarge", {})]
    )
    def test_timms_models_are_weighed_before_they_are_built(
        self, data: DataSet, monkeypatch: pytest.MonkeyPatch, architecture: str, model: dict[str, Any]
    ) -> None:
        real = timm.create_model
        on_meta: list[str] = []

        def sketched(*arguments: Any, **options: Any) -> Any:
            assert torch.get_default_device().type == "meta", "nothing of it may be allocated"
            on_meta.append(architecture)
            return real(*arguments, **options)

        monkeypatch.setattr("timm.create_model", sketched)
        with pytest.raises(UsageError, match=r"the weights of this model take .* choose a smaller one"):
            build_task(Settings(architecture, {**model, "img_size": [64, 64]}, "", RECIPE), data)
        assert on_meta == [architecture]

    def test_a_micro_batch_that_cannot_fit_is_not_tried(self, data: DataSet) -> None:
        """A machine that overcommits would kill the process in place of an error."""
        settings = Settings("vit_tiny_patch16_224", {**MODEL, "img_size": [512, 512]}, "", RECIPE)
        task = build_task(settings, data)
        images = (1 << 28) // (least_bytes(task, 1) - least_bytes(task, 0)) + 1
        with pytest.raises(OutOfMemory):
            require_room(task, images, "cpu")
        require_room(task, 1, "cpu")

    def test_a_shift_beyond_the_image(self, data: DataSet) -> None:
        recipe = replace(RECIPE, crop_scale=1.0, crop_padding=16)
        with pytest.raises(UsageError, match="crop_padding 16 would shift images of 16x16 pixels out of sight"):
            assert build_task(Settings("vit_tiny_patch16_224", MODEL, "", recipe), data).transform


class TestTyped:
    @pytest.mark.parametrize(
        ("hint", "good", "bad"),
        [
            (int, [0, -3, 1 << 62], [True, 1.0, "1", None, 1 << 63]),
            (float, [0, 1.5], [True, "1", float("nan"), float("inf"), 1 << 2000]),
            (bool, [True], [1, "true", None]),
            (str, ["x"], [1, None, ["x"]]),
            (str | None, ["x", None], [3]),
            (tuple[float, float], [[1, 2]], [[1], [1, 2, 3], "ab", 3, ["a", "b"]]),
            (tuple[str, ...], [[], ["a", "b"]], ["ab", [1], {}]),
            (dict[str, float], [{"a": 1}], [[1], {"a": "b"}]),
            (Position, [{"step": 3}], [3, [], {}, {"step": "3"}, {"step": -1}, {"step": 1, "best_step": 2}]),
        ],
    )
    def test_values(self, hint: Any, good: list[Any], bad: list[Any]) -> None:
        for value in good:
            typed_value(hint, value, "x")
        for value in bad:
            with pytest.raises(ValueError, match=r"x|step"):
                typed_value(hint, value, "x")

    def test_a_missing_field_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"latest\.step is missing"):
            read_typed(Position, {}, "latest")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> Path:
    """A short run that ended; --resume with more epochs goes on with it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = replace(RECIPE, epochs=1)
    run_to_end(Settings("vit_tiny_patch16_224", MODEL, str(data.root), recipe), folder)
    return folder


def resumed(folder: Path) -> None:
    """What `--resume` reads of a run folder, up to the first step that it would do."""
    settings, data = training.resumed(folder, 2)
    training.extend(settings, folder)
    task, world = build_task(settings, data), World()
    run = Run(folder, read_config(folder))
    next(fit(task, run, world, StopFlag()))
    evaluations(folder)


def spoiled_json(value: Any, rng: random.Random) -> Any:
    """`value` with one of its parts, at any depth, replaced by one of another kind."""
    other = [
        None,
        True,
        -1,
        0,
        1.5,
        1 << 70,
        10**6,
        "x",
        "\x1b[2J",
        "../..",
        [],
        [[]],
        {},
        {"a": 1},
        "a" * 5000,
        -1e300,
    ]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: spoiled_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        i = rng.randrange(len(value))
        return [*value[:i], spoiled_json(value[i], rng), *value[i + 1 :]]
    return rng.choice(other)


def spoiled_bytes(content: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(content) + 1), rng.randrange(1, 20)
    overwritten = content[:at] + rng.randbytes(length) + content[at + length :]
    others = [b"", b"[" * 9000, b"\xff\xfe1", b'{"a": ' + b"9" * 9000 + b"}", b"[]", b"null", b"{}"]
    return rng.choice([content[:at], overwritten, content + content, *others])


class TestRunFolders:
    @pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "LATEST.json", "checkpoints"])
    def test_damaged_files(self, whole: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        rng = random.Random(name)
        for i in range(25):
            folder = tmp_path / str(i)
            shutil.copytree(whole, folder)
            path = next((folder / name).iterdir()) if name == "checkpoints" else folder / name
            content = path.read_bytes()
            if name == "checkpoints" or i % 2:
                path.write_bytes(spoiled_bytes(content, rng))
            elif name == "metrics.jsonl":
                lines = [json.loads(line) for line in content.splitlines()]
                path.write_text("".join(json.dumps(spoiled_json(line, rng)) + "\n" for line in lines))
            else:
                path.write_text(json.dumps(spoiled_json(json.loads(content), rng)))
            try:
                resumed(folder)
            except VitError as error:
                line = one_line(error)
                assert name == "run.json" or str(folder) in line  # which may have named another file
            shutil.rmtree(folder)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"epochs": 10**400}, "a number has too many digits|must be a number|more than 64 bits"),
            ({"architecture": 3}, "architecture must be a text, not 3"),
            ({"model_args": [1]}, "model_args must be an object"),
            ({"model_args": {"depth": 10**6}}, "model_args.depth must be a whole number from 1 to 256"),
            ({"data": None}, "data must be a text"),
            ({"val_fraction": "x"}, "val_fraction must be a number"),
            ({"share": 0}, "share is 0"),
            ({"start": {"checkpoint": "x", "sha256": "y", "tune": "some"}}, "start.tune must be one of 'head'"),
            ({"start": [1]}, "start must be an object"),
            ({"versions": [1]}, "versions must be an object"),
            ({"command": "x"}, "command must be a list"),
            ({"went_on_with": {"a": 1}}, "went_on_with must be a list"),
        ],
    )
    def test_one_line_that_names_the_file_and_what_is_left(
        self, whole: Path, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        folder = shutil.copytree(whole, tmp_path / "run")
        config = json.loads((folder / "run.json").read_text())
        if "epochs" in change:
            change = {"recipe": {**config["recipe"], **change}}
        (folder / "run.json").write_text(json.dumps({**config, **change}))
        result = CliRunner().invoke(app, ["train", "--resume", str(folder)])
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code in (1, 2)
        (line,) = result.stderr.splitlines()
        assert str(folder) in line
        assert "run.json" in line
        assert f"What it has learned is whole: vit predict -m {folder}/best" in line
        with pytest.raises(VitError, match=said):
            training.resumed(folder)

    def test_damaged_lines_of_the_metrics_are_dropped_aloud(self, whole: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(whole, tmp_path / "run")
        path = folder / "metrics.jsonl"
        good = path.read_bytes()
        bad = [b'{"event": "stepped", "step": "1"}', b"\xff", b"[" * 9000, b"{}", b'{"event": "evaluated", "step": 1}']
        path.write_bytes(b"\n".join(bad) + b"\n" + good + b'{"event": "ste')
        entries, damaged = read_metrics(folder)
        assert (len(entries), damaged) == (len(good.splitlines()), len(bad))  # the last one was cut off by a kill
        settings, data = training.resumed(folder, 1)
        said = [str(event) for event in training.train(settings, data, folder, device="cpu")]
        assert any("metrics.jsonl: 5 damaged lines left out" in line for line in said)
        assert path.read_bytes() == good

    @pytest.mark.parametrize("spoil", ["nan", "shape", "huge", "progress", "later"])
    def test_states_that_are_whole_and_yet_wrong(
        self, whole: Path, tmp_path: Path, data: DataSet, spoil: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = shutil.copytree(whole, tmp_path / "run")
        (path,) = (folder / "checkpoints").iterdir()
        tensors, progress = load_file(path), Position(2, 2, 0.5)
        (folder / "LATEST.json").unlink()
        if spoil == "nan":
            tensors["model.head.bias"][0] = torch.nan
        elif spoil == "shape":
            slot = next(name for name in tensors if name.endswith("qkv.weight:exp_avg"))
            tensors[slot] = torch.zeros(5, 5)
        elif spoil == "huge":
            tensors["model.more"] = torch.zeros(1 << 20)
        elif spoil == "later":
            progress = Position(10**6)
        save_state(folder, progress, tensors)
        if spoil == "progress":
            save_file(tensors, path, {"progress": '{"step": [], "best": 1}'})
            (folder / "LATEST.json").unlink()
        with pytest.raises(CheckpointError) as failed:
            resumed(folder)
        line = one_line(failed.value)
        assert str(folder) in line
        assert "What it has learned is whole: vit predict" in line

    def test_a_fifo_in_place_of_latest_does_not_hang(self, whole: Path, tmp_path: Path) -> None:
        import os

        folder = shutil.copytree(whole, tmp_path / "run")
        (folder / "LATEST.json").unlink()
        os.mkfifo(folder / "LATEST.json")
        assert load_state(folder)


class TestStudies:
    STUDY = Study(
        "data", "f", {"vit": {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": [16, 16]}}},
        (0.5, 1.0), 2, 4.0, 10.0, {"lr": 1e-3},
    )  # fmt: skip

    def test_damaged_ones(self, tmp_path: Path) -> None:
        write_study(tmp_path, self.STUDY)
        path, rng = tmp_path / "study.json", random.Random(0)
        content = path.read_bytes()
        for i in range(200):
            spoiled = json.dumps(spoiled_json(json.loads(content), rng)).encode()
            path.write_bytes(spoiled if i % 2 else spoiled_bytes(content, rng))
            try:
                study = read_study(tmp_path)
            except VitError as error:
                line = one_line(error)
                assert str(path) in line
            else:
                assert all((tmp_path / "cells") in folder_of(tmp_path, cell).parents for cell in study.cells())

    @pytest.mark.parametrize(
        "change",
        [
            {"seeds": 10**9}, {"shares": [2]}, {"models": {"../../x": {"architecture": "a", "model_args": {}}}},
            {"models": {"vit": {"architecture": "a", "model_args": {"img_size": 3}}}}, {"epochs": 0}, {"models": {}},
            {"pretrainings": [{"name": "../x", "data": "d", "share": 1}]}, {"finetune_size": 99},
        ],
    )  # fmt: skip
    def test_what_no_study_has(self, tmp_path: Path, change: dict[str, Any]) -> None:
        write_study(tmp_path, self.STUDY)
        path = tmp_path / "study.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
        with pytest.raises(VitError, match="is damaged"):
            read_study(tmp_path)

    def test_damaged_results(self, tmp_path: Path) -> None:
        cell, rng = next(self.STUDY.cells()), random.Random(0)
        path = folder_of(tmp_path, cell) / "result.json"
        path.parent.mkdir(parents=True)
        result = {"images": 5, "validation_accuracy": 0.5, "test_accuracy": 0.5, "failed": 0, "few_shot": {"1": 0.5},
                  "cpu_seconds": 3.0}  # fmt: skip
        refused = 0
        for i in range(100):
            spoiled = json.dumps(spoiled_json(result, rng)).encode()
            path.write_bytes(spoiled if i % 2 else spoiled_bytes(json.dumps(result).encode(), rng))
            try:
                done(tmp_path, cell)
            except VitError as error:
                refused += one_line(error).startswith(str(path))
        assert refused > 50
