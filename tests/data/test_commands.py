"""Every command that reads labelled images reads folders alike: it asks where they are ambiguous, and learns."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import LABELS, write_tiny
from tests.helpers.terminal import invoke
from vitcli.errors import EXIT_FAILED, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE
from vitcli.training.settings import Settings
from vitcli.training.train import begin, open_settings_data, resumed

SMALL = ["--batch-size", "2", "--set", "depth=1", "--set", "embed_dim=24", "--img-size", "32", "--patch-size", "16"]
ANSWER = "train=lernen,test=pruefen"
COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "train": lambda data, _, out: ["train", "--data", data, "--dry-run", "--out", out, *SMALL],
    "finetune": lambda data, model, out: ["finetune", "-m", model, "--data", data, "--dry-run", "--out", out],
    "evaluate": lambda data, model, _: ["evaluate", model, "--data", data],
    "compare": lambda data, _, out: ["compare", "--data", data, "--dry-run", "--models", "vit-small", "--out", out],
    "inspect": lambda data, model, _: ["inspect", model, "--data", data, "--count", "2", "--attention-distance"],
    "resize-posemb": lambda data, model, out: ["resize-posemb", model, "-s", "64", "-o", out, "--check", data],
    "check": lambda data, _, __: ["check", data, "--no-near"],
}  # fmt: skip


def fill(root: Path, *folders: str, n: int = 4) -> Path:
    """`n` pictures of each class in each of `folders`, all different."""
    rng = np.random.default_rng(0)
    for folder in folders:
        for label in LABELS:
            (root / folder / label).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and the data set `data`, whose splits have names that are not known."""
    place = tmp_path_factory.mktemp("commands")
    write_tiny(place / "model")
    fill(place / "data", "lernen", "pruefen")
    fill(place / "known", "Training_Images", "2_Testing")
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_ambiguous_folders_are_asked_about(place: Path, tmp_path: Path, command: str) -> None:
    arguments = COMMANDS[command](place / "data", place / "model", tmp_path / "out")
    refused = invoke(*arguments)
    said = " ".join((refused.stdout + refused.stderr).split())
    assert refused.exit_code == (EXIT_SOME_FAILED if command == "check" else EXIT_FAILED), said
    assert "'lernen', 'pruefen' hold the same folders" in said
    assert "--folders" in said
    answered = invoke(*arguments, "--folders", ANSWER)
    said = " ".join((answered.stdout + answered.stderr).split())
    assert answered.exit_code == EXIT_OK, said
    assert "SPOILS" not in said
    wrong = invoke(*COMMANDS[command](place / "data", place / "model", tmp_path / "other"), "--folders", "lernen")
    assert wrong.exit_code == EXIT_USAGE
    assert "write classes where every folder is a class" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_known_names_need_no_answer(place: Path, tmp_path: Path, command: str) -> None:
    result = invoke(*COMMANDS[command](place / "known", place / "model", tmp_path / "out"))
    assert result.exit_code == EXIT_OK, result.stderr


def test_a_run_remembers_the_answer(place: Path, tmp_path: Path) -> None:
    from vitcli.training.recipe import Recipe

    settings = Settings("vit_tiny_patch16_224", {}, str(place / "data"), Recipe(), folders=ANSWER)
    data = open_settings_data(settings)
    begin(settings, data, tmp_path / "run")
    again, found = resumed(tmp_path / "run")
    assert again.folders == ANSWER
    assert found.fingerprint == data.fingerprint
    assert found.test is not None
    refused = invoke("train", "--resume", tmp_path / "run", "--folders", ANSWER)
    assert refused.exit_code == EXIT_USAGE
    assert "--folders would change nothing" in " ".join(refused.stderr.split())


def test_a_study_remembers_both_answers(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    arguments = ["compare", "--data", place / "data", "--folders", ANSWER, "--models", "vit-small", "--dry-run"]
    before = ["--pretrain", f"some={place / 'data'}", "--out", out]
    assert invoke(*arguments, *before).exit_code == EXIT_FAILED
    assert invoke(*arguments, *before, "--pretrain-folders", ANSWER).exit_code == EXIT_OK
    unused = invoke(*arguments, "--out", out, "--pretrain-folders", ANSWER)
    assert unused.exit_code == EXIT_USAGE
    assert "belong to --pretrain" in unused.stderr


@pytest.mark.parametrize("command", ["inspect", "resize-posemb"])
def test_an_answer_without_data(place: Path, tmp_path: Path, command: str) -> None:
    arguments = COMMANDS[command](place / "known", place / "model", tmp_path / "out")
    at = arguments.index("--data" if command == "inspect" else "--check")
    result = invoke(*arguments[:at], *arguments[at + 2 :], "--folders", ANSWER)
    assert result.exit_code == EXIT_USAGE
    assert "which is missing" in " ".join(result.stderr.split())


def test_training_images_are_not_scored_for_a_split_that_cannot_be(place: Path, tmp_path: Path) -> None:
    fill(tmp_path / "data", "train")
    (tmp_path / "data" / "test").mkdir()
    Image.new("RGB", (40, 48)).save(tmp_path / "data" / "test" / "1.png")
    refused = invoke("evaluate", place / "model", "--data", tmp_path / "data")
    assert refused.exit_code == EXIT_FAILED
    assert "'test' holds no class folders: --split train scores the training images" in " ".join(refused.stderr.split())
    assert invoke("evaluate", place / "model", "--data", tmp_path / "data", "--split", "train").exit_code == EXIT_OK
