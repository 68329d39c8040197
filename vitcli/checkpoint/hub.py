"""When a model is not on this machine: whether the Hub may be asked, and what to tell who cannot reach it.

Light: huggingface_hub (0.2 s to import) comes in with `transfer`, only when something is downloaded. What is in the
cache is never asked for (see `layout.find_cached`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitcli.checkpoint.layout import CONFIG_NAME, WEIGHTS_NAME, CachedRepo
from vitcli.errors import HubError
from vitcli.text import safe

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
    from vitcli.checkpoint.transfer import transfer

    return transfer(repo, revision, check_config, progress)


def download_chosen(repo: str, revision: str, choose: Choose, progress: OnProgress | None = None) -> CachedRepo:
    """Fetch the files of `repo` (org/name) at `revision` that `choose` names into the Hub cache, all of one commit.

    Errors of `choose` pass through. Raises HubError in one line.
    """
    if _offline_asked():
        raise HubError(f"{missing(repo, revision)} and HF_HUB_OFFLINE is set. {command(repo, revision)}")
    from vitcli.checkpoint.transfer import transfer_chosen

    return transfer_chosen(repo, revision, choose, progress)


def missing(repo: str, revision: str) -> str:
    """The beginning of a message: which file is not here."""
    at = "" if revision == "main" else f" at revision {safe(revision)}"
    return f"{repo}: {WEIGHTS_NAME}{at} is not on this machine"


def command(repo: str, revision: str) -> str:
    """The end of a message: how to fetch the files where there is a network."""
    at = "" if revision == "main" else f" --revision {safe(revision)}"
    return f"With a network: `hf download {repo} {CONFIG_NAME} {WEIGHTS_NAME}{at}`"


def _offline_asked() -> bool:
    """Whether the user told the Hub libraries to stay off the network."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")
