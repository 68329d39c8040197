"""What a head's outputs mean, from transformers' config to every command: classes, labels, embeddings, quantities."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.helpers import originals
from tests.helpers.checkpoints import LABELS, TINY, edit_config, write_tiny
from tests.helpers.originals import PATCH, SIZES, TRANSFORMERS, edit, save_transformers, shake
from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.convert.recognise import convert
from vitcli.checkpoint.convert.result import Settings
from vitcli.checkpoint.convert.source import open_source
from vitcli.checkpoint.load import load_any, load_model
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.tensor_file import read_header, read_tensors
from vitcli.cli.app import app
from vitcli.errors import CheckpointError, UsageError
from vitcli.inference.engines import probabilities
from vitcli.inference.export import Options, export
from vitcli.inference.multilabel import measure_labels
from vitcli.inference.predict import load
from vitcli.model.architectures import ARCHITECTURES, NOT_COVERED
from vitcli.training.teacher import load_teacher

MULTI, ONE, REGRESSION = "multi_label_classification", "single_label_classification", "regression"


pytestmark = pytest.mark.usefixtures("quiet")


def original(folder: Path, classes: int = 3, kind: str = "vit", **config: Any) -> Path:
    if kind == "vit":
        settings = transformers.ViTConfig(**SIZES, **PATCH, num_labels=classes, layer_norm_eps=1e-6)
        model = transformers.ViTForImageClassification(settings)
    else:
        model = TRANSFORMERS[kind][0]()
    save_transformers(shake(model), folder)
    side = {"height": 64, "width": 64}
    transformers.ViTImageProcessor(size=side).save_pretrained(folder)
    edit(folder / "config.json", **config)
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def bfloat16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As JAX writes it into an .npz: two bytes without a type."""
    return torch.tensor(array).bfloat16().view(torch.int16).numpy().view("V2")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


class TestProblemType:
    @pytest.mark.parametrize(("classes", "problem"), [(3, None), (3, ONE), (3, MULTI), (1, None), (1, MULTI)], ids=str)
    def test_the_probabilities_are_those_of_transformers_pipeline(
        self, classes: int, problem: str | None, picture: Path, tmp_path: Path
    ) -> None:
        """Before and after conversion, by both engines, through ONNX with and without probabilities in it."""
        folder = original(tmp_path / "original", classes, problem_type=problem)
        assert run("convert", folder, "-o", tmp_path / "out").exit_code == 0
        for place in (folder, tmp_path / "out"):
            processor = transformers.AutoImageProcessor.from_pretrained(folder)
            pipe = transformers.pipeline("image-classification", str(place), image_processor=processor, device="cpu")
            theirs = {one["label"]: one["score"] for one in pipe(str(picture), top_k=classes)}
        checkpoint = resolve(str(tmp_path / "out"))
        assert checkpoint.outputs == ("classes" if problem != MULTI and classes > 1 else "labels")
        wanted = sorted(theirs.values(), reverse=True)
        assert max(wanted) < 0.999, "a probability of 1 proves nothing"
        export(checkpoint, tmp_path / "logits.onnx")
        export(checkpoint, tmp_path / "shares.onnx", options=Options(softmax=True))
        models = [("out", "torch"), ("out", "onnxruntime"), ("logits.onnx", "auto"), ("shares.onnx", "auto")]
        for name, engine in models:
            answer = run("predict", picture, "-m", tmp_path / name, "--engine", engine, "--json")
            assert answer.exit_code == 0, answer.output
            (found,) = json.loads(answer.stdout)["predictions"]
            scores = [one["probability"] for one in found["labels"]]
            assert scores == pytest.approx(wanted, abs=2e-3), name  # the processors' pixels differ by 1 of 255
        output = onnx.load(tmp_path / "shares.onnx").graph.node[-1].op_type
        assert output == ("Softmax" if checkpoint.outputs == "classes" else "Sigmoid")

    def test_the_config_keeps_it_for_transformers(self, tmp_path: Path) -> None:
        run("convert", original(tmp_path / "original", problem_type=MULTI), "-o", tmp_path / "out")
        assert transformers.AutoConfig.from_pretrained(tmp_path / "out").problem_type == MULTI
        assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 3
        assert "sigmoid" in (tmp_path / "out" / "README.md").read_text()

    @pytest.mark.parametrize("kind", ["vit", "clip-classifier", "siglip-classifier"])
    def test_quantities_are_refused_and_can_be_left_out(self, kind: str, tmp_path: Path) -> None:
        folder = original(tmp_path, kind=kind, problem_type=REGRESSION)
        with pytest.raises(CheckpointError, match=r"quantities.*--no-head"):
            convert(open_source(str(folder)))
        assert convert(open_source(str(folder)), Settings(head=False))[0].vit.num_classes == 0

    @pytest.mark.parametrize("said", ["multi_label", 3, ["regression"], "", True])
    def test_what_is_no_problem_type(self, said: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"problem_type.* is none of"):
            convert(open_source(str(original(tmp_path / "a", problem_type=said))))
        with pytest.raises(CheckpointError, match=r"problem_type.* is none of"):
            resolve(str(edit_config(write_tiny(tmp_path / "b"), problem_type=said)))

    def test_it_goes_wherever_the_checkpoint_goes(self, tmp_path: Path) -> None:
        base = write_tiny(tmp_path / "base", outputs="labels", dtype="float16")
        assert run("resize-posemb", base, "--size", 96, "-o", tmp_path / "larger").exit_code == 0
        for name in ("base", "larger"):
            assert resolve(str(tmp_path / name)).outputs == "labels"
        assert json.loads((tmp_path / "larger" / "config.json").read_text())["problem_type"] == MULTI

    def test_it_is_scored_on_several_labels_an_image(self, tmp_path: Path) -> None:
        """By the sigmoids of transformers' own model, at a half."""
        folder = original(tmp_path / "original", problem_type=MULTI, id2label=dict(enumerate(LABELS)))
        assert run("convert", folder, "-o", tmp_path / "out").exit_code == 0
        rows = []
        for i, labels in enumerate((["cat"], ["dog", "bird"], [], ["cat", "bird"])):
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "labels": labels}))
        (tmp_path / "data.jsonl").write_text("\n".join(rows))
        answer = run("evaluate", tmp_path / "out", "-d", tmp_path / "data.jsonl", "--json", "--exact")
        assert answer.exit_code == 0, answer.output
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        pipe = transformers.pipeline("image-classification", str(folder), image_processor=processor, device="cpu")
        found = [{one["label"]: one["score"] for one in pipe(str(tmp_path / f"{i}.png"), top_k=3)} for i in range(4)]
        shares = np.array([[one[label] for label in LABELS] for one in found])
        truth = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]])
        measures = json.loads(answer.stdout)["measures"]
        assert measures["nll"] == pytest.approx(measure_labels(shares, truth, LABELS).nll, abs=2e-3)
        assert [one["threshold"] for one in measures["labels"]] == [0.5] * 3

    def test_what_is_for_one_class_an_image_is_refused(self, tmp_path: Path) -> None:
        for label in LABELS:
            (tmp_path / "data" / label).mkdir(parents=True)
            Image.new("RGB", (64, 64)).save(tmp_path / "data" / label / "a.png")
        base = write_tiny(tmp_path / "base", outputs="labels")
        data = ("--data", tmp_path / "data")
        for arguments in (("evaluate", base, *data), ("resize-posemb", base, "--size", 96, "-o", tmp_path / "x",
                                                      "--check", tmp_path / "data")):  # fmt: skip
            answer = run(*arguments)
            assert answer.exit_code in (1, 2)
            assert "multi-label" in answer.stderr
        assert not (tmp_path / "x").exists()
        with pytest.raises(UsageError, match="multi-label"):
            load_teacher(str(base), resolve(str(base)).preprocess, LABELS)
        answer = run("inspect", base, "--logit-lens", "--count", 2)
        assert answer.exit_code == 2
        assert "not classes of which one holds" in answer.stderr

    def test_sigmoid_of_any_size(self) -> None:
        logits = np.array([-800.0, -20, 0, 0.9, 800], np.float32)
        shares = probabilities(logits, outputs="labels")
        assert shares[[0, 2, 4]].tolist() == [0, 0.5, 1]
        assert shares[3] == pytest.approx(1 / (1 + np.exp(-0.9)))
        assert probabilities(logits, 2.0, "labels")[1] == pytest.approx(np.exp(-10), rel=1e-4)


class TestWithoutClasses:
    """Nothing that prints a next step sends a model without classes to `vit predict`, and that refuses it."""

    @pytest.fixture(params=["projection", "embedding", "features", "quantities"])
    def base(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        if request.param == "projection":
            folder = original(tmp_path / "original", kind="clip-projection")
            answer = run("convert", folder, "-o", tmp_path / "base")
            assert answer.exit_code == 0, answer.output
            assert "vit predict" not in answer.output
            assert "vit finetune -m" in answer.stderr
            assert json.loads(run("convert", folder, "--dry-run", "--json").stdout)["outputs"] == "embedding"
            return tmp_path / "base"
        means: Literal["embedding", "quantities"] = "quantities" if request.param == "quantities" else "embedding"
        vit = replace(TINY, num_classes=0) if request.param == "features" else TINY
        return write_tiny(tmp_path / "base", vit, outputs=means)

    def test_every_command_knows(self, base: Path, picture: Path, tmp_path: Path) -> None:
        checkpoint = resolve(str(base))
        assert checkpoint.why_no_classes
        answer = run("predict", picture, "-m", base)
        assert answer.exit_code == 1
        assert "vit finetune -m" in answer.stderr
        assert "%" not in answer.stdout
        with pytest.raises(CheckpointError, match=r"outputs are quantities|it has no classes"):
            load(checkpoint)
        resized = run("resize-posemb", base, "--size", 96, "-o", tmp_path / "resized")
        assert resized.exit_code == 0, resized.output
        exported = run("export", base, "-o", tmp_path / "model.onnx")
        assert exported.exit_code == 0, exported.output
        again = run("convert", base, "-o", tmp_path / "again")
        assert "in timm's layout already" in again.stderr
        for one in (resized, exported, again, run("inspect", base)):
            assert "vit predict" not in one.output
        for path in (tmp_path / "resized", tmp_path / "model.onnx"):
            assert resolve(str(path)).outputs == checkpoint.outputs
            assert run("predict", picture, "-m", path).exit_code == 1
        card = model_card(checkpoint, "me/model", None)
        assert "vit predict" not in card
        assert "pipeline_tag: image-feature-extraction" in card
        assert 'pipeline("image-classification"' not in card
        assert run("export", base, "--softmax", "-o", tmp_path / "shares.onnx").exit_code == 2


class TestNames:
    @pytest.mark.parametrize(
        ("named", "labels"),
        [
            ({"0": 5, "1": 7, "2": 9}, ("5", "7", "9")),
            ({"0": 0, "1": 1.5, "2": True}, ("0", "1.5", "True")),
            ({"2": "c", "01": "b", " 0": "a"}, ("a", "b", "c")),
            (["a", "b", "c"], ("a", "b", "c")),
            ({"0": "caf\u00e9", "1": "cafe\u0301", "2": "tea"}, ("caf\u00e9 (0)", "cafe\u0301 (1)", "tea")),
            ({"0": 1, "1": "1", "2": 2}, ("1 (0)", "1 (1)", "2")),
        ],
        ids=str,
    )
    def test_odd_but_valid(self, named: Any, labels: tuple[str, ...], tmp_path: Path) -> None:
        folder = original(tmp_path, id2label=named)
        assert convert(open_source(str(folder)))[0].labels == labels

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"0": "a", "1": "b", "2": ""}, "class 2 has no name"),
            ({"0": "a", "1": {}, "2": "c"}, "class 1 has no name"),
            ({"1": "a", "2": "b", "3": "c"}, "do not count from 0 to 2"),
            ({"0": "a", "00": "b", "2": "c"}, "do not count from 0 to 2"),
            ({"zero": "a", "1": "b", "2": "c"}, "'zero' of id2label is no number"),
            ({"0": "a"}, "1 names in id2label for 3 classes"),
            ("abc", "neither an object nor a list"),
        ],
        ids=str,
    )
    def test_others_are_refused_for_what_they_are(self, named: Any, message: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=message):
            convert(open_source(str(original(tmp_path, id2label=named))))


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("form", ["folder", "shards", "pickle", "npz"])
    def test_it_stays_and_no_bit_is_changed(self, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
        stored = "F16" if dtype == torch.float16 else "BF16"
        source = tmp_path / "original"
        original(source)
        model = transformers.ViTForImageClassification.from_pretrained(source).to(dtype)
        more: list[Any] = []
        if form in ("folder", "shards"):
            (source / "model.safetensors").unlink()
            model.save_pretrained(source, max_shard_size="50KB" if form == "shards" else "5GB")
        elif form == "pickle":
            more, source = ["--allow-pickle", "--set", "num_heads=3"], tmp_path / "model.pth"
            small = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, img_size=64)
            torch.save(small.to(dtype).state_dict(), source)
        else:
            arrays = originals.flax_vit(hidden=20)
            source = tmp_path / "model.npz"
            kept = {n: a.astype("f2") if stored == "F16" else bfloat16(a) for n, a in arrays.items()}
            np.savez(source, **kept)
        answer = run("convert", source, "-o", tmp_path / "out", *more)
        assert answer.exit_code == 0, answer.output
        written = tmp_path / "out" / "model.safetensors"
        assert {info.dtype for info in read_header(written).tensors.values()} == {stored}
        converted = convert(open_source(str(source), allow_pickle=True), Settings({"num_heads": 3}) if more else None)[
            0
        ]
        for name, array in read_tensors(written).items():
            assert np.array_equal(array, converted.tensors[name])
        assert load_model(resolve(str(tmp_path / "out")))  # the self-test agrees

    def test_resized_it_stays(self, tmp_path: Path) -> None:
        base = write_tiny(tmp_path / "base", dtype="bfloat16")
        assert run("resize-posemb", base, "--size", 96, "-o", tmp_path / "out").exit_code == 0
        kinds = {info.dtype for info in read_header(tmp_path / "out" / "model.safetensors").tensors.values()}
        assert kinds == {"BF16"}
        assert load_model(resolve(str(tmp_path / "out"))).config.img_size == (96, 96)

    def test_sums_of_halves_are_not_rounded(self, tmp_path: Path) -> None:
        """DINOv2 with registers adds the class token's position to it; only float32 holds the sum."""
        folder = original(tmp_path / "original", kind="dinov2-registers")
        model = transformers.Dinov2WithRegistersModel.from_pretrained(folder).to(torch.bfloat16)
        model.save_pretrained(folder)
        assert run("convert", folder, "-o", tmp_path / "out").exit_code == 0
        tensors = read_tensors(tmp_path / "out" / "model.safetensors")
        assert np.array_equal(tensors["cls_token"], convert(open_source(str(folder)))[0].tensors["cls_token"])


class TestEpsilon:
    def test_the_difference_is_measured(self, tmp_path: Path) -> None:
        """An epsilon that timm cannot be told: what timm then computes is off by what the note says."""
        folder = original(tmp_path / "original", layer_norm_eps=1e-3, id2label={"0": "a", "1": "b", "2": "c"})
        found, _ = convert(open_source(str(folder)))
        assert not any("last digits" in note for note in found.notes)
        (note,) = (note for note in found.notes if "norm_eps" in note)
        assert f"up to {found.timm_difference:.1e} of the largest output" in note
        run("convert", folder, "-o", tmp_path / "out")
        out = tmp_path / "out"
        theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        images = torch.cat([torch.zeros(1, 3, 64, 64), torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))])
        with torch.inference_mode():
            ours = load_model(resolve(str(out)))(images)
            off = float((theirs(images) - ours).abs().max() / ours.abs().max())
        assert found.timm_difference is not None
        assert 1e-3 < off < 10 * found.timm_difference
        assert found.timm_difference < 10 * off
        assert f"{found.timm_difference:.1e}" in (out / "README.md").read_text()

    def test_the_same_epsilon_is_no_matter(self, tmp_path: Path) -> None:
        found, _ = convert(open_source(str(original(tmp_path))))
        assert found.timm_difference is None


class TestTimmsOthers:
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("deit3_large_patch16_224", {"depth": 2, "img_size": 32}),
            ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 32}),
            ("eva_giant_patch14_224", {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 28}),
            ("naflexvit_base_patch16_gap", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
            ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 12, "num_heads": [1, 2, 4, 8]}),
            ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
            ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3, "init_values": 1e-5}),
        ],
    )
    def test_sound_folders_are_read(self, name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
        """As timm writes them, for models made smaller: the same logits, ours or timm's own model."""
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3, **arguments).eval()
        timm.models.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
        side = arguments.get("img_size", 224)
        config = json.loads((tmp_path / "config.json").read_text())
        edit_config(tmp_path, pretrained_cfg=config["pretrained_cfg"] | {"input_size": [3, side, side]})
        checkpoint = resolve(str(tmp_path))
        assert (checkpoint.vit is not None) == (name in ARCHITECTURES)
        x = torch.randn(1, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(load_any(checkpoint)(x), model(x))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("pretrained", True),
            ("pretrained_cfg", {"url": "x"}),
            ("checkpoint_path", "weights"),
            ("cache_dir", "x"),
            ("block_fn", "x"),
            ("features_only", True),
            ("depth", 10**6),
            ("depths", [10**6] * 4),
            ("dims", [[[1]]]),
            ("widths", [1] * 1000),
            ("act_layer", "a.b"),
            ("act_layer", "../x"),
            ("ratio", float("nan")),
            ("Depth", 1),
            ("a b", 1),
        ],
        ids=str,
    )
    def test_what_a_config_may_not_say(self, key: str, value: Any, tmp_path: Path) -> None:
        folder = edit_config(write_tiny(tmp_path), architecture="resnet18", model_args={key: value}, vit={})
        with pytest.raises(CheckpointError, match=r"model_args|NaN"):
            resolve(str(folder))

    @pytest.mark.parametrize("argument", ["act_layer", "depth", "no_such_setting"])
    def test_what_timm_does_not_take_is_one_line(self, argument: str, tmp_path: Path) -> None:
        value: Any = "no_such_layer" if argument == "act_layer" else 3
        folder = edit_config(write_tiny(tmp_path), architecture="resnet18", model_args={argument: value}, vit={})
        save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="timm cannot build resnet18") as error:
            load_any(resolve(str(folder)))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit3_small_patch16_224"])
    def test_deit_is_a_vit_everywhere(self, name: str, picture: Path, tmp_path: Path) -> None:
        """Export, int8, attention and resizing, which were refused."""
        small = replace(ARCHITECTURES[name], img_size=(64, 64), embed_dim=48, depth=2, num_heads=3, num_classes=3)
        base = write_tiny(tmp_path / "base", small, architecture=name)
        assert run("predict", picture, "-m", base, "--precision", "int8").exit_code == 0
        assert run("export", base, "-o", tmp_path / "m.onnx").exit_code == 0
        assert run("resize-posemb", base, "--size", 96, "-o", tmp_path / "larger").exit_code == 0
        answer = run("convert", base, "-o", tmp_path / "again")
        assert "vit predict -m" in answer.stderr

    @pytest.mark.parametrize("name", [*NOT_COVERED][::9])
    def test_what_is_said_of_the_others_has_a_reason(self, name: str, tmp_path: Path) -> None:
        folder = edit_config(write_tiny(tmp_path), architecture=name, model_args={}, vit={})
        answer = run("convert", folder, "-o", tmp_path / "out")
        assert f"runs it, by timm ({name} is not a plain ViT: it has {NOT_COVERED[name]})" in answer.stderr
