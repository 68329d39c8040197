"""Fine-tuning: what it begins with, what is trained, in how much time and memory. On a tiny ViT, on the CPU."""

import itertools
import json
import math
import signal
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from typer.testing import CliRunner

from tests.helpers.checkpoints import edit_config, write_tiny
from tests.helpers.data import write_stripes
from tests.helpers.finetuning import RECIPE, SMALL, settings_of
from tests.helpers.runs import run_and_signal, run_to_end, state_digest
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.errors import Stopped, UsageError, VitError
from vitcli.machine import emulated, memory_free
from vitcli.model.resample import resample_pos_embed
from vitcli.model.vit import VisionTransformer
from vitcli.training import fit as fitting
from vitcli.training import learner as learning
from vitcli.training import train as training
from vitcli.training.budget import Clock, seconds
from vitcli.training.build import build_task
from vitcli.training.distributed import World
from vitcli.training.estimate import (
    AFTER,
    Estimate,
    choose_tune,
    estimate,
    share_in_time,
    trainable_parameters,
)
from vitcli.training.events import Asked, Evaluated, Featured, HeadFitted, Shrunk, Stepped, Tried
from vitcli.training.head import features
from vitcli.training.learner import Learner
from vitcli.training.logistic import fit_head, logistic_regression
from vitcli.training.lora import ALPHA_PER_RANK, LowRank, adapt, merged
from vitcli.training.objective import class_weights
from vitcli.training.optimizer import parameter_groups
from vitcli.training.recipe import Recipe, load_recipe, small_images, smaller_micro_batch
from vitcli.training.settings import Settings
from vitcli.training.teacher import Teacher, require_like_tokens
from vitcli.training.validation import batches


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images of 28×28 in three classes, in unequal numbers."""
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder, np.sort(np.concatenate([np.arange(60) % 3, np.arange(30) % 2])), 28)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny", SMALL)


def one_step(settings: Settings) -> tuple[float, Learner]:
    task = build_task(settings, training.open_settings_data(settings))
    learner = Learner(task, World(), 1)
    chosen = range(0, 80, 5)
    images = torch.stack([task.transform(task.data.train.image(i)) for i in chosen])
    batch = images, torch.from_numpy(task.data.train.labels[chosen]), torch.tensor(chosen)
    return learner.step(iter([batch]), 0, settings.recipe.lr), learner


class TestStart:
    def test_first_loss_is_ln_k_and_a_frozen_trunk_stays(self, base: Path, data: Path) -> None:
        settings = settings_of(base, data, "head")
        before = build_task(settings, training.open_settings_data(settings)).model.state_dict()
        loss, learner = one_step(settings)
        assert loss == pytest.approx(math.log(3), abs=1e-6)
        changed = {n for n, t in learner.model.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == {"head.weight", "head.bias"}

    def test_the_gradient_reaches_only_the_head_at_first(self, base: Path, data: Path) -> None:
        """Through a head of zeros no gradient passes, frozen or not (paper, section 3.2)."""
        settings = settings_of(base, data)
        task = build_task(settings, training.open_settings_data(settings))
        images = torch.rand(4, 3, 28, 28)
        F.cross_entropy(task.model(images), torch.tensor([0, 1, 2, 0])).backward()
        moved = {name for name, p in task.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {"head.weight", "head.bias"}

    def test_the_whole_pretraining_head_goes(self, tmp_path: Path, data: Path) -> None:
        hidden = write_tiny(tmp_path / "hidden", replace(SMALL, head_hidden=40))
        model = build_task(settings_of(hidden, data), training.open_settings_data(settings_of(hidden, data))).model
        assert isinstance(model, VisionTransformer)
        assert model.config.head_hidden is None
        assert model.head.weight.shape == (3, 24)
        assert not any(name.startswith("pre_logits") for name in model.state_dict())

    @pytest.mark.parametrize("size", [(56, 56), (28, 42)])
    def test_another_resolution_keeps_the_patch_and_resamples(
        self, base: Path, data: Path, size: tuple[int, int], tmp_path: Path
    ) -> None:
        """And what comes out is a checkpoint that goes on at a third size."""
        settings = settings_of(base, data, img_size=size)
        task = build_task(settings, training.open_settings_data(settings))
        source = load_model(resolve(str(base)))
        assert task.vit is not None
        assert task.vit.patch_size == (14, 14)
        assert task.preprocess.size == size
        expected = resample_pos_embed(source.pos_embed, (2, 2), task.vit.grid, num_prefix=1)
        torch.testing.assert_close(task.model.pos_embed, expected)
        assert "resampled from 2×2" in task.notes[0]
        run_to_end(settings, tmp_path / "run")
        again = settings_of(tmp_path / "run" / "best", data, img_size=(42, 42))
        assert build_task(again, training.open_settings_data(again)).vit.grid == (3, 3)  # type: ignore[union-attr]

    def test_one_resolution_after_another(self, base: Path, data: Path, tmp_path: Path) -> None:
        """Fine-tuned at 28, then at 56, then at 28×42: each run goes on from what the one before it left."""
        start = base
        for height, width in ((28, 28), (56, 56), (28, 42)):
            settings = settings_of(start, data, img_size=(height, width))
            before = load_model(resolve(str(start)), img_size=(height, width)).state_dict()
            folder = tmp_path / f"{height}x{width}"
            task = build_task(settings, training.open_settings_data(settings))
            torch.testing.assert_close(task.model.state_dict()["pos_embed"], before["pos_embed"])
            run_to_end(settings, folder)
            start = folder / "best"
            found = load_model(resolve(str(start)))
            assert found.config.grid == (height // 14, width // 14)
            assert not torch.equal(found.pos_embed, before["pos_embed"]), "it was trained"

    def test_another_kernel_gives_other_embeddings(self, base: Path, data: Path) -> None:
        models = [
            build_task(s, training.open_settings_data(s)).model.pos_embed
            for s in (settings_of(base, data, img_size=(56, 56), kernel=k) for k in ("timm", "paper"))
        ]
        assert not torch.allclose(models[0], models[1])

    def test_a_checkpoint_that_changed_is_noticed(self, base: Path, data: Path, tmp_path: Path) -> None:
        settings = settings_of(base, data)
        assert settings.start
        settings = replace(settings, start=replace(settings.start, sha256="0" * 64))
        with pytest.raises(Exception, match="is not what it was"):
            build_task(settings, training.open_settings_data(settings))

    def test_a_cnn_of_timm_gets_a_head_of_zeros(self, data: Path, tmp_path: Path) -> None:
        small = replace(RECIPE, epochs=0.2, ema_decay=0.0)
        cnn = Settings("resnet10t", {}, str(data), small)
        run_to_end(cnn, tmp_path / "cnn")
        edit_config(tmp_path / "cnn" / "best", label_names=["a", "b", "c"])
        settings = settings_of(tmp_path / "cnn" / "best", data, "head", small)
        assert one_step(settings)[0] == pytest.approx(math.log(3), abs=1e-5)
        broken = settings_of(tmp_path / "cnn" / "best", data, "lora", small, rank=2)
        with pytest.raises(UsageError, match="needs a Vision Transformer"):
            build_task(broken, training.open_settings_data(broken))


class TestHead:
    def test_logistic_regression_is_scikit_learns(self) -> None:
        torch.manual_seed(0)
        x, labels = torch.randn(200, 6), torch.randint(3, (200,))
        x[:, 0] += labels
        weight, bias = logistic_regression(x, labels, 3, penalty=0.02)
        # C = 1 / (N · penalty): scikit-learn sums the losses
        theirs = LogisticRegression(C=1 / (200 * 0.02), tol=1e-8, max_iter=1000).fit(x.numpy(), labels.numpy())
        probabilities = torch.softmax(x @ weight.T + bias, dim=1)
        np.testing.assert_allclose(probabilities, theirs.predict_proba(x.numpy()), atol=2e-3)

    def test_scale_and_shift_of_features_do_not_matter(self) -> None:
        """They are standardised, and the layer takes them as they are."""
        torch.manual_seed(0)
        labels = torch.arange(300) % 3
        x = torch.randn(300, 5) + F.one_hot(labels, 5)
        scale, shift = torch.tensor([1e3, 1.0, 0.1, 5.0, 1.0]), torch.tensor([7.0, -3.0, 0.0, 100.0, 1.0])
        plain, other = fit_head(x, labels, 3, seed=0), fit_head(x * scale + shift, labels, 3, seed=0)
        assert plain.penalty == other.penalty
        logits = [x @ plain.weight.T + plain.bias, (x * scale + shift) @ other.weight.T + other.bias]
        torch.testing.assert_close(logits[0].softmax(1), logits[1].softmax(1), atol=5e-3, rtol=0)

    def test_noise_asks_for_a_stronger_penalty(self) -> None:
        torch.manual_seed(0)
        labels = torch.arange(300) % 3
        noise = fit_head(torch.randn(300, 60), labels, 3, seed=0)
        clear = fit_head(torch.randn(300, 60) + 4 * F.one_hot(labels, 60), labels, 3, seed=0)
        assert noise.penalty > clear.penalty
        assert min(one.loss for one in noise.tried) == next(t.loss for t in noise.tried if t.penalty == noise.penalty)

    def test_one_image_a_class_is_enough(self) -> None:
        assert fit_head(torch.eye(3), torch.arange(3), 3, seed=0).tried == ()

    def test_a_fit_in_blocks_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Features are standardised a block at a time, and no more logits than a block has are there at once."""
        torch.manual_seed(0)
        labels = torch.arange(300) % 3
        x = 5 * torch.randn(300, 9) + F.one_hot(labels, 9) - 2
        whole, largest = fit_head(x, labels, 3, seed=0), 0
        real = F.linear

        def linear(*given: torch.Tensor) -> torch.Tensor:
            nonlocal largest
            found = real(*given)
            largest = max(largest, found.numel())
            return found

        monkeypatch.setattr("vitcli.training.logistic.BLOCK", 3 * 17)
        monkeypatch.setattr("vitcli.training.logistic.F.linear", linear)
        parts = fit_head(x, labels, 3, seed=0)
        assert largest == 3 * 17
        assert parts.penalty == whole.penalty
        probabilities = [torch.softmax(x @ one.weight.T + one.bias, dim=1) for one in (whole, parts)]
        torch.testing.assert_close(*probabilities, atol=2e-3, rtol=0)

    def test_it_is_in_full_precision_whatever_training_is_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = set()
        monkeypatch.setattr(
            "vitcli.training.logistic._solve",
            lambda rows, classes, *_: (
                seen.add(torch.get_float32_matmul_precision()),
                (torch.zeros(classes, rows.x.shape[1]), torch.zeros(classes)),
            )[1],
        )
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            fit_head(torch.randn(60, 4), torch.arange(60) % 3, 3, seed=0)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
        assert seen == {"highest"}

    def test_features_are_what_the_head_sees(self, base: Path, data: Path) -> None:
        settings = settings_of(base, data)
        task = build_task(settings, training.open_settings_data(settings))
        found = torch.cat(list(features(task.model, task.data.train, task.preprocess, torch.device("cpu"))))
        one = torch.from_numpy(task.data.train.load(70, task.preprocess))[None]
        torch.testing.assert_close(found[70], task.model.intermediates(one, ["pre_logits"])["pre_logits"][0])

    def test_a_run_learns_and_computes_features_once(self, base: Path, data: Path, tmp_path: Path) -> None:
        settings = settings_of(base, data, "head")
        events = run_to_end(settings, tmp_path / "run")
        assert [type(e) for e in events] == [*([Featured] * (len(events) - 2)), HeadFitted, Evaluated]
        assert events[-1].validation.accuracy > 0.9  # chance is a third
        again = run_to_end(settings, tmp_path / "run")
        assert not any(isinstance(event, Featured) for event in again)
        assert again[-1].validation == events[-1].validation
        # the trunk is the checkpoint's own
        trained, source = load_model(resolve(str(tmp_path / "run" / "best"))), load_model(resolve(str(base)))
        torch.testing.assert_close(trained.blocks.state_dict(), source.blocks.state_dict(), rtol=0, atol=0)

    def test_all_goes_on_from_the_head_and_never_loses_its_best(self, base: Path, data: Path, tmp_path: Path) -> None:
        wild = replace(RECIPE, lr=3.0, optimizer="sgd", epochs=1)
        events = run_to_end(settings_of(base, data, "head+all", wild), tmp_path / "run")
        evaluated = [event for event in events if isinstance(event, Evaluated)]
        assert [event.step for event in evaluated] == [0, 5]
        assert not evaluated[1].is_best  # a learning rate of 3 spoils it
        kept = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["vit"]["provenance"]
        assert kept["step"] == 0


class TestLora:
    def model(self) -> VisionTransformer:
        torch.manual_seed(0)
        model = VisionTransformer(SMALL)
        torch.nn.init.normal_(model.head.weight)
        return model.eval()

    def test_begins_as_the_model_and_trains_a_few(self) -> None:
        model, x = self.model(), torch.rand(2, 3, 28, 28)
        before = model(x)
        adapt(model, 4)
        assert torch.equal(model(x), before)
        D = SMALL.embed_dim
        per_block = 4 * (D + 3 * D) + 4 * (D + D)
        assert trainable_parameters(model) == SMALL.depth * per_block + 5 * (D + 1)

    def test_merged_is_the_same_function_in_plain_layers(self) -> None:
        model, x = self.model(), torch.rand(2, 3, 28, 28)
        names = set(model.state_dict())
        adapt(model, 4)
        for module in model.modules():
            if isinstance(module, LowRank):
                torch.nn.init.normal_(module.b, std=0.1)
        plain = merged(model)
        assert set(plain.state_dict()) == names
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)  # one sum in another order
        update = model.blocks[0].attn.qkv.parametrizations.weight
        expected = update.original + ALPHA_PER_RANK * update[0].b @ update[0].a
        torch.testing.assert_close(plain.blocks[0].attn.qkv.weight, expected)

    def test_a_run_leaves_a_plain_checkpoint(self, base: Path, data: Path, tmp_path: Path) -> None:
        run_to_end(settings_of(base, data, "lora", rank=2), tmp_path / "run")
        trained, source = load_model(resolve(str(tmp_path / "run" / "best"))), load_model(resolve(str(base)))
        changed = {
            name.removeprefix("blocks.0.")
            for name, tensor in trained.state_dict().items()
            if name.startswith("blocks.0.") and not torch.equal(tensor, source.state_dict()[name])
        }
        assert changed == {"attn.qkv.weight", "attn.proj.weight"}


class TestGroups:
    def test_layer_decay_in_closed_form(self) -> None:
        model = VisionTransformer(replace(SMALL, depth=3))
        names = {id(p): name for name, p in model.named_parameters()}
        scale = {
            names[id(p)]: group["lr_scale"]
            for group in parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
            for p in group["params"]
        }
        assert set(scale) == set(names.values())
        assert scale["head.weight"] == scale["norm.bias"] == 1
        assert scale["blocks.2.mlp.fc1.weight"] == 0.5
        assert scale["blocks.0.attn.qkv.bias"] == 0.125
        assert scale["patch_embed.proj.weight"] == scale["pos_embed"] == scale["cls_token"] == 0.0625

    def test_vectors_are_not_decayed(self) -> None:
        model = VisionTransformer(SMALL)
        for group in parameter_groups(model, weight_decay=0.1):
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}

    def test_the_rates_reach_the_optimiser(self, base: Path, data: Path) -> None:
        _, learner = one_step(settings_of(base, data))
        rates = {round(group["lr"] / learner.lr, 9) for group in learner.optimizer.param_groups}
        assert sorted(rates) == pytest.approx([0.75**3, 0.75**2, 0.75, 1.0])


class TestObjective:
    def test_class_weights(self, base: Path, data: Path) -> None:
        samples = training.open_settings_data(settings_of(base, data))
        weights = class_weights(samples)
        assert weights[torch.from_numpy(samples.train.labels)].mean() == pytest.approx(1.0, abs=1e-6)
        counts = np.bincount(samples.train.labels)
        assert weights[2] / weights[0] == pytest.approx(counts[0] / counts[2], rel=1e-6)

    def test_class_weights_change_the_step(self, base: Path, data: Path) -> None:
        heads = []
        for on in (False, True):
            _, learner = one_step(settings_of(base, data, recipe=replace(RECIPE, class_weights=on, optimizer="sgd")))
            heads.append(learner.model.head.bias.detach())
        assert not torch.allclose(heads[0], heads[1])

    def test_a_teacher_in_closed_form(self, base: Path, data: Path) -> None:
        """The first loss with a teacher alone: T² · KL(teacher ‖ uniform)."""
        settings = settings_of(base, data, recipe=replace(RECIPE, teacher_weight=1.0, teacher_temperature=2.0))
        task = build_task(settings, training.open_settings_data(settings))
        torch.manual_seed(0)
        known = VisionTransformer(replace(SMALL, num_classes=3)).eval()
        torch.nn.init.normal_(known.head.weight)
        task = replace(task, teacher=Teacher(known, task.preprocess, task.preprocess, [0, 1, 2]))
        learner = Learner(task, World(), 1)
        images = torch.stack([task.transform(task.data.train.image(i)) for i in range(16)])
        loss = learner.step(iter([(images, *[torch.zeros(16, dtype=torch.long)] * 2)]), 0, 0.0)
        with torch.no_grad():
            p = torch.softmax(known(learner.prepare(images)) / 2, dim=1)
        expected = 4 * (math.log(3) + (p * p.log()).sum(1).mean())
        assert loss == pytest.approx(expected.item(), rel=1e-4)

    def test_a_teacher_may_see_other_sizes_and_another_order(self, base: Path, data: Path) -> None:
        settings = settings_of(base, data)
        task = build_task(settings, training.open_settings_data(settings))
        known = VisionTransformer(replace(SMALL, num_classes=3, img_size=(56, 56))).eval()
        torch.nn.init.normal_(known.head.weight)
        own = replace(task.preprocess, size=(56, 56), mean=(0.2,) * 3, std=(0.3,) * 3)
        teacher = Teacher(known, own, task.preprocess, [2, 0, 1]).train()
        assert not teacher.model.training
        gray = torch.full((1, 3, 28, 28), 0.25)  # a pixel of 0.25 · 0.5 + 0.5 = 0.625
        seen = torch.full((1, 3, 56, 56), (0.625 - 0.2) / 0.3)
        torch.testing.assert_close(teacher(gray), known(seen)[:, [2, 0, 1]], rtol=1e-4, atol=1e-5)

    def test_answers_are_kept_and_are_those_to_whole_images(self, base: Path, data: Path, tmp_path: Path) -> None:
        """The teacher, at its own size, is asked once; the run is the one that its logits, given by hand, make."""
        named = write_tiny(tmp_path / "big", replace(SMALL, num_classes=3, img_size=(56, 56)), labels=("1", "0", "2"))
        file = tmp_path / "kept" / "answers.safetensors"
        recipe = replace(RECIPE, epochs=1, crop_padding=2, hflip=0.5)
        settings = replace(settings_of(base, data, recipe=recipe), teacher=str(named), teacher_answers=str(file))
        events = run_to_end(settings, tmp_path / "run")
        train = training.open_settings_data(settings).train
        assert [event.done for event in events if isinstance(event, Asked)][-1] == len(train)
        kept = load_file(file)["answers"]
        for i in (0, 40, len(train) - 1):
            seen = torch.from_numpy(train.load(i, resolve(str(named)).preprocess))
            logits = load_model(resolve(str(named))).eval()(seen[None])[0]
            torch.testing.assert_close(kept[i].float(), logits[[1, 0, 2]], atol=2e-3, rtol=2e-3)  # float16
        again = run_to_end(settings, tmp_path / "again")
        assert not any(isinstance(event, Asked) for event in again)
        assert state_digest(tmp_path / "run") == state_digest(tmp_path / "again")
        plain = run_to_end(replace(settings, teacher=None, teacher_answers=None), tmp_path / "plain")
        assert [e.loss for e in plain if isinstance(e, Stepped)] != [e.loss for e in again if isinstance(e, Stepped)]

    def test_answers_of_others_are_refused(self, base: Path, data: Path, tmp_path: Path) -> None:
        file = tmp_path / "answers.safetensors"
        for seed in (0, 1):
            named = write_tiny(tmp_path / f"t{seed}", replace(SMALL, num_classes=3), seed, labels=("0", "1", "2"))
            settings = replace(settings_of(base, data, recipe=replace(RECIPE, epochs=1)), teacher=str(named))
            settings = replace(settings, teacher_answers=str(file))
            if seed == 0:
                run_to_end(settings, tmp_path / "run")
        with pytest.raises(UsageError, match="another teacher's answers"):
            run_to_end(settings, tmp_path / "other")
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(VitError, match="cannot be read"):
            run_to_end(settings, tmp_path / "damaged")
        with pytest.raises(UsageError, match="name one with --teacher"):
            build_task(replace(settings, teacher=None), training.open_settings_data(settings))
        moving = replace(settings, recipe=replace(settings.recipe, mixup=0.2))
        samples = training.open_settings_data(settings)
        with pytest.raises(UsageError, match="--set mixup=0"):
            build_task(moving, samples)

    def test_the_same_classes_keep_their_head(self, data: Path, tmp_path: Path) -> None:
        known = write_tiny(tmp_path / "known", replace(SMALL, num_classes=3), labels=("0", "1", "2"))
        other = write_tiny(tmp_path / "other", replace(SMALL, num_classes=3), labels=("1", "0", "x"))
        heads = []
        for checkpoint in (known, other):
            task = build_task(settings_of(checkpoint, data), training.open_settings_data(settings_of(checkpoint, data)))
            heads.append(task.model.head.weight.detach())
        assert torch.equal(heads[0], load_file(known / "model.safetensors")["head.weight"])
        assert not heads[1].any()

    def test_a_teacher_that_does_not_know_a_class(self, base: Path, data: Path) -> None:
        settings = replace(settings_of(base, data), teacher=str(base))
        with pytest.raises(UsageError, match="does not know the class '0'"):
            build_task(settings, training.open_settings_data(settings))

    def test_provenance_names_origin_and_teacher_and_no_path(self, base: Path, data: Path, tmp_path: Path) -> None:
        named = write_tiny(tmp_path / "first" / "best", replace(SMALL, num_classes=3), labels=("0", "1", "2"))
        settings = replace(settings_of(base, data, recipe=replace(RECIPE, epochs=1)), teacher=str(named))
        run_to_end(settings, tmp_path / "run")
        kept = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["vit"]["provenance"]
        assert (kept["trained_by"], kept["base_model"], kept["teacher"]) == ("vit finetune", "tiny", "first")
        assert str(tmp_path) not in json.dumps(kept)

    def test_tokens_like_the_teachers(self, base: Path, data: Path) -> None:
        """What is added to the loss is 2 − 2 · correlation, averaged; where both are alike, nothing."""
        settings = settings_of(base, data)
        task = build_task(settings, training.open_settings_data(settings))
        task = replace(task, recipe=replace(RECIPE, teacher_weight=0.0, token_weight=3.0))
        torch.manual_seed(0)
        known = VisionTransformer(replace(SMALL, num_classes=3, reg_tokens=2)).eval()  # more tokens, as many patches
        losses = []
        for model in (known, deepcopy(task.model).eval()):
            teacher = Teacher(model, task.preprocess, task.preprocess, [0, 1, 2])
            learner = Learner(replace(task, teacher=teacher), World(), 1)
            images = torch.stack([task.transform(task.data.train.image(i)) for i in range(16)])
            losses.append(learner.step(iter([(images, *[torch.zeros(16, dtype=torch.long)] * 2)]), 0, 0.0))
        x = learner.prepare(images)
        ours, theirs = (m.intermediates(x, ["blocks.0"])["blocks.0"][:, -4:].flatten(0, 1) for m in (task.model, known))
        correlations = [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in zip(ours, theirs, strict=True)]
        assert losses[0] - losses[1] == pytest.approx(3 * (2 - 2 * np.mean(correlations)), rel=1e-3)
        assert losses[1] == pytest.approx(math.log(3), abs=1e-4)

    def test_tokens_that_cannot_be_compared(self, base: Path, data: Path, tmp_path: Path) -> None:
        settings = settings_of(base, data, recipe=replace(RECIPE, token_weight=1.0))
        samples = training.open_settings_data(settings)
        with pytest.raises(UsageError, match="with another one as its teacher"):
            build_task(settings, samples)
        task = build_task(replace(settings, recipe=RECIPE), samples)
        for changes, message in (({"embed_dim": 32}, "width is 32"), ({"patch_size": (7, 7)}, r"grid is \(4, 4\)")):
            other = VisionTransformer(replace(SMALL, num_classes=3, **changes))
            with pytest.raises(UsageError, match=message):
                require_like_tokens(Teacher(other, task.preprocess, task.preprocess, [0, 1, 2]), task.vit)

    @pytest.mark.parametrize("amp", ["bf16", "fp16"])
    def test_autocast_trains_and_resumes(self, base: Path, data: Path, tmp_path: Path, amp: str) -> None:
        recipe = replace(RECIPE, amp=amp, batch_size=40, micro_batch=40)  # type: ignore[arg-type]
        settings = settings_of(base, data, recipe=recipe)
        events = run_to_end(settings, tmp_path / "whole")
        assert all(math.isfinite(event.loss) for event in events if isinstance(event, Stepped))
        interrupt(settings, tmp_path / "cut", 2)
        run_to_end(settings, tmp_path / "cut")
        assert state_digest(tmp_path / "cut") == state_digest(tmp_path / "whole")

    def test_checkpointing_changes_no_gradient(self, base: Path, data: Path) -> None:
        weights = []
        for on in (False, True):
            recipe = replace(RECIPE, grad_checkpointing=on, drop_path=0.5, dropout=0.1, optimizer="sgd")
            _, learner = one_step(settings_of(base, data, recipe=recipe))
            weights.append(learner.model.state_dict())
        torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def interrupt(settings: Settings, folder: Path, step: int) -> None:
    """Run until SIGTERM at `step`."""
    training.begin(settings, training.open_settings_data(settings), folder)
    with pytest.raises(Stopped, match="vit finetune --resume"):
        run_and_signal(settings, folder, step, signal.SIGTERM)


@pytest.mark.parametrize(("tune", "rank"), [("all", 0), ("head+all", 0), ("lora", 2)])
def test_interrupted_ends_with_the_same_bits(base: Path, data: Path, tmp_path: Path, tune: str, rank: int) -> None:
    settings = settings_of(base, data, tune, rank=rank)
    run_to_end(settings, tmp_path / "whole")
    interrupt(settings, tmp_path / "cut", 3)
    resumed, samples = training.resumed(tmp_path / "cut")
    assert replace(resumed, data=settings.data) == settings
    list(training.train(resumed, samples, tmp_path / "cut", device="cpu"))
    assert state_digest(tmp_path / "cut") == state_digest(tmp_path / "whole")
    weights = [(tmp_path / run / "best" / "model.safetensors").read_bytes() for run in ("cut", "whole")]
    assert weights[0] == weights[1]


def test_validation_sees_images_as_predict_does(base: Path, data: Path) -> None:
    settings = settings_of(base, data)
    samples = training.open_settings_data(settings).train
    preprocess = build_task(settings, training.open_settings_data(settings)).preprocess
    seen = torch.cat([pixels for pixels, _ in batches(samples, range(len(samples)), preprocess)])
    assert torch.equal(seen[3], torch.from_numpy(samples.load(3, preprocess)))
    assert [i for _, indices in batches(samples, range(1, 80, 2), preprocess) for i in indices] == list(range(1, 80, 2))


class TestEndings:
    def test_patience(self, base: Path, data: Path, tmp_path: Path) -> None:
        """A learning rate of nothing never gets better than at its first evaluation."""
        still = replace(RECIPE, lr=1e-12, epochs=9, patience=2, ema_decay=0.0)
        events = run_to_end(settings_of(base, data, recipe=still), tmp_path / "run")
        assert [event.epoch for event in events if isinstance(event, Evaluated)] == [1, 2, 3]
        assert run_to_end(settings_of(base, data, recipe=still), tmp_path / "run") == []  # it stays ended

    def test_a_budget_ends_the_run_and_the_schedule(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of the time is gone after each look at a clock that a test moves."""
        monkeypatch.setattr(training, "tail", lambda task, device: 0.0)
        shares = iter([0.0, 0.2, 0.2, 0.4, 0.4, 0.7, 0.7, 1.01, 2.0])
        monkeypatch.setattr(Clock, "share", property(lambda self: next(shares)))
        settings = settings_of(base, data, recipe=replace(RECIPE, epochs=100, warmup_steps=0, ema_decay=0.0))
        events = run_to_end(replace(settings, budget=60.0), tmp_path / "run")
        rates = [event.lr for event in events if isinstance(event, Stepped)]
        assert rates == pytest.approx([3e-3 * 0.5 * (1 + math.cos(math.pi * share)) for share in (0, 0.2, 0.4, 0.7)])
        assert isinstance(events[-1], Evaluated)

    def test_an_evaluation_that_takes_the_rest_of_the_time_is_the_last(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No step follows it, and no second evaluation."""
        monkeypatch.setattr(training, "tail", lambda task, device: 0.0)
        validated = fitting.validate
        over = False

        def slow(*arguments: Any) -> Any:
            nonlocal over
            over = True
            return validated(*arguments)

        monkeypatch.setattr(fitting, "validate", slow)
        monkeypatch.setattr(Clock, "share", property(lambda self: 1.01 if over else 0.1))
        settings = settings_of(base, data, recipe=replace(RECIPE, epochs=100))
        events = run_to_end(replace(settings, budget=60.0), tmp_path / "run")
        assert [event.epoch for event in events if isinstance(event, Evaluated)] == [1.0]
        assert isinstance(events[-1], Evaluated)

    def test_a_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        clock = Clock(50.0, began=90.0, before=5.0)
        clock.tail = 10.0
        assert clock.share == pytest.approx(15 / 40)
        assert Clock(None).share == 0

    @pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400)])
    def test_time_spans(self, text: str, value: float) -> None:
        assert seconds(text) == value

    @pytest.mark.parametrize("text", ["", "m", "-3m", "0", "1d", "nan", "inf"])
    def test_no_time_spans(self, text: str) -> None:
        with pytest.raises(UsageError, match="20m"):
            seconds(text)

    def fits_two(self, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
        """A machine on which a step with more than two images at once raises `error`."""
        whole = Learner.step

        def step(self: Learner, batches: Iterator[tuple[Tensor, Tensor]], step: int, lr: float) -> float:
            if self.recipe.micro_batch > 2:
                raise error
            return whole(self, batches, step, lr)

        monkeypatch.setattr(learning.Learner, "step", step)

    def test_out_of_memory_at_first_takes_smaller_bites_of_the_same_batch(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fits_two(
            monkeypatch, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        )
        events = run_to_end(settings_of(base, data), tmp_path / "run")
        assert [event.micro_batch for event in events if isinstance(event, Shrunk)] == [4, 2]
        config = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
        assert (config["micro_batch"], config["batch_size"]) == (2, 16)
        assert isinstance(events[-1], Evaluated)

    def test_out_of_memory_from_the_command_line(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The estimate before the run meets it first."""
        self.fits_two(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        line = ["finetune", "--data", data, "-m", base, "--tune", "all", "--epochs", 1, "--out", tmp_path / "run"]
        result = CliRunner().invoke(app, [str(part) for part in [*line, "--score", "none"]])
        assert result.exit_code == 0, result.stderr
        assert "out of memory: again with 2 images at once, the same batch size" in result.stderr
        monkeypatch.setattr(learning.Learner, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
        task = build_task(settings_of(base, data), training.open_settings_data(settings_of(base, data)))
        with pytest.raises(learning.OutOfMemory, match="1 images at once do not fit into memory: lower"):
            estimate(task, "cpu")

    def test_smaller_micro_batches_keep_pairs(self) -> None:
        assert smaller_micro_batch(Recipe(batch_size=34, micro_batch=34, mixup=0.2)) == 2
        assert smaller_micro_batch(Recipe(batch_size=34, micro_batch=2, mixup=0.2)) is None
        assert smaller_micro_batch(Recipe(batch_size=34, micro_batch=34, mixup=0.0)) == 17
        assert smaller_micro_batch(Recipe(batch_size=34, micro_batch=1, mixup=0.0)) is None

    def test_other_errors_are_not_taken_for_memory(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def step(*_: Any) -> float:
            raise RuntimeError("a bug")

        monkeypatch.setattr(fitting.Learner, "step", step)
        with pytest.raises(RuntimeError, match="a bug"):
            run_to_end(settings_of(base, data), tmp_path / "run")


def test_learning_rates_are_tried_then_all_of_train_is_used(base: Path, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, lrs=(1e-9, 3e-3), epochs=3, ema_decay=0.0)
    settings = settings_of(base, data, recipe=recipe)
    events = run_to_end(settings, tmp_path / "run")
    tried = [event for event in events if isinstance(event, Tried)]
    assert [event.lr for event in tried] == [1e-9, 3e-3, 3e-3]
    assert tried[1].accuracy > tried[0].accuracy
    last = events[-1]
    assert isinstance(last, Evaluated)
    assert last.validation.n == 0
    kept = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["vit"]["provenance"]
    assert kept["data"]["images"] == 90
    assert kept["recipe"]["lr"] == 3e-3
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(config["tried_lrs"]) == ["1e-09", "0.003"]


class TestEstimate:
    def test_measures_without_changing_anything(self, base: Path, data: Path) -> None:
        settings = settings_of(base, data)
        task = build_task(settings, training.open_settings_data(settings))
        before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        cost = estimate(task, "cpu")
        assert 0 < cost.forward < cost.training
        assert (cost.images, cost.epochs, cost.held_out) == (80, 2.0, len(task.data.val))
        weights = 4 * sum(p.numel() for p in task.model.parameters())
        assert cost.memory > 5 * weights  # weights, their average, gradients, two moments; then activations
        torch.testing.assert_close(task.model.state_dict(), before, rtol=0, atol=0)

    def test_a_head_costs_forward_passes_alone(self, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vitcli.training.estimate.Learner", None)  # no optimiser, whose library takes seconds
        task = build_task(settings_of(base, data, "head"), training.open_settings_data(settings_of(base, data)))
        cost = estimate(task, "cpu", training=False)
        assert cost.memory == 4 * sum(p.numel() for p in task.model.parameters())
        assert cost.head_seconds > cost.forward * 80 > 0

    def test_checkpointing_keeps_less(self, base: Path, data: Path) -> None:
        costs = [
            estimate(build_task(s, training.open_settings_data(s)), "cpu").memory
            for s in (settings_of(base, data, recipe=replace(RECIPE, grad_checkpointing=on)) for on in (False, True))
        ]
        assert costs[1] < costs[0]

    @pytest.mark.parametrize(
        ("images", "training", "budget", "tune"),
        [
            (20, 0.01, None, "head"),  # two a class
            (10_000, 0.01, None, "head+all"),
            (10_000_000, 0.01, None, "head"),  # days
            (10_000, 0.01, 1200.0, "head+all"),
            (10_000, 0.01, 120.0, "head"),  # not one epoch
        ],
    )
    def test_auto(self, images: int, training: float, budget: float | None, tune: str) -> None:
        cost = Estimate(0.003, training, 1 << 20, epochs=15, images=images, held_out=images // 10, scored=images // 10)
        assert choose_tune(cost, 10, budget)[0] == tune

    def test_auto_looks_at_memory_and_says_when_nothing_fits_the_time(self) -> None:
        cost = Estimate(0.003, 0.01, 3 << 30, epochs=15, images=10_000, held_out=1000, scored=1000)
        assert choose_tune(cost, 10, None, 4 << 30)[0] == "head+all"
        assert choose_tune(cost, 10, None, 1 << 30) == (
            "head", "training all of it takes about 3.0 GiB, of 1.0 GiB free; a smaller --set micro_batch takes less",
        )  # fmt: skip
        assert choose_tune(cost, 10, 20.0) == (
            "head", "on what fits the time budget: a head on all images would take about 45 s",
        )  # fmt: skip
        assert share_in_time(cost, 20.0) == pytest.approx((20 - AFTER - 6) / 30)
        assert share_in_time(cost, 5.0) == 0.01
        assert share_in_time(cost, 500.0) == 1.0
        free = memory_free("cpu")
        assert free is None or 1 << 20 < free < 1 << 50

    def test_a_budget_too_short_for_all_images_takes_a_share(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = Estimate(1.0, 3.0, 1 << 20, epochs=2, images=80, held_out=10, scored=10)
        monkeypatch.setattr("vitcli.training.plan.estimate", lambda *_, **__: slow)
        monkeypatch.setattr(Clock, "used", property(lambda self: 3.0))
        line = ["finetune", "--data", data, "-m", base, "--time-budget", "60s", "--out", tmp_path / "run"]
        result = CliRunner().invoke(app, [str(part) for part in line])
        assert result.exit_code == 0, result.stderr
        assert "on what fits the time budget" in " ".join(result.stderr.split())
        config = json.loads((tmp_path / "run" / "run.json").read_text())
        assert config["share"] == pytest.approx((60 - 3 - AFTER - 20) / 80)
        assert f"{round(config['share'] * 80)} train" in result.stderr or "train, " in result.stderr

    def test_bfloat16_without_instructions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for flags, slow in (
            ({"amx_bf16": False, "avx512_bf16": False}, True),
            ({"amx_bf16": True}, False),
            ({}, False),
        ):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
            assert emulated("bf16", "cpu") is slow
            assert not emulated("", "cpu")
            assert not emulated("bf16", "cuda")

    def test_compiling_is_not_estimated(self, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", None)
        settings = settings_of(base, data, recipe=replace(RECIPE, compile=True))
        estimate(build_task(settings, training.open_settings_data(settings)), "cpu")


class TestRecipes:
    def test_paper_is_table_4(self) -> None:
        recipe = load_recipe("paper", "finetune").recipe
        assert (recipe.optimizer, recipe.betas[0], recipe.batch_size, recipe.schedule) == ("sgd", 0.9, 512, "cosine")
        assert (recipe.weight_decay, recipe.clip_grad) == (0.0, 1.0)
        assert recipe.lrs == (0.001, 0.003, 0.01, 0.03)
        assert (recipe.steps, recipe.warmup_steps, recipe.crop_scale) == (2500, 500, 0.05)
        assert recipe.total_steps(7) == 2500

    def test_small_images_are_shifted_not_cropped(self) -> None:
        recipe = small_images(load_recipe(None, "finetune").recipe, 28)
        assert (recipe.crop_scale, recipe.crop_padding, recipe.randaugment) == (1.0, 1, "")

    @pytest.mark.parametrize("changes", [{"amp": "fp8"}, {"optimizer": "lion"}, {"schedule": "none"}])
    def test_words_that_no_setting_knows(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="must be one of"):
            replace(Recipe(), **changes)


class TestCommand:
    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["finetune", *map(str, arguments)])

    def test_the_number_of_classes_is_checked(self, base: Path, data: Path) -> None:
        result = self.invoke("--data", data, "-m", base, "--classes", 10)
        assert result.exit_code == 2
        assert "--classes 10" in result.stderr
        assert "holds 3: 0, 1, 2" in result.stderr

    def test_several_processes_train_all_of_it(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        result = self.invoke("--data", data, "-m", base, "--dry-run", "--out", tmp_path / "run")
        assert result.exit_code == 0, result.stderr
        assert "all: " in result.stderr
        assert "several processes train all of it" in " ".join(result.stderr.split())

    def test_a_recipe_with_a_model_of_its_own(self, base: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_text('[model]\narchitecture = "vit_tiny_patch16_224"\n[recipe]\nepochs = 1\n')
        result = self.invoke("--data", data, "-m", base, "--recipe", tmp_path / "mine.toml", "--dry-run")
        assert result.exit_code == 2
        assert "has a [model] part" in result.stderr

    def test_a_run_of_steps_takes_no_epochs(self, base: Path, data: Path, tmp_path: Path) -> None:
        run_to_end(settings_of(base, data, recipe=replace(RECIPE, steps=2)), tmp_path / "run")
        result = self.invoke("--resume", tmp_path / "run", "--epochs", 200)
        assert result.exit_code == 2
        assert "is a run of 2 steps" in result.stderr

    def test_a_held_out_image_that_cannot_be_read(self, base: Path, tmp_path: Path) -> None:
        for split, label in itertools.product(("train", "val", "test"), ("dark", "light")):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(6):
                shade = 20 * i + (100 if label == "light" else 0)
                Image.new("RGB", (28, 28), (shade, i, len(split))).save(
                    tmp_path / "photos" / split / label / f"{i}.png"
                )
        (tmp_path / "photos" / "test" / "dark" / "0.png").write_bytes(b"nothing")
        line = ["--data", tmp_path / "photos", "-m", base, "--tune", "head", "--out", tmp_path / "run", "--json"]
        result = self.invoke(*line)
        assert result.exit_code == 3, result.stderr
        document = json.loads(result.stdout)
        assert (document["failed"], document["measures"]["n"]) == (1, 11)

    def test_a_head_that_is_fitted_again_is_logged_once(self, base: Path, data: Path, tmp_path: Path) -> None:
        settings = settings_of(base, data, "head")
        run_to_end(settings, tmp_path / "run")
        first = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        run_to_end(settings, tmp_path / "run")
        again = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(first) == len(again) == 2

    def test_a_dry_run_shows_the_plan_and_leaves_the_disk_alone(
        self, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = self.invoke("--data", data, "-m", base, "--dry-run", "--img-size", "28x42")
        assert result.exit_code == 0, result.stderr
        for part in ("head+all", "trainable parameters", "about", "MiB", "28x42 pixels", "resampled from 2×2"):
            assert part in result.stderr
        assert result.stdout == ""
        document = json.loads(self.invoke("--data", data, "-m", base, "--dry-run", "--json").stdout)
        assert document["classes"] == ["0", "1", "2"]
        assert document["settings"]["start"]["tune"] == "head+all"
        assert document["seconds"] > 0
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--tune", "some"], "'some' is not one of 'auto', 'head', 'all', 'lora'"),
            (["--lora-rank", "4"], "belongs to --tune lora"),
            (["--posemb-kernel", "nearest"], "'nearest' is not one of 'timm', 'paper', 'hf', 'torchvision', 'dinov2'"),
            (["--time-budget", "soon"], "is no time span"),
            (["--score", "train"], "'train' is not one of 'auto', 'val', 'test', 'none'"),
            (["--score", "test"], "has no such split"),
            (["--score", "val", "--val-fraction", "0"], "has no such split"),
            (["--posemb-kernel", "paper"], "without one it would change nothing"),
            (["--img-size", "30"], "30 is not a multiple of the patch's 14 pixels"),
            (["--tune", "head", "--epochs", "3", "--lr", "1"], "; --epochs, --lr would change nothing"),
            (["--set", "depth=3"], "no setting 'depth'"),
            (["--time-budget", "5m", "--recipe", "paper"], "has no time budget"),
        ],
    )
    def test_wrong_options(self, base: Path, data: Path, arguments: list[str], message: str) -> None:
        result = self.invoke("--data", data, "-m", base, *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())

    def test_resume_takes_no_other_settings(self, tmp_path: Path) -> None:
        result = self.invoke("--resume", tmp_path, "--tune", "head", "--lr", "1")
        assert result.exit_code == 2
        assert "--tune, --lr would change nothing" in " ".join(result.stderr.split())

    def test_from_a_folder_to_a_number(self, base: Path, data: Path, tmp_path: Path) -> None:
        result = self.invoke("--data", data, "-m", base, "--out", tmp_path / "run", "--epochs", 2, "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert document["split"] == "val"
        assert document["measures"]["top1"] > 0.9
        assert Path(document["report"]).exists()
        assert f"vit predict -m {tmp_path / 'run' / 'best'}" in "".join(result.stderr.split("\n"))
        report = Path(document["report"]).read_text()
        assert "validation images" in report
        assert "the epoch was chosen on the same images" in report
        again = json.loads(self.invoke("--resume", tmp_path / "run", "--json").stdout)
        assert (again["best"], again["last"]) == (document["best"], document["last"])

    def test_images_that_were_trained_on_are_not_scored(self, base: Path, data: Path, tmp_path: Path) -> None:
        """Once the learning rate is chosen, the held-out slice is trained on: it can tell nothing any more."""
        short = ["--set", "steps=2", "--set", "warmup_steps=0", "--set", "lrs=[0.01, 0.03]", "--batch-size", 32]
        result = self.invoke(
            "--data", data, "-m", base, "--out", tmp_path / "run", "--recipe", "paper", *short, "--json"
        )
        assert result.exit_code == 0, result.stderr
        assert "none are left to score" in " ".join(result.stderr.split())
        assert "all: " in result.stderr  # not the fitted head first: table 4 begins with zeros
        assert "measures" not in json.loads(result.stdout)
        assert not (tmp_path / "run" / "features.safetensors").exists()
        assert "90 train, 0 validation images" in (tmp_path / "run" / "report.html").read_text()
