"""A damaged or forged .onnx file ends in one line that names it: nothing of it is run, nothing of it is shown raw."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers import onnx_damage
from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from vitcli.checkpoint.resolve import CONFIG_KEY, SIZES_KEY, resolve
from vitcli.cli.app import app
from vitcli.errors import CheckpointError
from vitcli.inference import exported
from vitcli.inference.engines import open_engine
from vitcli.inference.export import Options, export
from vitcli.inference.predict import load as load_model
from vitcli.inference.stream import Source
from vitcli.model.config import StemConfig
from vitcli.onnx.protobuf import read_metadata

SNEAKER = Path(__file__).parents[2] / "docs" / "images" / "sneaker.png"
KINDS = {
    "fp32": Options(),
    "fp16, pixels": Options("fp16", pixels=True),
    "int8, shares": Options("int8", softmax=True),
    "sizes": Options(sizes=((64, 64), (32, 96))),
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    base = resolve(str(write_tiny(folder / "base", temperature=2.0)))
    return export(base, folder / "m.onnx", options=KINDS[request.param]).path.read_bytes()


@pytest.fixture
def predict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    def run(data: bytes) -> tuple[int, str]:
        path = tmp_path / "damaged.onnx"
        path.write_bytes(data)
        result = CliRunner().invoke(app, ["predict", "-m", str(path), str(SNEAKER)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        shown = result.output + "".join(capfd.readouterr())
        assert not any(c < " " and c != "\n" for c in shown)
        assert not set(shown) & set("\x7f\x9b\u202e")
        assert "Traceback" not in shown
        return result.exit_code, shown

    return run


def test_the_whole_file_predicts(whole: bytes, predict: Any) -> None:
    code, shown = predict(whole)
    assert code == 0
    assert any(label in shown for label in LABELS)


@pytest.mark.parametrize("damage", onnx_damage.BYTES, ids=lambda damage: damage.__name__)
def test_damage_is_seen(whole: bytes, damage: Any, predict: Any) -> None:
    rng = random.Random(0)
    for _ in range(4):
        code, shown = predict(damage(whole, rng))
        assert code == 1 or (damage is onnx_damage.flip_sealed and code == 0)  # one bit of one weight, sealed again
        assert code == 0 or "damaged.onnx" in shown


@pytest.mark.parametrize("forgery", onnx_damage.STRUCTURE, ids=lambda forgery: forgery.__name__)
def test_a_forged_file_is_not_run(whole: bytes, forgery: Any, predict: Any) -> None:
    rng = random.Random(1)
    for _ in range(2):
        code, shown = predict(onnx_damage.mutated(whole, forgery, rng))
        assert code == 1
        assert "damaged.onnx" in shown


@pytest.mark.parametrize("change", onnx_damage.MAY_PASS, ids=lambda change: change.__name__)
def test_other_metadata_are_refused_or_shown_safely(whole: bytes, change: Any, predict: Any) -> None:
    rng = random.Random(2)
    for _ in range(10):
        code, _ = predict(onnx_damage.mutated(whole, change, rng))
        assert code in (0, 1)


def test_a_label_that_would_move_the_cursor(whole: bytes, predict: Any) -> None:
    def rename(model: Any, rng: random.Random) -> None:
        place = onnx_damage.entry(model, CONFIG_KEY)
        place.value = place.value.replace(LABELS[0], "cat" + chr(92) + "u001b[31m")

    code, shown = predict(onnx_damage.mutated(whole, rename, random.Random(0)))
    assert code == 0
    assert r"cat\x1b[31m" in shown


def test_no_image_is_made_for_a_file_that_is_not_checked(whole: bytes, tmp_path: Path) -> None:
    """Its config may ask for images of any size."""
    (tmp_path / "m.onnx").write_bytes(onnx_damage.mutated(whole, onnx_damage.larger_images, random.Random(0)))

    def load(preprocess: Any, exact: bool) -> Any:
        raise AssertionError("an image was loaded")

    with pytest.raises(CheckpointError, match=r"m\.onnx: (not as this version|an image of)"):
        list(load_model(tmp_path / "m.onnx").answers(iter([Source("x", load)])))


VITS = {
    "class token": TINY,
    "no biases, no positions": replace(TINY, qkv_bias=False, proj_bias=False, pos_embed="none"),
    "swiglu, average": replace(TINY, mlp="swiglu", init_values=0.1, global_pool="avg"),
    "attention pooling": replace(TINY, global_pool="map", class_token=False, qk_norm=True),
    "hybrid": replace(TINY, patch_size=(1, 1), img_size=(32, 32), stem=StemConfig((1, 1), 32)),
    "pre-training head": replace(TINY, head_hidden=24, pre_norm=True, act="quick_gelu"),
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", VITS)
def test_what_we_write_is_taken(tmp_path: Path, name: str, options: Options) -> None:
    """The outline, made from shapes alone, has every byte that the file with its weights has."""
    vit = VITS[name]
    if vit.stem:
        options = replace(options, sizes=())
    made = export(resolve(str(write_tiny(tmp_path / "base", vit))), tmp_path / "m.onnx", options=options)
    open_engine(resolve(str(made.path)), "onnxruntime")
    assert resolve(str(made.path)).selftest is not None


def test_an_image_that_would_take_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export(resolve(str(write_tiny(tmp_path / "base"))), tmp_path / "m.onnx")
    monkeypatch.setattr(exported, "MAX_VALUES", 800)
    with pytest.raises(CheckpointError, match=r"m\.onnx: an image of 64×64 pixels would take"):
        open_engine(resolve(str(made.path)), "onnxruntime")


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    base = resolve(str(write_tiny(tmp_path / "base")))
    path = export(base, tmp_path / "m.onnx", options=KINDS["sizes"]).path
    assert read_metadata(path)[SIZES_KEY] == "64x64,32x96"


class TestTooLarge:
    """protobuf's 2 GB, without building them."""

    def test_is_said_before_anything_is_read(self, tmp_path: Path) -> None:
        from vitcli.model.architectures import architecture

        base = resolve(str(write_tiny(tmp_path / "base")))
        (tmp_path / "base" / "model.safetensors").unlink()
        giant = replace(base, vit=architecture("vit_gigantic_patch14_224"))
        for to, path in (("onnx", "m.onnx"), ("openvino", "m.xml")):
            with pytest.raises(CheckpointError, match=r"would take 6\.9 GiB, and one ONNX file holds 2 GiB at most"):
                export(giant, tmp_path / path, to)  # type: ignore[arg-type]

    def test_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where only the file's own bytes pass the limit."""
        base = write_tiny(tmp_path / "base")
        weights = (base / "model.safetensors").stat().st_size
        monkeypatch.setattr(exported, "MAX_FILE_BYTES", weights + 1024)
        (tmp_path / "m.onnx").write_bytes(b"before")
        result = CliRunner().invoke(app, ["export", str(base), "--out", str(tmp_path / "m.onnx"), "--force"])
        assert result.exit_code == 1
        assert "one ONNX file holds 2 GiB at most" in result.stderr
        assert (tmp_path / "m.onnx").read_bytes() == b"before"
        assert {path.name for path in tmp_path.iterdir()} == {"base", "m.onnx"}
