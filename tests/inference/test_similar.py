"""Neighbours and duplicates: brute force in float64, whatever the vectors; damaged files; a cache by content."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tests.helpers.checkpoints import write_tiny
from tests.helpers.process import imported_by
from tests.helpers.terminal import vit
from vitcli.errors import UsageError, VitError
from vitcli.inference import similar as module
from vitcli.inference.embed import Embedding, embed
from vitcli.inference.similar import Held, duplicates, neighbours
from vitcli.inference.stored_vectors import open_vectors
from vitcli.inference.vectors import write_vectors

FORMS = ("e.parquet", "e.npz", "e.csv")


def held(vectors: np.ndarray) -> Held:
    return Held([f"{i}.png" for i in range(len(vectors))], vectors.astype(np.float32))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Brute force in float64, (q, N)."""
    a, b = a.astype(np.float32).astype(np.float64), b.astype(np.float32).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return np.array([[row @ other for other in b] for row in a]) / np.where(lengths > 0, lengths, 1)


class TestNeighbours:
    @given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1e-25, 1e-3, 1.0, 1e25]))
    @settings(max_examples=60, deadline=None)
    def test_brute_force_in_float64(self, seed: int, k: int, width: int, scale: float) -> None:
        """Vectors that differ in float32's last bits, copies, zeros, and sizes whose squares float32 cannot hold."""
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(4, width))
        vectors = (centres[rng.integers(0, 4, 50)] + rng.normal(size=(50, width)) * 10.0 ** rng.integers(-8, 0)) * scale
        vectors[rng.integers(0, 50, 5)] = vectors[0]
        vectors[7] = 0
        queries = np.concatenate([vectors[:2], rng.normal(size=(2, width)) * scale])
        expected = cosines(queries, vectors)
        for row, nearest in zip(expected, neighbours(held(vectors), queries.astype(np.float32), k), strict=True):
            assert [one.similarity for one in nearest] == pytest.approx(np.sort(row)[::-1][:k].tolist(), abs=1e-12)
            assert [row[one.row] for one in nearest] == pytest.approx([one.similarity for one in nearest], abs=1e-12)
            assert len({one.row for one in nearest}) == min(k, 50)
            assert all(one.path == f"{one.row}.png" for one in nearest)

    def test_of_equals_the_first(self) -> None:
        vectors = np.ones((9, 3))
        vectors[4] = -1
        (found,) = neighbours(held(vectors), vectors[:1], 9)
        assert [one.row for one in found] == [0, 1, 2, 3, 5, 6, 7, 8, 4]
        assert found[-1].distance == pytest.approx(2)

    @pytest.mark.parametrize("rows", [1, 3, 4096])
    def test_however_it_is_cut(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        vectors, queries = rng.normal(size=(60, 8)), rng.normal(size=(5, 8))
        expected = neighbours(held(vectors), queries, 7)

        class Cut(Held):
            def blocks(self):  # type: ignore[no-untyped-def]
                for start in range(0, self.n, rows):
                    yield module.Block(self.paths[start : start + rows], self.vectors[start : start + rows])

        whole = held(vectors)
        assert neighbours(Cut(whole.paths, whole.vectors), queries, 7) == expected

    def test_other_widths_and_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match="the queries have 3 values, the vectors 4"):
            neighbours(held(np.ones((2, 4))), np.ones((1, 3)), 1)
        monkeypatch.setattr(module, "MOST_VALUES", 7)
        with pytest.raises(UsageError, match="an index is for that"):
            neighbours(held(np.ones((2, 4))), np.ones((1, 4)), 1)


class TestDuplicates:
    @given(st.integers(0, 10**6), st.floats(0.5, 1.0))
    @settings(max_examples=40, deadline=None)
    def test_groups_hang_together(self, seed: int, threshold: float) -> None:
        """Connected components of the graph of all pairs, by scipy."""
        from scipy.sparse.csgraph import connected_components

        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(6, 5))[rng.integers(0, 6, 40)] + rng.normal(size=(40, 5)) * 0.3
        similar = cosines(vectors, vectors)
        if np.abs(similar - threshold).min() < 1e-9:
            return
        count, label = connected_components(similar >= threshold)
        expected = {frozenset(np.flatnonzero(label == i).tolist()) for i in range(count)}
        found = duplicates(held(vectors), threshold)
        groups = [frozenset(int(path.removesuffix(".png")) for path in group.paths) for group in found]
        assert set(groups) == {group for group in expected if len(group) > 1}
        assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)

    def test_more_rows_than_a_square(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", 3)
        vectors = np.eye(10)
        vectors[9] = vectors[0]
        (group,) = duplicates(held(vectors), 1.0)
        assert group.paths == ("0.png", "9.png")

    @pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
    def test_a_threshold_that_is_none(self, threshold: float) -> None:
        with pytest.raises(UsageError, match="a cosine above 0"):
            duplicates(held(np.ones((2, 2))), threshold)


def write(path: Path, vectors: np.ndarray, **about: object) -> Path:
    rows = [Embedding(f"{i}.png", None if np.isnan(v).any() else v, "bad") for i, v in enumerate(vectors)]
    said = {"model": "m", "sha256": "0", "what": "pre_logits", "dtype": str(vectors.dtype), **about}
    write_vectors(path, rows, said, vectors.shape[1:])
    return path


class TestFiles:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    @pytest.mark.parametrize("form", FORMS)
    def test_read_as_written(self, tmp_path: Path, form: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vitcli.inference.stored_vectors.ROWS", 3)
        vectors = np.random.default_rng(0).normal(size=(8, 5)).astype(dtype)
        vectors[[2, 7]] = np.nan
        stored = open_vectors(write(tmp_path / form, vectors))
        assert (stored.n, stored.width) == (8, 5)
        blocks = list(stored.blocks())
        assert [path for block in blocks for path in block.paths] == [f"{i}.png" for i in range(8) if i not in (2, 7)]
        found = np.concatenate([block.vectors for block in blocks])
        np.testing.assert_array_equal(found, vectors[~np.isnan(vectors).any(axis=1)].astype(np.float32))

    @pytest.mark.parametrize("form", FORMS)
    def test_damaged(self, tmp_path: Path, form: str) -> None:
        """Cut anywhere, or a byte changed: one line that names the file, or the vectors as they were."""
        whole = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
        data = write(tmp_path / form, whole).read_bytes()
        rng, said = np.random.default_rng(1), []
        for i in range(60):
            changed = bytearray(data)
            at = int(rng.integers(len(data)))
            changed[at] ^= int(rng.integers(1, 256))
            (tmp_path / form).write_bytes(bytes(changed) if i % 2 else data[:at])
            try:
                for block in open_vectors(tmp_path / form).blocks():
                    assert len(block.paths) == len(block.vectors)
            except VitError as error:
                said.append(str(error))
        assert len(said) > 25
        assert all(form in line and "\n" not in line for line in said)

    def test_tokens_and_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(VitError, match="2-dimensional tokens"):
            open_vectors(write(tmp_path / "e.npz", np.ones((2, 3, 4), np.float32)))
        with pytest.raises(UsageError, match="no file of vectors"):
            open_vectors(tmp_path / "e.txt")
        with pytest.raises(VitError, match="no such file"):
            open_vectors(tmp_path / "none.npz")
        np.savez(tmp_path / "other.npz", a=np.ones(3))
        with pytest.raises(VitError, match="not a file of `vit embed`"):
            open_vectors(tmp_path / "other.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures, and one of them again darker; and a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(5):
        picture = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((90, 90))
        picture.save(tmp_path / "photos" / f"{i}.png")
        if i == 1:
            ImageEnhance.Brightness(picture).enhance(0.97).save(tmp_path / "photos" / "1b.png")
    return tmp_path / "photos"


class TestCommand:
    def test_file_and_folder_say_the_same(self, model: Path, photos: Path) -> None:
        assert vit(f"embed photos -m {model} -o e.npz").exit_code == 0
        folder, file = (
            json.loads(vit(f"similar {a} photos/1.png -k 3 --json -m {model}").stdout) for a in ("photos", "e.npz")
        )
        assert folder == file
        (query,) = folder["queries"]
        assert [Path(one["path"]).name for one in query["neighbours"][:2]] == ["1.png", "1b.png"]
        assert query["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-12)
        table = vit(f"similar photos photos/1.png -k 2 -m {model}").stdout.split()
        assert table[0] == "photos/1.png"
        assert table[2::2] == ["photos/1.png", "photos/1b.png"]

    def test_duplicates_and_their_page(self, model: Path, photos: Path) -> None:
        vectors = {Path(one.path).name: one.vector for one in embed("photos", model)}
        similar = cosines(np.stack([*vectors.values()]), np.stack([*vectors.values()]))  # type: ignore[arg-type]
        first, second = (list(vectors).index(name) for name in ("1.png", "1b.png"))
        others = similar[~np.eye(6, dtype=bool)].tolist()
        own = similar[first, second]
        threshold = (own + max(value for value in others if value < own - 1e-12)) / 2
        result = vit(f"similar photos --duplicates {threshold} -m {model} --json --html page.html")
        (group,) = json.loads(result.stdout)["groups"]
        assert group["paths"] == ["photos/1.png", "photos/1b.png"]
        page = Path("page.html").read_text()
        assert page.count("<img") == 2
        assert "photos/1b.png" in page
        assert vit(f"similar photos --duplicates {threshold} -m {model} --html page.html").exit_code == 2, (
            "it is there already"
        )

    def test_a_folder_is_computed_once(self, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By content: what is new or changed is computed, what is only renamed is not, what is gone is forgotten."""
        from vitcli.inference.embed import Embedder

        real, seen = Embedder.of, []

        def of(self: Embedder, inputs: object) -> object:
            inputs = list(inputs)  # type: ignore[call-overload]
            seen.append([Path(one.name).name for one in inputs])
            return real(self, iter(inputs))

        monkeypatch.setattr(Embedder, "of", of)
        line = f"similar photos --duplicates 0.5 -m {model} --json"
        first = vit(line).stdout
        assert vit(line).stdout == first
        (photos / "0.png").rename(photos / "9.png")
        (photos / "3.png").unlink()
        Image.new("RGB", (50, 50), (9, 200, 30)).save(photos / "4.png")
        changed = vit(line).stdout
        assert seen == [["0.png", "1.png", "1b.png", "2.png", "3.png", "4.png"], ["4.png"]]
        (cache,) = (photos.parent / "cache" / "vitcli" / "vectors").iterdir()
        with np.load(cache) as kept:
            assert len(kept["digest"]) == 5
        cache.write_bytes(cache.read_bytes()[:300])
        assert vit(line).stdout == changed, "a damaged cache is none"

    def test_unreadable_images(self, model: Path, photos: Path) -> None:
        (photos / "bad.png").write_text("none")
        result = vit(f"similar photos photos/2.png gone.png -k 1 -m {model} --json")
        assert result.exit_code == 3
        document = json.loads(result.stdout)
        assert [Path(one["name"]).name for one in document["failed"]] == ["bad.png", "gone.png"]
        assert [query["path"] for query in document["queries"]] == ["photos/2.png"]

    def test_other_weights_and_models_that_are_only_here(self, model: Path, photos: Path, tmp_path: Path) -> None:
        other = write_tiny(tmp_path / "other", seed=1)
        assert vit(f"embed photos -m {model} -o e.npz").exit_code == 0
        result = vit(f"similar e.npz photos/1.png -m {other}")
        assert result.exit_code == 2
        assert "has vectors of other weights" in result.stderr
        result = vit("similar e.npz photos/1.png")
        assert result.exit_code == 2
        assert "say where that checkpoint is with -m" in result.stderr

    def test_more_than_one_looks_at(self, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert vit(f"embed photos -m {model} -o e.npz").exit_code == 0
        monkeypatch.setattr(module, "MOST_VALUES", 40)
        result = vit("similar e.npz photos/1.png")
        assert result.exit_code == 1
        assert "faiss" in result.stderr
        units = np.load("e.index.npy")
        np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-6)
        with np.load("e.npz") as found:
            vectors, paths = found["vector"], found["path"].tolist()
        np.testing.assert_allclose(units * np.linalg.norm(vectors, axis=1)[:, None], vectors, rtol=1e-5, atol=1e-6)
        assert Path("e.index.txt").read_text().splitlines() == paths

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("photos", "name images"),
            ("photos a.png --duplicates 0.9", "no queries and no -k"),
            ("photos --duplicates 2", "a cosine above 0"),
            ("photos a.png --html x.txt", "must end in .html"),
            ("nothing a.png", "no file of vectors"),
        ],
    )
    def test_wrong_usage(self, photos: Path, model: Path, line: str, said: str) -> None:
        result = vit(f"similar {line} -m {model}")
        assert result.exit_code == 2
        assert said in result.stderr

    def test_without_torch(self, model: Path, photos: Path) -> None:
        names = imported_by("similar", photos, photos / "1.png", "-m", model, "--engine", "onnxruntime", "--json")
        assert not names & {"torch", "timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib"}
