"""When a model is not on this machine: whether the Hub may be asked, and what to tell who cannot reach it.

Light: huggingface_hub (0.2 s to import) comes in with `transfer`, only when something is downloaded. What is in the
cache is never asked for (see `layout.find_cached`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitcli import text
from vitcli.checkpoint.layout import CONFIG_NAME, WEIGHTS_NAME, CachedRepo
from vitcli.errors import HubError
from vitcli.text import safe

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")

OnProgress = Callable[[str, int, int | None], None]
"""Told (file name, bytes here, bytes in all or None) while a file is downloaded."""

Choose = Callable[[Path, Sequence[str]], Iterator[str]]
"""(folder where the files will lie, names at the top of the repository) → the files to fetch, each of which is there
before the next is asked for."""


def download(
    repo: str,
    revision: str,
    check_config: Callable[[CachedRepo], Any],
    progress: OnProgress | None = None,
) -> CachedRepo:
    """Fetch config and weights of `repo` (org/name) at `revision` into the Hub cache.

    `check_config` sees config.json before the weights are fetched, and may refuse; its errors pass through. Raises
    HubError in one line that names the file, the reason, and what to do.
    """
    if _offline_asked():
        raise HubError(f"{missing(repo, revision)} and HF_HUB_OFFLINE is set. {command(repo, revision)}")
    _check_environment()
    from vitcli.checkpoint.download import transfer

    return transfer(repo, revision, check_config, progress)


def download_chosen(repo: str, revision: str, choose: Choose, progress: OnProgress | None = None) -> CachedRepo:
    """Fetch the files of `repo` (org/name) at `revision` that `choose` names into the Hub cache, all of one commit.

    Errors of `choose` pass through. Raises HubError in one line.
    """
    if _offline_asked():
        raise HubError(f"{missing(repo, revision)} and HF_HUB_OFFLINE is set. {command(repo, revision)}")
    _check_environment()
    from vitcli.checkpoint.download import transfer_chosen

    return transfer_chosen(repo, revision, choose, progress)


def missing(repo: str, revision: str) -> str:
    """The beginning of a message: which file is not here."""
    at = "" if revision == "main" else f" at revision {safe(revision)}"
    return f"{repo}: {WEIGHTS_NAME}{at} is not on this machine"


def command(repo: str, revision: str) -> str:
    """The end of a message: how to fetch the files where there is a network."""
    at = () if revision == "main" else ("--revision", revision)
    return f"With a network: `{text.command('hf', 'download', repo, CONFIG_NAME, WEIGHTS_NAME, *at)}`"


def _check_environment() -> None:
    """Raises HubError naming the environment variable with which huggingface_hub and its HTTP client would fail.

    Before they are imported: some values end their import.
    """
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if (value := os.environ.get(name)) and not (value.isascii() and value.isdigit()):
            raise HubError(f"{name} is '{safe(value, 40)}'; it must be a whole number of seconds")
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and not _is_address(endpoint, ("http", "https")):
        raise HubError(f"HF_ENDPOINT is '{safe(endpoint, 80)}', which is no address such as https://huggingface.co")
    for name in (*PROXIES, *(name.lower() for name in PROXIES)):
        value = os.environ.get(name)
        address = value if not value or "://" in value else f"http://{value}"  # as the client reads it
        if address and not _is_address(address, ("http", "https", "socks5", "socks5h")):
            raise HubError(f"{name} is no address of a proxy, such as http://proxy.example.org:3128")
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not os.path.isfile(certificates):
        raise HubError(f"SSL_CERT_FILE names {safe(certificates)}, which is no file; correct or unset it")
    token = os.environ.get("HF_TOKEN", "")
    if not token.isascii():
        raise HubError("HF_TOKEN has characters that no token has; correct or unset it")


def _is_address(text: str, schemes: Sequence[str]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _offline_asked() -> bool:
    """Whether the user told the Hub libraries to stay off the network."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")
