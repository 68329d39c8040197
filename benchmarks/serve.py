"""`vit serve` under load, on the loopback: how long 64 connections wait, whether a request is lost, and whether memory
grows with uploads that mean harm.

python benchmarks/serve.py [MODEL] [--connections 64] [--requests 1000] [--hostile 10000]

Clients run on the same cores as the server, so the rate is a lower bound.
"""

import argparse
import http.client
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

COFFEE = Path(__file__).parents[1] / "docs" / "images" / "coffee.jpg"
SIDE = 640  # pixels of the picture that is asked about


@contextmanager
def served(model: str) -> Iterator[tuple[int, int]]:
    """The port and process of a server."""
    command = [sys.executable, "-m", "vitcli", "serve", model, "--port", "0", "--timeout", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if found := re.search(r":(\d+)/ answers", line):
                yield int(found[1]), process.pid
                break
        process.terminate()
        assert process.wait(60) == 0, "it did not end well"
    finally:
        process.kill()


def ask(connection: http.client.HTTPConnection, body: bytes, kind: str = "image/jpeg") -> int:
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    response = connection.getresponse()
    response.read()
    return response.status


def in_parallel(
    port: int, connections: int, count: int, one: Callable[[http.client.HTTPConnection, int], object]
) -> None:
    """`one` for each number below `count`, over so many connections at once."""

    def work(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for number in range(first, count, connections):
            one(connection, number)
        connection.close()

    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(work, range(connections)))


def load(port: int, connections: int, requests: int, body: bytes) -> None:
    seconds: list[float] = []
    statuses: Counter[int] = Counter()

    def one(connection: http.client.HTTPConnection, number: int) -> None:
        began = time.perf_counter()
        statuses[ask(connection, body)] += 1
        seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    in_parallel(port, connections, requests, one)
    whole = time.perf_counter() - began
    cuts = statistics.quantiles(seconds, n=100)
    print(
        f"{connections} connections, {requests} requests: {dict(statuses)}, {requests / whole:.0f} a second, "
        f"p50 {1000 * cuts[49]:.0f} ms, p99 {1000 * cuts[98]:.0f} ms"
    )


def harmful(body: bytes, number: int) -> tuple[bytes, str]:
    """One of ten kinds of upload that is not the picture `body`, another for each `number`; and its type."""
    rng = random.Random(number)
    damaged = bytearray(body)
    for _ in range(rng.randrange(1, 40)):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    noise = rng.randbytes(rng.randrange(20_000))
    form = "multipart/form-data; boundary=x"
    kinds: list[tuple[bytes, str]] = [
        (body[: rng.randrange(len(body))], "image/jpeg"),
        (bytes(damaged), "image/jpeg"),
        (BOMBS[number // 10 % len(BOMBS)], "image/png"),
        (noise, "image/png"),
        (rng.choice([b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"RIFF....WEBP", b"\xff\xd8\xff"]) + noise, "image/x"),
        (b"--x\r\n" + noise, form),
        (b"--x\r\nContent-Disposition: form-data; name=a; filename=" + b"y" * 9_999 + b"\r\n\r\n", form),
        (b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + body[:99] + b"\r\n--x--\r\n", form),
        (b"<svg/>", "image/svg+xml"),
        (b"{}", "application/json"),
    ]
    return kinds[number % len(kinds)]


def bombs() -> list[bytes]:
    """Small files of pictures that are larger than the limit, and one of nine million pixels."""
    found = []
    for width, height in ((8_000, 8_001), (60_000, 60_000), (3_000, 3_000)):
        file = io.BytesIO()
        Image.new("1", (width, min(height, 10_000))).save(file, "PNG")
        data = bytearray(file.getvalue())
        data[20:24] = height.to_bytes(4, "big")  # of the header, whose checksum follows
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        found.append(bytes(data))
    return found


BOMBS: list[bytes] = []


def memory(pid: int) -> float:
    """MiB of a process that are in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def hostile(port: int, pid: int, count: int, body: bytes) -> None:
    BOMBS[:] = bombs()
    statuses: Counter[int] = Counter()

    def one(connection: http.client.HTTPConnection, number: int) -> None:
        try:
            statuses[ask(connection, *harmful(body, number))] += 1
        except (ConnectionError, http.client.HTTPException):
            statuses[0] += 1
            connection.close()

    for part in range(5):
        began = time.perf_counter()
        in_parallel(port, 8, count // 5, lambda connection, n, part=part: one(connection, part * (count // 5) + n))  # type: ignore[misc]
        print(
            f"{(part + 1) * count // 5} hostile uploads: {memory(pid):.0f} MiB, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    print(f"answers: {dict(sorted(statuses.items()))}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="photo-vit")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--hostile", type=int, default=10_000)
    asked = parser.parse_args()
    file = io.BytesIO()
    Image.open(COFFEE).resize((SIDE, SIDE * 3 // 4)).save(file, "JPEG")
    body = file.getvalue()
    with served(asked.model) as (port, pid):
        load(port, 1, 50, body)
        load(port, asked.connections, asked.requests, body)
        if asked.hostile:
            hostile(port, pid, asked.hostile, body)
            load(port, 1, 50, body)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        print(f"and then: {json.loads(connection.getresponse().read())}")
        connection.close()


if __name__ == "__main__":
    main()
