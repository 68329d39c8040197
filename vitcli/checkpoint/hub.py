"""The Hugging Face Hub without its library: names, the cache on this machine, and whether the network may be asked.

Light: listing models and completing their names cost nothing, and huggingface_hub (0.2 s to import) comes in with
`vitcli.checkpoint.download`, only when something is downloaded. What is in the cache is never asked for. Reads no
weight but to check the digest under which the Hub stores it.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitcli import text
from vitcli.checkpoint.layout import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME
from vitcli.checkpoint.tensor_file import weight_files
from vitcli.errors import CheckpointError, HubError
from vitcli.files import OnProgress
from vitcli.privacy import our_cache
from vitcli.text import safe

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,200}\Z", re.ASCII)


# ---- names


def is_repo(name: str) -> bool:
    """Whether `name` could be a repository's, org/name."""
    return _REPO.match(name) is not None


def is_hub_name(name: str) -> bool:
    """Whether `name` could be org/name or org/name@revision."""
    return is_repo(name.partition("@")[0])


def hub_name(name: str) -> tuple[str, str]:
    """`org/name` or `org/name@revision` → repository and revision. Raises CheckpointError for what is no such name."""
    repo, _, revision = name.partition("@")
    revision = revision or "main"
    if not is_hub_name(name):
        raise CheckpointError(f"'{safe(name)}' is not a name on the Hub; those are org/name or org/name@revision")
    if not _REVISION.match(revision):
        raise CheckpointError(f"'{safe(revision)}' is not a revision: a branch, tag or commit")
    return repo, revision


# ---- the cache


@dataclass(frozen=True)
class CachedRepo:
    """A model repository in the Hub cache, at one commit, with its config and its weights."""

    repo: str  # org/name
    commit: str
    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / CONFIG_NAME

    @property
    def weights_path(self) -> Path:
        """model.safetensors, or the index of several files where the repository has that instead."""
        single, index = self.folder / WEIGHTS_NAME, self.folder / INDEX_NAME
        return index if index.is_file() and not single.is_file() else single

    @property
    def complete(self) -> bool:
        with suppress(CheckpointError):
            return all(path.is_file() for path in (self.config_path, *weight_files(self.weights_path)))
        return False


def hub_cache() -> Path:
    """The cache folder that huggingface_hub uses, by its environment variables (importing it takes 0.2 s)."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def find_cached(repo: str, revision: str = "main") -> CachedRepo | None:
    """The cached snapshot of `repo` (org/name) at `revision` (branch, tag or commit) if all is there that is needed."""
    cached = snapshot(repo, revision)
    return cached if cached.complete else None


def snapshot(repo: str, revision: str = "main") -> CachedRepo:
    """Where the cache has `repo` at `revision`, whatever is there."""
    folder = hub_cache() / ("models--" + repo.replace("/", "--"))
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision  # a commit is its own name
    return CachedRepo(repo, commit, folder / "snapshots" / commit)


def cached_repos() -> Iterator[CachedRepo]:
    """Every model in the Hub cache whose main revision is complete, by name. Opens no file but the references."""
    try:
        names = sorted(entry.name for entry in os.scandir(hub_cache()) if entry.name.startswith("models--"))
    except OSError:
        return
    for name in names:
        repo = name.removeprefix("models--").replace("--", "/")
        if repo.count("/") == 1 and (cached := find_cached(repo)):
            yield cached


def repo_of(folder: Path) -> CachedRepo | None:
    """The repository whose snapshot `folder` is, when it lies in a Hub cache."""
    parts = folder.absolute().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return CachedRepo(parts[-3].removeprefix("models--").replace("--", "/"), parts[-1], folder)
    return None


# ---- digests: large files are stored under their own SHA-256, and huggingface_hub compares sizes only


def verify_blob(path: Path, repo: str, progress: OnProgress | None = None) -> None:
    """Raises CheckpointError when the file behind the cache link `path` is not what its name says.

    The file is read once: a note in our own cache folder remembers size and time of what was found good. `progress` is
    told of the reading. Where the cache has no links (a file
    system without them) the name says nothing and nothing is checked.
    """
    blob = path.resolve()
    if len(blob.name) != 64 or not blob.is_file():
        return
    found = blob.stat()
    state = f"{found.st_size} {found.st_mtime_ns}"
    note = _notes() / blob.name
    with suppress(OSError):
        if note.read_text(encoding="ascii") == state:
            return
    with open(blob, "rb", buffering=0) as file:
        told = _Told(file, lambda done: progress and progress(path.name, done, found.st_size))
        digest = hashlib.file_digest(told, "sha256").hexdigest()  # type: ignore[arg-type]
    if digest != blob.name:
        raise CheckpointError(
            f"{safe(repo)}: {path.name} in the Hub cache is damaged (its SHA-256 is not the Hub's); fetch it again: "
            f"`hf download {safe(repo)} {path.name} --force-download`"
        )
    with suppress(OSError):  # a cache that cannot be written only means the same work next time
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(state, encoding="ascii")


class _Told:
    """A binary file that says how far it has been read."""

    def __init__(self, file: io.FileIO, tell: Callable[[int], Any]) -> None:
        self.file, self.tell, self.done = file, tell, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self.file.readinto(buffer)
        self.done += count or 0
        self.tell(self.done)
        return count or 0


def _notes() -> Path:
    return our_cache() / "verified"


# ---- the network


def require_network(repo: str, revision: str) -> None:
    """Raises HubError in one line when `repo` at `revision` may not be asked for, or could not be.

    To be called before `vitcli.checkpoint.download` is imported: some environment variables end the import of what it
    needs.
    """
    if _offline_asked():
        raise HubError(f"{missing(repo, revision)} and HF_HUB_OFFLINE is set. {command(repo, revision)}")
    _check_environment()


def missing(repo: str, revision: str) -> str:
    """The beginning of a message: which file is not here."""
    at = "" if revision == "main" else f" at revision {safe(revision)}"
    return f"{repo}: {WEIGHTS_NAME}{at} is not on this machine"


def command(repo: str, revision: str) -> str:
    """The end of a message: how to fetch the files where there is a network."""
    at = () if revision == "main" else ("--revision", revision)
    return f"With a network: `{text.command('hf', 'download', repo, CONFIG_NAME, WEIGHTS_NAME, *at)}`"


def _check_environment() -> None:
    """Raises HubError naming the environment variable with which huggingface_hub and its HTTP client would fail."""
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
