"""ONNX Runtime for browsers: the three files of the npm package onnxruntime-web that a page needs, and their licence.

They come from a folder that the user names, or, only when asked, from npm's registry, in one version whose digest is
known here. Nothing of it is run.
"""

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from vitcli.errors import UsageError, VitError
from vitcli.files import open_regular
from vitcli.text import safe

VERSION = "1.30.0"
# npm's own word for the package's file: dist.integrity of the registry.
DIGEST = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
MEGABYTES = 33  # to download
MAX_BYTES = 64 << 20
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # npm's package leaves them out; that of Python has the same
NPM = "npm"
HOW = (
    f"name its folder with --runtime (`npm pack onnxruntime-web@{VERSION}`, then unpack that), or let --runtime npm "
    f"download it ({MEGABYTES} MB)"
)


def runtime_files(source: str | None) -> Mapping[str, bytes]:
    """The runtime's files by name. `source` is a folder with the npm package in it, or "npm" to download that.

    Raises UsageError where none is named, VitError where it cannot be had whole.
    """
    if source is None:
        raise UsageError(f"--to web needs onnxruntime-web, which a browser runs the model with: {HOW}")
    found = _downloaded() if source == NPM else _in_folder(Path(source))
    return found | _licences()


def _in_folder(folder: Path) -> dict[str, bytes]:
    for place in (folder, folder / "dist", folder / "package/dist", folder / "node_modules/onnxruntime-web/dist"):
        if all((place / name).is_file() for name in FILES):
            return {name: _read(place / name) for name in FILES}
    raise VitError(f"{safe(folder)}: no {FILES[0]} of onnxruntime-web there; {HOW}")


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise VitError(f"{safe(path)}: larger than {MAX_BYTES >> 20} MiB; this is not onnxruntime-web's")
    return data


def _downloaded() -> dict[str, bytes]:
    from urllib.error import URLError
    from urllib.request import urlopen

    registry = os.environ.get("npm_config_registry") or "https://registry.npmjs.org"  # noqa: SIM112
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    if not address.startswith(("https://", "http://")):
        raise VitError(f"npm_config_registry {safe(registry)}: not an address")
    try:
        with urlopen(address, timeout=60) as response:
            data = response.read(MAX_BYTES + 1)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise VitError(f"{safe(address)}: {safe(reason)}; without a network {HOW}") from error
    return unpacked(data, address)


def unpacked(data: bytes, address: str) -> dict[str, bytes]:
    """The files in npm's package, once it is known to be that. Raises VitError."""
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != DIGEST:
        raise VitError(f"{safe(address)} did not give onnxruntime-web {VERSION}: its digest is another; {HOW}")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            found[name] = member.read()
    return found


def _licences() -> dict[str, bytes]:
    found = find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    return {name: _read(Path(found.origin).parent / name) for name in LICENCES}
