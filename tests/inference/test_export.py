"""`vit export`: the file alone predicts as its checkpoint does, and one that does not is not left behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from vitcli.checkpoint.load import load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.cli.app import app
from vitcli.errors import CheckpointError, UsageError, VitError
from vitcli.inference import export as exporting
from vitcli.inference.engines import open_engine, probabilities
from vitcli.inference.export import Options, export
from vitcli.inference.predict import load
from vitcli.metrics import wilson
from vitcli.model.config import StemConfig
from vitcli.onnx.protobuf import read_metadata


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny", replace(TINY, reg_tokens=1), temperature=2.5)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in range(3)]


def shares(model: object, images: list[Image.Image]) -> np.ndarray:
    found = load(str(model)).predict(images, top_k=3)
    return np.array([[s.probability for s in sorted(p.labels, key=lambda s: s.index)] for p in found])


@pytest.mark.parametrize(
    "options",
    [{}, {"pixels": True}, {"softmax": True}, {"pixels": True, "softmax": True}, {"precision": "fp16"}],
    ids=str,
)
def test_the_file_alone_predicts_as_the_checkpoint_does(
    base: Path, images: list[Image.Image], tmp_path: Path, options: dict[str, Any]
) -> None:
    made = export(resolve(str(base)), tmp_path / "m.onnx", options=Options(**options))
    assert [one.batch for one in made.parity] == [1, 2, 7]
    assert all(one.agreement == 1 for one in made.parity)
    # the temperature of 2.5 counts once, inside the file or outside; float16 rounds at 2⁻¹¹
    tolerance = 5e-3 if "precision" in options else 1e-5
    np.testing.assert_allclose(shares(made.path, images), shares(base, images), atol=tolerance)
    assert resolve(str(made.path)).labels == LABELS


def test_int8_is_near(base: Path, images: list[Image.Image], tmp_path: Path) -> None:
    made = export(resolve(str(base)), tmp_path / "m.onnx", options=Options(precision="int8"))
    assert made.bytes < 0.9 * (base / "model.safetensors").stat().st_size
    difference = np.abs(shares(made.path, images) - shares(base, images)).max()
    assert 0 < difference < 0.05  # seen: 0.01


def test_another_size_bakes_the_positions(base: Path, tmp_path: Path) -> None:
    made = export(resolve(str(base)), tmp_path / "m.onnx", options=Options(sizes=((96, 64),)))
    session = onnxruntime.InferenceSession(made.path)
    x = torch.rand(3, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(resolve(str(base)), img_size=(96, 64))(x).numpy()
    np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)
    assert resolve(str(made.path)).preprocess.size == (96, 64)


@pytest.mark.parametrize(
    "changes",
    [{}, {"no_embed_class": True, "reg_tokens": 3}, {"class_token": False, "global_pool": "map"}, {"qk_norm": True},
     {"global_pool": "avg"}, {"pos_embed": "none"}],
    ids=str,
)  # fmt: skip
def test_one_file_for_several_sizes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Parity is measured at each of them; other sizes fail instead of answering something."""
    base = write_tiny(tmp_path / "base", replace(TINY, **changes))
    sizes = ((64, 64), (32, 96), (96, 96))
    made = export(resolve(str(base)), tmp_path / "m.onnx", options=Options(sizes=sizes))
    assert {one.size for one in made.parity} == set(sizes)
    assert max(one.difference for one in made.parity) < 1e-5
    session = onnxruntime.InferenceSession(made.path)
    with pytest.raises(Exception, match="Add"):
        session.run(None, {"images": np.zeros((1, 3, 96, 32), np.float32)})


def test_features_are_compared_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax would not see that all of them are off by the same."""
    base = resolve(str(write_tiny(tmp_path / "base", replace(TINY, num_classes=0))))
    assert max(one.difference for one in export(base, tmp_path / "m.onnx").parity) < 1e-5
    with pytest.raises(UsageError, match="no classes to give probabilities of"):
        export(base, tmp_path / "n.onnx", options=Options(softmax=True))
    write = exporting._onnx

    def shifted(*arguments: Any) -> dict[str, exporting.Run]:
        (run,) = write(*arguments).values()
        return {"": lambda images: run(images) + np.float32(1)}

    monkeypatch.setattr(exporting, "_onnx", shifted)
    with pytest.raises(VitError, match="outputs differ"):
        export(base, tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


def test_torch_export(base: Path, tmp_path: Path) -> None:
    path = export(resolve(str(base)), tmp_path / "m.pt2", "torch").path
    x = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    files = {"config.json": ""}
    module = torch.export.load(path, extra_files=files).module()
    with torch.inference_mode():
        torch.testing.assert_close(module(x), load_model(resolve(str(base)))(x))
    assert json.loads(files["config.json"])["label_names"] == list(LABELS)
    with pytest.raises(UsageError, match="--to torch"):
        export(resolve(str(base)), tmp_path / "n.pt2", "torch", Options(pixels=True))


@pytest.mark.parametrize("options", [Options(), Options(precision="fp16", pixels=True, softmax=True)], ids=str)
def test_openvino(base: Path, tmp_path: Path, options: Options) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is an extra")
    made = export(resolve(str(base)), tmp_path / "m.xml", "openvino", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    config = json.loads(openvino.Core().read_model(made.path).get_rt_info(["vit", "config"]).astype(str))
    assert config["label_names"] == list(LABELS)
    exact, usual = made.parity[0], made.parity[3]
    assert exact.how == "float32"
    assert usual.how.startswith("default, ")
    if usual.how != "default, f32":  # a processor with bfloat16
        assert usual.difference > exact.difference


def test_parity_is_that_of_the_pictures(base: Path, tmp_path: Path) -> None:
    """On which the file and the model are compared here once more, by other means."""
    checkpoint = resolve(str(base))
    rng = np.random.default_rng(5)
    pictures = [rng.normal(0, scale, (3, 64, 64)).astype(np.float32) for scale in np.geomspace(0.01, 4, 20)]
    loads = [lambda preprocess, x=x: x for x in pictures]
    made = export(checkpoint, tmp_path / "m.onnx", options=Options(precision="int8"), pictures=loads)
    given = open_engine(resolve(str(made.path)), "onnxruntime").logits(np.stack(pictures))
    with torch.inference_mode():
        expected = load_model(checkpoint)(torch.from_numpy(np.stack(pictures))).numpy()
    first = made.parity[0]
    assert (first.images, made.parity[1].images) == (20, 14)
    difference = np.abs(probabilities(given, 2.5) - probabilities(expected, 2.5)).max()
    assert first.difference == pytest.approx(difference, rel=1e-3)
    same = int((given.argmax(1) == expected.argmax(1)).sum())
    assert (first.agreement, first.interval) == (same / 20, wilson(same, 20))


def test_a_hybrid(tmp_path: Path) -> None:
    vit = replace(TINY, patch_size=(1, 1), img_size=(32, 32), stem=StemConfig((1, 1), 32))
    made = export(
        resolve(str(write_tiny(tmp_path / "hybrid", vit))), tmp_path / "m.onnx", options=Options(softmax=True)
    )
    assert made.parity[0].difference < 1e-5
    with pytest.raises(UsageError, match="takes one image size"):
        export(resolve(str(tmp_path / "hybrid")), tmp_path / "m.onnx", options=Options(sizes=((32, 32), (64, 64))))


def test_the_arithmetic_of_a_file_is_not_doubted(tmp_path: Path) -> None:
    """Of a config alone another activation would be; the file computes with its own, and needs no self-test."""
    base = write_tiny(tmp_path / "base", replace(TINY, act="quick_gelu"))
    assert any("act is quick_gelu" in note for note in resolve(str(base)).notes)
    made = export(resolve(str(base)), tmp_path / "m.onnx")
    assert resolve(str(made.path)).notes == ()


def test_others_read_the_metadata(base: Path, tmp_path: Path) -> None:
    path = export(resolve(str(base)), tmp_path / "m.onnx", options=Options(pixels=True)).path
    theirs = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert read_metadata(path) == theirs == onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(theirs["vit.config"])["label_names"] == list(LABELS)
    assert theirs["vit.pixels"] == "1"


def test_an_export_that_is_wrong_does_not_stay(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exporting.build

    def shifted(config: Any, tensors: Any, **options: Any) -> Any:
        bias = tensors["head.bias"] + np.array([3, 0, 0], np.float32)
        return whole(config, {**tensors, "head.bias": bias}, **options)

    monkeypatch.setattr(exporting, "build", shifted)
    (tmp_path / "m.onnx").write_bytes(b"before")
    with pytest.raises(VitError, match="nothing was written"):
        export(resolve(str(base)), tmp_path / "m.onnx")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"before")]


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"not onnx at all", b"\x72\xff\xff\xff\x7f"])
    def test_not_onnx(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.onnx: (not an ONNX file|an ONNX file without labels)"):
            resolve(str(path))

    def test_cut_off(self, base: Path, tmp_path: Path) -> None:
        whole = export(resolve(str(base)), tmp_path / "m.onnx").path.read_bytes()
        for part in (10, len(whole) // 2, len(whole) - 5):
            (tmp_path / "cut.onnx").write_bytes(whole[:part])
            with pytest.raises(CheckpointError, match=r"cut\.onnx"):
                resolve(str(tmp_path / "cut.onnx"))

    def test_somebody_elses(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])), tmp_path / "m.onnx"
        )
        with pytest.raises(CheckpointError, match="without labels and preprocessing"):
            resolve(str(tmp_path / "m.onnx"))

    def test_only_for_prediction(self, base: Path, tmp_path: Path) -> None:
        checkpoint = resolve(str(export(resolve(str(base)), tmp_path / "m.onnx").path))
        with pytest.raises(CheckpointError, match="give the checkpoint it was made from"):
            load_model(checkpoint)
        with pytest.raises(UsageError, match="runs as it is"):
            load(checkpoint, engine="torch")
        with pytest.raises(UsageError, match="runs as it is"):
            load(checkpoint, precision="int8")


class TestCommand:
    def invoke(self, *arguments: object) -> Any:
        return CliRunner().invoke(app, ["export", *map(str, arguments)])

    def test_measures_and_says_how_to_use_it(self, base: Path, tmp_path: Path) -> None:
        result = self.invoke(base, "--out", tmp_path / "m.onnx")
        assert result.exit_code == 0, result.stderr
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["pixels", "64x64", "64x64", "64x64"]
        assert f"vit predict -m {tmp_path / 'm.onnx'}" in result.stderr
        again = self.invoke(base, "--out", tmp_path / "m.onnx")
        assert again.exit_code == 2
        assert "--force replaces it" in again.stderr

    def test_json(self, base: Path, tmp_path: Path) -> None:
        result = self.invoke(base, "--out", tmp_path / "m.onnx", "--json", "--softmax")
        document = json.loads(result.stdout)
        assert document["options"]["softmax"] is True
        assert document["parity"][2]["batch"] == 7
        assert [one["images"] for one in document["parity"]] == [128, 14, 14]
        assert document["parity"][0]["interval"] == {"low": pytest.approx(0.9709, abs=1e-4), "high": 1.0}
        assert "128 built-in photographs" in result.stderr

    def test_measures_on_the_users_images(self, base: Path, tmp_path: Path, images: list[Image.Image]) -> None:
        for i, image in enumerate(images):
            image.save(tmp_path / f"{i}.png")
        (tmp_path / "x.jpg").write_bytes(b"not an image")
        result = self.invoke(base, "--out", tmp_path / "m.onnx", "--images", tmp_path, "--json")
        assert result.exit_code == 3
        assert json.loads(result.stdout)["parity"][0]["images"] == 3
        assert "1 image could not be read" in result.stderr
        result = self.invoke(base, "--out", tmp_path / "n.onnx", "--images", tmp_path / "x.jpg")
        assert result.exit_code == 1
        assert "none of the 1 images could be read" in result.stderr
        assert not (tmp_path / "n.onnx").exists()
        assert self.invoke(base, "--images", tmp_path, "--data", tmp_path).exit_code == 2

    @pytest.mark.parametrize(
        ("out", "message"), [("m.pb", "must end with .onnx"), ("no/folder/m.onnx", "no such folder")]
    )
    def test_wrong_places(self, base: Path, tmp_path: Path, out: str, message: str) -> None:
        result = self.invoke(base, "--out", tmp_path / out)
        assert result.exit_code == 2
        assert message in result.stderr
