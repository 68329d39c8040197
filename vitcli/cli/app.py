"""The Typer app: one command per file, assembled here, inside one error boundary.

Importing this module imports neither torch, timm nor numpy (docs/design.md, 8); each command imports what it needs
when it runs.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vitcli.cli import (
    check,
    compare,
    convert,
    evaluate,
    export,
    finetune,
    inspect,
    models,
    predict,
    push,
    resize_posemb,
    train,
)
from vitcli.errors import EXIT_CTRL_C, EXIT_FAILED, VitError
from vitcli.text import safe


class Boundary(TyperGroup):
    """Turns what a user can act upon into one line and an exit code; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except VitError as error:
            if os.environ.get("VIT_DEBUG"):
                raise
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            if os.environ.get("VIT_DEBUG"):
                raise
            _say("interrupted")
            raise typer.Exit(EXIT_CTRL_C) from None
        except BrokenPipeError:
            # `vit … | head`: the reader has what it wants. Nothing may be flushed into the closed pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if os.environ.get("VIT_DEBUG") or (error.filename is None and error.errno is None):
                raise
            where = f"{safe(error.filename)}: " if error.filename else ""
            _say(f"error: {where}{error.strerror}")
            raise typer.Exit(EXIT_FAILED) from error


def _say(line: str) -> None:
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"{red}{line}{plain}", file=sys.stderr)


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


app.command()(predict.predict)
app.command()(check.check)
app.command()(train.train)
app.command()(finetune.finetune)
app.command()(evaluate.evaluate)
app.command()(inspect.inspect)
app.command()(compare.compare)
app.command()(resize_posemb.resize_posemb)
app.command()(convert.convert)
app.command()(export.export)
app.command()(push.push)
app.command()(models.models)
