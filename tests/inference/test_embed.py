"""Vectors: those of `evaluate --few-shot`, the same from both engines and in every form of file, in constant memory."""

import csv
import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from tests.helpers.checkpoints import LABELS, TINY, write_tiny
from tests.helpers.process import imported_by
from tests.helpers.terminal import vit
from vitcli import embed
from vitcli.checkpoint.load import load_any
from vitcli.checkpoint.resolve import resolve
from vitcli.checkpoint.weights import weights_digest
from vitcli.data.sources import read_splits
from vitcli.errors import UsageError, VitError
from vitcli.images.preprocess import load as load_pixels
from vitcli.inference.embed import Embedding, unit
from vitcli.inference.few_shot import read_features
from vitcli.inference.stream import Stream
from vitcli.inference.vectors import write_vectors

WHATS = ("pre_logits", "class", "mean", "patches", "blocks.0", "blocks.1")
FORMS = ("e.parquet", "e.npz", "e.csv", "-")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of the model's classes, noise of different sizes, in whose train split one file is no image."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for label in LABELS:
            (place / split / label).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 256, (60 + 9 * i, 70, 3), np.uint8)
                Image.fromarray(picture).save(place / split / label / f"{i}.png")
    (place / "train" / "dog" / "1.png").write_text("no image")
    return place


def arrays(path: Path | str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found}


def read(path: Path | str, printed: str = "") -> tuple[dict[str, Any], list[str], list[str], np.ndarray]:
    """What a file of vectors holds, read by others' readers: about, paths, errors ("" for none), vectors."""
    if path == "-":
        head, *rows = map(json.loads, printed.splitlines())
        width = head["vit"]["shape"]
        vectors = [row.get("vector", np.full(width, np.nan)) for row in rows]
        return head["vit"], [r["path"] for r in rows], [r.get("error", "") for r in rows], np.array(vectors, np.float32)
    path = Path(path)
    if path.suffix == ".npz":
        found = arrays(path)
        about = json.loads(str(found["vit"]))
        return about, found["path"].tolist(), found["error"].tolist(), found["vector"]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
        about = json.loads(rows[0]["vit"])
        cells = [[row[f"v{i}"] or "nan" for i in range(about["dimension"])] for row in rows]
        vectors = np.array(cells).astype(about["dtype"])
        return about, [row["path"] for row in rows], [row["error"] for row in rows], vectors
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"vit"])
    empty = [np.nan] * int(np.prod(about["shape"]))
    vectors = np.array([one or empty for one in table["vector"].to_pylist()], about["dtype"])
    return (
        about,
        table["path"].to_pylist(),
        [error or "" for error in table["error"].to_pylist()],
        vectors.reshape(-1, *about["shape"]),
    )


class TestVectors:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_those_of_few_shot_to_the_bit(self, model: Path, data: Path, split: Any) -> None:
        found = read_splits(data)
        samples, classes = found.named[split], found.classes
        theirs = read_features(Stream(resolve(str(model)), output="features"), samples, range(len(samples)))
        ours = [one for one in embed(model=model, data=data) if one.split == split]
        assert [one.path for one in ours] == [samples.name(i) for i in range(len(samples))]
        assert [one.label for one in ours] == [classes[i] for i in samples.labels]
        vectors = [one.vector for one in ours if one.vector is not None]
        assert np.stack(vectors).tobytes() == theirs.x.tobytes()
        assert [one.error for one in ours if one.error] == [one.error for one in theirs.failed]

    @pytest.mark.parametrize("what", WHATS)
    @pytest.mark.parametrize("kind", ["token", "avg", "registers"])
    def test_what_it_says_from_both_engines(self, what: str, kind: str, tmp_path: Path, data: Path) -> None:
        """Against the steps of the torch model, taken one by one; tolerance: sums in another order."""
        more: dict[str, Any] = {
            "token": {},
            "avg": {"global_pool": "avg", "class_token": False, "pool_include_prefix": False},
            "registers": {"reg_tokens": 3, "global_pool": "avg", "fc_norm": False},
        }[kind]
        folder, config = write_tiny(tmp_path / "m", replace(TINY, **more)), replace(TINY, **more)
        if what == "class" and not config.class_token:
            with pytest.raises(UsageError, match="no class token"):
                embed([], folder, what=what)
            return
        path = data / "test" / "dog" / "1.png"
        checkpoint = resolve(str(folder))
        torch_model: Any = load_any(checkpoint)
        pixels = torch.from_numpy(load_pixels(path, checkpoint.preprocess)[None])
        with torch.inference_mode():
            x = torch_model.embed(pixels)
            steps = [x := block(x) for block in torch_model.blocks]
            encoded = torch_model.norm(x)[0]
            expected = {
                "pre_logits": torch_model.pool(torch_model.norm(x))[0],
                "class": encoded[0],
                "mean": encoded[config.num_prefix_tokens :].mean(0),
                "patches": encoded[config.num_prefix_tokens :],
                **{f"blocks.{i}": step[0] for i, step in enumerate(steps)},
            }[what]
        for engine in ("onnxruntime", "torch"):
            (one,) = embed(path, folder, what=what, engine=engine)  # type: ignore[arg-type]
            assert one.vector is not None
            assert one.vector.shape == config.token_shape(what)
            np.testing.assert_allclose(one.vector, expected, atol=2e-5)

    def test_of_length_one(self, model: Path, data: Path) -> None:
        path = data / "test" / "cat" / "0.png"
        (plain,), (normal,) = embed(path, model), embed(path, model, normalize=True)
        assert plain.vector is not None
        assert normal.vector is not None
        assert np.linalg.norm(normal.vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(normal.vector * np.linalg.norm(plain.vector), plain.vector, rtol=1e-5)
        assert not unit(np.zeros((2, 5), np.float32)).any(), "zero has no direction"

    def test_float16_refuses_what_it_cannot_hold(self, tmp_path: Path, data: Path) -> None:
        from vitcli.inference import embed as module

        huge = module.Answer("x.png", np.array([1.0, 7e4], np.float32))
        found = module._embedding(False, "float16", huge)
        assert found.vector is None
        assert "beyond float16's range" in (found.error or "")
        kept = module._embedding(False, "float16", module.Answer("x.png", np.array([1.0, 6e4], np.float32)))
        assert kept.vector is not None
        assert kept.vector.dtype == np.float16

    @pytest.mark.parametrize("what", ["", "head", "blocks.2", "blocks.-1", "blocks.01", "logits", "both"])
    def test_what_there_is_not(self, model: Path, what: str) -> None:
        with pytest.raises(UsageError, match=r"blocks\.0 to blocks\.1"):
            embed([], model, what=what)


class TestFiles:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_holds_the_same(self, model: Path, data: Path, tmp_path: Path, form: str, dtype: str) -> None:
        out = form if form == "-" else str(tmp_path / form)
        result = vit(f"embed {data}/train {data}/none.png -m {model} -o {out} --dtype {dtype}")
        assert result.exit_code == 3, "one is no image, one is not there"
        assert "2 of the images could not be read" in result.stderr
        assert form == "-" or not result.stdout
        expected = list(embed([data / "train", data / "none.png"], model, dtype=dtype))  # type: ignore[arg-type]
        about, paths, errors, vectors = read(out, result.stdout)
        assert paths == [one.path for one in expected]
        assert errors == [one.error or "" for one in expected]
        for vector, one in zip(vectors, expected, strict=True):
            if one.vector is None:
                assert np.isnan(vector).all()
            else:
                assert vector.astype(dtype).tobytes() == one.vector.tobytes()
        checkpoint = resolve(str(model))
        assert about["sha256"] == weights_digest(checkpoint)
        assert about["preprocess"]["size"] == [64, 64]
        assert about["model"] == checkpoint.public_name
        assert (about["dimension"], about["shape"], about["dtype"]) == (48, [48], dtype)
        assert (about["what"], about["normalized"]) == ("pre_logits", False)

    @pytest.mark.parametrize("form", FORMS)
    def test_labels_and_splits_of_a_data_set(self, model: Path, data: Path, tmp_path: Path, form: str) -> None:
        out = form if form == "-" else str(tmp_path / form)
        result = vit(f"embed --data {data} -m {model} -o {out}")
        assert result.exit_code == 3, result.output
        expected = [(one.label, one.split) for one in embed(model=model, data=data)]
        if form == "-":
            rows = [json.loads(line) for line in result.stdout.splitlines()[1:]]
            found = [(row["label"], row["split"]) for row in rows]
        elif form == "e.npz":
            kept = arrays(out)
            found = list(zip(kept["label"].tolist(), kept["split"].tolist(), strict=True))
        elif form == "e.csv":
            found = [(row["label"], row["split"]) for row in csv.DictReader(Path(out).read_text().splitlines())]
        else:
            table = pyarrow.parquet.read_table(out)
            found = list(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))
        assert found == expected

    @pytest.mark.parametrize("form", ["e.parquet", "e.npz"])
    def test_tokens_keep_their_shape(self, model: Path, data: Path, tmp_path: Path, form: str) -> None:
        assert vit(f"embed {data}/test -m {model} --what patches -o {tmp_path / form}").exit_code == 0
        about, _, _, vectors = read(tmp_path / form)
        assert about["shape"] == [16, 48]
        expected = [one.vector for one in embed(data / "test", model, what="patches")]
        np.testing.assert_array_equal(vectors, np.stack([one for one in expected if one is not None]))

    @pytest.mark.parametrize("form", FORMS)
    def test_names_that_are_no_utf8(self, tmp_path: Path, form: str) -> None:
        """Readable in every form: the bytes that are none are escapes."""
        rows = [Embedding("caf\udce9.png", np.ones(2, np.float32)), Embedding("猫.png", np.ones(2, np.float32))]
        about = {"dtype": "float32"}
        if form == "-":
            with (tmp_path / "e.jsonl").open("w") as file:
                write_vectors(file, rows, about, (2,))
            found = read("-", (tmp_path / "e.jsonl").read_text())[1]
        else:
            write_vectors(tmp_path / form, rows, about, (2,))
            found = read(tmp_path / form)[1]
        assert found[0] in ("caf\udce9.png", "caf\\udce9.png")
        assert found[1] == "猫.png"

    @pytest.mark.parametrize("form", ["e.parquet", "e.npz", "e.csv"])
    def test_whole_or_not_at_all(self, tmp_path: Path, form: str) -> None:
        def dying() -> Iterator[Embedding]:
            for i in range(5000):
                yield Embedding(f"{i}.png", np.zeros(4, np.float32))
            raise KeyboardInterrupt

        (tmp_path / form).write_text("the one before")
        with pytest.raises(KeyboardInterrupt):
            write_vectors(tmp_path / form, dying(), {"dtype": "float32"}, (4,))
        assert [path.name for path in tmp_path.iterdir()] == [form]
        assert (tmp_path / form).read_text() == "the one before"

    @pytest.mark.parametrize("form", ["e.parquet", "e.npz", "e.csv"])
    def test_in_constant_memory(self, tmp_path: Path, form: str) -> None:
        """Twice as many rows take no more at the peak of what Python and NumPy allocate."""

        def peak(count: int) -> int:
            rows = (Embedding(f"folder/{i}.png", np.full(128, i, np.float32)) for i in range(count))
            tracemalloc.start()
            write_vectors(tmp_path / form, rows, {"dtype": "float32"}, (128,))
            return tracemalloc.get_traced_memory()[1]

        try:
            few, many = peak(12_000), peak(24_000)
        finally:
            tracemalloc.stop()
        assert many < few + (1 << 20)

    def test_the_same_bytes_again(self, tmp_path: Path, model: Path, data: Path) -> None:
        for form in ("e.parquet", "e.npz", "e.csv"):
            for name in ("a", "b"):
                (tmp_path / name).mkdir(exist_ok=True)
                assert vit(f"embed {data}/test -m {model} -o {tmp_path / name / form}").exit_code == 0
            assert (tmp_path / "a" / form).read_bytes() == (tmp_path / "b" / form).read_bytes()

    def test_an_npz_is_no_pickle(self, tmp_path: Path) -> None:
        write_vectors(tmp_path / "e.npz", [Embedding("a", None, "bad")], {"dtype": "float32"}, (3,))
        with zipfile.ZipFile(tmp_path / "e.npz") as archive:
            assert archive.testzip() is None
        assert arrays(tmp_path / "e.npz")["error"].tolist() == ["bad"]

    def test_a_shape_that_nobody_knows(self, tmp_path: Path) -> None:
        """Of a model that is not a plain ViT the first vector says it; without one there is none to write."""
        rows = [Embedding("a", None, "a: bad"), Embedding("b", np.ones(3, np.float32))]
        assert write_vectors(tmp_path / "e.npz", rows, {"dtype": "float32"}, None).shape == (3,)
        with pytest.raises(VitError, match="a: bad"):
            write_vectors(tmp_path / "f.npz", rows[:1], {"dtype": "float32"}, None)
        with pytest.raises(VitError, match="there are no images"):
            write_vectors(tmp_path / "f.npz", [], {"dtype": "float32"}, (3,))
        assert not (tmp_path / "f.npz").exists()


class TestCommand:
    def test_in_input_order_from_everywhere(self, model: Path, data: Path, tmp_path: Path) -> None:
        names = [str(data / "test" / "dog" / "1.png"), str(data / "test" / "cat" / "0.png")]
        (tmp_path / "list").write_text("\n".join(names))
        result = vit(f"embed {data}/test/bird --from-file {tmp_path / 'list'} -m {model} -o -")
        paths = [json.loads(line)["path"] for line in result.stdout.splitlines()[1:]]
        assert [Path(path).parent.name for path in paths] == ["bird", "bird", "dog", "cat"]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("x.png", "--out is missing"),
            ("-o e.npz", "name images"),
            ("x.png --data d -o e.npz", "not both"),
            ("x.png --folders classes -o e.npz", "--folders says what"),
            ("x.png -o e.txt", "must end in .parquet, .npz, .csv"),
            ("x.png -o none/e.npz", "no such folder"),
            ("x.png -o there.npz", "--force replaces it"),
            ("x.png -o e.csv --what patches", "tokens are matrices"),
            ("x.png -o e.npz -b 4 --engine onnxruntime", "--batch-size belongs"),
            ("x.png -o e.npz --what tokens", "there are pre_logits, class, mean, patches"),
        ],
    )
    def test_wrong_usage(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (9, 9)).save("x.png")
        Path("there.npz").touch()
        result = vit(f"embed {line} -m {model}")
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert not {"e.npz", "e.csv"} & {path.name for path in tmp_path.iterdir()}

    def test_an_exported_file_has_no_features(self, model: Path, tmp_path: Path, data: Path) -> None:
        out = tmp_path / "m.onnx"
        assert vit(f"export {model} -o {out} -n 4").exit_code == 0
        asked = (f"embed {data}/test -m {out} -o {tmp_path / 'e.npz'}", f"similar {data} {data}/test -m {out}")
        for line in (*asked, f"evaluate {out} --data {data} --few-shot 1", f"evaluate {out} --data {data} --knn 1"):
            result = vit(line)
            assert result.exit_code == 2, line
            assert "gives logits and nothing before them" in result.stderr

    @pytest.mark.parametrize("form", ["e.npz", "e.parquet"])
    def test_without_torch(self, model: Path, data: Path, tmp_path: Path, form: str) -> None:
        names = imported_by("embed", data / "test", "-m", model, "-o", tmp_path / form, "--engine", "onnxruntime")
        assert not names & {"torch", "timm", "torchvision", "sklearn", "pandas"}
        assert ("pyarrow" in names) == (form == "e.parquet")

    def test_parquet_without_its_extra(
        self, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        result = vit(f"embed {data}/test -m {model} -o {tmp_path / 'e.parquet'}")
        assert result.exit_code == 1
        assert "pip install 'vitcli[data]'" in result.stderr
