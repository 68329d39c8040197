"""`vit push` against a Hub on 127.0.0.1: one commit with config, weights and card, or one line that says why not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from tests.helpers import fake_hub
from tests.helpers.checkpoints import TINY, write_tiny
from tests.helpers.fake_hub import FakeHub
from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.model.config import StemConfig

# huggingface_hub 2.4 uploads with an argument that its HTTP client deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
PROVENANCE = {"validation_accuracy": 0.75, "data": {"name": "photos"}, "recipe": {"lr": 1e-3}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
        for module in ("_commit_api", "hf_api"):  # the native transfer of large files asks other servers
            monkeypatch.setattr(f"huggingface_hub.{module}.is_xet_available", lambda: False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield hub


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny", TINY, provenance=PROVENANCE, temperature=1.25)


def push(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_one_commit_that_others_can_load(hub: FakeHub, base: Path, tmp_path: Path) -> None:
    result = push(base, "me/tiny", "--license", "mit")
    assert result.exit_code == 0, result.stderr
    repo = hub.repos["me/tiny"]
    assert result.stdout.strip() == f"{hub.url}/me/tiny/commit/{repo.commit}"
    assert set(repo.files) == {"config.json", "model.safetensors", "README.md"}
    assert sum("/commit/main" in request for request in hub.requests) == 1
    for name in ("config.json", "model.safetensors"):
        assert repo.files[name] == (base / name).read_bytes()
    (tmp_path / "back").mkdir()
    for name, content in repo.files.items():
        (tmp_path / "back" / name).write_bytes(content)
    assert resolve(str(tmp_path / "back")).labels == resolve(str(base)).labels


def test_the_card_says_what_is_known(hub: FakeHub, base: Path) -> None:
    push(base, "me/tiny", "--license", "apache-2.0")
    card = hub.repos["me/tiny"].files["README.md"].decode()
    for part in (
        "license: apache-2.0", "value: 0.75", "name: photos", "4×4 of 16×16 pixels", "cat, dog, bird",
        "divided by 1.25", '"lr": 0.001', "vit predict -m me/tiny", 'timm.create_model("hf-hub:me/tiny"',
        'pipeline("image-classification", "me/tiny")',
    ):  # fmt: skip
        assert part in card


def test_accuracy_of_another_size_is_not_on_the_card(base: Path) -> None:
    checkpoint = resolve(str(base))
    resized = {**PROVENANCE, "resized": [{"from": "tiny"}]}
    assert "value: 0.75" in model_card(checkpoint, "me/tiny", "mit")
    assert "value: 0.75" not in model_card(replace(checkpoint, provenance=resized), "me/tiny", "mit")


def test_the_card_of_what_only_vit_can_build(tmp_path: Path) -> None:
    """A hybrid whose CNN is none of timm's: no code that would fail, no tag that would make the Hub show some."""
    vit = replace(TINY, patch_size=(1, 1), stem=StemConfig((1, 1), 32))
    card = model_card(resolve(str(write_tiny(tmp_path / "hybrid", vit))), "me/hybrid", "mit")
    assert "vit predict -m me/hybrid" in card
    assert "cannot build this model" in card
    for absent in ("timm.create_model", "pipeline(", "library_name", "- timm", "- transformers"):
        assert absent not in card


def test_a_dry_run_sends_nothing(hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(base, "me/tiny", "--license", "mit", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"{(base / 'model.safetensors').stat().st_size:,}" in result.stdout
    assert hub.requests == []


def test_the_licence_is_asked_for(hub: FakeHub, base: Path) -> None:
    result = push(base, "me/tiny")
    assert result.exit_code == 2
    assert "--license is missing" in result.stderr
    assert hub.requests == []


def test_private_and_again(hub: FakeHub, base: Path) -> None:
    assert push(base, "me/tiny", "--license", "mit", "--private").exit_code == 0
    assert hub.private == {"me/tiny"}
    result = push(base, "me/tiny", "--license", "mit", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["commit"].startswith(hub.url)


@pytest.mark.parametrize(
    ("token", "message"), [("hf_wrong", "does not accept the token"), (None, "no token for the Hub")]
)
def test_tokens(hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    result = push(base, "me/tiny", "--license", "mit")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert hub.repos == {}


@pytest.mark.parametrize(("fault", "message"), [("403", "may not write there"), ("404 repo", "no such organisation")])
def test_refusals(hub: FakeHub, base: Path, fault: Any, message: str) -> None:
    hub.faults[("POST", "*")] = fault
    result = push(base, "me/tiny", "--license", "mit")
    assert result.exit_code == 1
    assert message in result.stderr


def test_no_network(hub: FakeHub, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    result = push(base, "me/tiny", "--license", "mit")
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr


@pytest.mark.parametrize(
    ("repo", "license", "message"),
    [("tiny", "mit", "is not a name on the Hub"), ("me/tiny", "do what you want", "is not a licence identifier")],
)
def test_wrong_words(base: Path, repo: str, license: str, message: str) -> None:
    result = push(base, repo, "--license", license)
    assert result.exit_code == 2
    assert message in result.stderr


def test_damaged_weights_are_not_sent(hub: FakeHub, base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    result = push(base, "me/tiny", "--license", "mit")
    assert result.exit_code == 1
    assert hub.requests == []
