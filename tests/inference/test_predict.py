"""Predictions as a stream: right, in order, lazy, and not spoilt by one bad file."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from PIL import Image

import vitcli
from tests.helpers.checkpoints import LABELS, TINY, edit_config, random_tensors, write_tiny
from tests.helpers.process import python
from vitcli import Model, Prediction, Score, load, predict
from vitcli.checkpoint.config import Description
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.write import write_checkpoint
from vitcli.errors import CheckpointError, UsageError
from vitcli.images.find import ImageSource
from vitcli.images.preprocess import Preprocess
from vitcli.images.preprocess import load as load_pixels
from vitcli.inference import stream as module
from vitcli.inference.engines import open_engine
from vitcli.model.shapes import Array


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs' worth of noise, of different sizes, and three files that are none."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(9):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((90 + 40 * i, 200 - 10 * i)).save(place / f"{i}.{'jpg' if i % 2 else 'png'}")
    (place / "2 text.jpg").write_text("not an image")
    (place / "4 empty.jpg").touch()
    (place / "6 cut.jpg").write_bytes((place / "7.jpg").read_bytes()[:700])
    return place


def good(predictions: Iterator[Prediction]) -> dict[str, Prediction]:
    return {p.path: p for p in predictions if not p.error}


def test_a_prediction_is_preprocessing_model_softmax_and_names(model: Model, pictures: Path) -> None:
    path = pictures / "3.jpg"
    (prediction,) = model.predict(path, top_k=2)
    logits = open_engine(model.checkpoint, "torch").logits(load_pixels(path, model.preprocess)[None])[0]
    expected = scipy.special.softmax(logits.astype(np.float64))
    order = np.argsort(-expected)[:2]
    assert prediction.path == str(path)
    assert prediction.error is None
    assert [score.index for score in prediction.labels] == order.tolist()
    assert [score.label for score in prediction.labels] == [LABELS[i] for i in order]
    # the engines' agreement (test_engines)
    np.testing.assert_allclose([score.probability for score in prediction.labels], expected[order], atol=1e-5)


@pytest.mark.parametrize("side", [1040, 4096])
@pytest.mark.parametrize("images", [1, 9])
def test_no_image_is_prepared_at_a_large_size_that_the_weights_deny(tmp_path: Path, side: int, images: int) -> None:
    folder = edit_config(
        write_tiny(tmp_path), pretrained_cfg__input_size=[3, side, side], model_args__img_size=[side, side]
    )
    checkpoint = resolve(str(folder))

    def prepared(preprocess: Preprocess, exact: bool) -> Array:
        raise AssertionError("prepared")

    sources = iter([module.Source(str(i), prepared) for i in range(images)])
    with pytest.raises(CheckpointError, match="the position embedding is for a grid of 4×4"):
        list(module.Stream(checkpoint).answers(sources))


def test_order_is_that_of_the_input_and_bad_files_stay_alone(model: Model, pictures: Path) -> None:
    names = [path.name for path in sorted(pictures.iterdir(), reverse=True)]
    predictions = list(model.predict([pictures / name for name in names] + ["missing.png"]))
    assert [Path(p.path).name for p in predictions] == [*names, "missing.png"]
    failed = {Path(p.path).name: p.error for p in predictions if p.error}
    assert failed.keys() == {"2 text.jpg", "4 empty.jpg", "6 cut.jpg", "missing.png"}
    assert all(name in str(error) for name, error in failed.items())
    assert all((not p.labels) == (p.error is not None) for p in predictions)


def test_order_holds_when_the_first_image_takes_longest(
    model: Model, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []

    def slow(source: Path, *arguments: Any, **more: Any) -> Any:
        if source.name == "0.png":
            while len(finished) < 3:  # others overtake it
                time.sleep(0.001)
        pixels = load_pixels(source, *arguments, **more)
        finished.append(source.name)
        return pixels

    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    monkeypatch.setattr(module, "load_pixels", slow)
    paths = [pictures / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(9)]
    assert [p.path for p in model.predict(paths)] == [str(path) for path in paths]
    assert finished[0] != "0.png"


@pytest.mark.parametrize("wishes", [{}, {"precision": "int8"}, {"engine": "torch"}], ids=str)
def test_neighbours_and_batch_size_change_nothing(
    wishes: dict[str, Any], folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder, **wishes)
    alone = {}
    for path in sorted(pictures.iterdir()):
        alone |= good(model.predict(path))
    for cpus, batch_size in [(1, None), (3, None), (2, 4), (2, 100)]:
        monkeypatch.setattr(module, "available_cpus", lambda cpus=cpus: cpus)
        together = good(model.predict(pictures, batch_size=batch_size))
        if wishes.get("engine") != "torch":
            assert together == alone  # bit for bit
            continue
        assert together.keys() == alone.keys()
        for path, prediction in together.items():  # torch's matrix products round by the batch
            assert [s.index for s in prediction.labels] == [s.index for s in alone[path].labels]
            expected = [s.probability for s in alone[path].labels]
            assert [s.probability for s in prediction.labels] == pytest.approx(expected, abs=1e-6)


def test_an_endless_list_is_read_no_further_than_needed(model: Model, pictures: Path) -> None:
    taken = count()
    last = 0

    def endless() -> Iterator[Path]:
        nonlocal last
        while True:
            last = next(taken)
            yield pictures / "0.png"

    predictions = model.predict(endless())
    assert last == 0, "nothing is read before it is asked for"
    for _ in range(50):
        next(predictions)
    assert last < 50 + 100  # the look-ahead, not the list
    predictions.close()  # type: ignore[attr-defined]
    before = last
    time.sleep(0.05)
    assert last == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_pillow_images_are_inputs_too(model: Model, pictures: Path) -> None:
    path = pictures / "4.png"
    with Image.open(path) as image:
        as_file, as_image, as_bytes = model.predict([path, image.copy(), ImageSource("bytes", path.read_bytes())])
        assert (as_image.path, as_bytes.path) == ("image 2", "bytes")
        assert as_image.labels == as_bytes.labels == as_file.labels
        # What a file with transparency shows is white behind it; so too when it comes from Pillow.
        clear = image.convert("RGBA")
        clear.putalpha(100)
        clear.save(pictures / "clear.webp", lossless=True)
    (from_image,), (from_file,) = model.predict(clear), model.predict(pictures / "clear.webp")
    (pictures / "clear.webp").unlink()
    assert from_image.labels == from_file.labels
    assert from_image.labels != as_file.labels


def test_exact_resizes_in_full(model: Model, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")
    (default,), (exact,) = model.predict(tmp_path), model.predict(tmp_path, exact=True)
    assert [score.label for score in default.labels] == [score.label for score in exact.labels]
    assert [score.probability for score in default.labels] == pytest.approx(
        [score.probability for score in exact.labels], abs=1e-3
    )
    pixels = load_pixels(tmp_path / "large.jpg", model.preprocess, exact=True)
    logits = open_engine(model.checkpoint, "onnxruntime").logits(pixels[None])[0]
    assert exact.labels[0].probability == scipy.special.softmax(logits.astype(np.float64)).max()


def test_top_k_is_cut_to_the_classes_there_are(model: Model, pictures: Path) -> None:
    (prediction,) = model.predict(pictures / "0.png", top_k=100)
    assert sorted(score.label for score in prediction.labels) == sorted(LABELS)
    assert sum(score.probability for score in prediction.labels) == pytest.approx(1, abs=1e-12)
    assert [s.probability for s in prediction.labels] == sorted(
        (s.probability for s in prediction.labels), reverse=True
    )


def test_equal_probabilities_come_in_class_order(tmp_path: Path, pictures: Path) -> None:
    tensors = random_tensors(TINY)
    tensors["head.weight"][:] = 0
    tensors["head.bias"][:] = 0
    (prediction,) = predict(pictures / "0.png", rewritten(tmp_path, tensors))
    assert prediction.labels == tuple(Score(label, 1 / 3, i) for i, label in enumerate(LABELS))


def test_an_answer_that_is_not_finite_is_an_error(tmp_path: Path, pictures: Path) -> None:
    tensors = random_tensors(TINY)
    tensors["head.weight"][:] = 3e38
    (prediction,) = predict(pictures / "0.png", rewritten(tmp_path, tensors))
    assert prediction == Prediction(
        str(pictures / "0.png"), error=f"{pictures / '0.png'}: the model's answer is not finite"
    )


def rewritten(folder: Path, tensors: dict[str, Any]) -> Path:
    preprocess = load(write_tiny(folder)).preprocess
    write_checkpoint(
        folder,
        tensors,
        Description(architecture="vit_tiny_patch16_224", vit=TINY, labels=LABELS, preprocess=preprocess),
    )
    return folder


def test_the_checkpoint_s_temperature_flattens(folder: Path, tmp_path: Path, pictures: Path) -> None:
    (sharp,) = predict(pictures / "0.png", folder)
    (flat,) = predict(pictures / "0.png", write_tiny(tmp_path, temperature=2.0))
    ratio = [np.log(a.labels[0].probability / a.labels[1].probability) for a in (sharp, flat)]
    assert ratio[0] == pytest.approx(2 * ratio[1])


def test_nothing_in_nothing_out(model: Model, tmp_path: Path) -> None:
    assert list(model.predict([])) == []
    assert list(model.predict(tmp_path)) == []


def test_mistakes_are_said_before_anything_is_read(model: Model, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        model.predict("x.png", top_k=0)
    with pytest.raises(UsageError, match="at least 1"):
        model.predict("x.png", batch_size=0)
    with pytest.raises(UsageError, match="give them to load"):
        predict("x.png", model, engine="torch")
    with pytest.raises(UsageError, match="int8"):
        load(folder, engine="torch", precision="int8")
    with pytest.raises(CheckpointError, match="has no classes"):
        load(write_tiny(tmp_path, replace(TINY, num_classes=0), labels=[]))


def test_a_damaged_checkpoint_is_an_error_of_its_own(tmp_path: Path, pictures: Path) -> None:
    weights = write_tiny(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        next(predict(pictures, tmp_path))


def test_one_image_imports_neither_torch_nor_onnx(folder: Path, pictures: Path) -> None:
    code = "import sys; from vitcli import predict; p, = predict(sys.argv[1], sys.argv[2]); print(*sys.modules)"
    imported = set(python("-c", code, pictures / "0.png", folder).stdout.split())
    assert {"numpy", "PIL", "onnxruntime"} <= imported
    assert not imported & {"torch", "timm", "torchvision", "onnx", "typer", "rich", "safetensors", "huggingface_hub"}


def test_the_package_exports_what_it_says() -> None:
    assert all(hasattr(vitcli, name) for name in vitcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitcli.nonsense
