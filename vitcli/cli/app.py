"""The Typer app: one command per file, assembled here, inside one error boundary.

Importing this module imports neither torch, timm nor numpy (docs/design.md, 8); each command imports what it needs
when it runs.
"""

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vitcli.cli import (
    bench,
    check,
    compare,
    convert,
    embed,
    evaluate,
    export,
    finetune,
    inspect,
    models,
    pack,
    predict,
    push,
    resize_posemb,
    runs,
    serve,
    similar,
    train,
)
from vitcli.cli.console import complain
from vitcli.cli.values import Command, read_plainly
from vitcli.errors import EXIT_CTRL_C, EXIT_FAILED, EXIT_OK, Stopped, VitError
from vitcli.text import safe


class Boundary(TyperGroup):
    """Turns what a user can act upon into one line and an exit code; anything else is a bug and keeps its traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Help, version and wrong usage are written outside of `invoke`."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            sys.exit(_refused(error))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        read_plainly(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VitError as error:
            if _debugging() and not isinstance(error, Stopped):
                raise
            complain(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            if _debugging():
                import traceback

                traceback.print_exc()  # raised again, Typer would swallow it
            complain("interrupted")
            raise typer.Exit(EXIT_CTRL_C) from None
        except OSError as error:
            raise typer.Exit(_refused(error)) from error


def _debugging() -> bool:
    return bool(os.environ.get("VIT_DEBUG"))


def _refused(error: OSError) -> int:
    """Say what the system refused, and return the exit code. An error without a reason is a bug, and raised again."""
    # `vit … | head`: the reader has what it wants.
    quiet = isinstance(error, BrokenPipeError)
    if not quiet:
        if _debugging() or (error.filename is None and error.errno is None):
            raise error
        where = f"{safe(error.filename)}: " if error.filename else ""
        closed = error.errno == errno.EBADF and error.filename is None
        complain(f"error: {'standard input or output is closed' if closed else f'{where}{error.strerror}'}")
    try:
        sys.stdout.flush()
    except OSError:  # at exit it would fail once more and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK if quiet else EXIT_FAILED


app = typer.Typer(
    name="vit",
    cls=Boundary,
    help="Vision Transformers: name what is in a picture, train your own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from vitcli import __version__

        print(f"vit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for one in (
    predict.predict,
    embed.embed,
    similar.similar,
    check.check,
    pack.pack,
    train.train,
    finetune.finetune,
    evaluate.evaluate,
    inspect.inspect,
    compare.compare,
    runs.runs,
    resize_posemb.resize_posemb,
    convert.convert,
    export.export,
    push.push,
    models.models,
    serve.serve,
    bench.bench,
):
    app.command(cls=Command)(one)
