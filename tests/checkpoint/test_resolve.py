"""Names that need no network: folders, files, bundled models, defaults, and what is said when there is nothing.

Also that none of it imports what is heavy.
"""

import json
import os
import pickle
from pathlib import Path

import pytest

from tests.helpers.checkpoints import DELETED, LABELS, edit_config, write_tiny
from tests.helpers.process import python
from vitcli.checkpoint import layout
from vitcli.checkpoint.catalog import list_models, model_names
from vitcli.checkpoint.layout import DEFAULT_BUNDLED
from vitcli.checkpoint.resolve import resolve
from vitcli.errors import CheckpointError


@pytest.fixture(autouse=True)
def away_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub cache, no network, no environment, and a package that bundles one tiny model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VIT_MODEL", raising=False)
    monkeypatch.setattr(layout, "files", lambda package: tmp_path / "package")
    write_tiny(tmp_path / "package" / "bundled" / DEFAULT_BUNDLED)
    monkeypatch.chdir(tmp_path)


def said(name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        resolve(name)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    return str(error.value)


# --- what is found ---


def test_a_folder(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "a:b@c#d ü")
    for name in (str(folder), f"local-dir:{folder}", "a:b@c#d ü", "./a:b@c#d ü"):
        checkpoint = resolve(name)
        assert checkpoint.folder == Path(name.removeprefix("local-dir:"))
        assert (checkpoint.source, checkpoint.revision) == ("folder", None)
        assert checkpoint.why == f"the folder {checkpoint.folder}"


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    write_tiny(tmp_path / "run" / "best")
    assert resolve("run").folder == Path("run/best")


def test_a_weights_file_with_its_config_beside(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "folder")
    os.rename(folder / "model.safetensors", folder / "mine.safetensors")
    assert resolve(str(folder / "mine.safetensors")).source == "file"
    assert resolve(str(folder)).weights_path == folder / "mine.safetensors"  # the only one there


def test_a_bundled_name() -> None:
    checkpoint = resolve(DEFAULT_BUNDLED)
    assert (checkpoint.name, checkpoint.source) == (DEFAULT_BUNDLED, "bundled")
    assert checkpoint.labels == LABELS


def test_a_folder_goes_before_a_bundled_name(tmp_path: Path) -> None:
    write_tiny(tmp_path / DEFAULT_BUNDLED)
    assert resolve(DEFAULT_BUNDLED).source == "folder"


def test_the_default_is_the_bundled_model_and_the_environment_overrules_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve().why == f"the default: {DEFAULT_BUNDLED}, bundled with this program"
    folder = write_tiny(tmp_path / "mine")
    monkeypatch.setenv("VIT_MODEL", str(folder))
    assert resolve().why == f"VIT_MODEL: the folder {folder}"
    assert resolve(DEFAULT_BUNDLED).source == "bundled"  # what is asked for goes first
    monkeypatch.setenv("VIT_MODEL", "nonsense")
    with pytest.raises(CheckpointError, match="nonsense"):
        resolve()


def test_no_class_names_become_numbers_and_a_note(tmp_path: Path) -> None:
    checkpoint = resolve(str(edit_config(write_tiny(tmp_path / "x"), label_names=DELETED)))
    assert checkpoint.labels == ("class 0", "class 1", "class 2")
    assert "no class names" in checkpoint.notes[0]


def test_wordnet_ids_with_descriptions_become_names(tmp_path: Path) -> None:
    """As some timm configs have them."""
    ids = ["n02012849", "n03126707", "n01440764"]
    texts = dict(zip(ids, ["crane", "crane", "tench"], strict=True))
    checkpoint = resolve(str(edit_config(write_tiny(tmp_path / "x"), label_names=ids, label_descriptions=texts)))
    assert checkpoint.labels == ("crane (n02012849)", "crane (n03126707)", "tench")
    assert checkpoint.label_ids == tuple(ids)


# --- what is not ---


class Payload:
    def __reduce__(self) -> object:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.bin", "model.ckpt", "MODEL.PTH", "model.pth.tar"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    message = said(name)
    assert "pickles can run code and are not read" in message
    assert "vit convert" in message
    assert not (tmp_path / "pwned").exists()


def test_a_folder_with_a_pickle_only_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "x")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    assert "only pytorch_model.bin; pickles can run code" in said("x")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phot-vit", "Did you mean 'photo-vit'?"),
        ("imagnet", "Did you mean 'imagenet'?"),
        ("", "no checkpoint ''"),
        ("a\0b", r"a\x00b"),
        ("x" * 5000, "no checkpoint 'xxx"),
        ("x" * 5000 + "/y.safetensors", "no such file"),
        ("~nobody-here/x/y", "no such folder"),
        ("./nowhere", "no such folder"),
        (__file__, "a file that is no checkpoint"),
        ("~/nowhere/at/all", "no such folder"),
        ("nowhere/at/all", "no such folder"),
        ("nowhere.safetensors", "no such file"),
        ("https://huggingface.co/timm/x", "is an address; give the model's name"),
        ("vit_base_patch16_224", "weights have a tag too, as in vit_base_patch16_224."),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("local-dir:nowhere", "no config.json here"),
        ("org/name", "HF_HUB_OFFLINE is set"),
        ("vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k: model.safetensors is not on"),
        ("vit_base_patch16_224_in21k", "timm/vit_base_patch16_224.augreg_in21k: model.safetensors is not on"),
    ],
)
def test_what_is_not_there_is_said(name: str, expected: str) -> None:
    assert expected in said(name)


def test_broken_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json here" in said("empty")
    folder = write_tiny(tmp_path / "x")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").touch()
    assert "no model.safetensors beside config.json" in said("x")
    (tmp_path / "alone.safetensors").touch()
    assert "no config.json beside it" in said("alone.safetensors")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    (folder / "a.safetensors").rename(folder / "model.safetensors")
    assert "not a regular file" in said("x")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("gone")
    assert "a link to a file that is gone" in said("x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_said(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "x")
    (folder / "config.json").chmod(0)
    assert "Permission denied" in said("x")


def test_an_incomplete_installation_is_said(tmp_path: Path) -> None:
    (tmp_path / "package" / "bundled" / DEFAULT_BUNDLED / "config.json").unlink()
    with pytest.raises(CheckpointError, match="this installation is incomplete"):
        resolve()


# --- the list ---


def test_the_list_without_a_cache_has_the_bundled_and_the_suggested() -> None:
    listed = list_models()
    assert [model.name for model in listed if model.kind == "bundled"] == [DEFAULT_BUNDLED]
    assert listed[0].num_classes == 3
    assert listed[0].file_bytes is not None
    assert {model.kind for model in listed[1:]} == {"suggestion"}
    assert all(model.note for model in listed[1:])
    assert set(model_names()) >= {model.name for model in listed} | {"imagenet"}


def test_a_damaged_folder_is_left_out_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "package" / "bundled" / DEFAULT_BUNDLED / "model.safetensors").write_bytes(b"")
    assert all(model.kind == "suggestion" for model in list_models())


# --- what is imported ---

PROBE = """
import json, sys
from pathlib import Path
from vitcli.checkpoint import layout
layout.files = lambda package: Path({package!r})
from vitcli.checkpoint.catalog import list_models, model_names
list_models(), model_names()
listing = sorted(sys.modules)
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import read_weights
from vitcli.checkpoint.imagenet import imagenet_names
read_weights(resolve())
assert imagenet_names("timm/x.in1k", 1000)
{extra}
print(json.dumps([listing, sorted(sys.modules)]))
"""
HEAVY = {"torch", "torchvision", "timm", "transformers", "huggingface_hub", "safetensors", "onnx", "onnxruntime"}


def imported(tmp_path: Path, extra: str = "") -> list[set[str]]:
    code = PROBE.format(package=str(tmp_path / "package"), extra=extra)
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    return [{name.partition(".")[0] for name in names} for names in json.loads(result.stdout)]


def test_reading_a_bundled_model_imports_nothing_heavy_and_listing_not_even_numpy(tmp_path: Path) -> None:
    listing, reading = imported(tmp_path)
    assert not listing & (HEAVY | {"numpy", "PIL"})
    assert not reading & HEAVY
    assert "numpy" in reading


def test_the_probe_sees_an_import(tmp_path: Path) -> None:
    assert "safetensors" in imported(tmp_path, extra="import safetensors")[1]


@pytest.mark.parametrize(("name", "other"), [("imagenet", "-m timm/vit_base"), (DEFAULT_BUNDLED, "a bundled model")])
def test_a_folder_that_hides_a_name_of_ours_is_taken_and_that_is_said(
    name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    checkpoint = resolve(name)
    assert checkpoint.source == "folder"
    assert other in checkpoint.notes[-1]
    assert resolve(f"./{name}").notes == resolve(str(tmp_path / name)).notes == checkpoint.notes[:-1]


def test_a_data_set_that_is_called_like_a_model_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / DEFAULT_BUNDLED / "train" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(DEFAULT_BUNDLED).source == "bundled"
