"""`vit serve` as a process: signals, connections, files that mean harm, and command lines that make no sense."""

import io
import json
import random
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("uvicorn")

from tests.helpers.checkpoints import write_tiny
from tests.helpers.process import python
from tests.helpers.serving import Running, picture, serving
from tests.helpers.terminal import invoke


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with serving(model, first="import vitcli.serve.run as run\nrun.SILENCE = 0.3") as running:
        yield running


def head(length: int, path: str = "/predict", more: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n"
        f"Connection: close\r\n{more}\r\n"
    ).encode()


def everything(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of an answer after which the connection is closed; (0, b"") where it was closed without."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            received += data
    if not received:
        return 0, b""
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), body


def sent(server: Running, data: bytes) -> tuple[int, bytes]:
    """The answer to `data`."""
    with server.connect() as connection:
        with suppress(ConnectionError):  # it has closed already, which is an answer
            connection.sendall(data)
        return everything(connection)


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_what_is_under_way(stop: signal.Signals, code: int, model: Path) -> None:
    data = picture()
    with serving(model) as server:
        with server.connect() as idle, server.connect() as connection:
            connection.sendall(head(len(data)) + data[:50])
            while _waiting(server) < 1:
                time.sleep(0.01)
            server.process.send_signal(stop)
            assert idle.recv(1) == b""  # closed: it is ending
            connection.sendall(data[50:])
            status, body = everything(connection)
        assert status == 200
        assert len(json.loads(body)["predictions"][0]["labels"]) == 3
        assert server.process.wait(30) == code
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def _waiting(server: Running) -> int:
    _, body = sent(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return int(json.loads(body)["waiting"])


@pytest.mark.parametrize("said", [b"", b"POST /predict HTTP/1.1\r\nHost: local"])
def test_silence_closes_a_connection(said: bytes, server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(said)
        assert connection.recv(1) == b""


def test_a_connection_that_was_answered_is_closed_in_silence_too(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        status, _ = everything(connection)
        assert status == 200


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says what size it has, whatever its `data`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile() -> Iterator[bytes]:
    """Whole requests that mean harm, or are by mistake what harm looks like."""
    rng = random.Random(0)
    files = [
        picture(1),
        picture(2, form="JPEG"),
        picture(3, form="WEBP"),
        picture(4, form="GIF"),
        picture(5, form="TIFF"),
    ]
    for data in files:
        yield head(len(data) // 2) + data[: len(data) // 2]  # half a file
        broken = bytearray(data)
        for _ in range(8):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        yield head(len(broken)) + bytes(broken)
    for bomb in (
        png(60_000, 60_000, zlib.compress(bytes(1 << 20))),
        png(8_000, 8_000, zlib.compress(bytes(1 << 20))),
        png(2_000_000_000, 1, b""),
        png(0, 0, b""),
    ):
        yield head(len(bomb)) + bomb
    for other in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"PK\3\4" + bytes(99), bytes(999), b"\0"):
        yield head(len(other)) + other
    frames = io.BytesIO()
    Image.new("L", (9, 9)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("L", (9, 9), i) for i in range(99)]
    )
    yield head(frames.tell()) + frames.getvalue()
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    for body in (b"--x\r\n" * 999, b"--x\r\nA: " + b"b" * 99_999, b"\r\n--" * 9_999, b"--x--", b""):
        yield (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{form}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
    yield head(5, more="X: " + "y" * 200_000 + "\r\n") + b"12345"
    yield head(5, more="".join(f"X{i}: y\r\n" for i in range(9_999))) + b"12345"
    yield head(5, path="/predict?" + "a" * 99_999) + b"12345"
    yield head(5, path="/predict?model=%00%ff&model=..%2f..%2fetc%2fpasswd") + b"12345"
    yield b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"
    yield b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    yield head(10**12)
    yield b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx"
    yield b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    yield b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield b"GET / HTTP/9.9\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400)  # TLS
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield bytes(range(256)) * 99


def test_who_leaves_in_the_middle_frees_the_place(server: Running) -> None:
    data = picture()
    for length in (0, 1, len(data) - 1):
        with server.connect() as connection:
            connection.sendall(head(len(data)) + data[:length])
            while _waiting(server) < 1:
                time.sleep(0.01)
        while _waiting(server):
            time.sleep(0.01)


def test_what_means_harm_does_none(server: Running) -> None:
    statuses = [sent(server, request)[0] for request in hostile()]
    assert len(statuses) > 35
    wrong = {status for status in statuses if status not in (0, 200, 400, 403, 404, 405, 413, 415, 422, 431)}
    assert wrong == set()
    assert {400, 413, 422} <= set(statuses)
    data = picture()
    assert sent(server, head(len(data)) + data)[0] == 200
    assert _waiting(server) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "give --token"),
        (["--host", "::"], 2, "give --token"),
        (["--token", "short"], 2, "at least 16 characters"),
        (["fashion-vit"], 2, "named twice"),
        (["--host", "no such host.example"], 1, "no such address"),
        (["--host", "192.0.2.1"], 1, "cannot be listened at"),
        (["nothing-like-it"], 1, "no checkpoint"),
        (["--port", "70000"], 2, "65535"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_said(arguments: list[str], code: int, words: str) -> None:
    result = invoke("serve", "fashion-vit", "--port", "0", *arguments)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_a_port_in_use_is_said(server: Running) -> None:
    result = invoke("serve", "fashion-vit", "--port", server.port)
    assert (result.exit_code, "in use by another program" in result.stderr) == (1, True), result.stderr


def test_without_the_extra_it_is_named() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from vitcli.__main__ import main; main()"
    result = python("-c", program, "serve", "fashion-vit", "--port", "0")
    assert (result.returncode, "pip install 'vitcli[serve]'" in result.stderr) == (1, True), result.stderr
