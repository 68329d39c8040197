"""Download from the Hugging Face Hub: one probe with a time limit, then files pinned to the commit; errors in one line.

Imports huggingface_hub, so `hub.require_network` is asked first. Why the probe: `hf_hub_download` alone takes 23 s to
notice a refused connection and 396 s for one that swallows packets (huggingface_hub 2.4: five retries of 60 s that no
setting reaches). Knows files, not models.
"""

import io
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub import errors as hf
from tqdm import tqdm  # type: ignore[import-untyped]

from vitcli import text
from vitcli.checkpoint.hub import PROXIES, CachedRepo, command, hub_cache, missing, snapshot
from vitcli.checkpoint.layout import CONFIG_NAME, FAMILIARITY_NAME, INDEX_NAME, WEIGHTS_NAME
from vitcli.checkpoint.tensor_file import weight_files
from vitcli.errors import HubError
from vitcli.files import MAX_CONFIG_BYTES, OnProgress, read_config
from vitcli.text import safe

PROBE_SECONDS = 1.2  # with starting and importing, less than 2 s; HF_HUB_ETAG_TIMEOUT overrules it

Choose = Callable[[Path, Sequence[str]], Iterator[str]]
"""(folder where the files will lie, names at the top of the repository) → the files to fetch, each of which is there
before the next is asked for."""


class NotThereError(HubError):
    """The repository has not got the file."""


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
    metadata = _probe(repo, revision, CONFIG_NAME)
    commit: str = metadata.commit_hash
    if not commit or not metadata.etag:
        raise _not_the_hub(repo)
    _check_size(repo, CONFIG_NAME, metadata)
    config_path = _fetch(repo, revision, commit, CONFIG_NAME, progress)
    cached = CachedRepo(repo, commit, config_path.parent)
    check_config(cached)
    for file in (*_weights(cached, progress), *_statistics(cached)):
        _fetch(repo, revision, commit, file, progress)
    _remember(repo, revision, commit)
    return cached


def _weights(cached: CachedRepo, progress: OnProgress | None) -> list[str]:
    """The files of weights to fetch: model.safetensors, or those that its index names, which is then fetched."""
    try:
        _probe(cached.repo, cached.commit, WEIGHTS_NAME)
        return [WEIGHTS_NAME]
    except NotThereError:
        try:
            _check_size(cached.repo, INDEX_NAME, _probe(cached.repo, cached.commit, INDEX_NAME))
        except NotThereError:
            pass
        else:
            index = _fetch(cached.repo, cached.commit, cached.commit, INDEX_NAME, progress)
            return [path.name for path in weight_files(index)]
        raise


def _statistics(cached: CachedRepo) -> list[str]:
    """The file of statistics of held-out images, which only checkpoints of ours can have."""
    if "vit" not in read_config(cached.config_path):
        return []
    try:
        _probe(cached.repo, cached.commit, FAMILIARITY_NAME)
    except NotThereError:
        return []
    return [FAMILIARITY_NAME]


def download_chosen(repo: str, revision: str, choose: Choose, progress: OnProgress | None = None) -> CachedRepo:
    """Fetch the files of `repo` (org/name) at `revision` that `choose` names into the Hub cache, all of one commit.

    Errors of `choose` pass through. Raises HubError in one line.
    """
    api = HfApi(endpoint=_endpoint())
    info = _within_limit(
        lambda limit: api.model_info(repo, revision=revision, timeout=limit), repo, revision, "the list of its files"
    )
    commit, siblings = info.sha, info.siblings
    if not commit or siblings is None:
        raise _not_the_hub(repo)
    cached = snapshot(repo, commit)
    for file in choose(cached.folder, sorted(one.rfilename for one in siblings if "/" not in one.rfilename)):
        metadata = _probe(repo, commit, file)
        if file.endswith(".json"):
            _check_size(repo, file, metadata)
        _fetch(repo, revision, commit, file, progress)
    _remember(repo, revision, commit)
    return cached


def _check_size(repo: str, file: str, metadata: Any) -> None:
    if (metadata.size or 0) > MAX_CONFIG_BYTES:
        raise HubError(f"{repo}: a {file} of {metadata.size} bytes is not a model's config")


def _probe(repo: str, revision: str, file: str) -> Any:
    """Metadata of one file, or HubError, within the limit whatever the network does."""
    url = hf_hub_url(repo, file, revision=revision, endpoint=_endpoint())
    return _within_limit(
        lambda limit: get_hf_file_metadata(url, timeout=limit, endpoint=_endpoint()), repo, revision, file
    )


def _within_limit(ask: Callable[[float], Any], repo: str, revision: str, file: str) -> Any:
    """What `ask` gives when it is called with the seconds it may take, or HubError."""
    limit = _probe_seconds()
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(ask(limit))
        except Exception as error:  # handed over to the asking thread
            result.append(error)

    # Name look-up has no time limit of its own, so the whole request runs in a thread that may be left behind.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if not result:
        raise _no_answer(repo, revision)
    if isinstance(result[0], Exception):
        raise explain(result[0], repo, revision, file, stores=False) from None
    return result[0]


def _probe_seconds() -> float:
    value = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")  # whole seconds, as for huggingface_hub itself
    return float(value) if value.isdigit() and int(value) else PROBE_SECONDS


def _fetch(repo: str, revision: str, commit: str, file: str, progress: OnProgress | None) -> Path:
    try:
        return Path(
            hf_hub_download(
                repo,
                file,
                revision=commit,
                cache_dir=hub_cache(),
                endpoint=_endpoint(),
                tqdm_class=_bar(file, progress),
            )
        )
    except httpx2.TransportError:
        raise HubError(f"{repo}: the connection broke off while {file} was downloaded; try again") from None
    except (OSError, httpx2.HTTPError, ValueError, RuntimeError) as error:  # the last from hf_xet, a native library
        raise explain(error, repo, revision, file) from None


def explain(error: Exception, repo: str, revision: str, file: str, *, stores: bool = True) -> HubError:
    """The one line for an exception of huggingface_hub or its HTTP client; `stores` where a file was being written."""
    if isinstance(error, hf.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"https://huggingface.co/{repo}"
    if isinstance(error, hf.GatedRepoError):
        return HubError(f"{repo} is gated: accept its terms at {where}, then `hf auth login`")
    if isinstance(error, hf.RevisionNotFoundError):
        return HubError(f"{repo} has no revision '{safe(revision)}'; see {where}/tree/main for its branches")
    if isinstance(error, hf.RemoteEntryNotFoundError):
        convert = f"`{text.command('vit', 'convert', repo)}` reads other forms; see {where}/tree/main for what is there"
        if file in (WEIGHTS_NAME, INDEX_NAME):
            return NotThereError(f"{repo} has no {WEIGHTS_NAME}; pickles are not read. {convert}")
        return NotThereError(f"{repo} has no {file}, so it is not a timm or `vit` model. {convert}")
    if isinstance(error, hf.FileMetadataError):
        return _not_the_hub(repo)
    if isinstance(error, hf.HfHubHTTPError) and error.response is not None:
        return _explain_status(error.response, repo)
    if isinstance(error, httpx2.TimeoutException):
        return _no_answer(repo, revision)
    if isinstance(error, (httpx2.TransportError, hf.OfflineModeIsEnabled)):
        return HubError(_unreachable(repo, revision, safe(error) or type(error).__name__))
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return HubError(f"{repo}: {file} came with the wrong size; the download was broken off. Try again")
    if isinstance(error, ssl.SSLError):
        return HubError(
            f"{repo}: certificates cannot be read ({safe(error)}); are there any in the file that SSL_CERT_FILE names?"
        )
    if isinstance(error, OSError) and error.errno is not None and stores:
        return HubError(
            f"{repo}: {file} could not be stored in {safe(hub_cache())}: {os.strerror(error.errno)}; HF_HUB_CACHE "
            "names another place"
        )
    if isinstance(error, ImportError):  # of what a SOCKS proxy needs
        return HubError(f"{repo}: the proxy cannot be used: {safe(error)}")
    return HubError(f"{repo}: {file} could not be downloaded: {safe(error)}")


def _explain_status(response: Any, repo: str) -> HubError:
    status = response.status_code
    match status:
        case 401 if response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
            return HubError(f"{repo}: the Hub refuses your token (401); `hf auth login` again, or unset HF_TOKEN")
        case 401:
            return HubError(
                f"{repo}: no such model on the Hub, or a private one (401); `hf auth login` if it is yours. If it is "
                f"gated, accept its terms at https://huggingface.co/{repo} first"
            )
        case 403:
            return HubError(
                f"{repo}: access forbidden (403); your token may lack the permission to read it; "
                "see https://huggingface.co/settings/tokens. If the model is gated, accept its terms at "
                f"https://huggingface.co/{repo}"
            )
        case 404:
            return HubError(f"{repo}: no such model on the Hub (404); check the spelling, org/name")
        case 429:
            wait = response.headers.get("Retry-After", "")
            when = f"try again in {wait} s" if wait.isdigit() else "try again later"
            return HubError(
                f"{repo}: too many requests to the Hub (429); {when}, or `hf auth login` for a higher limit"
            )
        case _ if status >= 500:
            return HubError(f"{repo}: the Hub has a problem of its own ({status}); try again later")
    return HubError(f"{repo}: the Hub answers {status}")


def _not_the_hub(repo: str) -> HubError:
    return HubError(
        f"{repo}: something other than the Hub answered (a hotel's or company's login page?); log in with a browser, "
        "or check HF_ENDPOINT and the proxy"
    )


def _no_answer(repo: str, revision: str) -> HubError:
    waited = f"no answer in {_probe_seconds():g} s; HF_HUB_ETAG_TIMEOUT=10 waits longer"
    return HubError(_unreachable(repo, revision, waited))


def _unreachable(repo: str, revision: str, reason: str) -> str:
    proxy = next((n for n in (*PROXIES, *(n.lower() for n in PROXIES)) if os.environ.get(n)), None)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        reason += "; behind a proxy that opens connections, SSL_CERT_FILE names the file of its certificate"
    elif proxy:
        reason += f"; through the proxy that {proxy} names"
    elif os.environ.get("HF_ENDPOINT"):
        reason += f"; HF_ENDPOINT is {safe(_endpoint(), 80)}"
    return f"{missing(repo, revision)} and the Hub cannot be reached ({reason}). {command(repo, revision)}"


def _endpoint() -> str:
    # Read at each call: huggingface_hub reads it once, at import.
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _remember(repo: str, revision: str, commit: str) -> None:
    """Note which commit the branch or tag was, as huggingface_hub does when it is given the branch itself.

    We give it the commit, so that both files are of the same one. Written last: from then on the cache answers.
    """
    if revision == commit:
        return
    reference = hub_cache() / ("models--" + repo.replace("/", "--")) / "refs" / revision
    with suppress(OSError):  # a cache that cannot be written only means asking again
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="ascii")


def _bar(file: str, progress: OnProgress | None) -> type[tqdm]:
    """The bar that huggingface_hub draws, not drawn but reported to `progress`."""

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            # The Hub's newer storage (Xet) counts twice, on the wire and on the disk; only the latter adds up.
            if progress and not self.desc.endswith("downloading bytes"):
                progress(file, int(self.n), self.total)
            return shown  # type: ignore[no-any-return]

    return Bar
