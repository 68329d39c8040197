"""`vit serve` in a process of its own, pictures to ask it about, and a browser."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.process import environment

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def picture(seed: int = 0, size: tuple[int, int] = (90, 70), form: str = "PNG", **more: Any) -> bytes:
    """A file of coarse noise in colours."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, form, **more)
    return file.getvalue()


@dataclass(frozen=True)
class Running:
    process: "subprocess.Popen[str]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def serving(*arguments: object, first: str = "") -> Iterator[Running]:
    """`vit serve ARGUMENTS…` at a port that is free, in a process that runs the Python `first` before."""
    program = f"import sys\n{first}\nfrom vitcli.__main__ import main\nmain()"
    command = [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = []
        while not (found := re.search(r"http://\S+:(\d+)/ answers", line := process.stderr.readline())):
            said.append(line)
            assert line, "".join(said)
        yield Running(process, int(found[1]))
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, without a window; skips the test where there is none, or nothing to drive it."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    more = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=more)
        yield found
        found.close()


@contextmanager
def watched(chromium: Any, url: str, errors: Sequence[str] = (), **options: Any) -> Iterator[Any]:
    """A page of `chromium`; fails for an error that none of `errors` is in, and for a request to another host."""
    faults: list[str] = []
    context = chromium.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(30_000)

    def said(message: Any) -> None:
        if message.type in ("error", "warning") and not any(error in message.text for error in errors):
            faults.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "blob:", "data:")):
            faults.append(f"asked for {request.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", asked)
    yield page
    context.close()
    assert not faults, faults
