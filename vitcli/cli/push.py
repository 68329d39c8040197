"""`vit push`: a checkpoint to the Hub."""

from typing import Annotated

import typer

from vitcli.cli.options import DryRunOpt, JsonOpt
from vitcli.errors import UsageError
from vitcli.text import as_json

PushedArg = Annotated[str, typer.Argument(help="A folder (of a run, too), a bundled name.")]
RepoArg = Annotated[str, typer.Argument(help="Where to: org/name.")]
LicenseOpt = Annotated[
    str | None, typer.Option("--license", help="Licence of the weights, such as apache-2.0; asked for, never assumed.")
]
PrivateOpt = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
MessageOpt = Annotated[str, typer.Option("--message", help="Message of the commit.")]


def push(
    checkpoint: PushedArg,
    repo: RepoArg,
    license: LicenseOpt = None,
    private: PrivateOpt = False,
    message: MessageOpt = "",
    dry_run: DryRunOpt = False,
    json: JsonOpt = False,
) -> None:
    """Upload a checkpoint and its card to the Hugging Face Hub, in one commit.

    The token comes from HF_TOKEN or `hf auth login`. --dry-run shows files, sizes and the card.
    """
    import sys

    from vitcli.checkpoint.push import plan
    from vitcli.checkpoint.push import push as send
    from vitcli.cli import console
    from vitcli.cli.console import resolved

    source = resolved(checkpoint)
    if license is None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                "--license is missing: say under which licence the weights may be used (apache-2.0, mit, …)"
            )
        license = typer.prompt("Licence of the weights (apache-2.0, mit, cc-by-4.0, …)", err=True)
    upload = plan(source, repo, license)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    url = None if dry_run else send(source, upload, private=private, message=message)
    if json:
        files = [{"file": name, "bytes": size} for name, size in upload.files]
        print(as_json({"schema": "vit.push/1", "repo": repo, "files": files, "commit": url}))
        return
    if dry_run:
        table = console.table("file", "bytes", right=("bytes",))
        for name, size in upload.files:
            console.row(table, name, f"{size:,}")
        console.stdout().print(table)
        console.note(upload.card)
        console.note(f"dry run: nothing was sent to {repo}")
    else:
        print(url)
