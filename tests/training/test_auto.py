"""What a recipe leaves to the machine: how it is decided, shown, kept in run.json and kept to on resumption."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.runs import MODEL, RECIPE, run_to_end, without_rates
from vitcli.errors import UsageError
from vitcli.model import linear
from vitcli.training import auto
from vitcli.training import plan as planning
from vitcli.training import train as training
from vitcli.training.auto import moved, settled, worth_compiling
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.folder import read_config
from vitcli.training.learner import Learner
from vitcli.training.plan import plan, plan_resumption
from vitcli.training.recipe import Recipe, as_dict, load_recipe, override
from vitcli.training.settings import Settings

OPEN = replace(RECIPE, amp="auto", micro_batch=0, epochs=1)


@pytest.fixture
def settings(data_folder: Path) -> Settings:
    return Settings("vit_tiny_patch16_224", MODEL, str(data_folder), OPEN)


def instructions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A processor of which torch says that it has these, of those that half precision has use for."""
    known = ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
    has = {name: name in names for name in known}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)


class TestPrecision:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [((), "fp32"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16"), (("avx512_fp16",), "fp32")],
    )
    def test_on_a_processor_it_is_up_to_its_instructions(
        self, names: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instructions(monkeypatch, *names)
        assert settled(Recipe(), "cpu").amp == expected
        assert settled(Recipe(amp="fp32"), "cpu").amp == "fp32"
        assert settled(Recipe(amp="fp16"), "cpu").amp == "fp16"

    def test_on_a_processor_of_which_nothing_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        assert settled(Recipe(), "cpu").amp == "fp32"

    @pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
    def test_on_a_gpu(self, native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: native)
        assert settled(Recipe(), "cuda:1").amp == expected

    @pytest.mark.parametrize(("device", "expected"), [("xpu", "bf16"), ("mps", "fp32")])
    def test_on_other_gpus(self, device: str, expected: str) -> None:
        assert settled(Recipe(), device).amp == expected

    def test_a_run_keeps_what_its_beginning_chose(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a machine that lacks it, too, and that is said."""
        folder, data = tmp_path / "run", training.open_settings_data(settings)
        instructions(monkeypatch, "amx_bf16")
        planned = plan(settings, data, folder, device="cpu")
        assert (planned.settings.recipe.amp, planned.task.recipe.amp) == ("bf16", "bf16")
        assert planned.notes == ()
        training.begin(settings, data, folder, device="cpu")
        instructions(monkeypatch)
        assert read_config(folder)["recipe"]["amp"] == "bf16"
        used: list[str] = []
        begin = Learner.__init__

        def spied(self: Learner, *arguments: Any) -> None:
            begin(self, *arguments)
            used.append(self.recipe.amp)

        monkeypatch.setattr(Learner, "__init__", spied)
        going_on = plan_resumption(*training.resumed(folder), folder, device="cpu")
        assert going_on.settings.recipe.amp == "bf16"
        (said,) = [note for note in going_on.notes if "bfloat16" in note]
        assert "this processor has no bfloat16 instructions" in said
        assert "it goes on" in said
        run_to_end(settings, folder)  # by settings that say nothing
        assert used == ["bf16"]
        provenance = json.loads((folder / "last" / "config.json").read_text())["vit"]["provenance"]
        assert provenance["recipe"]["amp"] == "bf16"

    @pytest.mark.parametrize(("amp", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
    def test_what_was_asked_for_in_vain_is_said(self, amp: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        instructions(monkeypatch)
        said = moved(Recipe(amp=amp), "cpu")
        assert said is not None
        assert said.startswith(f"this processor has no {name} instructions")
        assert "--set amp=fp32" in said
        assert moved(Recipe(amp="fp32"), "cpu") is None
        instructions(monkeypatch, "avx512_bf16", "avx512_fp16")
        assert moved(Recipe(amp=amp), "cpu") is None


class TestSpelling:
    def test_a_recipe_that_is_written_down_reads_back(self) -> None:
        for recipe in (Recipe(), Recipe(amp="bf16", micro_batch=32, compile=True), Recipe(compile=False)):
            assert override(Recipe(), as_dict(recipe), "x") == recipe
        assert as_dict(Recipe())["micro_batch"] == as_dict(Recipe())["compile"] == as_dict(Recipe())["amp"] == "auto"

    def test_earlier_versions_are_read_as_what_they_were(self, settings: Settings) -> None:
        """float32 was written as an empty text, and was meant where nothing was written."""
        recipe = {**as_dict(RECIPE), "amp": "", "compile": False}
        silent = {name: value for name, value in recipe.items() if name not in ("amp", "compile")}
        for old in (recipe, silent):
            found = Settings.from_dict({**settings.as_dict(), "recipe": old}).recipe
            assert (found.amp, found.compile) == ("fp32", False)

    def test_pairs_need_two_images_a_pass(self) -> None:
        with pytest.raises(UsageError, match="micro_batch 1 must be even"):
            override(Recipe(micro_batch=1, mixup=0.0), {"batch_size": 34, "mixup": 0.2}, "x")

    def test_the_same_words_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text('[recipe]\nmicro_batch = "auto"\ncompile = "auto"\namp = ""\nbatch_size = 96\n')
        recipe = load_recipe(str(file)).recipe
        assert (recipe.micro_batch, recipe.compile, recipe.amp) == (0, None, "fp32")


class TestMicroBatch:
    @pytest.mark.parametrize(
        ("batch", "processes", "expected"),
        [(256, 1, 64), (64, 1, 32), (64, 2, 32), (256, 4, 64), (256, 8, 32), (16, 1, 16), (16, 4, 4), (10, 1, 10)],
    )
    def test_on_a_cpu(self, batch: int, processes: int, expected: int) -> None:
        assert settled(Recipe(batch_size=batch), "cpu", processes).micro_batch == expected

    @pytest.mark.parametrize(("batch", "processes", "expected"), [(256, 1, 256), (256, 4, 64), (1024, 1, 1024)])
    def test_on_a_gpu_it_begins_with_all_of_the_batch(self, batch: int, processes: int, expected: int) -> None:
        assert settled(Recipe(batch_size=batch, amp="bf16"), "cuda", processes).micro_batch == expected

    def test_what_was_asked_for_stays(self) -> None:
        for device in ("cpu", "cuda"):
            assert settled(Recipe(micro_batch=16, amp="fp32"), device).micro_batch == 16

    def test_the_estimate_finds_what_fits_and_the_run_keeps_it(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A machine that takes a CPU for a GPU on which no more than 4 images fit."""
        for module in (auto, planning):
            monkeypatch.setattr(module, "on_cpu", lambda _: False)
        whole, tried = Learner.step, []

        def step(self: Learner, batches: Iterator[Any], step: int, lr: float) -> Any:
            tried.append(self.recipe.micro_batch)
            if self.recipe.micro_batch > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return whole(self, batches, step, lr)

        monkeypatch.setattr(Learner, "step", step)
        data = training.open_settings_data(settings)
        planned = plan(replace(settings, recipe=replace(OPEN, amp="fp32")), data, tmp_path / "run", device="cpu")
        assert sorted(set(tried), reverse=True) == [16, 8, 4]
        assert planned.settings.recipe.micro_batch == planned.task.recipe.micro_batch == 4
        training.begin(planned.settings, data, tmp_path / "run", device="cpu")
        assert read_config(tmp_path / "run")["recipe"]["micro_batch"] == 4
        assert training.resumed(tmp_path / "run")[0].recipe.micro_batch == 4


class TestCompilation:
    def test_only_where_it_pays(self) -> None:
        assert not worth_compiling(10.0, "cuda")
        assert worth_compiling(3600.0, "cuda:0")
        assert not worth_compiling(3600.0, "cpu")
        assert settled(Recipe(amp="fp32"), "cpu").compile is False
        assert settled(Recipe(amp="fp32", compile=True), "cpu").compile is True

    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
    def test_blocks_share_what_was_compiled_for_one(
        self, settings: Settings, graphs: list[torch.fx.GraphModule]
    ) -> None:
        """Each with a rate of stochastic depth of its own, yet few graphs: with such a rate, without, the last."""
        recipe = replace(RECIPE, compile=True, ema_decay=0.0, mixup=0.0, cutmix=0.0)
        deep = replace(settings, recipe=recipe, model_args={**MODEL, "depth": 7})
        task = build_task(deep, training.open_settings_data(deep))
        learner = Learner(task, World(), micro_batches=1)
        images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
        learner.step(iter([(images, torch.arange(8) % 3, torch.arange(8))]), 0, 1e-3)
        assert len(graphs) <= 3  # the last block computes fewer tokens


class TestLinear:
    def test_it_is_measured_once_and_draws_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VIT_LINEAR")
        monkeypatch.setattr(linear, "_chosen", None)
        measured: list[str] = []
        before = torch.get_rng_state()
        real = linear._measured
        monkeypatch.setattr(linear, "_measured", lambda: measured.append(real()) or measured[-1])
        assert linear.kernel() in ("torch", "onednn")
        assert linear.kernel() == linear.kernel() == measured[0]
        assert len(measured) == 1
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(("slow", "expected"), [("torch", "onednn"), ("onednn", "torch")])
    def test_the_faster_one_is_taken(self, slow: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the instruction set made one expect."""
        now = 0.0

        def taking(name: str) -> Any:
            def product(*_: Any) -> None:
                nonlocal now
                now += 0.002 if name == slow else 0.001

            return product

        monkeypatch.setattr(linear.time, "perf_counter", lambda: now)
        monkeypatch.setattr(linear.F, "linear", taking("torch"))
        monkeypatch.setattr(linear, "_product", taking("onednn"))
        for likely in ("torch", "onednn"):
            monkeypatch.setattr(linear, "expected", lambda likely=likely: likely)
            assert linear._measured() == expected

    def test_a_run_goes_on_with_what_it_began_with(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever this process had found; an older version's run.json means oneDNN."""
        fp32 = replace(settings, recipe=replace(OPEN, amp="fp32"))
        monkeypatch.setattr(linear, "_chosen", "torch")
        run_to_end(fp32, tmp_path / "run")
        assert read_config(tmp_path / "run")["linear"] == "torch"
        longer = replace(fp32, recipe=replace(fp32.recipe, epochs=2))
        linear.use("onednn")
        run_to_end(longer, tmp_path / "run")
        assert linear.kernel() == "torch"
        config = {name: value for name, value in read_config(tmp_path / "run").items() if name != "linear"}
        training.write_config(tmp_path / "run", config)
        run_to_end(longer, tmp_path / "run")
        assert linear.kernel() == "onednn"

    def test_inference_does_not_measure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linear, "_chosen", None)
        monkeypatch.setattr(linear, "_measured", None)
        linear.Linear(4, 3)(torch.ones(2, 4))


def test_autocast_learns_the_same_things(settings: Settings, tmp_path: Path) -> None:
    """Losses of the first epoch in bfloat16 are float32's within its eight bits."""
    losses = []
    for amp in ("fp32", "bf16"):
        still = replace(OPEN, amp=amp, dropout=0.0)  # type: ignore[arg-type]
        run_to_end(replace(settings, recipe=still), tmp_path / amp)
        losses.append([line["loss"] for line in without_rates(tmp_path / amp) if "lr" in line])
    assert losses[1] != losses[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
