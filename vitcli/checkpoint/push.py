"""A checkpoint on this machine → a model repository on the Hub, in one commit. Needs a network and huggingface_hub.

The token is the one of the environment (HF_TOKEN) or of `hf auth login`; it is never an argument.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcli.checkpoint.card import model_card
from vitcli.checkpoint.config import Checkpoint
from vitcli.checkpoint.familiarity import read_familiarity
from vitcli.checkpoint.hub import is_repo
from vitcli.checkpoint.layout import CONFIG_NAME, FAMILIARITY_NAME
from vitcli.checkpoint.weights import read_weights, stored_files
from vitcli.errors import CheckpointError, HubError, UsageError
from vitcli.text import safe

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}\Z")


@dataclass(frozen=True)
class Upload:
    """What a push sends: names in the repository, and bytes."""

    repo: str
    card: str
    files: tuple[tuple[str, int], ...]


def plan(checkpoint: Checkpoint, repo: str, license: str) -> Upload:
    """The upload of `checkpoint` to `repo` (org/name) under `license` (an identifier of the Hub, such as apache-2.0).

    Reads the weights, so that nothing damaged is sent. Raises UsageError and CheckpointError.
    """
    if not is_repo(repo):
        raise UsageError(f"'{safe(repo)}' is not a name on the Hub: org/name")
    if not _LICENSE.match(license):
        raise UsageError(f"'{safe(license)}' is not a licence identifier such as apache-2.0, mit or cc-by-4.0")
    if checkpoint.exported:
        raise CheckpointError(f"{safe(checkpoint.name)}: push the checkpoint it was made from")
    read_weights(checkpoint)
    read_familiarity(checkpoint)
    card = model_card(checkpoint, repo, license)
    sizes = (
        (CONFIG_NAME, checkpoint.config_path.stat().st_size),
        *((name, path.stat().st_size) for name, path in _weights(checkpoint).items()),
        ("README.md", len(card.encode())),
    )
    return Upload(repo, card, sizes)


def _weights(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of weights, and the statistics of held-out images where there are any, by their names on the Hub."""
    statistics = checkpoint.folder / FAMILIARITY_NAME
    own = {FAMILIARITY_NAME: statistics} if statistics.exists() else {}
    return {**stored_files(checkpoint.weights_path), **own}


def push(checkpoint: Checkpoint, upload: Upload, *, private: bool = False, message: str = "") -> str:
    """Send `upload`; the address of its commit. The repository is made when it is not there.

    Raises HubError in one line.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        raise HubError("no token for the Hub: set HF_TOKEN, or run `hf auth login`")
    contents: list[tuple[str, Any]] = [
        (CONFIG_NAME, checkpoint.config_path),
        *_weights(checkpoint).items(),
        ("README.md", io.BytesIO(upload.card.encode())),
    ]
    operations = [CommitOperationAdd(name, content) for name, content in contents]
    api = HfApi()
    try:
        api.create_repo(upload.repo, private=private or None, exist_ok=True)
        commit = api.create_commit(upload.repo, operations, commit_message=message or "Upload with vit")
    except HfHubHTTPError as error:
        raise HubError(f"{upload.repo}: {_reason(error)}; nothing was changed there") from error
    except httpx2.TransportError as error:
        raise HubError(f"{upload.repo}: the Hub cannot be reached: {safe(error, 200)}") from error
    except (OSError, ValueError, RuntimeError) as error:  # the last from the transfer of large files
        raise HubError(f"{upload.repo}: the upload failed: {safe(error, 200)}; nothing was changed there") from error
    return str(commit.commit_url)


def _reason(error: Any) -> str:
    status = getattr(error.response, "status_code", 0)
    known = {
        401: "the Hub does not accept the token (HF_TOKEN, or `hf auth login`)",
        403: "the token may not write there",
        404: "no such organisation or user",
    }
    return known.get(status) or safe(error.server_message or error, 200)
