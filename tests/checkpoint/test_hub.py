"""The Hub, against a local fake one: cache first, one bounded probe, one distinct line for everything that can fail."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkpoints import LABELS, TINY, random_tensors, write_tiny
from tests.helpers.fake_hub import FakeHub, Fault, running
from tests.helpers.process import python
from vitcli.checkpoint.catalog import list_models, model_names
from vitcli.checkpoint.hub import find_cached, hub_cache
from vitcli.checkpoint.layout import ALIASES, FAMILIARITY_NAME
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import as_stored, write_tensors
from vitcli.checkpoint.weights import read_weights
from vitcli.errors import CheckpointError, HubError

REPO = "someone/tiny-vit"
LONG_AGO = 10.0  # seconds; without the probe these cases take 23 to 396


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_tiny(tmp_path_factory.mktemp("repo"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, no token, no proxy, and no Hub: port 9 refuses."""
    for name in list(os.environ):
        if name.upper().startswith("HF_") or name.upper().endswith("_PROXY") or name == "TRANSFORMERS_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("VIT_MODEL", raising=False)


@pytest.fixture
def hub(environment: None, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[FakeHub]:
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add(REPO, files)
        yield hub


def failing(name: str = REPO) -> str:
    started = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        resolve(name)
    assert time.monotonic() - started < LONG_AGO
    message = str(error.value)
    assert "\n" not in message
    return message


# --- downloading ---


def test_a_model_is_downloaded_once_and_then_needs_no_request(hub: FakeHub) -> None:
    first = resolve(REPO)
    assert first.why == f"{REPO} at {hub.repos[REPO].commit[:7]}, downloaded from the Hub"
    assert first.revision == hub.repos[REPO].commit
    assert first.source == "hub"
    assert first.labels == LABELS
    weights = read_weights(first)
    np.testing.assert_array_equal(weights["head.weight"], random_tensors()["head.weight"])
    hub.requests.clear()
    again = resolve(f"hf-hub:{REPO}")
    assert again.why.endswith("in the local Hub cache")
    assert again.config_path == first.config_path
    read_weights(again)
    assert hub.requests == []


def test_both_files_are_of_the_commit_that_the_branch_was(hub: FakeHub) -> None:
    resolve(REPO)
    commit = hub.repos[REPO].commit
    assert [path for path in hub.requests if "/resolve/main/" in path] == [f"HEAD /{REPO}/resolve/main/config.json"]
    assert all(f"/resolve/{commit}/" in path or "/cdn/" in path for path in hub.requests[1:])
    assert (hub_cache() / "models--someone--tiny-vit" / "refs" / "main").read_text() == commit


def test_nothing_but_the_files_of_a_checkpoint_is_asked_for(hub: FakeHub) -> None:
    hub.add(REPO, dict(hub.repos[REPO].files) | {"pytorch_model.bin": b"evil", "modeling.py": b"evil"})
    resolve(REPO)
    assert {path.split("/")[-1] for path in hub.requests} == {"config.json", "model.safetensors", FAMILIARITY_NAME}


def test_branches_tags_and_commits(hub: FakeHub, files: dict[str, bytes]) -> None:
    repo = hub.add(REPO, files, branches=("main", "v1.0", "refs/pr/3"))
    for revision in ("v1.0", "refs/pr/3", repo.commit):
        assert resolve(f"{REPO}@{revision}").revision == repo.commit
    hub.requests.clear()
    for revision in ("v1.0", "refs/pr/3", repo.commit):
        resolve(f"{REPO}@{revision}")
    assert hub.requests == []


def test_progress_is_reported_in_bytes(hub: FakeHub, files: dict[str, bytes]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    resolve(REPO, progress=lambda *arguments: seen.append(arguments))
    total = len(files["model.safetensors"])
    assert ("model.safetensors", total, total) in seen


def test_progress_is_reported_once_where_the_hub_counts_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """Xet storage, which the fake does not have: huggingface_hub's own reporter, driven as its download does."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    from vitcli.checkpoint.download import _bar

    seen: list[tuple[str, int, int | None]] = []
    bar = _bar("file", lambda *arguments: seen.append(arguments))
    with XetDownloadProgressReporter(
        reconstruction_desc="file: reconstructing file",
        transfer_desc="file: downloading bytes",
        total=100,
        log_level=30,
        tqdm_class=bar,
    ) as reporter:
        for done in (40, 100):
            report = SimpleNamespace(
                total_bytes_completed=done, total_transfer_bytes_completed=done // 2, total_bytes=100
            )
            report.total_bytes_completion_rate = report.total_transfer_bytes_completion_rate = 1.0
            reporter.update_progress(report)
    assert seen == [("file", 40, 100), ("file", 100, 100)]
    assert capsys.readouterr() == ("", "")


def test_a_config_that_is_refused_saves_the_download_of_the_weights(hub: FakeHub, files: dict[str, bytes]) -> None:
    config = json.loads(files["config.json"]) | {"num_classes": 4}
    hub.add(REPO, files | {"config.json": json.dumps(config).encode()})
    assert "3 label_names for 4 classes" in failing()
    assert not any("model.safetensors" in path for path in hub.requests)


def test_the_download_continues_where_it_was_broken_off(hub: FakeHub) -> None:
    """Only config.json came the first time."""
    hub.faults["*", "model.safetensors"] = "500"
    failing()
    del hub.faults["*", "model.safetensors"]
    assert resolve(REPO).labels == LABELS


# --- failures: one line each, all different ---

LINES: dict[tuple[str, str, Fault], str] = {
    (
        "HEAD",
        "config.json",
        "401",
    ): "no such model on the Hub, or a private one (401); `hf auth login` if it is yours. If "
    "it is gated, accept its terms at https://huggingface.co/",
    ("HEAD", "config.json", "401 token"): "refuses your token (401)",
    (
        "HEAD",
        "config.json",
        "403",
    ): "access forbidden (403); your token may lack the permission to read it; see https://",
    ("HEAD", "config.json", "403 gated"): f"is gated: accept its terms at https://huggingface.co/{REPO}",
    ("HEAD", "config.json", "404 repo"): "no such model on the Hub (404); check the spelling",
    ("HEAD", "config.json", "404 file"): "has no config.json, so it is not a timm or `vit` model",
    ("HEAD", "model.safetensors", "404 file"): "has no model.safetensors; pickles are not read",
    ("HEAD", "config.json", "429"): "too many requests to the Hub (429); try again in 37 s",
    ("HEAD", "config.json", "500"): "the Hub has a problem of its own (500)",
    ("HEAD", "model.safetensors", "500"): "the Hub has a problem of its own (500)",
    ("HEAD", "config.json", "html"): "something other than the Hub answered",
    ("HEAD", "config.json", "portal"): "something other than the Hub answered",
    ("GET", "config.json", "html"): "config.json came with the wrong size",
    ("GET", "model.safetensors", "wrong size"): "model.safetensors came with the wrong size",
    ("GET", "model.safetensors", "truncated"): "the connection broke off while model.safetensors was downloaded",
    ("HEAD", "config.json", "no answer"): "the Hub cannot be reached (no answer in 1.2 s;",
    ("HEAD", "model.safetensors", "no answer"): "the Hub cannot be reached (no answer in 1.2 s;",
}


@pytest.mark.parametrize(("method", "file", "fault"), LINES, ids=[" ".join(key) for key in LINES])
def test_every_failure_has_its_line(
    hub: FakeHub, method: str, file: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "truncated":  # huggingface_hub waits a second before each of five attempts to go on
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.faults[method, file] = fault
    message = failing()
    assert message.startswith(REPO)
    assert LINES[method, file, fault] in message
    if (method, file) == ("HEAD", "config.json"):
        assert len(hub.requests) == 1  # one probe, and nothing more is tried
    assert find_cached(REPO) is None
    hub.faults.clear()
    hub.released.set()
    assert resolve(REPO).labels == LABELS  # nothing that is left behind is in the way


def test_an_unknown_revision_has_its_line(hub: FakeHub) -> None:
    assert f"{REPO} has no revision 'v9'" in failing(f"{REPO}@v9")


def test_an_unknown_repository_has_its_line(hub: FakeHub) -> None:
    resolve(REPO)
    message = failing("someone/tiny-vitt")
    assert "no such model on the Hub (404)" in message
    assert message.endswith(f"Did you mean '{REPO}'?")


@pytest.mark.parametrize(
    "name", [f"{REPO}@../../main", f"{REPO}@a/../../main", f"{REPO}@a@b", "hf-hub:one", "hf-hub:a/b/c", "hf-hub:../x"]
)
def test_names_that_the_hub_cannot_have_are_refused_before_any_request(hub: FakeHub, name: str) -> None:
    assert "is not a" in failing(name)
    assert hub.requests == []


# --- no network ---


def test_a_refused_connection_names_the_file_and_the_command(environment: None) -> None:
    message = failing()
    assert message.startswith(f"{REPO}: model.safetensors is not on this machine and the Hub cannot be reached (")
    assert message.endswith(f"`hf download {REPO} config.json model.safetensors`")
    assert failing(f"{REPO}@v1").endswith("model.safetensors --revision v1`")


def test_a_black_hole_is_left_in_time(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that takes connections and never says a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer in 1.2 s;" in failing()
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
        assert "no answer in 2 s;" in failing()


def test_a_name_that_cannot_be_looked_up(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert "the Hub cannot be reached (" in failing()


def test_offline_mode_asks_nothing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in failing()
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    resolve(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(REPO).labels == LABELS


def test_the_weights_alone_are_missing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(REPO).weights_path.unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "model.safetensors is not on this machine" in failing()


# --- the cache ---


def test_a_blob_that_is_not_what_it_is_called_is_noticed(hub: FakeHub) -> None:
    hub.faults["GET", "model.safetensors"] = "flipped"
    checkpoint = resolve(REPO)
    with pytest.raises(CheckpointError, match=r"SHA-256 is not the Hub's.*`hf download .* --force-download`"):
        read_weights(checkpoint)


def test_a_good_blob_is_hashed_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcli.checkpoint import hub as ours

    checkpoint = resolve(REPO)
    read_weights(checkpoint)
    digests: list[Any] = []
    file_digest = ours.hashlib.file_digest
    monkeypatch.setattr(ours.hashlib, "file_digest", lambda *a: digests.append(a) or file_digest(*a))
    read_weights(checkpoint)
    assert digests == []
    blob = checkpoint.weights_path.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # damage of equal size
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(checkpoint)
    assert len(digests) == 1


def test_a_folder_of_the_cache_is_known_as_its_repository(hub: FakeHub) -> None:
    folder = resolve(REPO).folder
    checkpoint = resolve(str(folder))
    assert checkpoint.name == REPO
    assert checkpoint.source == "hub"


def test_an_unwritable_cache_is_one_line(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    assert "could not be stored in" in failing()


# --- an environment that is in the way ---


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE names /nowhere.pem, which is no file"),
        ("SSL_CERT_FILE", __file__, "certificates cannot be read"),
        ("HTTP_PROXY", "foo://x", "HTTP_PROXY is no address of a proxy"),
        ("https_proxy", "http://:80", "https_proxy is no address of a proxy"),
        ("HTTP_PROXY", "http://user:secret@127.0.0.1:9", "through the proxy that HTTP_PROXY names"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "proxy"),
        ("HF_ENDPOINT", "not a url", "HF_ENDPOINT is 'not a url'"),
        ("HF_ENDPOINT", "huggingface.co", "no address such as https://huggingface.co"),
        ("HF_ENDPOINT", "ftp://example.org", "HF_ENDPOINT is 'ftp://example.org'"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999", "HF_ENDPOINT is"),
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT is"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "HF_ENDPOINT is http://127.0.0.1:9)"),
        ("HF_TOKEN", "hf_ümlaut", "HF_TOKEN has characters"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "a whole number of seconds"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5", "a whole number of seconds"),
    ],
)
def test_what_of_the_environment_is_in_the_way_is_named(
    variable: str, value: str, message: str, hub: FakeHub, tmp_path: Path
) -> None:
    """In a process of its own: huggingface_hub reads some of these when it is imported."""
    code = f"from vitcli.checkpoint.resolve import resolve; resolve({REPO!r})"
    done = python("-c", code, **{variable: value})
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vitcli.errors.HubError: ")
    assert message in last
    assert "stored" not in last
    assert "secret" not in last


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_cache_that_cannot_be_written_is_said_and_another_named(
    number: int, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), "blob")

    monkeypatch.setattr("vitcli.checkpoint.download.hf_hub_download", refuse)
    message = failing()
    assert f"config.json could not be stored in {hub_cache()}: {os.strerror(number)}" in message
    assert "HF_HUB_CACHE names another place" in message


# --- timm's repositories ---


def timm_repository(name: str, num_classes: int = 1000) -> dict[str, bytes]:
    """The config of timm's own repositories: no model_args, no class names. The weights are not this model's."""
    architecture, tag = name.split(".")
    cfg = {
        "tag": tag, "custom_load": False, "input_size": [3, 224, 224], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "num_classes": num_classes, "pool_size": None, "first_conv": "patch_embed.proj",
        "classifier": "head",
    }  # fmt: skip
    root = {"architecture": architecture, "num_classes": num_classes, "num_features": 768, "global_pool": "token"}
    return {"config.json": json.dumps(root | {"pretrained_cfg": cfg}).encode(), "model.safetensors": b"weights"}


def test_imagenet_is_an_alias_with_class_names(hub: FakeHub) -> None:
    repo = "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    hub.add(repo, timm_repository(repo.removeprefix("timm/")))
    checkpoint = resolve("imagenet")
    assert checkpoint.name == repo
    assert checkpoint.vit is not None
    assert checkpoint.vit.num_classes == len(checkpoint.labels) == len(set(checkpoint.labels)) == 1000
    assert checkpoint.labels[0] == "tench, Tinca tinca"
    assert checkpoint.label_ids[0] == "n01440764"
    assert checkpoint.labels[134] == "crane (n02012849)"
    assert checkpoint.labels[517] == "crane (n03126707)"
    assert resolve(repo.removeprefix("timm/")).why.endswith("in the local Hub cache")
    assert resolve().why == "the default: the ImageNet ViT in the local Hub cache"
    assert "imagenet" in model_names()


def test_a_whole_repository_of_timms_is_downloaded_and_read(hub: FakeHub, tmp_path: Path) -> None:
    """ViT-Ti/16 with 1000 classes, weights of the full size."""
    from vitcli.model.architectures import ARCHITECTURES

    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    tensors = random_tensors(ARCHITECTURES["vit_tiny_patch16_224"])
    write_tensors(tmp_path / "weights", as_stored(tensors, "float16"), {})
    hub.add(f"timm/{name}", timm_repository(name) | {"model.safetensors": (tmp_path / "weights").read_bytes()})
    weights = read_weights(resolve(name))
    assert sum(array.size for array in weights.values()) == 5_717_416  # timm's count for this model
    assert [listed.parameters for listed in list_models() if listed.kind == "cached"] == [5_717_416]


@pytest.mark.parametrize(
    ("repo", "count", "first"),
    [
        ("timm/vit_tiny_patch16_224.augreg_in21k", 21843, "organism, being"),
        ("timm/vit_base_patch16_224.sbb_in12k", 11821, None),
        ("timm/vit_base_patch16_224.openai_ft_in12k", 1000, "class 0"),
        ("timm/vit_base_patch16_224.my_flowers", 1000, "class 0"),
        ("someone/vit_base_patch16_224.augreg_in21k_ft_in1k", 1000, "class 0"),
    ],
)
def test_class_names_are_never_guessed_by_their_number(hub: FakeHub, repo: str, count: int, first: str | None) -> None:
    """timm and transformers give every model with 1000 classes the names of ImageNet."""
    hub.add(repo, timm_repository(repo.partition("/")[2], count))
    checkpoint = resolve(repo)
    assert len(set(checkpoint.labels)) == count
    assert bool(checkpoint.label_ids) == (first != "class 0")
    if first:
        assert checkpoint.labels[0] == first
    assert ("no class names" in " ".join(checkpoint.notes)) == (first == "class 0")


# --- the list ---


def test_the_list_holds_what_is_cached_and_suggests_the_rest(hub: FakeHub) -> None:
    suggestion = ALIASES["imagenet"]
    hub.add(suggestion, timm_repository(suggestion.removeprefix("timm/")))
    hub.add("someone/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    resolve(REPO)
    with pytest.raises(CheckpointError):
        resolve("someone/bert")
    hub.requests.clear()
    cached = [listed for listed in list_models() if listed.kind == "cached"]
    assert [listed.name for listed in cached] == [REPO]
    assert cached[0].parameters == sum(array.size for array in random_tensors().values())
    assert cached[0].num_classes == 3
    assert cached[0].image_size == TINY.img_size
    suggested = [listed.name for listed in list_models() if listed.kind == "suggestion"]
    assert suggestion in suggested
    assert REPO in model_names()
    assert hub.requests == []


def test_hub_errors_are_their_own_class(environment: None) -> None:
    with pytest.raises(HubError):
        resolve(REPO)
