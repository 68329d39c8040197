"""`fit` and what it stands on: exact resumption, independence of workers and processes, schedules, the run folder.

All on a tiny ViT and generated images, on the CPU in float32.
"""

import itertools
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.data import write_idx
from tests.helpers.runs import MODEL, RECIPE, run_and_signal, run_to_end, state_digest, without_rates
from vitcli.data.samples import Kind
from vitcli.data.sources import open_data
from vitcli.errors import EXIT_STOPPED, CheckpointError, Stopped, UsageError, VitError
from vitcli.files import holds_something
from vitcli.images.preprocess import Preprocess
from vitcli.machine import default_workers
from vitcli.training import fit as fitting
from vitcli.training import train as training
from vitcli.training.augment import shifted, training_transform
from vitcli.training.auto import settled
from vitcli.training.batches import Plan, training_batches
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.events import Evaluated, Stepped, Validation
from vitcli.training.folder import create_run_folder
from vitcli.training.learner import Learner
from vitcli.training.lock import locked
from vitcli.training.recipe import LEAST_ALPHA, Recipe, load_recipe, override, recipe_names
from vitcli.training.seeds import epoch_order, key, reseed
from vitcli.training.settings import Settings
from vitcli.training.state import Position, load_state, save_state
from vitcli.training.validation import validate


@pytest.fixture
def settings(data_folder: Path) -> Settings:
    return Settings("vit_tiny_patch16_224", MODEL, str(data_folder), RECIPE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_to_end(Settings("vit_tiny_patch16_224", MODEL, str(data_folder), RECIPE), folder)
    return folder


def test_every_step_and_epoch_is_on_record(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "stepped"] == list(range(1, 21))  # 90 // 16 = 5 an epoch
    assert [line["epoch"] for line in lines if line["event"] == "evaluated"] == [1, 2, 3, 4]


def test_learns(settings: Settings, tmp_path: Path) -> None:
    plain = Recipe(epochs=15, batch_size=16, micro_batch=16, mixup=0, crop_scale=1, randaugment="", hflip=0, lr=3e-3)
    last = run_to_end(replace(settings, recipe=plain), tmp_path / "run")[-1]
    assert isinstance(last, Evaluated)
    assert last.validation.accuracy > 0.9  # chance is a third


def test_interrupted_at_any_step_ends_with_the_same_bits(
    settings: Settings, tmp_path: Path, uninterrupted: Path
) -> None:
    """Signals at three moments, in the middle of epochs and at the end of one, then a different number of workers."""
    folder, data = tmp_path / "cut", training.open_settings_data(settings)
    training.begin(settings, data, folder)
    for stop_at, number in [(3, signal.SIGTERM), (10, signal.SIGUSR1), (17, signal.SIGTERM)]:
        with pytest.raises(Stopped, match=f"stopped at step {stop_at} of 20") as stopped:
            run_and_signal(settings, folder, stop_at, number)
        assert stopped.value.exit_code == EXIT_STOPPED
    run_to_end(settings, folder, workers=1)
    assert state_digest(folder) == state_digest(uninterrupted)
    assert without_rates(folder) == without_rates(uninterrupted)
    weights = [(run / "best" / "model.safetensors").read_bytes() for run in (folder, uninterrupted)]
    assert weights[0] == weights[1]


HYBRID = {"img_size": [16, 16], "patch_size": [1, 1], "embed_dim": 24, "depth": 1, "num_heads": 3,
          "stem": {"layers": [1], "width": 32}}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("architecture", "args"), [("vit_tiny_r_s16_p8_224", HYBRID), ("resnet10t", {})])
def test_convolutions_resume_with_the_same_bits(
    data_folder: Path, tmp_path: Path, architecture: str, args: dict[str, object], optimizer: str
) -> None:
    """Their weights lie in memory with channels last; what is saved does not, and the optimiser walks over both."""
    recipe = replace(RECIPE, optimizer=optimizer, epochs=1)
    settings = Settings(architecture, {"img_size": [32, 32], **args}, str(data_folder), recipe)
    run_to_end(settings, tmp_path / "whole")
    training.begin(settings, training.open_settings_data(settings), tmp_path / "cut")
    with pytest.raises(Stopped):
        run_and_signal(settings, tmp_path / "cut", 2, signal.SIGTERM)
    run_to_end(settings, tmp_path / "cut")
    assert state_digest(tmp_path / "cut") == state_digest(tmp_path / "whole")


def test_ctrl_c_is_130(settings: Settings, tmp_path: Path) -> None:
    folder, data = tmp_path / "cut", training.open_settings_data(settings)
    training.begin(settings, data, folder)
    with pytest.raises(Stopped, match="vit train --resume") as stopped:
        run_and_signal(settings, folder, 1, signal.SIGINT)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_non_finite_loss_stops_and_spares_the_saved_state(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    broken = replace(settings, recipe=replace(RECIPE, lr=1e30, clip_grad=0.0))
    with pytest.raises(VitError, match=r"the loss is nan at step \d+: lower --lr"):
        run_to_end(broken, folder)
    assert load_state(folder) is None


@pytest.mark.parametrize("n", [2, 3, 5, 17])
def test_few_images(tmp_path: Path, n: int) -> None:
    """Fewer than a batch, an odd number of them, one of each class: whole batches in pairs all the same."""
    write_idx(tmp_path, "train", np.arange(n * 256).reshape(n, 16, 16) % 256, np.arange(n) % 2)
    few = Settings("vit_tiny_patch16_224", MODEL, str(tmp_path), replace(RECIPE, epochs=2))
    events = run_to_end(few, tmp_path / "run")
    assert all(math.isfinite(event.loss) for event in events if isinstance(event, Stepped))
    assert isinstance(events[-1], Evaluated)


def test_the_first_of_equal_epochs_is_the_best(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stop before the last one: the resumed run remembers."""
    accuracies = iter([0.5, 0.5, 0.4, 0.5])
    monkeypatch.setattr(fitting, "validate", lambda *_: Validation(10, next(accuracies), 1.0))
    folder, data = tmp_path / "run", training.open_settings_data(settings)
    training.begin(settings, data, folder)
    with pytest.raises(Stopped):
        run_and_signal(settings, folder, 17, signal.SIGTERM)
    (last,) = [event for event in run_to_end(settings, folder) if isinstance(event, Evaluated)]
    assert not last.is_best
    assert json.loads((folder / "best" / "config.json").read_text())["vit"]["provenance"]["epoch"] == 1


def test_what_a_killed_beginning_left_is_nothing(tmp_path: Path) -> None:
    """Killed while run.json was first written: the same command begins again."""
    (tmp_path / ".run.json.0123abcd.tmp").write_text('{"arch')
    (tmp_path / ".lock").touch()
    create_run_folder(tmp_path, {"architecture": "x"})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "run.json"]
    assert holds_something(tmp_path)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="is not empty"):
        create_run_folder(tmp_path, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_changed_data_are_noticed_on_resume(settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    copy.mkdir()
    for file in Path(settings.data).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved, folder = replace(settings, data=str(copy)), tmp_path / "run"
    training.begin(moved, training.open_settings_data(moved), folder)
    assert training.resumed(folder)[0] == moved
    images = copy / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UsageError, match=r"changed since .* began"):
        training.resumed(folder)


TENSORS = {"model.w": torch.arange(6.0).view(2, 3)}


class TestState:
    def test_two_newest_are_kept(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            save_state(tmp_path, Position(step), TENSORS)
        assert [file.name for file in sorted((tmp_path / "checkpoints").iterdir())] == [
            "step-00000002.safetensors",
            "step-00000003.safetensors",
        ]
        assert load_state(tmp_path)[0] == Position(3)  # type: ignore[index]

    @pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete"])
    def test_damage_falls_back_to_the_older_state(self, tmp_path: Path, damage: str) -> None:
        save_state(tmp_path, Position(1), TENSORS)
        newest = save_state(tmp_path, Position(2), TENSORS)
        content = newest.read_bytes()
        if damage == "delete":
            newest.unlink()
        else:
            spoiled = {"truncate": content[:-5], "flip": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}
            newest.write_bytes(spoiled[damage])
        state = load_state(tmp_path)
        assert state is not None
        assert state.position == Position(1)
        assert len(state.skipped) == 1
        assert state.skipped[0].startswith(newest.name)

    @pytest.mark.parametrize("latest", [None, "", "{", '{"file": 3}', "[]"])
    def test_a_lost_latest_does_not_matter(self, tmp_path: Path, latest: str | None) -> None:
        save_state(tmp_path, Position(5), TENSORS)
        if latest is None:
            (tmp_path / "LATEST.json").unlink()
        else:
            (tmp_path / "LATEST.json").write_text(latest)
        assert load_state(tmp_path)[0] == Position(5)  # type: ignore[index]

    def test_nothing_readable_is_an_error_and_nothing_saved_is_not(self, tmp_path: Path) -> None:
        assert load_state(tmp_path) is None
        save_state(tmp_path, Position(5), TENSORS).write_bytes(b"junk")
        with pytest.raises(CheckpointError, match="no saved state can be read"):
            load_state(tmp_path)
        shutil.rmtree(tmp_path / "checkpoints")
        with pytest.raises(CheckpointError, match=r"step-00000005.safetensors: missing"):
            load_state(tmp_path)

    def test_leftovers_of_a_killed_save_are_removed(self, tmp_path: Path) -> None:
        save_state(tmp_path, Position(5), TENSORS)
        leftover = tmp_path / "checkpoints" / ".step-00000006.safetensors.0a0a.tmp"
        leftover.write_bytes(b"half")
        with locked(tmp_path):
            assert not leftover.exists()

    def test_steps_decide_which_is_newest_not_clocks(self, tmp_path: Path) -> None:
        save_state(tmp_path, Position(9), TENSORS)
        os.utime(save_state(tmp_path, Position(10), TENSORS), (0, 0))
        (tmp_path / "LATEST.json").unlink()
        assert load_state(tmp_path)[0] == Position(10)  # type: ignore[index]


class TestPlan:
    def test_every_sample_once_an_epoch_but_the_tail(self) -> None:
        plan = Plan.of(50, batch_size=16, micro_batch=4, seed=1)
        assert (plan.steps_per_epoch, plan.micro_batches) == (3, 4)
        seen = [pair for step in range(3) for index in range(4) for pair in plan.micro(step, index)]
        assert len(set(seen)) == 48
        assert {epoch for epoch, _ in seen} == {0}
        assert plan.micro(3, 0) != [(1, i) for _, i in plan.micro(0, 0)]  # the next epoch has its own order

    @pytest.mark.parametrize(("n", "steps", "batch"), [(1, 1, 1), (3, 1, 2), (15, 1, 14), (17, 1, 16), (32, 2, 16)])
    def test_fewer_images_than_a_batch(self, n: int, steps: int, batch: int) -> None:
        plan = Plan.of(n, batch_size=16, micro_batch=16, seed=0)
        assert (plan.steps_per_epoch, plan.batch_size) == (steps, batch)
        assert len(plan.micro(0, 0)) == plan.micro_batch

    def test_order_is_a_function_of_seed_and_epoch(self) -> None:
        assert sorted(epoch_order(20, 3, 4)) == list(range(20))
        np.testing.assert_array_equal(epoch_order(20, 3, 4), epoch_order(20, 3, 4))
        assert len({tuple(epoch_order(20, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9

    def test_batches_do_not_depend_on_workers(self, settings: Settings) -> None:
        task = build_task(settings, training.open_settings_data(settings))
        plan = Plan.of(len(task.data.train), 16, 8, 0)
        plain, forked = (
            list(training_batches(task.data.train, task.transform, plan, steps=range(4, 7), workers=workers))
            for workers in (0, 2)
        )
        assert len(plain) == 6
        for batch, again in zip(plain, forked, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
            _, labels, samples = batch
            np.testing.assert_array_equal(labels, task.data.train.labels[samples])


@pytest.mark.parametrize(
    ("kind", "device", "cores", "processes", "expected"),
    [
        ("idx", "cpu", 16, 1, 0),  # the cores are for training
        ("folders", "cpu", 2, 1, 2),
        ("folders", "cpu", 16, 1, 4),
        ("idx", "cuda", 8, 1, 8),
        ("folders", "cuda:1", 64, 1, 16),
        ("folders", "cuda", 64, 8, 8),
        ("folders", "cuda", 2, 4, 1),
    ],
)
def test_decoding_processes(
    kind: Kind, device: str, cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(kind, device) == expected


class TestRecipe:
    def test_cosine_in_closed_form(self) -> None:
        recipe = Recipe(lr=2.0, warmup_steps=4)
        rates = [recipe.lr_at(step, 20) for step in range(20)]
        assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
        assert rates[12] == pytest.approx(1.0)  # half of the way after the warm-up
        assert rates[4] == 2.0
        assert 0 < rates[-1] < 0.05
        assert all(a > b for a, b in itertools.pairwise(rates[4:]))

    def test_linear_and_a_warmup_longer_than_the_run(self) -> None:
        assert Recipe(lr=1.0, warmup_steps=0, schedule="linear").lr_at(5, 10) == 0.5
        assert Recipe(lr=1.0, warmup_steps=99).lr_at(9, 10) == 1.0

    def test_paper_is_table_3(self) -> None:
        paper = load_recipe("paper").recipe
        assert (paper.lr, paper.batch_size, paper.weight_decay, paper.dropout) == (3e-3, 4096, 0.3, 0.1)
        assert (paper.warmup_steps, paper.clip_grad, paper.betas, paper.schedule) == (
            10_000,
            1.0,
            (0.9, 0.999),
            "cosine",
        )

    def test_every_shipped_recipe_can_be_read(self) -> None:
        without_model = [name for name in recipe_names() if not load_recipe(name).model]
        assert without_model == ["compare"]  # one recipe for every model

    def test_a_mimetic_start_is_for_vits_from_scratch(self, settings: Settings) -> None:
        data, mimetic = open_data(settings.data), replace(RECIPE, init="mimetic")
        weights = [
            build_task(replace(settings, recipe=recipe), data).model.state_dict()["blocks.0.attn.qkv.weight"]
            for recipe in (RECIPE, mimetic, mimetic)
        ]
        assert not torch.equal(weights[0], weights[1])
        assert torch.equal(weights[1], weights[2])
        with pytest.raises(UsageError, match="init is for a Vision Transformer that begins from scratch"):
            build_task(Settings("resnet10t", {}, settings.data, mimetic), data)
        with pytest.raises(UsageError, match="width 27 is not a multiple of 4"):
            build_task(replace(settings, model_args={**MODEL, "embed_dim": 27}, recipe=mimetic), data)

    def test_a_stem_that_cannot_be_is_one_line(self, settings: Settings) -> None:
        arguments = {"stem": {"layers": [1], "width": 48}}
        with pytest.raises(UsageError, match=r"stem must be given a width that is a multiple of 32, not \{'layers'"):
            build_task(replace(settings, model_args=arguments), open_data(settings.data))

    @pytest.mark.parametrize("name", [name for name in recipe_names() if name != "compare"])
    def test_shipped_recipes_build_their_model(self, name: str, settings: Settings) -> None:
        loaded = load_recipe(name)
        args = {key: value for key, value in loaded.model.items() if key != "architecture"}
        task = build_task(Settings(loaded.model["architecture"], args, "", loaded.recipe), open_data(settings.data))
        assert task.vit is not None
        assert task.vit.num_classes == 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"learning_rate": 1}, "no recipe setting 'learning_rate'"),
            ({"epoch": 1}, "Did you mean 'epochs'"),
            ({"epochs": "ten"}, "epochs must be a number, not 'ten'"),
            ({"batch_size": True}, None),
            ({"lr": -1}, "lr is -1.0, it must be above 0"),
            ({"epochs": 0}, "epochs is 0.0, it must be above 0"),
            ({"mixup": 0.5, "micro_batch": 1}, "must be even"),
            ({"micro_batch": 48}, "does not divide"),
            ({"label_smoothing": 1.5}, "between 0 and 1"),
            ({"cutmix": 1e-320}, "or at least 0.001"),
            ({"crop_padding": 2}, "exclude each other"),
        ],
    )
    def test_wrong_settings(self, changes: dict[str, object], message: str | None) -> None:
        with pytest.raises(UsageError, match=message):
            override(Recipe(), changes, "test")

    def test_the_least_share_of_a_mixture_can_be_drawn(self) -> None:
        """NumPy's Beta distribution gives NaN where its parameter is next to nothing."""
        assert np.isfinite(np.random.default_rng(0).beta(LEAST_ALPHA, LEAST_ALPHA, 10**5)).all()

    @pytest.mark.parametrize(
        ("changes", "micro"),
        [
            ({"batch_size": 96}, 48),
            ({"batch_size": 10}, 10),
            ({"batch_size": 102}, 34),  # 51 divides it too, and pairs nothing
            ({"batch_size": 102, "mixup": 0.0}, 51),
            ({"batch_size": 512}, 64),
            ({"batch_size": 96, "micro_batch": 12}, 12),
        ],
    )
    def test_a_batch_size_brings_its_micro_batch(self, changes: dict[str, object], micro: int) -> None:
        recipe = settled(override(Recipe(), changes, "test"), "cpu")
        assert (recipe.batch_size, recipe.micro_batch) == (changes["batch_size"], micro)

    def test_an_odd_batch_has_no_pairs(self) -> None:
        with pytest.raises(UsageError, match="choose an even batch size, or set both to 0"):
            override(Recipe(), {"batch_size": 75}, "test")

    def test_unknown_recipe(self) -> None:
        with pytest.raises(UsageError, match="Did you mean 'paper'"):
            load_recipe("papr")


class TestAugmentation:
    def test_shift_moves_and_fills_with_black(self) -> None:
        image = np.full((6, 8, 3), 7, np.uint8)
        reseed(1)
        sums = {int(shifted(image, 2).sum()) for _ in range(50)}
        assert max(sums) == image.sum()  # not moved at all, once in 25
        assert min(sums) == 7 * 3 * (6 - 2) * (8 - 2)

    def test_every_randaugment_step_at_every_magnitude(self) -> None:
        """Timm asks Pillow for an image of 0 bits a channel at magnitude 10, which is refused."""
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        preprocess = Preprocess((16, 16))
        for magnitude in range(11):
            recipe = replace(RECIPE, randaugment=f"rand-m{magnitude}-n2-inc1", crop_scale=1.0)
            augment = training_transform(recipe, preprocess)
            for _ in range(40):  # of 15 steps, 2 at a time
                assert augment(image).shape == (3, 16, 16)

    @pytest.mark.parametrize(("side", "crop_pct"), [(16, 1.0), (100, 0.9)])
    def test_small_images_keep_their_border_at_any_size(self, tmp_path: Path, side: int, crop_pct: float) -> None:
        rng = np.random.default_rng(0)
        write_idx(tmp_path, "train", rng.integers(0, 256, (20, side, side)), np.arange(20) % 2)
        settings = Settings("vit_tiny_patch16_224", {**MODEL, "img_size": [80, 80]}, str(tmp_path), RECIPE)
        assert build_task(settings, training.open_settings_data(settings)).preprocess.crop_pct == crop_pct

    @pytest.mark.parametrize("changes", [{}, {"randaugment": ""}, {"crop_scale": 1.0}])
    def test_one_channel_is_gray(self, changes: dict[str, object]) -> None:
        """What `Preprocess` would give, where the augmentation leaves the picture alone."""
        recipe = replace(Recipe(crop_scale=0.5, randaugment="rand-m5-mstd0.5-inc1"), **changes)
        gray = Preprocess((16, 16), mean=(0.5,), std=(0.5,))
        image = Image.new("RGB", (20, 20), (200, 100, 50))
        augmented = training_transform(replace(recipe, randaugment="", crop_padding=0, invert=0.0), gray)(image)
        assert augmented.shape == (1, 16, 16)
        assert (augmented.numpy() == gray.pixels(image).transpose(2, 0, 1)).all()
        augment = training_transform(recipe, gray)
        for _ in range(20):
            assert augment(image).shape == (1, 16, 16)

    def test_keys_differ(self) -> None:
        keys = {key(seed, what, i) for seed in range(5) for what in ("order", "augment", "pass") for i in range(50)}
        assert len(keys) == 750
        assert key(1, 23) != key(12, 3)

    def test_evaluation_sees_plain_images(self, settings: Settings) -> None:
        """The same accuracy and loss as a hand count, though the recipe augments."""
        task = build_task(settings, training.open_settings_data(settings))
        torch.nn.init.normal_(task.model.head.weight)
        samples = task.data.val
        result = validate(task.model, task, samples, World())
        with torch.inference_mode():
            pixels = torch.stack([torch.from_numpy(task.preprocess(samples.image(i))) for i in range(len(samples))])
            logits = task.model.eval()(pixels)
        right = (logits.argmax(1).numpy() == samples.labels).mean()
        assert result.n == len(samples)
        assert result.accuracy == pytest.approx(right)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels)).item()
        assert result.loss == pytest.approx(loss, rel=1e-5)  # summed in another order


class TestLearner:
    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
    def test_compiled_it_is_the_same_step(self, settings: Settings, graphs: list[torch.fx.GraphModule]) -> None:
        heads = []
        for recipe in (RECIPE, replace(RECIPE, compile=True)):
            task = build_task(replace(settings, recipe=recipe), training.open_settings_data(settings))
            learner = Learner(task, World(), micro_batches=2)
            plan = Plan.of(len(task.data.train), 16, 8, 0)
            batches = training_batches(task.data.train, task.transform, plan, steps=range(2))
            for step in range(2):
                learner.step(batches, step, 1e-2)
            heads.append(task.model.head.weight.detach().clone())
        assert graphs
        torch.testing.assert_close(heads[0], heads[1])

    def test_first_loss_is_ln_k(self, settings: Settings) -> None:
        """The head begins at zero (paper, section 3.2), so every class is equally likely."""
        task = build_task(settings, training.open_settings_data(settings))
        learner = Learner(task, World(), micro_batches=2)
        plan = Plan.of(len(task.data.train), 16, 8, 0)
        batches = training_batches(task.data.train, task.transform, plan, steps=range(1))
        assert learner.step(batches, 0, 1e-3) == pytest.approx(math.log(3), abs=1e-6)

    def test_average_follows_its_formula(self, settings: Settings) -> None:
        task = build_task(settings, training.open_settings_data(settings))
        learner = Learner(task, World(), micro_batches=2)
        before = task.model.head.bias.clone()
        plan = Plan.of(len(task.data.train), 16, 8, 0)
        learner.step(training_batches(task.data.train, task.transform, plan, steps=range(1)), 0, 1e-2)
        assert learner.ema is not None
        expected = before + (1 - 1 / 10) * (task.model.head.bias - before)  # decay of step 0 is 1/10
        torch.testing.assert_close(learner.ema.head.bias, expected)

    def test_micro_batches_sum_to_the_batch(self, settings: Settings) -> None:
        """Without randomness, accumulating two halves is one step on the whole."""
        still = dict(dropout=0.0, drop_path=0.0, mixup=0.0, cutmix=0.0, random_erasing=0.0, randaugment="", hflip=0.0)
        heads = []
        for micro in (8, 16):
            recipe = replace(RECIPE, micro_batch=micro, crop_scale=1.0, invert=0.0, **still)
            task = build_task(replace(settings, recipe=recipe), training.open_settings_data(settings))
            learner = Learner(task, World(), micro_batches=16 // micro)
            plan = Plan.of(len(task.data.train), 16, micro, 0)
            learner.step(training_batches(task.data.train, task.transform, plan, steps=range(1)), 0, 1e-2)
            heads.append(task.model.head.weight.detach().clone())
        torch.testing.assert_close(heads[0], heads[1])
