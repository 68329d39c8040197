"""What `vit serve` answers: the same as `vit predict`, to those it should, within its limits."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from tests.helpers.checkpoints import write_tiny
from tests.helpers.familiar import write_familiar
from tests.helpers.serving import picture
from tests.helpers.terminal import vit
from vitcli.inference.predict import load
from vitcli.inference.stream import Answer, Source, Stream
from vitcli.serve.access import Access
from vitcli.serve.app import build_app
from vitcli.serve.line import Line
from vitcli.serve.reasons import Reasons
from vitcli.serve.uploads import Limits

TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models: one with statistics of its held-out images, one without."""
    return write_familiar(tmp_path_factory.mktemp("known")), write_tiny(tmp_path_factory.mktemp("plain"), seed=3)


@pytest.fixture(scope="module")
def opened(folders: tuple[Path, Path]) -> Iterator[dict[str, Line]]:
    found = {str(folder): Line(load(folder)) for folder in folders}
    yield found
    for line in found.values():
        line.close()


@pytest.fixture
def lines(opened: dict[str, Line], monkeypatch: pytest.MonkeyPatch) -> dict[str, Line]:
    """As they were opened, whatever a test before this one has done to them."""
    for line in opened.values():
        monkeypatch.setattr(line, "opened", line.opened)
    return opened


def client_of(
    lines: dict[str, Line], limits: Limits | None = None, *, raising: bool = True, **access: Any
) -> TestClient:
    """Not entered, so the lines stay open."""
    app = build_app(lines, Access(**{"local": True, **access}), limits)
    return TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=raising)


@pytest.fixture
def client(lines: dict[str, Line]) -> TestClient:
    return client_of(lines)


def held(line: Line) -> tuple[threading.Event, threading.Event]:
    """Let `line` compute nothing more until the second event is set; the first is, once it is about to."""
    begun, go, compute = threading.Event(), threading.Event(), line.opened.compute

    def wait(batch: Sequence[Source]) -> list[Answer]:
        begun.set()
        assert go.wait(60)
        return compute(batch)

    line.opened = replace(line.opened, compute=wait)
    return begun, go


PICTURES = {
    "wide.png": picture(1, (200, 80)),
    "high.jpg": picture(2, (80, 300), "JPEG"),
    "a name; with «signs».webp": picture(3, (64, 64), "WEBP"),
    "text.png": b"no picture",
}


@pytest.mark.parametrize(
    ("which", "asked", "typed"),
    [
        (0, {}, ""),
        (1, {}, ""),
        (1, {"top": "2"}, "--top 2"),
        (0, {"reject": "0.3", "sets": "0.9"}, "--reject 0.3 --sets 0.9"),
    ],
    ids=str,
)
def test_an_answer_is_that_of_predict(
    which: int, asked: dict[str, str], typed: str, folders: tuple[Path, Path], client: TestClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, data in PICTURES.items():
        Path(name).write_bytes(data)
    names = " ".join(f'"{name}"' for name in PICTURES)
    expected = json.loads(vit(f"predict {names} -m {folders[which]} --json {typed}").stdout)
    files = [("images", (name, data)) for name, data in PICTURES.items()]
    response = client.post("/predict", files=files, params={"model": str(folders[which]), **asked})
    assert response.status_code == 200
    assert response.json() == expected
    assert "error" in expected["predictions"][-1]


def test_answers_have_the_bits_of_predict_whoever_else_asks(lines: dict[str, Line]) -> None:
    files = [picture(seed, (40 + 7 * seed, 90)) for seed in range(24)]
    for line in lines.values():
        found = [future.result(60) for future in [line.put(str(i), data) for i, data in enumerate(files)]]
        model = load(line.model.checkpoint)
        for answer, data in zip(found, files, strict=True):
            (alone,) = model._stream.answers(iter([Source("alone", lambda p, exact, d=data: _pixels(d, p))]))
            assert answer.values is not None
            assert alone.values is not None
            assert np.array_equal(answer.values, alone.values)


def _pixels(data: bytes, preprocess: Any) -> Any:
    from vitcli.images.preprocess import load as load_pixels

    return load_pixels(data, preprocess)


def test_the_body_itself_may_be_the_image(client: TestClient) -> None:
    data = picture(1)
    (form,) = client.post("/predict", files={"any": ("a.png", data)}).json()["predictions"]
    for kind in ("image/png", "application/octet-stream"):
        (body,) = client.post("/predict", content=data, headers={"content-type": kind}).json()["predictions"]
        assert body == {**form, "path": "image 1"}


def test_where_nothing_can_be_read_the_status_says_so(client: TestClient) -> None:
    response = client.post("/predict", files={"a": ("a.png", b"nothing")})
    assert response.status_code == 422
    (prediction,) = response.json()["predictions"]
    assert prediction == {"path": "a.png", "error": "a.png is not an image that can be read"}


def test_why_is_the_picture_that_predict_draws(client: TestClient, folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(ord(name[0])))
    files = [("images", (path.name, path.read_bytes())) for path in sorted(tmp_path.glob("*.png"))]
    files.append(("images", ("text.png", b"no picture")))
    *explained, failed = client.post("/predict", params={"why": "true"}, files=files).json()["predictions"]
    assert failed.keys() == {"path", "error"}
    vit(f"predict {tmp_path}/a.png {tmp_path}/b.png -m {folders[0]} --why --out {tmp_path / 'why'}")
    for prediction in explained:
        why = prediction["why"]
        assert (why["label"], why["index"]) == (prediction["labels"][0]["label"], prediction["labels"][0]["index"])
        drawn = (tmp_path / "why" / f"{prediction['path'][0]}-why.png").read_bytes()
        assert why["picture"] == f"data:image/png;base64,{base64.b64encode(drawn).decode()}"


def test_an_onnx_file_is_not_asked_why(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/models").json()["models"][0]["explains"] is True
    monkeypatch.setattr(Reasons, "there", False)
    assert client.get("/models").json()["models"][0]["explains"] is False
    response = client.post("/predict", params={"why": "true"}, content=picture())
    assert (response.status_code, "ONNX file" in response.json()["error"]) == (400, True)


def test_a_picture_that_is_too_large_is_not_decoded(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 8001)).save(file, "PNG")
    (prediction,) = client.post("/predict", content=file.getvalue()).json()["predictions"]
    assert "more than 64 million" in prediction["error"]


def test_a_fault_of_one_request_is_told_and_is_not_the_next_ones(
    lines: dict[str, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(lines, raising=False)
    line = next(iter(lines.values()))
    for part, broken in (("_pixels", line), ("opened", None)):
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(line, part, lambda *_: 1 / 0)
            else:
                patch.setattr(line, part, replace(line.opened, compute=lambda _: 1 / 0))
            response = client.post("/predict", content=picture())
            assert (response.status_code, response.json()) == (500, {"error": "this server failed: ZeroDivisionError"})
        assert client.post("/predict", content=picture()).status_code == 200


def test_a_gpu_takes_what_waits_together(lines: dict[str, Line]) -> None:
    """Every answer goes to whom it belongs, also beside images that cannot be read."""
    line = next(iter(lines.values()))
    sizes, compute = [], line.opened.compute

    def counted(batch: Sequence[Source]) -> list[Answer]:
        sizes.append(len(batch))
        return compute(batch)

    line.opened = replace(line.opened, together=4, compute=counted)
    begun, go = held(line)
    first = line.put("first", picture(0))
    assert begun.wait(60)  # whatever comes now waits
    names = [f"{i}" for i in range(9)]
    futures = [line.put(name, b"" if name == "5" else picture(int(name))) for name in names]
    while line._ready.qsize() < len(names) - 1:
        time.sleep(0.01)
    go.set()
    answers = [future.result(60) for future in [first, *futures]]
    assert sizes == [1, 4, 4]
    assert [answer.name for answer in answers] == ["first", *names]
    assert [answer.name for answer in answers if answer.error] == ["5"]


FORM = {"content-type": "multipart/form-data; boundary=edge"}
PART = b'--edge\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("status", "words", "request_"),
    [
        (400, "no image", dict(content=b"")),
        (400, "no image", dict(content=b"--edge--\r\n", headers=FORM)),
        (400, "damaged", dict(content=b"--edge\r\n", headers={"content-type": "multipart/form-data"})),
        (400, "damaged", dict(content=b"nothing of the kind", headers=FORM)),
        (400, "cut off", dict(content=PART + picture(), headers=FORM)),
        (400, "cut off", dict(content=PART + picture() + b"\r\n" + PART, headers=FORM)),
        (400, "damaged", dict(content=b"--edge\r\nX: " + b"y" * 9999 + b"\r\n\r\n\r\n--edge--\r\n", headers=FORM)),
        (413, "fields", dict(data={f"f{i}": "x" for i in range(99)}, files={"a": picture()})),
        (413, "images", dict(files=[("a", picture()) for _ in range(5)])),
        (413, "MiB", dict(content=bytes(3 << 20))),
        (413, "MiB", dict(content=iter([bytes(1 << 20)] * 3))),
        (415, "form", dict(json={"image": "…"})),
        (404, "no model nope", dict(params={"model": "nope"}, content=picture())),
        (400, "no parameter modle", dict(params={"modle": "x"}, content=picture())),
        (400, "neither true nor false", dict(params={"why": "maybe"}, content=picture())),
        (400, "top x is not a number", dict(params={"top": "x"}, content=picture())),
        (400, "at least 1", dict(params={"top": "0"}, content=picture())),
        (400, "between 0 and 1", dict(params={"reject": "nan"}, content=picture())),
        (400, "no statistics", dict(params={"reject": "0.1", "model": "PLAIN"}, content=picture())),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_refusals_say_why(
    status: int, words: str, request_: dict[str, Any], folders: tuple[Path, Path], lines: dict[str, Line]
) -> None:
    client = client_of(lines, Limits(request_bytes=2 << 20, images=4))
    params = {
        name: str(folders[1]) if value == "PLAIN" else value for name, value in request_.get("params", {}).items()
    }
    response = client.post("/predict", **{**request_, "params": params})
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}


@pytest.mark.parametrize(
    ("local", "host", "welcome"),
    [
        (True, "localhost", True),
        (True, "LOCALHOST:8000", True),
        (True, "localhost.:8000", True),
        (True, "127.0.0.1:8000", True),
        (True, "[::1]:8000", True),
        (True, "own.example:8000", True),
        (True, "192.168.1.7:8000", False),
        (True, "rebound.example:8000", False),
        (True, "localhost.rebound.example", False),
        (True, "127.0.0.1.rebound.example", False),
        (True, "rebound.example@127.0.0.1", True),  # what a browser never sends; the host is still ours
        (True, "127.0.0.1@rebound.example", False),
        (True, "[::1", False),
        (True, "", False),
        (False, "192.168.1.7:8000", True),
        (False, "rebound.example", False),
    ],
)
def test_only_names_of_ones_own_are_answered(local: bool, host: str, welcome: bool) -> None:
    assert Access(local, frozenset({"localhost", "own.example"})).welcome(host) is welcome


def test_a_rebound_name_reaches_nothing(client: TestClient) -> None:
    for path in ("/", "/models", "/health", "/openapi.json"):
        assert client.get(path, headers={"host": "rebound.example"}).status_code == 403
    assert client.post("/predict", content=picture(), headers={"host": "rebound.example"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "http://localhost:9000"}, 403),
        ({"origin": "https://other.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
    ids=str,
)
def test_another_sites_page_makes_it_compute_nothing(headers: dict[str, str], status: int, client: TestClient) -> None:
    assert client.post("/predict", content=picture(), headers=headers).status_code == status


def test_a_token_is_asked_for_what_tells_or_computes(lines: dict[str, Line]) -> None:
    client = client_of(lines, token=TOKEN)
    for path in ("/", "/health", "/openapi.json"):
        assert client.get(path).status_code == 200
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer \u00fcber".encode("latin-1")}):
        assert client.get("/models", headers=given).status_code == 401
        assert client.post("/predict", content=picture(), headers=given).status_code == 401
    good = {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/models", headers=good).status_code == 200
    assert client.post("/predict", content=picture(), headers=good).status_code == 200


def test_every_answer_keeps_other_pages_out(client: TestClient) -> None:
    answers = [
        client.get("/"),
        client.get("/nothing"),
        client.post("/models"),
        client.post("/predict", content=b"x"),
        client.get("/", headers={"host": "rebound.example"}),
    ]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_beyond_its_bound_it_says_come_again(lines: dict[str, Line]) -> None:
    client = client_of(lines, Limits(waiting=3))
    begun, go = held(next(iter(lines.values())))
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(client.post, "/predict", content=picture()) for _ in range(3)]
        assert begun.wait(60)
        while client.get("/health").json()["waiting"] < 3:
            time.sleep(0.01)
        refused = client.post("/predict", content=picture())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        go.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
    assert client.post("/predict", content=picture()).status_code == 200


def test_bodies_together_have_a_bound_too(lines: dict[str, Line]) -> None:
    client = client_of(lines, Limits(held_bytes=10_000))
    assert client.post("/predict", content=bytes(9_000)).status_code == 422
    assert client.post("/predict", content=bytes(11_000)).status_code == 503


def test_an_answer_that_takes_too_long_frees_its_place(lines: dict[str, Line]) -> None:
    client = client_of(lines, Limits(seconds=0.2))
    _, go = held(next(iter(lines.values())))
    slow = client.post("/predict", content=picture())
    assert (slow.status_code, "too much to do" in slow.json()["error"]) == (503, True)
    assert client.get("/health").json()["waiting"] == 0
    go.set()


def test_for_who_has_left_nothing_is_computed(lines: dict[str, Line]) -> None:
    line = next(iter(lines.values()))
    computed: list[str] = []
    compute = line.opened.compute

    def counted(batch: Sequence[Source]) -> list[Answer]:
        computed.extend(source.name for source in batch)
        return compute(batch)

    line.opened = replace(line.opened, compute=counted)
    begun, go = held(line)
    first = line.put("first", picture())
    assert begun.wait(60)
    said = iter([{"type": "http.request", "body": picture(), "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(said)

    async def send(message: Any) -> None:
        pass

    path = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    asyncio.run(build_app(lines, Access(local=True))({**path, "headers": [(b"host", b"localhost")]}, receive, send))
    go.set()
    assert first.result(60).error is None
    assert line.put("last", picture()).result(60).error is None
    assert computed == ["first", "last"]


@pytest.mark.parametrize(("device", "together"), [("cpu", 1), ("cuda", 64)])
def test_only_a_gpu_computes_several_together(
    device: str, together: int, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "_open", lambda *_, **__: None)
    assert load(folders[0], engine="torch", device=device).opened().together == together


def test_a_body_that_does_not_come_is_given_up(lines: dict[str, Line]) -> None:
    app = build_app(lines, Access(local=True), Limits(seconds=0.05))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def nothing() -> Any:
        await asyncio.sleep(60)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(app(scope, nothing, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408


def _faults(schema: dict[str, Any], value: Any, whole: dict[str, Any], at: str = "") -> list[str]:
    """Where `value` is not what a JSON `schema`, of the few words that ours use, says."""
    if "$ref" in schema:
        return _faults(whole["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], value, whole, at)
    if "oneOf" in schema:
        found = [_faults(one, value, whole, at) for one in schema["oneOf"]]
        return [] if sum(not faults for faults in found) == 1 else [at]
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [at]
    kinds = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "array": list, "object": dict}
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(value is None if kind == "null" else isinstance(value, kinds[kind]) for kind in named):
        return [at]
    if isinstance(value, list):
        return [fault for i, one in enumerate(value) for fault in _faults(schema["items"], one, whole, f"{at}[{i}]")]
    if isinstance(value, dict):
        unknown = [f"{at}.{name} is not in the schema" for name in value.keys() - schema["properties"].keys()]
        missing = [f"{at}.{name} is missing" for name in schema["required"] if name not in value]
        inner = [_faults(schema["properties"][name], one, whole, f"{at}.{name}")
                 for name, one in value.items() if name in schema["properties"]]  # fmt: skip
        return unknown + missing + [fault for faults in inner for fault in faults]
    return []


def test_openapi_describes_what_is_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = {(method, path) for path, item in document["paths"].items() for method in item}
    assert operations == {("get", path) for path in ("/", "/models", "/health", "/openapi.json")} | {
        ("post", "/predict")
    }
    answers = {
        ("get", "/models"): client.get("/models"),
        ("get", "/health"): client.get("/health"),
        ("post", "/predict"): client.post(
            "/predict", content=picture(), params={"reject": 0.2, "sets": 0.9, "why": "true"}
        ),
    }
    answers_of_failure = [client.post("/predict", content=b"x"), client.post("/predict", content=b"")]
    for (method, path), answer in [*answers.items(), *((("post", "/predict"), one) for one in answers_of_failure)]:
        said = document["paths"][path][method]["responses"][str(answer.status_code)]
        schema = said["content"]["application/json"]["schema"]
        assert _faults(schema, answer.json(), document) == [], answer.text


def test_the_schemas_check_can_fail(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/Health"}
    assert _faults(schema, {"status": "ok", "waiting": 0}, document) == []
    for wrong in ({"status": "ok"}, {"status": "no", "waiting": 0}, {"status": "ok", "waiting": "0"}, [],
                  {"status": "ok", "waiting": 0, "more": 1}):  # fmt: skip
        assert _faults(schema, wrong, document)


def test_models_are_told_by_what_the_page_needs(client: TestClient, folders: tuple[Path, Path]) -> None:
    known, plain = client.get("/models").json()["models"]
    assert [known["name"], plain["name"]] == list(map(str, folders))
    assert known["examples"] == ["cat", "dog", "bird"]
    assert known["familiarity"] == {"data": "ramps", "images": 120, "strange_below": 0.01}
    assert plain["familiarity"] is None
