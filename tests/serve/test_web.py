"""`vit export --to web`: a folder with which a browser answers by itself as `vit predict` does."""

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.checkpoints import PREPROCESS, write_tiny
from tests.helpers.familiar import own_samples, write_familiar
from tests.helpers.serving import browser, picture, watched
from tests.helpers.terminal import invoke
from vitcli.errors import VitError
from vitcli.images.decode import open_image
from vitcli.images.preprocess import Preprocess
from vitcli.inference.predict import load
from vitcli.serve import runtime as runtime_module
from vitcli.serve.runtime import FILES, unpacked
from vitcli.serve.web import told

RUNTIME = os.environ.get("VIT_ORT_WEB")  # a folder with npm's onnxruntime-web, for the tests that run a model

# Enough of a runtime for a page that is only asked what it makes of pixels.
STUB = "export const env = { wasm: {} }; export const InferenceSession = { async create() {} };"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stub")
    for name in FILES:
        (folder / name).write_text(STUB)
    return folder


@pytest.fixture(scope="module")
def without_runtime(stub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with statistics, on which everything works but the model."""
    folder = tmp_path_factory.mktemp("export")
    return exported(write_familiar(folder / "model"), folder / "web", stub)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@contextmanager
def offered(folder: Path) -> Iterator[str]:
    """The address of a plain server of the files in `folder`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def exported(model: Path, out: Path, runtime: Path | str, *more: object) -> Path:
    result = invoke("export", model, "--to", "web", "--runtime", runtime, "-o", out, *more, "--count", 4)
    assert result.exit_code == 0, result.output
    return out


def pictures() -> list[tuple[str, bytes]]:
    """Files of all shapes, and of what changes pixels on the way: alpha, palettes, gray, 16 bits, EXIF's turns."""
    rng = np.random.default_rng(5)
    found = [
        (f"{w}x{h}.png", picture(w, (w, h))) for w, h in ((64, 64), (200, 90), (90, 200), (333, 70), (40, 31), (7, 3))
    ]
    found += [("tall.png", picture(1, (30, 400))), ("webp", picture(2, (150, 99), "WEBP", lossless=True))]
    found += [("gray", picture(3, (99, 80), "PNG"))]
    turned = Image.Exif()
    turned[0x0112] = 6
    found += [(f"{sub}.jpg", picture(4, (301, 203), "JPEG", subsampling=sub, quality=90)) for sub in (0, 2)]
    found += [("turned.jpg", picture(5, (120, 80), "JPEG", exif=turned))]
    for mode, shape in (("RGBA", (50, 70, 4)), ("L", (70, 50)), ("LA", (60, 60, 2))):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(file, "PNG")
        found.append((mode, file.getvalue()))
    file = io.BytesIO()
    open_image(picture(6)).quantize(16).save(file, "PNG")
    return [*found, ("palette", file.getvalue())]


PIXELS = """async (file) => {
    const bytes = await (await fetch(file)).blob();
    await window.backend.models();
    return (await window.backend.pixels(bytes)).join();
}"""


@pytest.mark.parametrize(
    "preprocess",
    [
        PREPROCESS,
        replace(PREPROCESS, interpolation="bilinear", crop_pct=0.875, crop_margin="floor"),
        replace(PREPROCESS, interpolation="lanczos", crop_mode="border", crop_pct=1.0, mean=(0.2, 0.9, 0.5)),
        replace(PREPROCESS, interpolation="nearest", crop_mode="squash", crop_pct=0.9),
        replace(PREPROCESS, crop_pct=1.4),
        replace(PREPROCESS, size=(48, 80), crop_pct=0.8),
        Preprocess(size=(32, 32), mean=(0.3,), std=(0.2,)),
    ],
    ids=lambda p: f"{p.interpolation} {p.crop_mode} {p.crop_pct} {p.size} {p.in_chans}",
)
def test_a_browser_sees_the_pixels_that_we_see(
    preprocess: Preprocess, chromium: Any, without_runtime: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(without_runtime, tmp_path / "web"))
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**described, "preprocess": told(preprocess)}))
    worst = {}
    with offered(folder) as url, watched(chromium, url) as page:
        page.goto(url)
        for name, data in pictures():
            (folder / f"picture {name}").write_bytes(data)
            given = np.fromstring(page.evaluate(PIXELS, f"picture {name}"), np.int16, sep=",")
            ours = preprocess.pixels(open_image(data)).astype(np.int16).reshape(-1)
            worst[name] = int(np.abs(given - ours).max())
    assert max(worst.values()) <= 1, worst
    assert {name for name, difference in worst.items() if difference} <= {"RGBA", "LA", "0.jpg", "2.jpg", "turned.jpg"}


ANSWER = """async (file) => {
    const bytes = await (await fetch(file)).blob();
    const [model] = await window.backend.models();
    return (await window.backend.predict(model, bytes)).prediction;
}"""


@pytest.mark.skipif(RUNTIME is None, reason="VIT_ORT_WEB names no folder with npm's onnxruntime-web")
@pytest.mark.parametrize("kind", ["familiar", "int8", "labels"])
def test_a_browser_answers_as_predict_does(kind: str, chromium: Any, tmp_path: Path) -> None:
    if kind == "labels":
        model = write_tiny(tmp_path / "model", outputs="labels", thresholds=[0.5, 0.3, 0.9])
    else:
        model = write_familiar(tmp_path / "model")
    assert RUNTIME is not None
    more = ["--precision", "int8"] if kind == "int8" else []
    folder = exported(model, tmp_path / "web", RUNTIME, *more)
    reference = load(folder / "model.onnx")
    own = [Image.fromarray(array) for array in own_samples(3).images]
    files = [picture(seed) for seed in range(6)]
    for image in own:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    with offered(folder) as url, watched(chromium, url) as page:
        page.goto(url)
        for number, data in enumerate(files):
            (folder / f"{number}.png").write_bytes(data)
            given = page.evaluate(ANSWER, f"{number}.png")
            (ours,) = reference.predict(open_image(data))
            assert [score["label"] for score in given["labels"]] == [score.label for score in ours.labels]
            for score, expected in zip(given["labels"], ours.labels, strict=True):
                assert score["probability"] == pytest.approx(expected.probability, abs=0.02 if more else 1e-5)
            if ours.familiarity is None:
                assert "familiarity" not in given
            elif not more:
                assert given["familiarity"] == pytest.approx(ours.familiarity, abs=1.5 / 120)  # a rank
    with offered(folder) as url, watched(chromium, url) as page:
        page.goto(url)
        (tmp_path / "a.png").write_bytes(files[0])
        page.set_input_files("#files", tmp_path / "a.png")
        page.locator("article section").get_by_text(" ms").wait_for()
        (ours,) = reference.predict(tmp_path / "a.png")
        assert page.locator("article .label").all_inner_texts() == [score.label for score in ours.labels]


def test_what_a_browser_cannot_read_is_said(chromium: Any, without_runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with offered(without_runtime) as url, watched(chromium, url) as page:
        page.goto(url)
        page.get_by_text("knows 3 classes").wait_for()
        page.set_input_files("#files", tmp_path / "broken.png")
        page.get_by_text("broken.png is not an image that this browser can read.").first.wait_for()


def test_the_folder_is_whole_and_says_whose_it_is(without_runtime: Path) -> None:
    folder = without_runtime
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    licences = {"LICENSE", "ThirdPartyNotices.txt"}
    assert names == {"index.html", "browser.js", "model.json", "model.onnx", "familiarity.bin"} | {
        f"runtime/{name}" for name in {*FILES, *licences}
    }
    assert "Microsoft" in (folder / "runtime/LICENSE").read_text()
    described = json.loads((folder / "model.json").read_text())
    numbers = sum(
        part["numbers"] * (1 + part["directions"]) + part["directions"] * part["centers"]
        for part in described["statistics"]["parts"]
    )
    assert (folder / "familiarity.bin").stat().st_size == 4 * (numbers + described["statistics"]["reference"])
    assert str(folder.parent) not in (folder / "model.json").read_text()


def test_only_an_earlier_export_is_replaced(stub: Path, tmp_path: Path) -> None:
    model, out = write_tiny(tmp_path / "model"), tmp_path / "web"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    command = ["export", model, "--to", "web", "--runtime", stub, "-o", out, "--count", 4]
    assert "--force replaces it" in invoke(*command).stderr
    refused = invoke(*command, "--force")
    assert (refused.exit_code, "left as it is" in refused.stderr) == (1, True)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    exported(model, out, stub, "--force")
    (out / "model.json").touch()
    exported(write_tiny(tmp_path / "other", seed=2), out, stub, "--force")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--runtime npm download"),
        (["--runtime", "EMPTY"], 1, "no ort.wasm.min.mjs of onnxruntime-web there"),
        (["--runtime", "STUB", "--pixels"], 2, "--pixels"),
        (["--runtime", "STUB", "--img-size", "64,80"], 2, "one image size"),
        (["--runtime", "STUB", "--to", "onnx"], 2, "belongs to --to web"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(arguments: list[str], code: int, words: str, stub: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "STUB": stub}
    given = [places.get(one, one) for one in arguments]
    result = invoke("export", write_tiny(tmp_path / "m"), "--to", "web", "-o", tmp_path / "web", "--count", 4, *given)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "web").exists()


def package(files: dict[str, bytes]) -> bytes:
    """A package as npm has them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_what_is_downloaded_is_the_known_version_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = package({name: name.encode() for name in FILES})
    place = tmp_path / "onnxruntime-web" / "-"
    place.mkdir(parents=True)
    (place / f"onnxruntime-web-{runtime_module.VERSION}.tgz").write_bytes(data)
    with offered(tmp_path) as url:
        monkeypatch.setenv("npm_config_registry", url)
        with pytest.raises(VitError, match="its digest is another"):
            runtime_module.runtime_files("npm")
        digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
        monkeypatch.setattr(runtime_module, "DIGEST", digest)
        found = runtime_module.runtime_files("npm")
        assert [found[name] for name in FILES] == [name.encode() for name in FILES]
        monkeypatch.setattr(runtime_module, "VERSION", "0")
        with pytest.raises(VitError, match="not found"):
            runtime_module.runtime_files("npm")
    with pytest.raises(VitError, match="digest"):
        unpacked(data[:-1], "somewhere")
