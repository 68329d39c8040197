"""The file of statistics: believed nothing, of exactly the weights beside it, carried where it stays true."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.checkpoints import random_tensors, safetensors, write_tiny
from tests.helpers.familiar import write_familiar
from vitcli import load
from vitcli.checkpoint.familiarity import FORMAT, as_text, check_signature, read_familiarity, write_familiarity
from vitcli.checkpoint.layout import FAMILIARITY_NAME
from vitcli.checkpoint.push import plan
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header, read_tensors, write_tensors
from vitcli.checkpoint.write import store_temperature, write_checkpoint
from vitcli.errors import CheckpointError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_familiar(tmp_path_factory.mktemp("made") / "mine")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "mine"))


def test_comes_back_as_it_was_written(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    found = read_familiarity(checkpoint)
    assert found is not None
    before = (folder / FAMILIARITY_NAME).read_bytes()
    write_familiarity(folder, found)
    assert (folder / FAMILIARITY_NAME).read_bytes() == before
    signatures = np.random.default_rng(0).normal(size=(5, found.width)).astype(np.float32)
    again = read_familiarity(checkpoint)
    assert again is not None
    np.testing.assert_array_equal(again.score(signatures), found.score(signatures))


def changed(folder: Path, change: Any, metadata: dict[str, str] | None = None) -> None:
    """The folder's statistics after `change` of their arrays and metadata."""
    path = folder / FAMILIARITY_NAME
    tensors, said = read_tensors(path), dict(read_header(path).metadata)
    change(tensors)
    write_tensors(path, tensors, metadata or said)


FACTS = {"data": "x", "images": 500, "temperature": 1.0}
DAMAGE = {
    "an array is missing": lambda t: t.pop("reference"),
    "one too many": lambda t: t.update(more=np.zeros(1, np.float32)),
    "no parts": lambda t: [t.pop(name) for name in [*t] if name.startswith("parts")],
    "scores that fall": lambda t: t.update(reference=t["reference"][::-1].copy()),
    "no scores": lambda t: t.update(reference=np.zeros(0, np.float32)),
    "too many scores": lambda t: t.update(reference=np.arange(10_001, dtype=np.float32)),
    "scores in a table": lambda t: t.update(reference=t["reference"][None]),
    "probabilities above one": lambda t: t.update(truths=t["truths"] + 1),
    "no deviation": lambda t: t["usual"].__setitem__((0, 1), 0),
    "a negative deviation": lambda t: t["usual"].__setitem__((1, 1), -1),
    "a part too few in usual": lambda t: t.update(usual=t["usual"][1:]),
    "not a number": lambda t: t["parts.0.axes"].__setitem__((0, 0), np.nan),
    "beyond all bounds": lambda t: t["parts.0.origin"].__setitem__(0, 1e30),
    "infinite": lambda t: t["known"].__setitem__(0, np.inf),
    "axes of other numbers": lambda t: t.update({"parts.1.axes": t["parts.1.axes"][1:]}),
    "centers in another space": lambda t: t.update({"parts.2.centers": t["parts.2.centers"][:, 1:]}),
    "no centers": lambda t: t.update({"parts.2.centers": t["parts.2.centers"][:0]}),
    "a flat part": lambda t: t.update({"parts.0.origin": t["parts.0.origin"][:, None]}),
    "a short signature": lambda t: t.update(known=t["known"][1:]),
}
SAID = {
    "another format": {"vit.familiarity/9": json.dumps(FACTS)},
    "no JSON": {FORMAT: "{"},
    "facts of another type": {FORMAT: json.dumps({**FACTS, "images": "many"})},
    "fewer images than scores": {FORMAT: json.dumps({**FACTS, "images": 3})},
    "a temperature of nought": {FORMAT: json.dumps({**FACTS, "temperature": 0})},
    "a temperature that is none": {FORMAT: '{"data": "x", "images": 500, "temperature": NaN}'},
    "a missing fact": {FORMAT: json.dumps({"data": "x"})},
    "another temperature than the checkpoint's": {FORMAT: json.dumps({**FACTS, "temperature": 2.0})},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_arrays_are_refused_in_one_line(folder: Path, name: str) -> None:
    changed(folder, DAMAGE[name])
    refused(folder)


@pytest.mark.parametrize("name", SAID)
def test_untrue_facts_are_refused_in_one_line(folder: Path, name: str) -> None:
    changed(folder, lambda _: None, SAID[name])
    refused(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x80\x04pickle", safetensors({}), safetensors(b"\xff" * 40), safetensors({}, length=1 << 40)],
    ids=["empty", "JSON", "a pickle", "nothing in it", "not UTF-8", "an absurd header"],
)
def test_other_files_are_refused_in_one_line(folder: Path, content: bytes) -> None:
    (folder / FAMILIARITY_NAME).write_bytes(content)
    refused(folder)


def test_a_folder_and_a_broken_link_are_refused(folder: Path) -> None:
    (folder / FAMILIARITY_NAME).unlink()
    (folder / FAMILIARITY_NAME).symlink_to("gone")
    refused(folder)
    (folder / FAMILIARITY_NAME).unlink()
    (folder / FAMILIARITY_NAME).mkdir()
    refused(folder)


def refused(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_familiarity(resolve(str(folder)))
    text = str(caught.value)
    assert FAMILIARITY_NAME in text
    assert "\n" not in text
    assert "\x1b" not in text


def test_statistics_of_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", seed=1)
    shutil.copy(folder / FAMILIARITY_NAME, other)
    for engine in ("onnxruntime", "torch"):
        with pytest.raises(CheckpointError, match="not the statistics of the weights beside them; delete the file"):
            list(load(other, engine=engine).predict([_gray()]))  # type: ignore[arg-type]


def _gray() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64), (90, 90, 90))


def test_a_signature_of_another_width_is_refused(folder: Path) -> None:
    found = read_familiarity(resolve(str(folder)))
    assert found is not None
    with pytest.raises(CheckpointError):
        check_signature(found, np.zeros((1, found.width + 1), np.float32), folder)


def test_new_weights_and_another_temperature_drop_it(folder: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(folder))
    copy = store_temperature(checkpoint, 1.5, tmp_path / "copy")
    assert not (copy / FAMILIARITY_NAME).exists()
    store_temperature(checkpoint, 1.5)
    assert not (folder / FAMILIARITY_NAME).exists()
    (folder / FAMILIARITY_NAME).touch()
    write_checkpoint(folder, random_tensors(), checkpoint)
    assert not (folder / FAMILIARITY_NAME).exists()


def test_goes_along_with_a_push(folder: Path) -> None:
    files = dict(plan(resolve(str(folder)), "me/mine", "mit").files)
    assert files[FAMILIARITY_NAME] == (folder / FAMILIARITY_NAME).stat().st_size
    (folder / FAMILIARITY_NAME).write_bytes(b"{}")
    with pytest.raises(CheckpointError):
        plan(resolve(str(folder)), "me/mine", "mit")


def test_is_not_taken_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert resolve(str(folder)).weights_path.name == "mine.safetensors"


def test_text_of_an_exported_file_is_believed_nothing(folder: Path) -> None:
    from vitcli.checkpoint.familiarity import _from_text

    checkpoint = resolve(str(folder))
    found = read_familiarity(checkpoint)
    assert found is not None
    text = as_text(found)
    assert _from_text(text, checkpoint).facts == found.facts
    for damaged in (text[:-8], text[: len(text) // 2], "é" + text, "A" * 400, ""):
        with pytest.raises(CheckpointError):
            _from_text(damaged, checkpoint)
