"""`--folds`: every image scored once, by a model that has not seen it; one checkpoint of all, which says so."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.helpers.checkpoints import write_tiny
from tests.helpers.finetuning import RECIPE, SMALL, settings_of
from tests.helpers.terminal import invoke
from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import DataError, Stopped, UsageError
from vitcli.inference.evaluate import evaluate
from vitcli.training import head as heads
from vitcli.training.events import Featured, FoldScored, Stepped
from vitcli.training.folds import dealt
from vitcli.training.logistic import fit_head
from vitcli.training.plan import plan
from vitcli.training.run import FinishedRun, finetune, resume
from vitcli.training.settings import Settings
from vitcli.training.train import open_settings_data

N, K = 60, 3
OPTIONS: dict[str, Any] = {
    "epochs": 1, "batch_size": 16, "micro_batch": 8, "amp": "fp32", "mixup": 0.0, "randaugment": "", "compile": False,
    "device": "cpu", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a manifest of noisy stripes, of which a test split is left alone: three images a group."""
    place = tmp_path_factory.mktemp("folds")
    write_tiny(place / "model", SMALL)
    rng = np.random.default_rng(0)
    lines = ["file_name,label,split,group"]
    plain = ["file_name,label"]
    for i in range(N + 6):
        pixels = rng.integers(0, 150, (30, 30), dtype=np.uint8)
        pixels[:, 10 * (i % K) : 10 * (i % K) + 10] += 60
        Image.fromarray(pixels).save(place / f"{i}.png")
        split = "test" if i >= N else "val" if i >= N - 12 else "train"
        lines.append(f"{i}.png,class {i % K},{split},{f'house {i // 3}' if i < N else ''}")
        plain += [f"{i}.png,class {i % K}"] if i < N else []
    (place / "grouped.csv").write_text("\n".join(lines))
    (place / "plain.csv").write_text("\n".join(plain))
    return place


def settings(place: Path, data: str = "plain.csv", tune: str = "head", folds: int = 5) -> Settings:
    base = settings_of(place / "model", place / data, tune)
    return Settings(base.architecture, {}, base.data, RECIPE, start=base.start, folds=folds)


@pytest.fixture(scope="module")
def head_run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, list[Any]]:
    events: list[Any] = []
    run = finetune(
        place / "grouped.csv", model=str(place / "model"), tune="head", folds=5, device="cpu", workers=0,
        out=tmp_path_factory.mktemp("runs") / "head", on_event=events.append,
    )  # fmt: skip
    return run, events


def test_every_image_is_scored_once_by_a_head_that_has_not_seen_it(
    place: Path, head_run: tuple[FinishedRun, list[Any]]
) -> None:
    run, events = head_run
    assert run.outcome is not None
    found = run.outcome.evaluation
    assert (found.measures.n, run.outcome.split, run.outcome.folds) == (N, "folds", 5)
    assert sorted(Path(name).stem for name in found.names) == sorted(str(i) for i in range(N))
    assert max(event.done for event in events if isinstance(event, Featured)) == N  # one pass
    assert sum(isinstance(event, Featured) and event.done == N for event in events) == 1
    data = open_settings_data(settings(place, "grouped.csv"))
    fold = dealt(data.train, settings(place, "grouped.csv"), data.classes)
    x, labels = heads.stored_features(plan_task(place), run.folder), torch.from_numpy(data.train.labels)
    keys = heads.group_keys(data.train)
    assert keys is not None
    for number in range(1, 6):
        kept, out = torch.from_numpy(fold != number), torch.from_numpy(fold == number)
        own = [key for key, keep in zip(keys, kept.tolist(), strict=True) if keep]
        fitted = fit_head(x[kept], labels[kept], K, 0, own)
        torch.testing.assert_close(torch.from_numpy(found.logits)[out], F.linear(x[out], fitted.weight, fitted.bias))


def plan_task(place: Path) -> Any:
    own = settings(place, "grouped.csv")
    return plan(own, open_settings_data(own), place / "never").task


def test_groups_stay_in_one_fold_and_classes_are_dealt_evenly(place: Path) -> None:
    for name in ("grouped.csv", "plain.csv"):
        own = settings(place, name)
        data = open_settings_data(own)
        assert (len(data.train), len(data.val)) == (N, 0)
        fold = dealt(data.train, own, data.classes)
        for number in range(1, 6):
            assert np.bincount(data.train.labels[fold == number], minlength=K).tolist() == [N // K // 5] * K
        if data.train.groups:
            assert all(len({*fold[np.array(data.train.groups) == one]}) == 1 for one in set(data.train.groups))


def test_the_checkpoint_is_of_all_images_and_says_whose_number_it_is(
    place: Path, head_run: tuple[FinishedRun, list[Any]], tmp_path: Path
) -> None:
    run, _ = head_run
    assert run.outcome is not None
    measures = run.outcome.evaluation.measures
    checkpoint = resolve(str(run.best))
    said = checkpoint.provenance["cross_validation"]
    assert (said["folds"], said["images"], said["accuracy"]) == (5, N, measures.top1)
    assert "trained without" in said["of"]
    assert checkpoint.provenance["data"]["images"] == N
    alone = finetune(place / "plain.csv", model=str(place / "model"), tune="head", val_fraction=0.0, out=tmp_path / "a")
    ours, theirs = (evaluate(one, place / "plain.csv").logits for one in (run.best, alone.best))
    assert np.abs(ours - theirs).max() < 0.5  # the same but for the slice that chose the penalty
    report = (run.folder / "report.html").read_text()
    assert "each on the images that it was trained without" in report
    assert f"trained on all {N} images" in report
    card = model_card(checkpoint, "org/name", None)
    assert "5 folds of train, by 5 other models" in card
    assert f"value: {measures.top1}" in card


def test_models_are_trained_again_without_each_fold(place: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    run = finetune(
        place / "plain.csv", model=str(place / "model"), tune="all", folds=3, out=tmp_path / "run",
        on_event=events.append, **OPTIONS,
    )  # fmt: skip
    assert run.outcome is not None
    scored = [event for event in events if isinstance(event, FoldScored)]
    own = settings(place, folds=3)
    data = open_settings_data(own)
    fold = dealt(data.train, own, data.classes)
    sizes = np.bincount(fold)[1:].tolist()
    assert [(one.fold, one.folds, one.n) for one in scored] == [(i + 1, 3, sizes[i]) for i in range(3)]
    measures = run.outcome.evaluation.measures
    assert measures.top1 == pytest.approx(np.average([one.score for one in scored], weights=sizes))
    for number in (1, 2, 3):
        part = run.folder / "folds" / str(number)
        assert resolve(str(part / "best")).provenance["data"]["images"] == N - sizes[number - 1]
        again = evaluate(part / "best", data.train.keep(fold == number), data.classes)
        assert (again.logits == run.outcome.evaluation.logits[fold == number]).all()
    assert resolve(str(run.best)).provenance["data"]["images"] == N


def test_a_stopped_run_goes_on_to_the_same_number(place: Path, tmp_path: Path) -> None:
    """In the middle of a fold; what is done is not done again."""
    begun: list[int] = []

    def stop_in_the_second_fold(event: Any) -> None:
        if isinstance(event, Stepped):
            begun.append(event.step)
            if begun.count(1) == 3 and event.step == 1:  # all, fold 1, fold 2
                signal.raise_signal(signal.SIGTERM)

    options = {**OPTIONS, "model": str(place / "model"), "tune": "all", "folds": 3}
    whole = finetune(place / "plain.csv", out=tmp_path / "whole", **options)
    with pytest.raises(Stopped, match=f"--resume {tmp_path / 'cut'}$"):
        finetune(place / "plain.csv", out=tmp_path / "cut", on_event=stop_in_the_second_fold, **options)
    events: list[Any] = []
    gone_on = resume(tmp_path / "cut", device="cpu", workers=0, on_event=events.append)
    assert whole.outcome is not None
    assert gone_on.outcome is not None
    assert (whole.outcome.evaluation.logits == gone_on.outcome.evaluation.logits).all()
    assert sum(isinstance(event, Stepped) for event in events) < 2 * max(begun)
    with pytest.raises(UsageError, match="--epochs is for a new run"):
        resume(tmp_path / "cut", epochs=3)


def test_the_interval_allows_for_groups(place: Path, head_run: tuple[FinishedRun, list[Any]]) -> None:
    run, _ = head_run
    assert run.outcome is not None
    groups = run.outcome.evaluation.groups
    assert groups is not None
    assert len(set(groups.tolist())) == N // 3


def test_the_command_shows_whose_number_it_is(place: Path, tmp_path: Path) -> None:
    base = ["finetune", "--data", place / "grouped.csv", "-m", place / "model", "--tune", "head", "--folds", "5"]
    done = invoke(*base, "--out", tmp_path / "run", "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["split"], document["folds"], document["measures"]["n"]) == ("folds", 5, N)
    said = " ".join(done.stderr.split())
    assert "5 models, each on the images that it was trained without, 60 images" in said
    assert "the checkpoint is none of them" in said
    assert "group by group" in said
    assert "the 12 validation images are among the others" in said
    for option in (["--val-fraction", "0.2"], ["--score", "test"]):
        refused = invoke(*base, "--out", tmp_path / "no", *option)
        assert refused.exit_code == 2
        assert "would change nothing" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"time_budget": "9m"}, "no time budget"), ({"patience": 2}, "no patience"), ({"folds": 1}, "2 folds or more")],
)
def test_what_folds_cannot_do_is_refused(place: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finetune(place / "plain.csv", **{"model": str(place / "model"), "tune": "all", "folds": 5, **changes})


def test_classes_and_groups_too_few_for_folds_are_named(place: Path) -> None:
    lines = (place / "plain.csv").read_text().splitlines()
    names = ["group", *(f"{'anna' if line.endswith('2') else i % 8}" for i, line in enumerate(lines[1:]))]
    (place / "one.csv").write_text("\n".join(f"{line},{name}" for line, name in zip(lines, names, strict=True)))
    own = settings(place, "one.csv")
    with pytest.raises(DataError, match=r"all images of 'class 2' fall into one fold.*two groups or more"):
        plan(own, open_settings_data(own))
    few = ["group", *(str(i % 3) for i in range(N))]
    (place / "few.csv").write_text("\n".join(f"{line},{name}" for line, name in zip(lines, few, strict=True)))
    own = settings(place, "few.csv")
    with pytest.raises(DataError, match="only 3 groups to deal"):
        plan(own, open_settings_data(own))
